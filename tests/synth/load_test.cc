#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/engine.h"
#include "kernels/cpu/isa.h"
#include "synth/synthesize.h"
#include "weights/model_weights.h"

// What synth makes, the loader takes whole: every tensor is used, or named as ignored or not run.

namespace nibble {
namespace {

using checkpoint::Checkpoint;

const std::string kConfigs = std::string(NIBBLE_SOURCE_DIR) + "/models/configs/";

Checkpoint Make(const std::string& name, const synth::Options& options) {
  auto parts = synth::Synthesize(kConfigs + name, options);
  NIBBLE_CHECK(parts.ok(), "synthesis failed");
  return Checkpoint::FromParts(*std::move(parts));
}

Result<weights::ModelWeights> Check(const Checkpoint& checkpoint, int draft_tokens) {
  plan::Wishes wishes;
  wishes.draft_tokens = draft_tokens;
  // REFERENCE runs every pair of keys, whatever machine this is.
  wishes.any = Backend::kReference;
  NIBBLE_TRY(const plan::Plan plan,
             plan::MakePlan(checkpoint, kernels::cpu::DescribeCpu(CpuIsa::kScalar), wishes));
  return weights::CheckWeights(checkpoint, plan);
}

TEST(SynthLoad, BothDialectsAndEveryScheme) {
  const std::optional<QuantScheme> schemes[] = {
      std::nullopt, kW4A16, kW4A4, QuantScheme{kFp8StaticTensor, kFp8StaticTensor}, kBf16Scheme};
  for (const char* name : {"qwen3-mini", "qwen3.6-mini", "qwen3.6-mini-fp8-experts"}) {
    const bool hybrid = std::string_view(name).starts_with("qwen3.6");
    for (const auto& scheme : schemes) {
      for (const SourceFormat format :
           {SourceFormat::kModelopt, SourceFormat::kCompressedTensors}) {
        synth::Options options;
        options.scheme = scheme;
        options.format = format;
        const Checkpoint checkpoint = Make(name, options);
        const auto loaded = Check(checkpoint, hybrid ? 1 : 0);
        ASSERT_TRUE(loaded.ok()) << name << " " << (scheme ? ShortName(*scheme) : "recipe") << ": "
                                 << loaded.error().Message();
        EXPECT_TRUE(loaded->unused_tensors.empty()) << loaded->unused_tensors.front();
        const bool scales_of_w4a16 = hybrid && !scheme && format == SourceFormat::kModelopt;
        EXPECT_EQ(loaded->ignored_tensors.empty(), !scales_of_w4a16) << name;
      }
    }
  }
}

TEST(SynthLoad, EveryTensorOf35B) {
  synth::Options options;
  options.vision = true;
  const Checkpoint checkpoint = Make("qwen3.6-35b-a3b", options);
  ASSERT_EQ(checkpoint.tensors().size(), 124468u);
  auto loaded = Check(checkpoint, 1);
  ASSERT_TRUE(loaded.ok()) << loaded.error().Message();
  EXPECT_EQ(loaded->unused_tensors.size(), 333u);
  for (const std::string& name : loaded->unused_tensors)
    EXPECT_TRUE(name.starts_with("model.visual.")) << name;
  // W4A16: experts, shared experts, lm_head.
  EXPECT_EQ(loaded->ignored_tensors.size(), 40u * (3 * 256 + 3) + 1);
  auto& ignored = loaded->ignored_tensors;
  for (const std::string& name : ignored) EXPECT_TRUE(name.ends_with(".input_scale")) << name;
  std::sort(ignored.begin(), ignored.end());
  EXPECT_EQ(std::adjacent_find(ignored.begin(), ignored.end()), ignored.end());
  // Without speculation the MTP module is not run, and said so.
  loaded = Check(checkpoint, 0);
  ASSERT_TRUE(loaded.ok()) << loaded.error().Message();
  EXPECT_EQ(loaded->unused_tensors.size(), 333u + 15 + 4);
}

TEST(SynthLoad, ATensorTooManyOrTooFew) {
  const auto check = [](const auto& change) {
    auto parts = synth::Synthesize(kConfigs + "qwen3.6-mini", {});
    change(&*parts);
    return Check(Checkpoint::FromParts(*std::move(parts)), 1);
  };
  const auto less = check([](auto* parts) {
    std::erase_if(parts->tensors, [](const auto& t) {
      return t.name == "model.language_model.layers.2.mlp.experts.5.up_proj.weight_scale";
    });
  });
  ASSERT_FALSE(less.ok());
  EXPECT_NE(less.error().Message().find("experts.5.up_proj.weight_scale"), std::string::npos);
  const auto more = check([](auto* parts) {
    parts->tensors.push_back(parts->tensors.front());
    parts->tensors.back().name = "model.language_model.layers.4.mlp.gate.weight";
  });
  ASSERT_FALSE(more.ok());
  EXPECT_NE(more.error().Message().find("layers.4.mlp.gate.weight"), std::string::npos);
}

/// Activations neither vanish nor explode, experts are spread, and both dialects say the same
/// model: the same tokens come out.
TEST(SynthLoad, RunsAndStaysFinite) {
  for (const char* name : {"qwen3-mini", "qwen3.6-mini", "qwen3.6-mini-fp8-experts"}) {
    std::vector<int32_t> first;
    for (const SourceFormat format : {SourceFormat::kModelopt, SourceFormat::kCompressedTensors}) {
      synth::Options options;
      options.format = format;
      engine::EngineOptions how;
      how.threads = 1;
      how.wishes.context = 64;
      how.wishes.any = Backend::kReference;
      auto engine = engine::Engine::OpenCheckpoint(Make(name, options), how);
      ASSERT_TRUE(engine.ok()) << engine.error().Message();
      engine::Request request;
      request.prompt = {1, 500, 77, 1000, 3};
      request.max_tokens = 6;
      request.ignore_eos = true;
      request.sampling.temperature = 0;
      const auto made = (*engine)->Generate(request);
      ASSERT_TRUE(made.ok()) << made.error().Message();
      double squares = 0;
      for (const float logit : made->prompt_logits) squares += static_cast<double>(logit) * logit;
      const double rms = std::sqrt(squares / static_cast<double>(made->prompt_logits.size()));
      EXPECT_TRUE(rms > 0.5 && rms < 2) << rms;  // a normalized state through a head of 1/sqrt(k)
      if (first.empty()) first = made->ids;
      EXPECT_EQ(made->ids, first) << name;
    }
  }
}

}  // namespace
}  // namespace nibble
