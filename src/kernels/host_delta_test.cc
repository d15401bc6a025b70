#include "kernels/host_delta.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/cpu/isa.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kTokens = 23, kSlots = 2;
constexpr DeltaShape kShape{2, 4, 16, 24, 4, 1e-6f};

struct Parameters {
  std::vector<float> conv, a_log, dt_bias, norm;
  DeltaParameters View() const {
    const auto vector = [](const std::vector<float>& v) {
      return Vector{v.data(), static_cast<int64_t>(v.size())};
    };
    return {vector(conv), vector(a_log), vector(dt_bias), vector(norm)};
  }
};

std::vector<float> Random(int64_t n, uint64_t seed, float scale) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

class Layer {
 public:
  explicit Layer(bool in_double, int threads = 2)
      : pool_(threads), delta_(in_double, cpu::GlueFor(CpuIsa::kScalar), pool_) {
    parameters_.conv = Random(kShape.taps * kShape.channels(), 1, 0.5f);
    parameters_.a_log = Random(kShape.v_heads, 2, 0.5f);
    parameters_.dt_bias = Random(kShape.v_heads, 3, 0.5f);
    parameters_.norm = Random(kShape.v_dim, 4, 1);
    EXPECT_TRUE(delta_.Allocate({1, kSlots, 8, kShape}).ok());
  }

  /// Rows [first, first + n) of the test's input; their outputs.
  std::vector<float> Run(int64_t first, int64_t n, bool tentative = false, int slot = 0) {
    static const std::vector<float> kInput = Random(kTokens * kShape.in_width(), 5, 1);
    std::vector<float> out((n + 1) * kShape.out_width(), NAN);
    delta_.Run(0, {slot, 1, n, first, tentative}, parameters_.View(),
               kInput.data() + (first - 1) * kShape.in_width(), out.data());
    for (int64_t i = 0; i < kShape.out_width(); ++i) EXPECT_TRUE(std::isnan(out[i]));
    out.erase(out.begin(), out.begin() + kShape.out_width());
    return out;
  }
  void Keep(int64_t rows) { delta_.Keep(0, rows); }

 private:
  ThreadPool pool_;
  HostDelta delta_;
  Parameters parameters_;
};

/// The whole input at once.
std::vector<float> Whole(bool in_double) { return Layer(in_double).Run(0, kTokens); }

std::vector<float> Rows(const std::vector<float>& all, int64_t first, int64_t n) {
  return {all.begin() + first * kShape.out_width(), all.begin() + (first + n) * kShape.out_width()};
}

TEST(HostDelta, SinglePrecisionFollowsDouble) {
  const auto single = Whole(false), exact = Whole(true);
  for (size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(single[i], exact[i], 2e-5 * (1 + std::abs(exact[i]))) << i;
  }
}

TEST(HostDelta, PartsAndThreadsChangeNoBit) {
  for (const bool in_double : {true, false}) {
    const auto whole = Whole(in_double);
    for (int64_t part : {1, 2, 3, 5, 22}) {
      Layer layer(in_double, static_cast<int>(part % 4) + 1);
      for (int64_t first = 0; first < kTokens; first += part) {
        const int64_t n = std::min(part, kTokens - first);
        EXPECT_EQ(layer.Run(first, n), Rows(whole, first, n)) << "parts of " << part;
      }
    }
  }
}

TEST(HostDelta, RowsTakenBackNeverWere) {
  for (const bool in_double : {true, false}) {
    const auto whole = Whole(in_double);
    for (int64_t kept = 0; kept <= 5; ++kept) {
      Layer layer(in_double);
      EXPECT_EQ(layer.Run(0, 7), Rows(whole, 0, 7));
      EXPECT_EQ(layer.Run(7, 5, true), Rows(whole, 7, 5));
      layer.Keep(kept);
      // What comes next may be tentative again, or not.
      EXPECT_EQ(layer.Run(7 + kept, 3, true), Rows(whole, 7 + kept, 3)) << kept << " kept";
      layer.Keep(1);
      EXPECT_EQ(layer.Run(8 + kept, 4), Rows(whole, 8 + kept, 4)) << kept << " kept";
    }
  }
}

TEST(HostDelta, ASlotThatBeginsAnewForgets) {
  const auto whole = Whole(false);
  Layer layer(false);
  layer.Run(4, 9);        // garbage: not from the beginning
  layer.Run(3, 5, true);  // and an undecided log
  EXPECT_EQ(layer.Run(0, 6), Rows(whole, 0, 6));
  layer.Run(11, 2, false, 1);  // another slot changes nothing
  EXPECT_EQ(layer.Run(6, 6), Rows(whole, 6, 6));
}

}  // namespace
}  // namespace nibble::kernels
