// Backend CPU, every instruction set that this machine has, against PyTorch's float32 runs and
// against REFERENCE.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <mutex>

#include "engine/sampler.h"
#include "rig.h"

namespace nibble::golden {
namespace {

TEST(Cpu, W4A16IsWithinSixteenBitNoiseOfTheReference) {
  for (const Subject& s : MiniCheckpoints()) {
    if (!s.w4a4) ExpectCpuIsNear(s, 0.008, 1, {});
  }
}

TEST(Cpu, W4A4FollowsTheFormatsOwnRounding) {
  for (const Subject& s : MiniCheckpoints()) {
    if (!s.w4a4) continue;
    const Reference want(s.reference);
    for (CpuIsa isa : IsasHere()) {
      auto rig = Rig::Open(s.dir, {}, isa);
      ASSERT_TRUE(rig.ok()) << rig.error().Message();
      int close = 0;
      std::string errors;
      for (int p = 0; p < want.prompts(); ++p) {
        const auto prompt = want.Ints(fmt::format("p{}.ids", p));
        const auto logits = (*rig)->Logits(prompt, static_cast<int64_t>(prompt.size()) - 1);
        const double error = RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p)));
        close += error <= 0.015;
        errors += fmt::format(" {:.2f}", 100 * error);
      }
      std::cout << s.name << " " << NameOf(isa) << ": relative L2 in %" << errors << "; " << close
                << " of " << want.prompts() << " within 1.5 %\n";
      EXPECT_GE(close, want.prompts() - 3) << s.name << " " << NameOf(isa);
    }
  }
}

TEST(Cpu, ResultsDoNotDependOnTheNumberOfThreads) {
  ExpectSameOnAnyNumberOfThreads(MiniCheckpoints()[0]);
}

// ---- Layer 0's experts alone, fed the reference's own input.

/// What the other precision answers: a W4A4 checkpoint raised to 16 bits, or a W4A16 one run in
/// REFERENCE with the activation scales that calibration on this very input would give it (amax /
/// 2688, first of the input, then of what the experts make of it).
Layer0 OtherPrecision(const Subject& s, const std::vector<float>& in) {
  plan::Wishes wishes = Reference64();
  wishes.bf16_activations = s.w4a4;
  auto rig = Rig::Open(s.dir, wishes, CpuIsa::kScalar);
  EXPECT_TRUE(rig.ok());
  if (!s.w4a4) {
    double amax = 0, inner_amax = 0;
    for (float v : in) amax = std::max(amax, std::abs(static_cast<double>(v)));
    auto& quant = (*rig)->weights.layers[0].experts.quant;
    quant.a1_gscale.emplace(quant.g1_alphas.size(), static_cast<float>(2688 / amax));
    quant.a2_gscale.emplace(quant.g2_alphas.size(), 1.0f);
    std::mutex mutex;
    (*rig)->operators->Observe({{}, [&](const kernels::reference::BlockEvent& e) {
                                  if (e.projection != 2) return;
                                  std::lock_guard lock(mutex);
                                  for (double v : e.x)
                                    inner_amax = std::max(inner_amax, std::abs(v));
                                }});
    RunLayer0(**rig, in);
    (*rig)->operators->Observe({});
    quant.a2_gscale.emplace(quant.g2_alphas.size(), static_cast<float>(2688 / inner_amax));
  }
  return RunLayer0(**rig, in);
}

TEST(Cpu, Layer0ExpertsMatchTheReferenceAndNotTheOtherPrecision) {
  auto subjects = MiniCheckpoints();
  for (const Subject& s : TinyCheckpoints()) subjects.push_back(s);
  for (const Subject& s : subjects) {
    const Reference want(s.reference);
    const auto in = want.Floats("moe0_in"), out = want.Floats("moe0_out");
    const double other = RelativeL2(OtherPrecision(s, in).out, out);
    const double limit = s.w4a4 ? 1e-4 : 3e-3;
    std::vector<std::pair<std::string, Result<std::unique_ptr<Rig>>>> rigs;
    rigs.emplace_back("REFERENCE", Rig::Open(s.dir, Reference64(), CpuIsa::kScalar));
    for (CpuIsa isa : IsasHere()) rigs.emplace_back(NameOf(isa), Rig::Open(s.dir, {}, isa));
    for (auto& [name, rig] : rigs) {
      ASSERT_TRUE(rig.ok()) << rig.error().Message();
      const Layer0 got = RunLayer0(**rig, in);
      const double error = RelativeL2(got.out, out);
      EXPECT_LE(error, limit) << s.name << " " << name;
      EXPECT_GE(other, 10 * error)
          << s.name << " " << name << ": the other precision is at " << other;
      EXPECT_EQ(got.experts, want.Ints("router0_experts")) << s.name << " " << name;
      std::cout << s.name << " " << name << ": layer 0 experts relative L2 " << error
                << ", the other precision " << other << "\n";
    }
  }
}

}  // namespace
}  // namespace nibble::golden
