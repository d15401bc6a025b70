#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <random>

namespace nibble::engine {
namespace {

SamplingParameters Greedy() {
  SamplingParameters p;
  p.temperature = 0;
  return p;
}

int32_t One(const SamplingParameters& p, std::vector<float> logits,
            std::vector<int32_t> prompt = {}) {
  Sampler sampler(p, static_cast<int64_t>(logits.size()), static_cast<int64_t>(logits.size()),
                  prompt);
  auto id = sampler.Next(logits);
  EXPECT_TRUE(id.ok());
  return id ? *id : -1;
}

TEST(Sampler, GreedyTakesTheLowestIdOfEqualLogits) {
  EXPECT_EQ(One(Greedy(), {1, 3, 2, 3}), 1);
  EXPECT_EQ(One(Greedy(), {-5, -5, -5}), 0);
}

TEST(Sampler, NeverDrawsThePaddingOfTheVocabulary) {
  Sampler greedy(Greedy(), 4, 2, {});
  std::vector<float> logits = {0, 1, 50, 60};
  EXPECT_EQ(*greedy.Next(logits), 1);
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    Sampler sampler(Greedy(), 3, 3, {});
    std::vector<float> logits = {0, bad, 1};
    auto id = sampler.Next(logits);
    ASSERT_FALSE(id.ok());
    EXPECT_EQ(id.error().code, ErrorCode::kInternal);
  }
}

TEST(Sampler, RepetitionDividesPositiveAndMultipliesNegativeLogitsOfPromptAndOutput) {
  SamplingParameters p = Greedy();
  p.repetition_penalty = 2;
  EXPECT_EQ(One(p, {3.0f, 2.0f}, {0}), 1) << "3/2 < 2";
  EXPECT_EQ(One(p, {-2.0f, -3.0f}, {0}), 1) << "-2*2 < -3";
  EXPECT_EQ(One(p, {3.0f, 1.0f}, {0}), 0) << "3/2 > 1";
}

TEST(Sampler, FrequencyAndPresenceCountOutputAlone) {
  SamplingParameters p = Greedy();
  p.frequency_penalty = 1;
  p.presence_penalty = 0.5;
  Sampler sampler(p, 2, 2, std::vector<int32_t>{0, 0, 0});
  const auto next = [&](float a, float b) {
    std::vector<float> logits = {a, b};
    return *sampler.Next(logits);
  };
  EXPECT_EQ(next(1, 0), 0) << "the prompt does not count";
  EXPECT_EQ(next(1.6f, 0), 0) << "1.6 - 1 - 0.5 > 0";
  EXPECT_EQ(next(2.4f, 0), 1) << "2.4 - 2*1 - 0.5 < 0";
}

/// How often each id is drawn when the seed varies.
std::map<int32_t, double> Frequencies(SamplingParameters p, const std::vector<float>& logits,
                                      int draws = 20000) {
  std::map<int32_t, double> out;
  for (int i = 0; i < draws; ++i) {
    p.seed = static_cast<uint64_t>(i);
    out[One(p, logits)] += 1.0 / draws;
  }
  return out;
}

struct DrawCase {
  const char* what;
  std::function<void(SamplingParameters&)> set;
  std::map<int32_t, double>
      expected;  // probabilities computed by hand from softmax({ln 8, ln 4, ln 2, ln 1, ln 1}) = {8,4,2,1,1}/16
};

TEST(Sampler, DrawsFromTheDistributionThatItsParametersLeave) {
  const std::vector<float> logits = {std::log(4.0f), std::log(8.0f), std::log(1.0f), std::log(2.0f),
                                     std::log(1.0f)};
  const DrawCase kCases[] = {
      {"everything",
       [](SamplingParameters&) {},
       {{1, .5}, {0, .25}, {3, .125}, {2, .0625}, {4, .0625}}},
      {"top_k 2", [](SamplingParameters& p) { p.top_k = 2; }, {{1, 2. / 3}, {0, 1. / 3}}},
      {"top_k 4 keeps both of a tie",
       [](SamplingParameters& p) { p.top_k = 4; },
       {{1, .5}, {0, .25}, {3, .125}, {2, .0625}, {4, .0625}}},
      {"top_p 0.5: the first reaches it", [](SamplingParameters& p) { p.top_p = 0.5; }, {{1, 1}}},
      {"top_p 0.51", [](SamplingParameters& p) { p.top_p = 0.51; }, {{1, 2. / 3}, {0, 1. / 3}}},
      {"top_p is taken of what top_k left",
       [](SamplingParameters& p) {
         p.top_k = 2;
         p.top_p = 0.6;
       },
       {{1, 1}}},
      {"min_p 0.49", [](SamplingParameters& p) { p.min_p = 0.49; }, {{1, 2. / 3}, {0, 1. / 3}}},
      {"temperature 0.5 squares",
       [](SamplingParameters& p) { p.temperature = 0.5; },
       {{1, 64. / 86}, {0, 16. / 86}, {3, 4. / 86}, {2, 1. / 86}, {4, 1. / 86}}},
      {"min_p is of the tempered distribution",
       [](SamplingParameters& p) {
         p.temperature = 0.5;
         p.min_p = 0.3;
       },
       {{1, 1}}},
  };
  for (const DrawCase& c : kCases) {
    SamplingParameters p;
    c.set(p);
    const auto got = Frequencies(p, logits);
    for (int32_t id = 0; id < 5; ++id) {
      const double want = c.expected.count(id) ? c.expected.at(id) : 0,
                   have = got.count(id) ? got.at(id) : 0;
      // 20000 draws: five standard deviations of the worst case are below 0.018. What is cut is
      // never drawn.
      EXPECT_NEAR(have, want, want == 0 ? 0 : 0.018) << c.what << ", id " << id;
    }
  }
}

/// The same in a few plain lines: everything sorted, in double.
int32_t PlainDraw(const SamplingParameters& p, const std::vector<float>& logits,
                  uint64_t position) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[id]) - logits[order[0]]) / p.temperature);
  };
  const auto cut = [&](auto drop) {
    const auto at = std::find_if(order.begin(), order.end(), drop);
    order.erase(at, order.end());
  };
  if (p.min_p > 0) cut([&](int32_t id) { return weight(id) < p.min_p; });
  if (p.top_k > 0 && p.top_k < static_cast<int64_t>(order.size())) {
    const float least = logits[order[p.top_k - 1]];
    cut([&](int32_t id) { return logits[id] < least; });
  }
  double total = 0, reached = 0;
  for (int32_t id : order) total += weight(id);
  if (p.top_p < 1) {
    size_t n = 0;
    while (n < order.size() && reached < p.top_p * total) reached += weight(order[n++]);
    order.resize(n);
    total = reached;
  }
  double left = UniformAt(p.seed, position) * total;
  for (int32_t id : order) {
    if ((left -= weight(id)) < 0) return id;
  }
  return order.back();
}

TEST(Sampler, DrawsWhatAPlainSortDraws) {
  constexpr size_t kVocab = 8009;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> kinds(5, std::vector<float>(kVocab));
  for (float& v : kinds[0]) v = normal(random);              // flat: thousands matter
  for (float& v : kinds[1]) v = 4 * normal(random);          // tens matter
  for (float& v : kinds[2]) v = std::round(normal(random));  // ties
  // One far above the many that weigh as much together: nobody is within 8 temperatures of it.
  for (float& v : kinds[3]) v = -9.9f + 0.01f * normal(random);
  kinds[3][777] = 0;
  for (float& v : kinds[4]) v = 30 * normal(random) - 1000;  // most weigh nothing
  struct Case {
    double temperature;
    int64_t top_k;
    double top_p, min_p;
  };
  for (const Case& c :
       {Case{1, 0, 1, 0}, Case{0.7, 0, 0.95, 0}, Case{1.5, 0, 0.999, 0}, Case{0.01, 0, 1, 0},
        Case{0.7, 20, 0.95, 0}, Case{1, 1, 1, 0}, Case{1, 500, 1, 0}, Case{1, 30000, 0.9, 0},
        Case{1, 0, 1, 0.02}, Case{0.8, 40, 0.9, 0.05}, Case{1, 0, 1e-9, 0}}) {
    SamplingParameters p;
    p.temperature = c.temperature;
    p.top_k = c.top_k;
    p.top_p = c.top_p;
    p.min_p = c.min_p;
    p.seed = 5;
    for (size_t kind = 0; kind < kinds.size(); ++kind) {
      Sampler sampler(p, kVocab, kVocab, {});
      for (uint64_t position = 0; position < 15; ++position) {
        std::vector<float> logits = kinds[kind];
        const int32_t want = PlainDraw(p, logits, position);
        EXPECT_EQ(*sampler.Next(logits), want)
            << "T " << c.temperature << " k " << c.top_k << " p " << c.top_p << " min_p " << c.min_p
            << " kind " << kind << " position " << position;
      }
    }
  }
}

TEST(Sampler, TheSameSeedDrawsTheSameTokens) {
  SamplingParameters p;
  p.seed = 1234;
  const auto run = [&] {
    Sampler sampler(p, 8, 8, {});
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) {
      std::vector<float> logits(8, 0.0f);
      ids.push_back(*sampler.Next(logits));
    }
    return ids;
  };
  const auto first = run();
  EXPECT_EQ(first, run());
  p.seed = 1235;
  EXPECT_NE(first, run());
}

TEST(SamplingParameters, NamesWhatIsOutOfRange) {
  struct Case {
    const char* field;
    std::function<void(SamplingParameters&)> set;
  };
  const Case kCases[] = {
      {"temperature", [](auto& p) { p.temperature = -0.1; }},
      {"temperature", [](auto& p) { p.temperature = NAN; }},
      {"temperature", [](auto& p) { p.temperature = 2.1; }},
      {"top_k", [](auto& p) { p.top_k = -1; }},
      {"top_p", [](auto& p) { p.top_p = 0; }},
      {"top_p", [](auto& p) { p.top_p = 1.01; }},
      {"min_p", [](auto& p) { p.min_p = 1.5; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 0; }},
      {"presence_penalty", [](auto& p) { p.presence_penalty = 3; }},
      {"frequency_penalty", [](auto& p) { p.frequency_penalty = -2.5; }},
  };
  EXPECT_TRUE(SamplingParameters().Check().ok());
  for (const Case& c : kCases) {
    SamplingParameters p;
    c.set(p);
    const auto status = p.Check();
    ASSERT_FALSE(status.ok()) << c.field;
    EXPECT_NE(status.error().what.find(c.field), std::string::npos) << status.error().what;
  }
}

}  // namespace
}  // namespace nibble::engine
