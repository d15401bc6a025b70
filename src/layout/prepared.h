#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "layout/canonical.h"
#include "layout/cpu_tile.h"
#include "layout/hopper_tile.h"
#include "layout/moe_quant_config.h"
#include "layout/words.h"

namespace nibble {

// Weights as the kernel that the plan chose wants them. Made by weights/, read by kernels/; plain
// data that owns no storage.

/// A matrix [n, k] in a Hopper device's memory: HopperLinearLayout(n, k) of its format.
struct HopperMatrix {
  HopperFormat format = HopperFormat::kBf16;
  int64_t n = 0, k = 0;
  const uint8_t* data = nullptr;
  GroupShape group = {};          // kFp8: what shares a scale
  const float* scales = nullptr;  // by channel: [n]; by block: [ceil(n/128), ceil(k/128)]
};

/// Whose scales of x are equal: then x is quantized once for them.
enum class GscaleSharing : uint8_t { kLayer, kExpert, kNone };

/// A layer's experts in a Hopper device's memory (kernels/cuda/sm90_moe.h); no w2: they are not
/// there.
struct HopperExperts {
  HopperFormat format = HopperFormat::kNvfp4;
  const uint8_t *w13 = nullptr, *w2 = nullptr;
  const float *g1 = nullptr, *g2 = nullptr;                // NVFP4, FP8 by tensor: [E, shards], [E]
  const float *a1_gscale = nullptr, *a2_gscale = nullptr;  // W4A4: the same shapes
  const float *a1_scale = nullptr, *a2_scale = nullptr;    // static W8A8: the same shapes
  GscaleSharing sharing = GscaleSharing::kLayer;           // of a1_gscale or a1_scale
  const float *w13_scales = nullptr, *w2_scales = nullptr;  // FP8 by channel or block, as above
};

/// One weight matrix in the form its backend reads.
using PreparedWeight = std::variant<CanonicalWeight,  // REFERENCE: straight from the file
                                    PackedMatrix,     // CPU: tiles, or what they are made of
                                    HopperMatrix>;    // HOPPER

/// One linear of a fused group (q, k and v share an input; each keeps its own kernel and its own
/// scales).
struct PreparedLinearShard {
  std::string_view name;  // "model.layers.3.self_attn.q_proj"
  Backend backend = Backend::kReference;
  std::string_view kernel;  // the catalogue id, for logs and traces
  PreparedWeight weight;
  int64_t n = 0;
  float global = 1;  // the weight's one scale (NVFP4: global; FP8 per tensor); else 1
  std::optional<QuantKey> activation;  // how x is quantized; nothing: it is not
  std::optional<float> input_scale;    // of an FP4 or a static FP8 activation, and of no other
};

/// y[t, :] = the shards' outputs side by side; all read the same x[t, k].
struct PreparedLinear {
  int64_t n = 0, k = 0;
  std::vector<PreparedLinearShard> shards;
};

/// All routed experts of one layer.
struct PreparedExperts {
  std::string_view name;  // "model.layers.3.mlp.experts"
  int layer = 0;
  Backend backend = Backend::kReference;
  std::string_view kernel;
  Activation activation = Activation::kSilu;
  int64_t n_experts = 0, hidden = 0, intermediate = 0;
  bool shared = false;                         // the last one is the layer's shared expert
  std::vector<PreparedWeight> gate, up, down;  // [n_experts] each: [I,H], [I,H], [H,I]
  HopperExperts hopper;  // HOPPER's, made of those, which stay views of the file
  MoeQuantConfig quant;
};

}  // namespace nibble
