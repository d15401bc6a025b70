#pragma once

#include <optional>
#include <vector>

#include "layout/quant_key.h"
#include "layout/words.h"

namespace nibble {

/// What an expert kernel is told about precision: made in one place (plan/moe_quant_config.h), read
/// by every backend. W4A16 is the *absence* of a1_gscale and a2_gscale, never a zero, a one or a
/// NaN in them.
struct MoeQuantConfig {
  QuantScheme scheme;
  SourceFormat source_format = SourceFormat::kNone;

  // Per expert, multiplied onto the fp32 accumulator. g1 has one value for w1 (gate) and one for w3
  // (up): they may differ.
  std::vector<float> g1_alphas;  // [E, shards] row-major; shards = 2 gated, 1 not
  std::vector<float> g2_alphas;  // [E]
  int w13_shards = 2;

  // W4A4 alone. The gscale is what an activation is multiplied with before its block scale is
  // taken: 1 / input_scale.
  std::optional<std::vector<float>> a1_gscale;  // [E, shards]
  std::optional<std::vector<float>> a2_gscale;  // [E]

  // Statically quantized FP8 activations alone: their scales, as multipliers.
  std::optional<std::vector<float>> a1_scale;  // [E, shards]
  std::optional<std::vector<float>> a2_scale;  // [E]

  std::optional<float> clamp_limit, alpha,
      beta;  // of the activation function; in both W4A4 and W4A16 configs

  ActivationPrecision activation_precision() const {
    return a1_gscale ? ActivationPrecision::kFp4 : ActivationPrecision::kBf16;
  }
  bool use_w4a4() const { return a1_gscale.has_value(); }
};

}  // namespace nibble
