#pragma once

#include <optional>
#include <span>

#include "base/error.h"
#include "layout/moe_quant_config.h"

namespace nibble::plan {

/// The numbers of an activation function that a model's config may set.
struct SwigluParameters {
  std::optional<float> clamp_limit, alpha, beta;
};

/// One number an expert, or one an expert and half of w13.
struct ExpertScalars {
  std::span<const float> values;  // [experts, columns] row-major
  int64_t experts = 0;
  int columns = 1;
};

/// The one router of precision (docs/precision.md, rule 4). What a kernel is told follows from the
/// arguments alone:
///   both activation scales absent: MakeNvfp4W4A16MoeQuantConfig, whatever the backend.
///   both present:                  the W4A4 config, with their reciprocals as gscales.
///   one without the other:         kInvalidArgument.
/// Scales are multipliers, as weight preparation leaves them for the backend (its ExpertScaleRule;
/// weights/expert_scales.h makes them).
/// shapes  w13_scale [E, shards * I, H/16] and w2_scale [E, H, I/16], with the layout that the
///         backend reads; w13_scale_2 [E, shards], or [E, 1] where the rule has one alpha an
///         expert; w2_scale_2 [E, 1]; a13_scale [E, shards], or [E, 1] unless the rule is per
///         shard; a2_scale [E, 1]
/// errors  kInvalidArgument: a shape or layout that the backend does not read; a scale that is not
///         finite or not > 0, naming which; kUnsupported: a folded alpha that fp32 cannot hold
/// Clamp limit, alpha and beta reach both configs (upstream once dropped them from W4A16 and ran
/// without the clamp).
Result<MoeQuantConfig> MakeNvfp4MoeQuantConfig(
    Backend backend, const ExpertBlockScales& w13_scale, const ExpertBlockScales& w2_scale,
    const ExpertScalars& w13_scale_2, const ExpertScalars& w2_scale_2,
    const std::optional<ExpertScalars>& a13_scale, const std::optional<ExpertScalars>& a2_scale,
    SourceFormat source_format, const SwigluParameters& swiglu = {});

/// Weight-only NVFP4: there is no way to give it an activation scale, so it holds none of any kind.
/// shapes and errors as above
Result<MoeQuantConfig> MakeNvfp4W4A16MoeQuantConfig(
    Backend backend, const ExpertBlockScales& w13_scale, const ExpertBlockScales& w2_scale,
    const ExpertScalars& w13_scale_2, const ExpertScalars& w2_scale_2, SourceFormat source_format,
    const SwigluParameters& swiglu = {});

/// FP8 experts of one of kFp8Schemes. Weight scales of a whole tensor become alphas; those of
/// channels and blocks lie with the weights, and alphas are 1. Activation scales are present if and
/// only if the scheme quantizes activations statically.
/// shapes  w13_scale, a13_scale [experts, shards]; w2_scale, a2_scale [experts, 1]
/// errors  kInvalidArgument: another scheme; a scale that the scheme has no use for, or one that it
///         lacks; shapes; an activation scale that is not finite or not > 0, a weight scale that is
///         not finite or negative
Result<MoeQuantConfig> MakeFp8MoeQuantConfig(const QuantScheme& scheme, int64_t experts, int shards,
                                             const std::optional<ExpertScalars>& w13_scale,
                                             const std::optional<ExpertScalars>& w2_scale,
                                             const std::optional<ExpertScalars>& a13_scale,
                                             const std::optional<ExpertScalars>& a2_scale,
                                             SourceFormat source_format,
                                             const SwigluParameters& swiglu = {});

/// 16-bit experts: alphas of 1, no scales.
MoeQuantConfig MakeBf16MoeQuantConfig(int64_t experts, int shards,
                                      const SwigluParameters& swiglu = {});

}  // namespace nibble::plan
