#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "layout/canonical.h"
#include "layout/words.h"
#include "weights/common_alpha.h"

namespace nibble::weights {

/// How many numbers a kernel multiplies w13's accumulator by.
enum class AlphaRule : uint8_t {
  kPerShard,   // gate and up each by its own: exact whatever they are
  kPerExpert,  // one: exact only where FindCommonAlpha finds one
};

/// Under which scale a W4A4 kernel quantizes activations. Only kPerShard is the label's own number
/// where scales differ; the larger ones clip nothing but round blocks otherwise.
enum class ActivationRule : uint8_t {
  kPerShard,        // x under gate's for gate, under up's for up
  kPerExpert,       // x once an expert: the larger of gate's and up's
  kMaxOverExperts,  // x once a token: the largest of all
};

/// What a backend's kernels want of the scalar scales.
struct ExpertScaleRule {
  AlphaRule alpha = AlphaRule::kPerShard;
  ActivationRule activation = ActivationRule::kPerShard;
  bool fold_activation = false;  // W4A4: alphas hold weight scale * activation scale
  bool fc2_input_scale = false;  // has a slot for a scale of w2's input, in W4A16 as well
};

/// REFERENCE, CPU, MARLIN and HOPPER keep every number of the label apart. B12X quantizes x in the
/// kernel, once an expert, and has the fc2 slot. CUTLASS quantizes x once a token, before a grouped
/// GEMM that knows one alpha a group.
ExpertScaleRule ExpertScaleRuleOf(Backend backend);

/// The scalar scales of a layer's experts as one backend wants them. All multiply.
struct ExpertScales {
  std::vector<float> g1_alphas;  // [E, shards] or, kPerExpert, [E]; shards = 2 gated, 1 not
  std::vector<float> g2_alphas;  // [E]
  /// kPerExpert with a gate: [E], the shifts that MultiplyByPowerOfTwo owes each expert's block
  /// scales; else empty.
  std::vector<CommonAlpha> common;

  // W4A4 alone: absent in, absent out. The gscale of a kernel is the reciprocal.
  std::optional<std::vector<float>> a1_scales;  // [E, shards]; [E] unless kPerShard
  std::optional<std::vector<float>> a2_scales;  // [E]
  /// How many projections are quantized under a larger scale than their own: to be shown.
  int64_t widened = 0;

  /// Where the kernel has the slot, [E]: a2_scales, or ones that stand for "none" in W4A16. Not an
  /// activation scale: nothing is quantized by it.
  std::optional<std::vector<float>> fc2_input_scales;
};

/// The scales of `down.size()` experts; `gate` is empty where experts have none. kMaxOverExperts is
/// over what is given: give all experts of the layer, those of other devices too, and slice after.
/// Global weight scales stay fp32 multipliers of the accumulator in every rule; none is ever
/// multiplied into e4m3 block scales.
/// errors  kUnsupported (kPerExpert: no exact common alpha, naming expert and ratio; a folded alpha
///         that fp32 cannot hold),
///         kInvalidArgument (some projections have an activation scale and others none)
Result<ExpertScales> MakeExpertScales(const ExpertScaleRule& rule,
                                      std::span<const CanonicalNvfp4> gate,
                                      std::span<const CanonicalNvfp4> up,
                                      std::span<const CanonicalNvfp4> down);

}  // namespace nibble::weights
