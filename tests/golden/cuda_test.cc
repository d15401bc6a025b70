// The operators on a GPU against PyTorch's float32 runs; skipped where there is none.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <iostream>

#include "engine/engine.h"
#include "engine/verify.h"
#include "kernels/cuda/cuda.h"
#include "rig.h"

namespace nibble::golden {
namespace {

class Cuda : public testing::Test {
 protected:
  void SetUp() override {
    const auto gpu = cuda::DescribeDevice();
    if (!gpu) GTEST_SKIP() << gpu.error().Message();
  }
};

std::vector<Subject> W4A16() {
  std::vector<Subject> all;
  for (const Subject& s : MiniCheckpoints()) all.push_back(s);
  for (const Subject& s : HybridCheckpoints()) all.push_back(s);
  std::erase_if(all, [](const Subject& s) { return s.w4a4 || !std::filesystem::exists(s.dir); });
  return all;
}

/// FP8 and W4A4 experts in turn, FP8 attention.
std::vector<Subject> Mixed() {
  std::vector<Subject> all;
  for (const Subject& s : HybridCheckpoints()) {
    if (s.w4a4 && std::filesystem::exists(s.dir)) all.push_back(s);
  }
  return all;
}

/// Every sure step is the reference's, but where the token's router decided by less than bf16 keeps, and
/// behind such a step: its keys and values are other ones.
void ExpectNearTies(Rig& rig, Rig& truth, const Reference& want, int p, int64_t part,
                    const std::string& name) {
  bool behind = false;
  for (const size_t step : SureStepsThatDiffer(rig, want, p, part)) {
    auto ids = want.Ints(fmt::format("p{}.ids", p));
    const auto greedy = want.Ints(fmt::format("p{}.greedy", p));
    ids.insert(ids.end(), greedy.begin(), greedy.begin() + static_cast<std::ptrdiff_t>(step));
    const double gap = NarrowestRoute(truth, ids);
    std::cout << name << " prompt " << p << " step " << step << " in parts of " << part
              << ": another token; a router's gap there is " << 100 * gap << " %"
              << (behind ? ", behind another such step\n" : "\n");
    EXPECT_TRUE(behind || gap < 0.02)
        << name << " prompt " << p << " step " << step << " in parts of " << part;
    behind = true;
  }
}

TEST_F(Cuda, W4A16IsNearTheReference) {
  for (const Subject& s : W4A16()) {
    const Reference want(s.reference);
    auto rig = Rig::OpenOnCuda(s.dir, {});
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    auto truth = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar);
    ASSERT_TRUE(truth.ok()) << truth.error().Message();
    int close = 0;
    double worst = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      const auto prompt = want.Ints(fmt::format("p{}.ids", p));
      const auto logits = (*rig)->Logits(prompt, static_cast<int64_t>(prompt.size()) - 1);
      const double error = RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p)));
      if (error > 0.008) {
        const double gap = NarrowestRoute(**truth, prompt);
        std::cout << s.name << " prompt " << p << ": relative L2 " << error
                  << "; a router's gap there is " << 100 * gap << " %\n";
        // A near tie, which bf16 decides otherwise.
        EXPECT_LT(gap, 0.01) << s.name << " prompt " << p;
        continue;
      }
      ++close;
      worst = std::max(worst, error);
      for (const int64_t part : {1024, 100, 7, 1}) {
        if (part == 1 && prompt.size() >= 64) continue;
        ExpectNearTies(**rig, **truth, want, p, part, s.name);
      }
    }
    std::cout << s.name << ": " << close << " of " << want.prompts()
              << " prompts within 0.8 %, the worst of them " << 100 * worst << " %\n";
    EXPECT_GE(close, want.prompts() * 3 / 4) << s.name;
  }
}

/// What is bf16 here between the matrix products turns FP8 and FP4 codes, so logits are only near.
TEST_F(Cuda, MixedPrecisionsAreNearestToTheirReference) {
  for (const Subject& s : Mixed()) {
    auto rig = Rig::OpenOnCuda(s.dir, {});
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    std::vector<double> own;
    const Reference want(s.reference);
    for (int p = 0; p < want.prompts(); ++p) {
      const auto ids = want.Ints(fmt::format("p{}.ids", p));
      const auto logits = (*rig)->Logits(ids, static_cast<int64_t>(ids.size()) - 1);
      own.push_back(RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p))));
      for (const Subject& other : HybridCheckpoints()) {
        const Reference its(other.reference);
        if (other.name == s.name) continue;
        EXPECT_LT(own.back(), RelativeL2(logits.back(), its.Floats(fmt::format("p{}.logits", p))))
            << other.name << " prompt " << p;
      }
    }
    std::sort(own.begin(), own.end());
    std::cout << s.name << ": relative L2 " << own.front() << " .. " << own.back() << "\n";
    EXPECT_LT(own[own.size() / 2], 0.05) << s.name;
  }
}

TEST_F(Cuda, EveryLayerRunsItsPrecision) {
  auto subjects = MiniCheckpoints();
  for (const Subject& s : TinyCheckpoints()) subjects.push_back(s);
  for (const Subject& s : Mixed()) subjects.push_back(s);
  const std::string mixed_dir =
      std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/tiny/modelopt-mixed";
  subjects.push_back({"modelopt-mixed", mixed_dir, "", true, 0, 0});
  for (const Subject& s : subjects) {
    if (!std::filesystem::exists(s.dir)) continue;
    auto rig = Rig::OpenOnCuda(s.dir, {});
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    const auto proofs = engine::VerifyExperts((*rig)->checkpoint, (*rig)->plan, (*rig)->weights,
                                              *(*rig)->device, (*rig)->pool);
    ASSERT_TRUE(proofs.ok()) << proofs.error().Message();
    EXPECT_GE(proofs->size(), static_cast<size_t>((*rig)->plan.model.n_layers));  // and the MTP's
    const bool mixed = s.name.find("mixed") != std::string::npos;
    int fp8 = 0;
    for (const engine::LayerProof& p : *proofs) {
      EXPECT_TRUE(p.agrees()) << s.name << " layer " << p.layer << " " << NameOf(p.measured);
      fp8 += p.measured == engine::Measured::kFp8;
      if (mixed) continue;
      EXPECT_EQ(NameOf(p.measured), s.w4a4 ? "fp4" : "bf16") << s.name << " layer " << p.layer;
    }
    EXPECT_EQ(fp8 > 0, mixed) << s.name;
  }
}

TEST_F(Cuda, AKeptPrefixIsThePromptsBeginning) {
  for (const Subject& s : W4A16()) {
    const auto ids = Reference(s.reference).Ints("p0.ids");
    engine::EngineOptions options;
    options.device = DeviceKind::kCuda;
    options.wishes.context = 256;
    options.wishes.sequences = 2;
    options.wishes.draft_tokens = s.name.starts_with("qwen3.6") ? 2 : 0;
    auto engine = engine::Engine::Open(s.dir, options);
    ASSERT_TRUE(engine.ok()) << engine.error().Message();
    ASSERT_GT(ids.size(), 6u);
    const std::span<const int32_t> prompt = std::span(ids).first(std::min<size_t>(ids.size(), 24));
    engine::Request whole, behind;
    whole.prompt.assign(prompt.begin(), prompt.end());
    behind.prompt.assign(prompt.end() - 3, prompt.end());
    behind.after_prefix = true;
    whole.max_tokens = behind.max_tokens = 4;
    whole.sampling.temperature = behind.sampling.temperature = 0;
    ASSERT_TRUE((*engine)->KeepPrefix(prompt.first(prompt.size() - 3)).ok());
    // In a slot that held nothing, and in one that held the same prompt and what came after it.
    const auto first = (*engine)->Generate(behind), want = (*engine)->Generate(whole),
               again = (*engine)->Generate(behind);
    ASSERT_TRUE(first.ok() && want.ok() && again.ok());
    EXPECT_LT(RelativeL2(first->prompt_logits, want->prompt_logits), 0.008) << s.name;
    EXPECT_EQ(first->prompt_logits, again->prompt_logits) << s.name;
  }
}

TEST_F(Cuda, GraphsAndRepetitionsChangeNoBit) {
  for (const Subject& s : W4A16()) {
    const auto prompt = Reference(s.reference).Ints("p6.ids");
    auto graphs = Rig::OpenOnCuda(s.dir, {}), none = Rig::OpenOnCuda(s.dir, {}, false);
    ASSERT_TRUE(graphs.ok() && none.ok());
    const auto want = (*none)->Logits(prompt, 0, 1);
    for (int i = 0; i < 4; ++i) {  // the first runs launches, the second records, the others repeat
      EXPECT_EQ((*graphs)->Logits(prompt, 0, 1), want) << s.name << " run " << i;
    }
  }
}

}  // namespace
}  // namespace nibble::golden
