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

/// The one router of precision (docs/precision.md, rule 4). What a kernel is told follows from the
/// arguments alone:
///   both activation scales absent: the W4A16 config, whatever the backend; it holds no activation
///   scale of any kind.
///   both present:                  the W4A4 config, with their reciprocals as gscales.
///   one without the other:         kInvalidArgument.
/// shapes  w13_scale_2 [E, shards] and w2_scale_2 [E]: global weight scales, multipliers; a13_scale
///         [E, shards], a2_scale [E]: activation scales, multipliers; shards is 2 with a gate, else
///         1
/// errors  kInvalidArgument: lengths that do not match; a scale that is not finite or not > 0,
///         naming which Clamp limit, alpha and beta reach both configs (upstream once dropped them
///         from W4A16 and ran without the clamp).
Result<MoeQuantConfig> MakeNvfp4MoeQuantConfig(Backend backend, SourceFormat source_format,
                                               std::span<const float> w13_scale_2,
                                               std::span<const float> w2_scale_2,
                                               std::optional<std::span<const float>> a13_scale,
                                               std::optional<std::span<const float>> a2_scale,
                                               const SwigluParameters& swiglu = {});

/// 16-bit experts: alphas of 1, no scales.
MoeQuantConfig MakeBf16MoeQuantConfig(int64_t n_experts, int shards,
                                      const SwigluParameters& swiglu = {});

}  // namespace nibble::plan
