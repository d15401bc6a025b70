#include "engine/speculation.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble::engine {
namespace {

// ---- What a sampled round draws is distributed as without drafts.

constexpr int kVocab = 12, kDraws = 100'000;
constexpr int32_t kDraft = 3;

/// Row 0, and row 1 behind the draft: two different distributions, with the draft at 0.38 in the
/// first.
std::vector<float> Logits() {
  std::vector<float> logits;
  for (int row = 0; row < 2; ++row) {
    for (int i = 0; i < kVocab; ++i) {
      logits.push_back(row == 0 ? (i == kDraft ? 2.0f : 0.11f * static_cast<float>(i % 5))
                                : -0.3f * static_cast<float>((i * 7) % kVocab));
    }
  }
  return logits;
}

std::vector<double> Softmax(std::span<const float> logits) {
  std::vector<double> p;
  double total = 0;
  for (float v : logits) total += p.emplace_back(std::exp(static_cast<double>(v)));
  for (double& v : p) v /= total;
  return p;
}

/// The upper tail of the chi-square distribution (Wilson and Hilferty 1931): good to a few per cent
/// of itself here, and the verdicts below are far from the limit.
double PValue(const std::vector<int>& counts, const std::vector<double>& p, int draws) {
  double chi = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = p[i] * draws;
    chi += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  const double freedom = static_cast<double>(counts.size()) - 1;
  const double z =
      (std::cbrt(chi / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom));
  return 0.5 * std::erfc(z / std::sqrt(2.0));
}

Sampler SamplerOf(uint64_t seed) {
  SamplingParameters parameters;
  parameters.seed = seed;
  return Sampler(parameters, kVocab, kVocab, {});
}

/// Draws from rows of logits, which are overwritten.
std::function<Result<int32_t>(size_t)> From(Sampler& sampler, std::span<float> logits,
                                            size_t vocab = kVocab) {
  return [&sampler, logits, vocab](size_t row) {
    return sampler.Next(logits.subspan(row * vocab, vocab));
  };
}

TEST(Speculation, SampledTokensAreDistributedAsWithoutDrafts) {
  std::vector<int> first(kVocab), second(kVocab);
  int accepted = 0;
  for (int seed = 0; seed < kDraws; ++seed) {
    Sampler sampler = SamplerOf(static_cast<uint64_t>(seed));
    std::vector<float> logits = Logits();
    std::vector<int32_t> drawn;
    auto right = DrawRound({&kDraft, 1}, From(sampler, logits), [&](int32_t id) {
      drawn.push_back(id);
      return true;
    });
    ASSERT_TRUE(right.ok());
    ++first[drawn[0]];
    if (*right == 0) continue;
    ++accepted;
    ASSERT_EQ(drawn.size(), 2u);
    ++second[drawn[1]];
  }
  const auto p0 = Softmax(std::span<const float>(Logits()).first(kVocab));
  const auto p1 = Softmax(std::span<const float>(Logits()).last(kVocab));
  EXPECT_NEAR(static_cast<double>(accepted) / kDraws, p0[kDraft], 0.01);
  EXPECT_GT(p0[kDraft], 0.2);
  EXPECT_LT(p0[kDraft], 0.8);
  EXPECT_GT(PValue(first, p0, kDraws), 1e-3);
  EXPECT_GT(PValue(second, p1, accepted), 1e-3);
}

/// The same test fails a rule that accepts with probability p and else draws from the whole
/// distribution again, the draft's share included.
TEST(Speculation, DroppingTheResidualDrawIsSeen) {
  const auto p = Softmax(std::span<const float>(Logits()).first(kVocab));
  std::vector<int> counts(kVocab);
  for (int seed = 0; seed < kDraws; ++seed) {
    std::vector<float> logits = Logits();
    if (UniformAt(static_cast<uint64_t>(seed), 1000) <= p[kDraft]) {
      ++counts[kDraft];
      continue;
    }
    Sampler sampler = SamplerOf(static_cast<uint64_t>(seed));
    ++counts[*sampler.Next(std::span(logits).first(kVocab))];
  }
  EXPECT_LT(PValue(counts, p, kDraws), 1e-3);
}

TEST(Speculation, DraftsChangeNoDrawnToken) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Sampler with = SamplerOf(seed), without = SamplerOf(seed);
    std::vector<float> logits = Logits(), alone = Logits();
    std::vector<int32_t> drawn;
    ASSERT_TRUE(DrawRound({&kDraft, 1}, From(with, logits), [&](int32_t id) {
                  drawn.push_back(id);
                  return true;
                }).ok());
    for (size_t i = 0; i < drawn.size(); ++i) {
      EXPECT_EQ(drawn[i], *without.Next(std::span(alone).subspan(i * kVocab, kVocab)));
    }
  }
}

TEST(Speculation, PenaltiesCountTheDraftsBefore) {
  SamplingParameters parameters;
  parameters.temperature = 0;
  parameters.presence_penalty = 2;
  Sampler sampler(parameters, 3, 3, {});
  // Both rows prefer token 1, by less than its penalty once it has been drawn.
  std::vector<float> logits = {0, 1.5f, 0, 0, 1.5f, 1};
  const int32_t draft = 1;
  std::vector<int32_t> drawn;
  auto accepted = DrawRound({&draft, 1}, From(sampler, logits, 3), [&](int32_t id) {
    drawn.push_back(id);
    return true;
  });
  ASSERT_TRUE(accepted.ok());
  EXPECT_EQ(*accepted, 1);
  EXPECT_EQ(drawn, (std::vector<int32_t>{1, 2}));
}

TEST(Speculation, StopsWhereTheAnswerEnds) {
  Sampler sampler = SamplerOf(1);
  std::vector<float> logits = {9, 0, 0, 0, 9, 0, 0, 0, 9};
  SamplingParameters greedy;
  greedy.temperature = 0;
  Sampler first(greedy, 3, 3, {});
  const std::vector<int32_t> drafts = {0, 1};
  std::vector<int32_t> drawn;
  auto accepted = DrawRound(drafts, From(first, logits, 3), [&](int32_t id) {
    drawn.push_back(id);
    return id != 1;
  });
  ASSERT_TRUE(accepted.ok());
  EXPECT_EQ(drawn, (std::vector<int32_t>{0, 1}));
}

// ---- Statistics.

TEST(SpeculationStats, CountsByRoundAndByPosition) {
  SpeculationStats stats;
  EXPECT_EQ(stats.MeanLength(), 0);
  EXPECT_EQ(stats.AcceptanceRate(), 0);
  stats.draft_tokens = 3;
  stats.rounds = {{3, 3}, {3, 1}, {3, 0}, {1, 1}};
  EXPECT_DOUBLE_EQ(stats.MeanLength(), 9.0 / 4);
  EXPECT_DOUBLE_EQ(stats.AcceptanceRate(), 5.0 / 10);
  EXPECT_EQ(stats.PositionRates(), (std::vector<double>{3.0 / 4, 1.0 / 3, 1.0 / 3}));
}

TEST(Speculation, SyntheticRoundsHaveTheMeanLength) {
  for (const double length : {1.0, 1.5, 2.0, 3.15, 3.9, 4.0}) {
    SyntheticAcceptance synthetic(length);
    const std::vector<int32_t> drafts = {10, 11, 12};
    int64_t tokens = 0, most = 0, least = 99;
    for (int round = 0; round < 2000; ++round) {
      std::vector<int32_t> drawn;
      const auto accepted = synthetic.DrawRound(
          drafts, [](size_t row) -> Result<int32_t> { return 100 + static_cast<int32_t>(row); },
          [&](int32_t id) {
            drawn.push_back(id);
            return true;
          });
      ASSERT_TRUE(accepted.ok());
      // The drafts, and what the model says behind them.
      ASSERT_EQ(drawn.size(), static_cast<size_t>(*accepted) + 1);
      for (int i = 0; i < *accepted; ++i) EXPECT_EQ(drawn[i], drafts[i]);
      EXPECT_EQ(drawn.back(), 100 + *accepted);
      tokens += *accepted + 1;
      most = std::max<int64_t>(most, *accepted + 1);
      least = std::min<int64_t>(least, *accepted + 1);
    }
    EXPECT_NEAR(static_cast<double>(tokens) / 2000, length, 1.0 / 2000) << length;
    EXPECT_LE(most - least, 1) << length;
  }
}

TEST(Speculation, ASyntheticRoundEndsWithTheAnswer) {
  SyntheticAcceptance synthetic(4);
  const std::vector<int32_t> drafts = {10, 11, 12};
  std::vector<int32_t> drawn;
  const auto accepted = synthetic.DrawRound(
      drafts, [](size_t) -> Result<int32_t> { return 100; },
      [&](int32_t id) {
        drawn.push_back(id);
        return drawn.size() < 2;
      });
  ASSERT_TRUE(accepted.ok());
  EXPECT_EQ(*accepted, 2);
  EXPECT_EQ(drawn, (std::vector<int32_t>{10, 11}));
}

}  // namespace
}  // namespace nibble::engine
