#include "plan/ranks.h"

#include <gtest/gtest.h>

namespace nibble::plan {
namespace {

using checkpoint::ModuleKind;
using checkpoint::ModuleSpec;

checkpoint::ModelConfig Model() {
  checkpoint::ModelConfig model;
  model.n_heads = 16;
  model.n_kv_heads = 2;
  model.head_dim = 64;
  return model;
}

TEST(Ranks, EachModuleIsSharedAsUpstreamShardsIt) {
  const struct {
    const char* name;
    ModuleKind kind;
    int64_t n, k;
    int tp;
    int64_t share_n, share_k;
  } cases[] = {
      {"model.layers.3.self_attn.q_proj", ModuleKind::kLinear, 1024, 512, 4, 256, 512},
      {"model.layers.3.self_attn.k_proj", ModuleKind::kLinear, 128, 512, 2, 64, 512},
      {"model.layers.3.self_attn.v_proj", ModuleKind::kLinear, 128, 512, 8, 64, 512},
      {"model.layers.3.self_attn.o_proj", ModuleKind::kLinear, 512, 1024, 4, 512, 256},
      {"model.layers.3.linear_attn.in_proj_qkv", ModuleKind::kLinear, 2048, 512, 4, 512, 512},
      {"model.layers.3.linear_attn.out_proj", ModuleKind::kLinear, 512, 1024, 4, 512, 256},
      {"model.layers.3.mlp.shared_expert.gate_proj", ModuleKind::kLinear, 96, 512, 2, 48, 512},
      {"model.layers.3.mlp.shared_expert.down_proj", ModuleKind::kLinear, 512, 96, 2, 512, 48},
      {"model.layers.3.mlp.gate", ModuleKind::kRouter, 128, 512, 4, 128, 512},
      {"model.embed_tokens", ModuleKind::kEmbedding, 1001, 512, 4, 1001, 512},
      {"lm_head", ModuleKind::kLmHead, 1001, 512, 4, 251, 512},
  };
  for (const auto& c : cases) {
    ModuleSpec spec;
    spec.name = c.name;
    spec.kind = c.kind;
    spec.n = c.n;
    spec.k = c.k;
    const ModuleSpec share = ShareOf(spec, Model(), {c.tp, 1});
    EXPECT_EQ(share.n, c.share_n) << c.name;
    EXPECT_EQ(share.k, c.share_k) << c.name;
  }
}

TEST(Ranks, ExpertsAreDealtOutAndTheirIntermediateShared) {
  ModuleSpec spec;
  spec.name = "model.layers.3.mlp.experts";
  spec.kind = ModuleKind::kExperts;
  spec.n = spec.k = 512;
  spec.experts = 64;
  spec.moe_intermediate = 768;
  const ModuleSpec share = ShareOf(spec, Model(), {4, 8});
  EXPECT_EQ(share.experts, 8);
  EXPECT_EQ(share.moe_intermediate, 192);
  EXPECT_EQ(share.k, 512);
  EXPECT_EQ(share.n, 512);
}

TEST(Ranks, HeadsThatCannotBeDealtOutAreRefused) {
  const struct {
    int kv_heads, delta_k_heads, delta_v_heads;
    Ranks ranks;
    const char* message;  // null: fine
  } cases[] = {
      {2, 0, 0, {1, 1}, nullptr},
      {2, 0, 0, {8, 1}, nullptr},
      {4, 16, 32, {4, 64}, nullptr},
      {2, 0, 0, {3, 1}, "16 query heads cannot be shared by 3"},
      {6, 0, 0, {4, 1}, "6 key-value heads cannot be shared by 4"},
      {2, 4, 8, {8, 1}, "4 recurrent key heads cannot be shared by 8"},
      {2, 8, 20, {8, 1}, "20 recurrent value heads cannot be shared by 8"},
      {2, 0, 0, {0, 1}, "expected at least 1 each"},
      {2, 0, 0, {1, -2}, "expected at least 1 each"},
  };
  for (const auto& c : cases) {
    checkpoint::ModelConfig model = Model();
    model.n_kv_heads = c.kv_heads;
    model.delta_k_heads = c.delta_k_heads;
    model.delta_v_heads = c.delta_v_heads;
    const auto checked = CheckRanks(model, c.ranks);
    ASSERT_EQ(checked.ok(), c.message == nullptr);
    if (c.message != nullptr) {
      EXPECT_NE(checked.error().what.find(c.message), std::string::npos) << checked.error().what;
    }
  }
}

}  // namespace
}  // namespace nibble::plan
