#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/model_config.h"

namespace nibble::checkpoint {

enum class ModuleKind : uint8_t {
  kEmbedding,  // [n,k] = [V,H]
  kNorm,       // [n]
  kLinear,     // [n,k]: y = W x
  kRouter,     // [n,k] = [E,H], or a shared expert's gate [1,H]; never quantized
  kConv,       // [n,1,k]: a causal convolution's k taps a channel
  kExperts,  // `experts` times gate and up [moe_intermediate,k] and down [n,moe_intermediate]; n =
             // k = H
  kLmHead,   // [n,k] = [V,H]
};

/// "embedding", "norm", "linear", "router", "conv", "experts" or "lm_head".
std::string_view NameOf(ModuleKind kind);

/// A module that holds weights, and that the checkpoint must therefore have.
struct ModuleSpec {
  std::string name;  // as in the checkpoint: "model.layers.3.self_attn.q_proj"
  ModuleKind kind = ModuleKind::kLinear;
  int layer = -1;  // -1: outside the layers
  int64_t n = 0;   // outputs
  int64_t k = 0;   // inputs; 0 for a norm
  int experts = 0;
  int64_t moe_intermediate = 0;
  bool has_bias = false;

  bool operator==(const ModuleSpec&) const = default;
};

/// The prefix that the checkpoint's tensors have: the config's own, or the other that files of text
/// alone are seen with, where only that one's embedding is there.
std::string ResolvePrefix(const ModelConfig& config, const Checkpoint& checkpoint);

/// The modules that a config promises, in the order in which they are used; all experts of a layer
/// are one module. With `mtp` also those of the multi-token prediction module ("mtp.…", layer
/// n_layers).
std::vector<ModuleSpec> ListModules(const ModelConfig& config, bool mtp = false);

}  // namespace nibble::checkpoint
