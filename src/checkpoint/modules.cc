#include "checkpoint/modules.h"

#include <fmt/core.h>

#include <array>
#include <utility>

namespace nibble::checkpoint {
namespace {

class Lister {
 public:
  explicit Lister(const ModelConfig& config) : c_(config) {}

  std::vector<ModuleSpec> List(bool mtp) {
    prefix_ = c_.prefix;
    Add(ModuleKind::kEmbedding, "embed_tokens", c_.vocab, c_.hidden);
    for (layer_ = 0; layer_ < c_.n_layers; ++layer_) {
      const auto layer = static_cast<size_t>(layer_);
      prefix_ = fmt::format("{}layers.{}.", c_.prefix, layer_);
      Layer(c_.mixers[layer], c_.layer_is_moe[layer]);
    }
    layer_ = -1;
    prefix_ = c_.prefix;
    Add(ModuleKind::kNorm, "norm", c_.hidden, 0);
    prefix_.clear();
    if (!c_.tie_embeddings) Add(ModuleKind::kLmHead, "lm_head", c_.vocab, c_.hidden);
    if (mtp) Mtp();
    return std::move(modules_);
  }

 private:
  void Layer(Mixer mixer, bool is_moe) {
    Add(ModuleKind::kNorm, "input_layernorm", c_.hidden, 0);
    mixer == Mixer::kDeltaNet ? DeltaNet() : Attention();
    Add(ModuleKind::kNorm, "post_attention_layernorm", c_.hidden, 0);
    FeedForward(is_moe);
  }

  /// One more layer, behind the last, over an embedding and a hidden state side by side.
  void Mtp() {
    layer_ = c_.n_layers;
    prefix_ = "mtp.";
    Add(ModuleKind::kNorm, "pre_fc_norm_embedding", c_.hidden, 0);
    Add(ModuleKind::kNorm, "pre_fc_norm_hidden", c_.hidden, 0);
    Add(ModuleKind::kLinear, "fc", c_.hidden, 2 * int64_t{c_.hidden});
    prefix_ = "mtp.layers.0.";
    Layer(Mixer::kAttention, true);
    prefix_ = "mtp.";
    Add(ModuleKind::kNorm, "norm", c_.hidden, 0);
  }

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
    linear("self_attn.q_proj", c_.attention_gate ? 2 * q_width : q_width, c_.hidden);
    linear("self_attn.k_proj", kv_width, c_.hidden);
    linear("self_attn.v_proj", kv_width, c_.hidden);
    linear("self_attn.o_proj", c_.hidden, q_width);
    Add(ModuleKind::kNorm, "self_attn.q_norm", c_.head_dim, 0);
    Add(ModuleKind::kNorm, "self_attn.k_norm", c_.head_dim, 0);
  }

  void DeltaNet() {
    const int64_t values = int64_t{c_.delta_v_heads} * c_.delta_v_dim;
    Add(ModuleKind::kLinear, "linear_attn.in_proj_qkv", c_.DeltaChannels(), c_.hidden);
    Add(ModuleKind::kLinear, "linear_attn.in_proj_z", values, c_.hidden);
    Add(ModuleKind::kLinear, "linear_attn.in_proj_b", c_.delta_v_heads, c_.hidden);
    Add(ModuleKind::kLinear, "linear_attn.in_proj_a", c_.delta_v_heads, c_.hidden);
    Add(ModuleKind::kConv, "linear_attn.conv1d", c_.DeltaChannels(), c_.delta_conv);
    Add(ModuleKind::kNorm, "linear_attn.norm", c_.delta_v_dim, 0);
    Add(ModuleKind::kLinear, "linear_attn.out_proj", c_.hidden, values);
  }

  void FeedForward(bool is_moe) {
    if (is_moe) {
      Add(ModuleKind::kRouter, "mlp.gate", c_.n_experts, c_.hidden);
      ModuleSpec& experts = Add(ModuleKind::kExperts, "mlp.experts", c_.hidden, c_.hidden);
      experts.experts = c_.n_experts;
      experts.moe_intermediate = c_.moe_intermediate;
      if (c_.shared_intermediate == 0) return;
      Add(ModuleKind::kRouter, "mlp.shared_expert_gate", 1, c_.hidden);
      Add(ModuleKind::kLinear, "mlp.shared_expert.gate_proj", c_.shared_intermediate, c_.hidden);
      Add(ModuleKind::kLinear, "mlp.shared_expert.up_proj", c_.shared_intermediate, c_.hidden);
      Add(ModuleKind::kLinear, "mlp.shared_expert.down_proj", c_.hidden, c_.shared_intermediate);
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
  static constexpr std::array<std::string_view, 7> kNames = {
      "embedding", "norm", "linear", "router", "conv", "experts", "lm_head"};
  return kNames[static_cast<size_t>(kind)];
}

std::string ResolvePrefix(const ModelConfig& config, const Checkpoint& checkpoint) {
  for (const std::string& prefix :
       {config.prefix, std::string("model.language_model."), std::string("model.")}) {
    if (checkpoint.Find(prefix + "embed_tokens.weight") != nullptr) return prefix;
  }
  return config.prefix;
}

std::vector<ModuleSpec> ListModules(const ModelConfig& config, bool mtp) {
  return Lister(config).List(mtp);
}

}  // namespace nibble::checkpoint
