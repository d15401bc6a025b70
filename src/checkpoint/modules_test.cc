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

}  // namespace
}  // namespace nibble::checkpoint
