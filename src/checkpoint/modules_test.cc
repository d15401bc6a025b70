#include "checkpoint/modules.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble::checkpoint {
namespace {

ModelConfig Small() {
  ModelConfig c;
  c.n_layers = 2;
  c.hidden = 64;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 32;
  c.vocab = 1000;
  c.intermediate = 96;
  c.moe_intermediate = 48;
  c.n_experts = 8;
  c.top_k = 2;
  c.layer_is_moe = {false, true};
  c.mixers = {Mixer::kAttention, Mixer::kAttention};
  c.prefix = "model.";
  return c;
}

std::string Shown(const ModuleSpec& m) {
  return fmt::format("{} {} layer={} n={} k={} experts={} moe={}{}", m.name, NameOf(m.kind),
                     m.layer, m.n, m.k, m.experts, m.moe_intermediate, m.has_bias ? " bias" : "");
}

TEST(Modules, AreListedInForwardOrder) {
  const char* const kExpected[] = {
      "model.embed_tokens embedding layer=-1 n=1000 k=64 experts=0 moe=0",
      "model.layers.0.input_layernorm norm layer=0 n=64 k=0 experts=0 moe=0",
      "model.layers.0.self_attn.q_proj linear layer=0 n=128 k=64 experts=0 moe=0",
      "model.layers.0.self_attn.k_proj linear layer=0 n=64 k=64 experts=0 moe=0",
      "model.layers.0.self_attn.v_proj linear layer=0 n=64 k=64 experts=0 moe=0",
      "model.layers.0.self_attn.o_proj linear layer=0 n=64 k=128 experts=0 moe=0",
      "model.layers.0.self_attn.q_norm norm layer=0 n=32 k=0 experts=0 moe=0",
      "model.layers.0.self_attn.k_norm norm layer=0 n=32 k=0 experts=0 moe=0",
      "model.layers.0.post_attention_layernorm norm layer=0 n=64 k=0 experts=0 moe=0",
      "model.layers.0.mlp.gate_proj linear layer=0 n=96 k=64 experts=0 moe=0",
      "model.layers.0.mlp.up_proj linear layer=0 n=96 k=64 experts=0 moe=0",
      "model.layers.0.mlp.down_proj linear layer=0 n=64 k=96 experts=0 moe=0",
      "model.layers.1.input_layernorm norm layer=1 n=64 k=0 experts=0 moe=0",
      "model.layers.1.self_attn.q_proj linear layer=1 n=128 k=64 experts=0 moe=0",
      "model.layers.1.self_attn.k_proj linear layer=1 n=64 k=64 experts=0 moe=0",
      "model.layers.1.self_attn.v_proj linear layer=1 n=64 k=64 experts=0 moe=0",
      "model.layers.1.self_attn.o_proj linear layer=1 n=64 k=128 experts=0 moe=0",
      "model.layers.1.self_attn.q_norm norm layer=1 n=32 k=0 experts=0 moe=0",
      "model.layers.1.self_attn.k_norm norm layer=1 n=32 k=0 experts=0 moe=0",
      "model.layers.1.post_attention_layernorm norm layer=1 n=64 k=0 experts=0 moe=0",
      "model.layers.1.mlp.gate router layer=1 n=8 k=64 experts=0 moe=0",
      "model.layers.1.mlp.experts experts layer=1 n=64 k=64 experts=8 moe=48",
      "model.norm norm layer=-1 n=64 k=0 experts=0 moe=0",
      "lm_head lm_head layer=-1 n=1000 k=64 experts=0 moe=0",
  };
  const auto modules = ListModules(Small());
  ASSERT_EQ(modules.size(), std::size(kExpected));
  for (size_t i = 0; i < modules.size(); ++i) EXPECT_EQ(Shown(modules[i]), kExpected[i]);
}

TEST(Modules, TiedEmbeddingsHaveNoHead) {
  ModelConfig config = Small();
  config.tie_embeddings = true;
  EXPECT_EQ(ListModules(config).back().name, "model.norm");
}

TEST(Modules, AttentionBiasIsOnTheFourProjections) {
  ModelConfig config = Small();
  config.attention_bias = true;
  int biased = 0;
  for (const ModuleSpec& m : ListModules(config)) {
    biased += m.has_bias;
    EXPECT_EQ(m.has_bias,
              m.name.find("self_attn.") != std::string::npos && m.name.ends_with("_proj"))
        << m.name;
  }
  EXPECT_EQ(biased, 8);
}

TEST(Modules, OfTheHybridFamilyAndItsMtpModule) {
  ModelConfig c = Small();
  c.family = ModelFamily::kQwen35Moe;
  c.prefix = "model.language_model.";
  c.layer_is_moe = {true, true};
  c.mixers = {Mixer::kDeltaNet, Mixer::kAttention};
  c.attention_gate = true;
  c.shared_intermediate = 80;
  c.delta_k_heads = 2;
  c.delta_v_heads = 4;
  c.delta_k_dim = 16;
  c.delta_v_dim = 24;
  c.delta_conv = 4;
  const char* const kExpected[] = {
      "model.language_model.embed_tokens embedding layer=-1 n=1000 k=64 experts=0 moe=0",
      "model.language_model.layers.0.input_layernorm norm layer=0 n=64 k=0 experts=0 moe=0",
      "model.language_model.layers.0.linear_attn.in_proj_qkv linear layer=0 n=160 k=64 experts=0 "
      "moe=0",
      "model.language_model.layers.0.linear_attn.in_proj_z linear layer=0 n=96 k=64 experts=0 "
      "moe=0",
      "model.language_model.layers.0.linear_attn.in_proj_b linear layer=0 n=4 k=64 experts=0 moe=0",
      "model.language_model.layers.0.linear_attn.in_proj_a linear layer=0 n=4 k=64 experts=0 moe=0",
      "model.language_model.layers.0.linear_attn.conv1d conv layer=0 n=160 k=4 experts=0 moe=0",
      "model.language_model.layers.0.linear_attn.norm norm layer=0 n=24 k=0 experts=0 moe=0",
      "model.language_model.layers.0.linear_attn.out_proj linear layer=0 n=64 k=96 experts=0 moe=0",
      "model.language_model.layers.0.post_attention_layernorm norm layer=0 n=64 k=0 experts=0 "
      "moe=0",
      "model.language_model.layers.0.mlp.gate router layer=0 n=8 k=64 experts=0 moe=0",
      "model.language_model.layers.0.mlp.experts experts layer=0 n=64 k=64 experts=8 moe=48",
      "model.language_model.layers.0.mlp.shared_expert_gate router layer=0 n=1 k=64 experts=0 "
      "moe=0",
      "model.language_model.layers.0.mlp.shared_expert.gate_proj linear layer=0 n=80 k=64 "
      "experts=0 moe=0",
      "model.language_model.layers.0.mlp.shared_expert.up_proj linear layer=0 n=80 k=64 experts=0 "
      "moe=0",
      "model.language_model.layers.0.mlp.shared_expert.down_proj linear layer=0 n=64 k=80 "
      "experts=0 moe=0",
      "model.language_model.layers.1.input_layernorm norm layer=1 n=64 k=0 experts=0 moe=0",
      "model.language_model.layers.1.self_attn.q_proj linear layer=1 n=256 k=64 experts=0 moe=0",
  };
  const auto modules = ListModules(c, true);
  for (size_t i = 0; i < std::size(kExpected); ++i) EXPECT_EQ(Shown(modules[i]), kExpected[i]);
  const char* const kMtp[] = {
      "lm_head lm_head layer=-1 n=1000 k=64 experts=0 moe=0",
      "mtp.pre_fc_norm_embedding norm layer=2 n=64 k=0 experts=0 moe=0",
      "mtp.pre_fc_norm_hidden norm layer=2 n=64 k=0 experts=0 moe=0",
      "mtp.fc linear layer=2 n=64 k=128 experts=0 moe=0",
      "mtp.layers.0.input_layernorm norm layer=2 n=64 k=0 experts=0 moe=0",
      "mtp.layers.0.self_attn.q_proj linear layer=2 n=256 k=64 experts=0 moe=0",
  };
  size_t head = 0;
  while (modules[head].name != "lm_head") ++head;
  for (size_t i = 0; i < std::size(kMtp); ++i) EXPECT_EQ(Shown(modules[head + i]), kMtp[i]);
  EXPECT_EQ(modules.back().name, "mtp.norm");
  EXPECT_EQ(ListModules(c).back().name, "lm_head");
}

}  // namespace
}  // namespace nibble::checkpoint
