#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "layout/expert_scale_rule.h"
#include "layout/quant_key.h"
#include "layout/words.h"

namespace nibble {

/// The block scales of all experts' w13 or w2, which lie with the weights: their shape, before any
/// padding, and their order.
struct ExpertBlockScales {
  int64_t experts = 0, rows = 0, groups = 0;  // [experts, rows, k/16]
  int shards = 1;  // that rows are made of: w13 with a gate has 2, everything else 1
  BlockScaleLayout layout = BlockScaleLayout::kRowMajor;
  bool operator==(const ExpertBlockScales&) const = default;
};

/// What an expert kernel is told about precision: made in one place (plan/moe_quant_config.h), read
/// by every backend. W4A16 is the *absence* of a1_gscale and a2_gscale, never a zero, a one or a
/// NaN in them.
struct MoeQuantConfig {
  QuantScheme scheme;
  SourceFormat source_format = SourceFormat::kNone;

  // Multiplied onto the fp32 accumulator. g1 has one value for w1 (gate) and one for w3 (up), which
  // may differ, unless the backend's kernels know one an expert (AlphaRule).
  std::vector<float> g1_alphas;  // [E, g1_columns()] row-major
  std::vector<float> g2_alphas;  // [E]
  int w13_shards = 2;            // 2 gated, 1 not
  /// The alphas hold weight scale * activation scale; else the weight's alone.
  bool activation_folded = false;

  // NVFP4 alone.
  std::optional<ExpertBlockScales> w13_scale, w2_scale;

  // W4A4 alone. The gscale is what an activation is multiplied with before its block scale is
  // taken: 1 / input_scale.
  std::optional<std::vector<float>> a1_gscale;  // [E, a1_columns()] row-major
  std::optional<std::vector<float>> a2_gscale;  // [E]

  // Statically quantized FP8 activations alone: their scales, as multipliers.
  std::optional<std::vector<float>> a1_scale;  // [E, shards]
  std::optional<std::vector<float>> a2_scale;  // [E]

  /// Where the backend's kernels have a slot for a scale of w2's input, [E]: 1 / a2_gscale in W4A4,
  /// ones in W4A16. No activation scale: nothing is quantized by it.
  std::optional<std::vector<float>> fc2_input_scale;

  std::optional<float> clamp_limit, alpha,
      beta;  // of the activation function; in every scheme's config

  /// What the kernel does to activations: fp4 under a1_gscale, fp8 where the scheme says so, else
  /// nothing.
  ActivationPrecision activation_precision() const {
    if (a1_gscale) return ActivationPrecision::kFp4;
    const bool fp8 = scheme.activation && scheme.activation->dtype == ScalarType::kF8E4M3;
    return fp8 ? ActivationPrecision::kFp8 : ActivationPrecision::kBf16;
  }
  bool use_w4a4() const { return a1_gscale.has_value(); }
  bool is_scale_swizzled() const {
    return w13_scale && w13_scale->layout == BlockScaleLayout::kInterleaved128x4;
  }
  /// Numbers an expert has in g1_alphas and in a1_gscale: w13_shards, or 1.
  size_t g1_columns() const { return g1_alphas.size() / g2_alphas.size(); }
  size_t a1_columns() const { return a1_gscale->size() / a2_gscale->size(); }
};

}  // namespace nibble
