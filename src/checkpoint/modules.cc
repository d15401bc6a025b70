#include "checkpoint/modules.h"

#include <fmt/core.h>

#include <array>
#include <utility>

namespace nibble::checkpoint {
namespace {

class Lister {
 public:
  explicit Lister(const ModelConfig& config) : c_(config) {}

  std::vector<ModuleSpec> List() {
    Add(ModuleKind::kEmbedding, "model.embed_tokens", c_.vocab, c_.hidden);
    for (layer_ = 0; layer_ < c_.n_layers; ++layer_) {
      prefix_ = fmt::format("model.layers.{}.", layer_);
      Attention();
      Add(ModuleKind::kNorm, "post_attention_layernorm", c_.hidden, 0);
      FeedForward();
    }
    layer_ = -1;
    prefix_.clear();
    Add(ModuleKind::kNorm, "model.norm", c_.hidden, 0);
    if (!c_.tie_embeddings) Add(ModuleKind::kLmHead, "lm_head", c_.vocab, c_.hidden);
    return std::move(modules_);
  }

 private:
  ModuleSpec& Add(ModuleKind kind, std::string_view name, int64_t n, int64_t k) {
    ModuleSpec& spec = modules_.emplace_back();
    spec.name = prefix_;
    spec.name += name;
    spec.kind = kind;
    spec.layer = layer_;
    spec.n = n;
    spec.k = k;
    return spec;
  }

  void Attention() {
    const int64_t q_width = int64_t{c_.n_heads} * c_.head_dim;
    const int64_t kv_width = int64_t{c_.n_kv_heads} * c_.head_dim;
    auto linear = [&](std::string_view name, int64_t n, int64_t k) {
      Add(ModuleKind::kLinear, name, n, k).has_bias = c_.attention_bias;
    };
    Add(ModuleKind::kNorm, "input_layernorm", c_.hidden, 0);
    linear("self_attn.q_proj", q_width, c_.hidden);
    linear("self_attn.k_proj", kv_width, c_.hidden);
    linear("self_attn.v_proj", kv_width, c_.hidden);
    linear("self_attn.o_proj", c_.hidden, q_width);
    Add(ModuleKind::kNorm, "self_attn.q_norm", c_.head_dim, 0);
    Add(ModuleKind::kNorm, "self_attn.k_norm", c_.head_dim, 0);
  }

  void FeedForward() {
    if (c_.layer_is_moe[static_cast<size_t>(layer_)]) {
      Add(ModuleKind::kRouter, "mlp.gate", c_.n_experts, c_.hidden);
      ModuleSpec& experts = Add(ModuleKind::kExperts, "mlp.experts", c_.hidden, c_.hidden);
      experts.experts = c_.n_experts;
      experts.moe_intermediate = c_.moe_intermediate;
    } else {
      Add(ModuleKind::kLinear, "mlp.gate_proj", c_.intermediate, c_.hidden);
      Add(ModuleKind::kLinear, "mlp.up_proj", c_.intermediate, c_.hidden);
      Add(ModuleKind::kLinear, "mlp.down_proj", c_.hidden, c_.intermediate);
    }
  }

  const ModelConfig& c_;
  int layer_ = -1;
  std::string prefix_;
  std::vector<ModuleSpec> modules_;
};

}  // namespace

std::string_view NameOf(ModuleKind kind) {
  static constexpr std::array<std::string_view, 6> kNames = {"embedding", "norm",    "linear",
                                                             "router",    "experts", "lm_head"};
  return kNames[static_cast<size_t>(kind)];
}

std::vector<ModuleSpec> ListModules(const ModelConfig& config) { return Lister(config).List(); }

}  // namespace nibble::checkpoint
