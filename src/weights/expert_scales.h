#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "layout/canonical.h"
#include "layout/expert_scale_rule.h"
#include "layout/moe_quant_config.h"
#include "plan/moe_quant_config.h"
#include "weights/common_alpha.h"

namespace nibble::weights {

/// The scalar scales of a layer's NVFP4 experts as one backend's kernels want them; what
/// plan::MakeNvfp4MoeQuantConfig is given. All multiply; none is folded into another.
struct ExpertScales {
  std::vector<float> w13_scale_2;  // [E, shards] or, AlphaRule::kPerExpert, [E]
  std::vector<float> w2_scale_2;   // [E]
  /// kPerExpert with a gate: [E], the shifts that MultiplyByPowerOfTwo owes each expert's block
  /// scales; else empty.
  std::vector<CommonAlpha> common;

  // W4A4 alone: absent in, absent out, with no default in their place.
  std::optional<std::vector<float>> a13_scale;  // [E, shards]; [E] unless kPerShard
  std::optional<std::vector<float>> a2_scale;   // [E]
  /// How many projections are quantized under a larger scale than their own: to be shown.
  int64_t widened = 0;
};

/// The scales of `down.size()` experts; `gate` is empty where experts have none. kMaxOverExperts is
/// over what is given: give all experts of the layer, those of other devices too, and slice after.
/// Global weight scales stay fp32 multipliers of the accumulator in every rule; none is ever
/// multiplied into e4m3 block scales.
/// errors  kUnsupported (kPerExpert: no exact common alpha, naming expert and ratio),
///         kInvalidArgument (some projections have an activation scale and others none)
Result<ExpertScales> MakeExpertScales(const ExpertScaleRule& rule,
                                      std::span<const CanonicalNvfp4> gate,
                                      std::span<const CanonicalNvfp4> up,
                                      std::span<const CanonicalNvfp4> down);

/// What a layer's experts are told, and what their packer owes them.
struct ExpertQuant {
  MoeQuantConfig config;
  std::vector<CommonAlpha> common;  // as in ExpertScales
  int64_t widened = 0;              // as in ExpertScales
};

/// The one way from canonical weights to a kernel's config, for every scheme, backend and dialect:
/// canonical scales, the backend's rule, the router of precision.
/// shapes  gate, up [E] of [I, H] (gate empty where there is none), down [E] of [H, I], all of the
///         type that `scheme` says
/// errors  those of MakeExpertScales and of plan's Make…MoeQuantConfig
Result<ExpertQuant> MakeExpertQuant(Backend backend, const QuantScheme& scheme,
                                    SourceFormat source_format,
                                    std::span<const CanonicalWeight> gate,
                                    std::span<const CanonicalWeight> up,
                                    std::span<const CanonicalWeight> down,
                                    const plan::SwigluParameters& swiglu = {});

}  // namespace nibble::weights
