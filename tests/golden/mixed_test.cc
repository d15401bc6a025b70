// The two-layer checkpoint whose layers mix FP8 (attention, layer 0's experts; static scales per
// tensor) with W4A4 (layer 1's experts), against PyTorch's float32 run: what holds FP8 to its
// label without the larger checkpoints.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>

#include "engine/sampler.h"
#include "rig.h"

namespace nibble::golden {
namespace {

const Subject kMixed = {"modelopt-mixed",
                        std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/tiny/modelopt-mixed",
                        std::string(NIBBLE_SOURCE_DIR) +
                            "/tests/golden/references/tiny-modelopt-mixed.native.safetensors",
                        true};

using Rigs = std::vector<std::pair<std::string, std::unique_ptr<Rig>>>;

/// REFERENCE, and the CPU on every instruction set with these wishes.
Rigs EveryRig(const plan::Wishes& wishes) {
  Rigs out;
  const auto add = [&](std::string name, Result<std::unique_ptr<Rig>> rig) {
    EXPECT_TRUE(rig.ok()) << name << ": " << rig.error().Message();
    if (rig.ok()) out.emplace_back(std::move(name), *std::move(rig));
  };
  add("REFERENCE", Rig::Open(kMixed.dir, Reference64(), CpuIsa::kScalar));
  for (CpuIsa isa : IsasHere()) add(std::string(NameOf(isa)), Rig::Open(kMixed.dir, wishes, isa));
  return out;
}

std::vector<float> LastLogits(Rig& rig, std::span<const int32_t> ids) {
  return rig.Logits(ids, static_cast<int64_t>(ids.size()) - 1).back();
}

/// The most that noise of the size of float32's own moves the logits of each prompt, in double: the
/// noise itself where no FP8 or FP4 decision lies near its boundary, and the step of a code where
/// one does. There a float32 run proves nothing.
std::vector<double> WhatNoiseMoves(Rig& truth, const Reference& want) {
  constexpr double kNoise = 1e-6;
  constexpr uint64_t kSeeds = 12;
  NoisyOperators* operators = nullptr;
  auto noisy = Rig::Open(kMixed.dir, Reference64(), CpuIsa::kScalar,
                         [&](Backend glue, CpuIsa isa, ThreadPool& pool) {
                           auto made = std::make_unique<NoisyOperators>(glue, isa, pool, kNoise);
                           operators = made.get();
                           return made;
                         });
  EXPECT_TRUE(noisy.ok());
  std::vector<double> out(static_cast<size_t>(want.prompts()), 0);
  for (size_t p = 0; p < out.size(); ++p) {
    const auto ids = want.Ints(fmt::format("p{}.ids", p));
    const auto still = LastLogits(truth, ids);
    for (operators->seed = 1; operators->seed <= kSeeds; ++operators->seed)
      out[p] = std::max(out[p], RelativeL2(LastLogits(**noisy, ids), still));
  }
  return out;
}

/// The CPU's one rounding beside the label's is that of the head's input to bf16. With the head in
/// double nothing is left but FP8 and FP4, and float32's noise.
TEST(Mixed, LogitsAndTokensAreTheReferencesWhereNoDecisionIsNear) {
  constexpr double kLimit = 1e-5;
  const Reference want(kMixed.reference);
  ASSERT_EQ(want.prompts(), 7);
  plan::Wishes wishes;
  ASSERT_TRUE(plan::ParseMoeBackend("bf16=reference", &wishes).ok());
  const Rigs rigs = EveryRig(wishes);
  const auto noise = WhatNoiseMoves(*rigs[0].second, want);
  EXPECT_EQ(std::count_if(noise.begin(), noise.end(), [](double v) { return v <= kLimit; }), 7)
      << "a decision lies nearer to its boundary than it did";
  for (const auto& [name, rig] : rigs) {
    double worst = 0;
    int same = 0, all = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      if (noise[static_cast<size_t>(p)] > kLimit) continue;
      auto ids = want.Ints(fmt::format("p{}.ids", p));
      const auto greedy = want.Ints(fmt::format("p{}.greedy", p));
      const auto first = static_cast<int64_t>(ids.size()) - 1;
      ids.insert(ids.end(), greedy.begin(), greedy.end() - 1);
      const auto logits = rig->Logits(ids, first);
      const double error = RelativeL2(logits[0], want.Floats(fmt::format("p{}.logits", p)));
      EXPECT_LE(error, kLimit) << name << " prompt " << p;
      worst = std::max(worst, error);
      for (size_t i = 0; i < greedy.size(); ++i, ++all)
        same += engine::ArgMax(logits[i]) == greedy[i];
    }
    EXPECT_EQ(same, all) << name;
    std::cout << name << ": 7 prompts, worst relative L2 " << worst << "; " << same << " of " << all
              << " tokens\n";
  }
}

TEST(Mixed, CpuAddsTheHeadsRoundingToBf16AndNoMore) {
  const Reference want(kMixed.reference);
  for (const auto& [name, rig] : EveryRig({})) {
    double worst = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      const double error = RelativeL2(LastLogits(*rig, want.Ints(fmt::format("p{}.ids", p))),
                                      want.Floats(fmt::format("p{}.logits", p)));
      worst = std::max(worst, error);
      ExpectSureTokens(*rig, want, p, Rig::kBatch, name + " prefill");
      ExpectSureTokens(*rig, want, p, 1, name + " decode");
    }
    // Rounding to bf16 moves a number by at most 2^-9 of it.
    EXPECT_LE(worst, 2 * 0x1p-9) << name;
    std::cout << name << ": worst relative L2 " << worst << "\n";
  }
}

void LeaveActivationsIn16Bits(PreparedLinear& linear) {
  for (PreparedLinearShard& shard : linear.shards) {
    ASSERT_EQ(shard.activation, kFp8StaticTensor) << shard.name;
    shard.activation.reset();
  }
}

/// What the label does not say is far outside the limits above.
TEST(Mixed, Fp8OfAttentionShowsInTheLogits) {
  const Reference want(kMixed.reference);
  for (int layer : {0, 1}) {
    for (bool out : {false, true}) {
      auto rig = Rig::Open(kMixed.dir, Reference64(), CpuIsa::kScalar);
      ASSERT_TRUE(rig.ok()) << rig.error().Message();
      auto& attention = (*rig)->weights.layers[static_cast<size_t>(layer)].attention;
      LeaveActivationsIn16Bits(out ? attention.o : attention.qkv);
      for (int p = 0; p < want.prompts(); ++p) {
        const auto ids = want.Ints(fmt::format("p{}.ids", p));
        EXPECT_GE(RelativeL2(LastLogits(**rig, ids), want.Floats(fmt::format("p{}.logits", p))),
                  1e-3)
            << "layer " << layer << (out ? " o_proj" : " qkv_proj") << " prompt " << p;
      }
    }
  }
}

TEST(Mixed, Layer0ExpertsAreFp8AndMatchTheReference) {
  const Reference want(kMixed.reference);
  const auto in = want.Floats("moe0_in"), out = want.Floats("moe0_out");
  for (const auto& [name, rig] : EveryRig({})) {
    const Layer0 got = RunLayer0(*rig, in);
    const double error = RelativeL2(got.out, out);
    EXPECT_LE(error, name == "REFERENCE" ? 1e-5 : 1e-4) << name;
    EXPECT_EQ(got.experts, want.Ints("router0_experts")) << name;
    auto& quant = rig->weights.layers[0].experts.quant;
    ASSERT_EQ(quant.scheme.activation, kFp8StaticTensor) << name;
    quant.scheme.activation.reset();
    quant.a1_scale.reset();
    quant.a2_scale.reset();
    const double other = RelativeL2(RunLayer0(*rig, in).out, out);
    EXPECT_GE(other, 1e-2) << name << ": 16-bit activations";
    std::cout << name << ": layer 0 experts relative L2 " << error << ", with 16-bit activations "
              << other << "\n";
  }
}

}  // namespace
}  // namespace nibble::golden
