// Backend REFERENCE against PyTorch's float32 runs of the exactly dequantized checkpoints.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iostream>
#include <mutex>
#include <tuple>

#include "engine/sampler.h"
#include "numerics/nvfp4.h"
#include "rig.h"

namespace nibble::golden {
namespace {

/// Greedy tokens after a prompt: all their logits from one pass over prompt and reference tokens,
/// so one early difference does not hide the rest; equal argmaxes mean that free running gives the
/// same tokens.
int TokensEqual(Rig& rig, std::span<const int32_t> prompt, std::span<const int32_t> greedy) {
  std::vector<int32_t> ids(prompt.begin(), prompt.end());
  ids.insert(ids.end(), greedy.begin(), greedy.end() - 1);
  const auto logits = rig.Logits(ids, static_cast<int64_t>(prompt.size()) - 1);
  int equal = 0;
  while (equal < static_cast<int>(greedy.size()) && engine::ArgMax(logits[equal]) == greedy[equal])
    ++equal;
  return equal;
}

// ---- Which FP4 decision sits on a rounding boundary.

/// Where a quantized block stands in the order of the forward pass.
struct BlockKey {
  int module = 0, projection = 0;
  int64_t row = 0;
  int expert = 0;
  int64_t block = 0;
  auto Tie() const { return std::tie(module, projection, row, expert, block); }
  bool operator<(const BlockKey& o) const { return Tie() < o.Tie(); }
};

struct BlockCodes {
  Nvfp4Block codes;
  double distance =
      HUGE_VAL;  // relative, of the nearest decision in the block to its rounding boundary
};

/// The relative distance of v to the nearest midpoint between neighbours of an ascending table.
double DistanceToMidpoint(double v, std::span<const float> table) {
  double nearest = HUGE_VAL;
  for (size_t i = 0; i + 1 < table.size(); ++i) {
    const double middle = (static_cast<double>(table[i]) + table[i + 1]) / 2;
    nearest = std::min(nearest, std::abs(v - middle) / middle);
  }
  return nearest;
}

BlockCodes Judge(std::span<const double> x, double gscale) {
  BlockCodes out;
  std::span<const double, 16> block(x.data(), 16);
  out.codes = QuantizeNvfp4Block<double>(block, gscale);
  double amax = 0;
  for (double v : x) amax = std::max(amax, std::abs(v));
  out.distance = DistanceToMidpoint(gscale * amax / 6, std::span(kE4m3).first(127));
  const double scale = DecodeE4m3(out.codes.scale) / gscale;
  for (double v : x) {
    if (scale > 0)
      out.distance =
          std::min(out.distance, DistanceToMidpoint(std::abs(v) / scale, kE2m1Magnitudes));
  }
  return out;
}

std::map<std::string_view, int> OrderOf(const plan::Plan& plan) {
  std::map<std::string_view, int> order;
  for (size_t i = 0; i < plan.modules.size(); ++i)
    order[plan.modules[i].spec.name] = static_cast<int>(i);
  return order;
}

/// Every quantized block of a run over ids, by its place in the forward pass.
std::map<BlockKey, BlockCodes> CodesOf(Rig& rig, std::span<const int32_t> ids) {
  const auto order = OrderOf(rig.plan);
  std::map<BlockKey, BlockCodes> out;
  std::mutex mutex;
  rig.operators->Observe(
      {{}, [&](const kernels::reference::BlockEvent& e) {
         const BlockKey key{order.at(e.module), e.projection, e.row, e.expert, e.block};
         const BlockCodes codes = Judge(e.x, e.gscale);
         std::lock_guard lock(mutex);
         out[key] = codes;
       }});
  rig.Logits(ids, static_cast<int64_t>(ids.size()) - 1);
  rig.operators->Observe({});
  return out;
}

void Print(const Rig& rig, const char* what, const BlockKey& key, double distance) {
  std::cout << "  " << what << ": " << rig.plan.modules[key.module].spec.name << " expert "
            << key.expert << " projection " << key.projection << " token " << key.row << " block "
            << key.block << ", relative distance to its boundary " << distance << "\n";
}

// W4A4 is discontinuous. What follows finds the FP4 decision that lies so near a rounding boundary
// that float32 noise turns it: the only excuse for a prompt that differs from a float32 reference.

/// For a prompt whose logits differ: the first decision that noise turns. Its distance to the
/// boundary.
double FirstDecisionThatNoiseTurns(const Subject& s, Rig& rig, std::span<const int32_t> prompt) {
  const auto exact = CodesOf(rig, prompt);
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    auto moved = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar,
                           [&](Backend glue, CpuIsa isa, ThreadPool& pool) {
                             auto made = std::make_unique<NoisyOperators>(glue, isa, pool, 1e-6);
                             made->seed = seed;
                             return made;
                           });
    if (!moved) return HUGE_VAL;
    const auto other = CodesOf(**moved, prompt);
    for (const auto& [key, codes] : exact) {
      const auto found = other.find(key);
      const bool same = found != other.end() && found->second.codes.scale == codes.codes.scale &&
                        found->second.codes.codes == codes.codes.codes;
      if (same) continue;
      Print(rig, "first FP4 decision that float32 noise turns", key, codes.distance);
      return codes.distance;
    }
  }
  return HUGE_VAL;
}

float Margin(std::vector<float> logits) {
  std::partial_sort(logits.begin(), logits.begin() + 2, logits.end(), std::greater<>());
  return logits[0] - logits[1];
}

/// For tokens that differ: the first step whose margin is not the reference's, the decision nearest
/// to its boundary in that step's row, and proof: with that one block moved across its boundary the
/// step's margin is the reference's. Its distance.
double DecisionThatTheReferenceTookOtherwise(Rig& rig, std::span<const int32_t> prompt,
                                             std::span<const int32_t> greedy,
                                             std::span<const float> margins) {
  constexpr float kSameMargin = 1e-3f;
  std::vector<int32_t> ids(prompt.begin(), prompt.end());
  ids.insert(ids.end(), greedy.begin(), greedy.end() - 1);
  const auto logits = rig.Logits(ids, static_cast<int64_t>(prompt.size()) - 1);
  size_t step = 0;
  while (step < logits.size() && std::abs(Margin(logits[step]) - margins[step]) <= kSameMargin)
    ++step;
  if (step == 0 || step == logits.size()) return HUGE_VAL;
  ids.resize(prompt.size() + step);
  const int64_t row = static_cast<int64_t>(ids.size()) - 1;

  BlockKey nearest;
  double distance = HUGE_VAL;
  for (const auto& [key, codes] : CodesOf(rig, ids)) {
    if (key.row == row && codes.distance < distance) {
      distance = codes.distance;
      nearest = key;
    }
  }
  Print(rig, "FP4 decision that the reference took otherwise", nearest, distance);
  const auto order = OrderOf(rig.plan);
  for (const double factor : {1 - 4 * distance, 1 + 4 * distance}) {
    rig.operators->Observe({{}, [&](const kernels::reference::BlockEvent& e) {
                              // Gate and up of every chosen expert quantize the same input.
                              const bool same_input = e.projection < 2 ? nearest.projection < 2
                                                                       : e.expert == nearest.expert;
                              const bool same = order.at(e.module) == nearest.module &&
                                                e.row == nearest.row && e.block == nearest.block &&
                                                same_input;
                              if (!same) return;
                              for (double& v : e.x) v *= factor;
                            }});
    const float moved = Margin(rig.Logits(ids, row).back());
    rig.operators->Observe({});
    std::cout << "  with it turned, margin " << moved << " for the reference's " << margins[step]
              << " (before: " << Margin(logits[step]) << ")\n";
    if (std::abs(moved - margins[step]) <= kSameMargin) return distance;
  }
  return HUGE_VAL;
}

TEST(Reference, LargerCheckpoints) {
  if (TestData().empty())
    GTEST_SKIP() << "NIBBLE_TEST_DATA is not set: three of the four mini checkpoints and their "
                    "long prompts are skipped";
  EXPECT_EQ(MiniCheckpoints().size(), 4u);
  for (const Subject& s : MiniCheckpoints())
    EXPECT_EQ(Reference(s.reference).prompts(), 8) << s.reference;
}

TEST(Reference, W4A16PromptLogitsAndEveryGreedyToken) {
  auto subjects = MiniCheckpoints();
  for (const Subject& s : TinyCheckpoints()) subjects.push_back(s);
  for (const Subject& s : subjects) {
    if (s.w4a4) continue;
    const Reference want(s.reference);
    ASSERT_GE(want.prompts(), 7) << s.reference;
    auto rig = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar);
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    double worst = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      const auto prompt = want.Ints(fmt::format("p{}.ids", p)),
                 greedy = want.Ints(fmt::format("p{}.greedy", p));
      const auto logits = (*rig)->Logits(prompt, static_cast<int64_t>(prompt.size()) - 1);
      const double error = RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p)));
      worst = std::max(worst, error);
      EXPECT_LE(error, 1e-5) << s.name << " prompt " << p;
      EXPECT_EQ(TokensEqual(**rig, prompt, greedy), static_cast<int>(greedy.size()))
          << s.name << " prompt " << p;
    }
    std::cout << s.name << ": " << want.prompts() << " prompts, worst relative L2 " << worst
              << "\n";
  }
}

TEST(Reference, W4A4PromptLogitsTokensAndTheBoundaryBehindEveryDifference) {
  auto subjects = MiniCheckpoints();
  for (const Subject& s : TinyCheckpoints()) subjects.push_back(s);
  for (const Subject& s : subjects) {
    if (!s.w4a4) continue;
    const Reference want(s.reference);
    auto rig = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar);
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    int close = 0, same = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      const auto prompt = want.Ints(fmt::format("p{}.ids", p)),
                 greedy = want.Ints(fmt::format("p{}.greedy", p));
      const auto logits = (*rig)->Logits(prompt, static_cast<int64_t>(prompt.size()) - 1);
      const double error = RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p)));
      const int equal = TokensEqual(**rig, prompt, greedy);
      close += error <= 1e-4;
      same += equal == static_cast<int>(greedy.size());
      if (error <= 1e-4 && equal == static_cast<int>(greedy.size())) continue;
      std::cout << s.name << " prompt " << p << ": relative L2 " << error << ", " << equal << " of "
                << greedy.size() << " tokens\n";
      const double distance =
          error > 1e-4 ? FirstDecisionThatNoiseTurns(s, **rig, prompt)
                       : DecisionThatTheReferenceTookOtherwise(
                             **rig, prompt, greedy, want.Floats(fmt::format("p{}.margin", p)));
      EXPECT_LE(distance, 1e-5) << s.name << " prompt " << p;
    }
    std::cout << s.name << ": logits within 1e-4 on " << close << ", tokens identical on " << same
              << " of " << want.prompts() << "\n";
    EXPECT_GE(close, want.prompts() - 2) << s.name;
    EXPECT_GE(same, want.prompts() - 3) << s.name;
  }
}

}  // namespace
}  // namespace nibble::golden
