// FP8 in REFERENCE: numbers worked out by hand, and a second, independent loop over every pair of
// keys.
#include "kernels/reference/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace nibble::kernels::reference {
namespace {

Context OneThread() {
  Context context;
  context.parallel = [](int64_t n, const std::function<void(int64_t)>& unit) {
    for (int64_t i = 0; i < n; ++i) unit(i);
  };
  return context;
}

/// e4m3 by its definition.
double ValueOf(unsigned byte) {
  const int e = (byte >> 3) & 15, m = byte & 7;
  const double magnitude = e == 0 ? std::ldexp(m, -9) : std::ldexp(8 + m, e - 10);
  return byte & 0x80 ? -magnitude : magnitude;
}

/// The nearest e4m3 number, ties to the even code, by trying them all.
double Nearest(double x) {
  unsigned best = 0;
  for (unsigned b = 1; b < 0x7F; ++b) {
    const double d = std::abs(std::abs(x) - ValueOf(b)), e = std::abs(std::abs(x) - ValueOf(best));
    if (d < e || (d == e && b % 2 == 0)) best = b;
  }
  return std::copysign(ValueOf(best), x);
}

struct Weight {
  int64_t n = 0, k = 0;
  GroupShape group;
  std::vector<uint8_t> codes;
  std::vector<float> scales;

  CanonicalFp8 View() const { return {n, k, codes.data(), group, scales, {}}; }
  double At(int64_t row, int64_t col) const {
    size_t index = 0;
    if (group == GroupShape::PerChannel()) index = row;
    if (group == GroupShape{128, 128}) index = row / 128 * ((k + 127) / 128) + col / 128;
    return ValueOf(codes[row * k + col]) * scales[index];
  }
  float global() const { return group == GroupShape::PerTensor() ? scales[0] : 1.0f; }
};

using Random = std::mt19937;

Weight RandomWeight(Random& random, const QuantKey& key, int64_t n, int64_t k) {
  Weight w{n, k, key.scale.group, {}, {}};
  size_t scales = 1;
  if (w.group == GroupShape::PerChannel()) scales = n;
  if (w.group == GroupShape{128, 128}) scales = ((n + 127) / 128) * ((k + 127) / 128);
  for (int64_t i = 0; i < n * k; ++i) {
    const unsigned byte = random() % 256;
    w.codes.push_back(static_cast<uint8_t>((byte & 0x7F) == 0x7F ? 0 : byte));
  }
  for (size_t i = 0; i < scales; ++i) w.scales.push_back(std::ldexp(1 + random() % 97, -12));
  return w;
}

/// A row as `key` holds it, worth what it is worth.
std::vector<double> Held(const std::optional<QuantKey>& key, double input_scale,
                         std::vector<double> x) {
  if (!key) return x;
  const size_t width = key->scale.group.col == 128 ? 128 : x.size();
  for (size_t first = 0; first < x.size(); first += width) {
    const size_t last = std::min(first + width, x.size());
    double scale = input_scale;
    if (!key->scale.is_static) {
      double largest = 0;
      for (size_t i = first; i < last; ++i) largest = std::max(largest, std::abs(x[i]));
      scale = std::max(largest, static_cast<double>(1e-10f)) / 448;
    }
    for (size_t i = first; i < last; ++i) {
      x[i] = Nearest(std::max(-448.0, std::min(448.0, x[i] / scale))) * scale;
    }
  }
  return x;
}

std::vector<double> Times(const Weight& w, const std::vector<double>& x) {
  std::vector<double> y(w.n);
  for (int64_t r = 0; r < w.n; ++r) {
    for (int64_t c = 0; c < w.k; ++c) y[r] += w.At(r, c) * x[c];
  }
  return y;
}

std::vector<float> RandomFloats(Random& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> v(count);
  for (float& f : v) f = normal(random);
  return v;
}

/// Both sides are sums in double of the same terms: what they may differ by is far below this.
void ExpectSame(double got, double want, const std::string& what) {
  EXPECT_NEAR(got, want, 1e-6 * std::abs(want) + 1e-5) << what;
}

TEST(ReferenceFp8, OneRowByHand) {
  // Weights 1.5, -2, 2^-9 and 448 under 0.5. x / 0.25 is 1.0625 (a tie, to the even 1), 5, 1000 (to
  // 448) and -0.3 (to -0.3125; the other neighbour is -0.28125).
  const uint8_t codes[] = {0x3C, 0xC0, 0x01, 0x7E};
  const float x[] = {0.265625f, 1.25f, 250.0f, -0.075f};
  const CanonicalFp8 w{1, 4, codes, GroupShape::PerTensor(), {0.5f}, {}};
  PreparedLinearShard shard;
  shard.weight = CanonicalWeight(w);
  shard.n = 1;
  shard.global = 0.5f;
  float y = NAN;
  Linear(OneThread(), "m", shard, x, 1, &y, 1);
  EXPECT_FLOAT_EQ(y, 0.5 * (1.5 * 0.265625 - 2 * 1.25 + 250.0 / 512 - 448 * 0.075));

  shard.activation = kFp8StaticTensor;
  shard.input_scale = 0.25f;
  Linear(OneThread(), "m", shard, x, 1, &y, 1);
  EXPECT_FLOAT_EQ(y, 0.5 * 0.25 * (1.5 * 1 - 2 * 5 + 448.0 / 512 - 448 * 0.3125));

  // Under their own scale, 250/448, 1.25 is 2.24 (to 2.25), 0.265625 is 0.476 (to 0.46875) and
  // -0.075 is -0.1344 (to -0.140625; the other neighbour is -0.125).
  shard.activation = kFp8DynamicToken;
  shard.input_scale.reset();
  Linear(OneThread(), "m", shard, x, 1, &y, 1);
  EXPECT_FLOAT_EQ(y,
                  0.5 * (250.0 / 448) * (1.5 * 0.46875 - 2 * 2.25 + 448.0 / 512 - 448 * 0.140625));
}

TEST(ReferenceFp8, LinearsOfEveryPair) {
  Random random(1);
  for (const QuantScheme& scheme : kFp8Schemes) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{5, 48}, {130, 128}, {150, 272}}) {
      const Weight w = RandomWeight(random, *scheme.weight, n, k);
      PreparedLinearShard shard;
      shard.weight = CanonicalWeight(w.View());
      shard.n = n;
      shard.global = w.global();
      shard.activation = scheme.activation;
      if (scheme.activation && scheme.activation->scale.is_static) shard.input_scale = 0.004f;
      constexpr int64_t kTokens = 3;
      auto x = RandomFloats(random, kTokens * k);
      std::fill(x.begin() + k, x.begin() + 2 * k, 0.0f);
      std::vector<float> y(kTokens * (n + 1), NAN);
      Linear(OneThread(), "m", shard, x.data(), kTokens, y.data(), n + 1);
      for (int64_t t = 0; t < kTokens; ++t) {
        const auto want =
            Times(w, Held(scheme.activation, shard.input_scale.value_or(0),
                          std::vector<double>(x.begin() + t * k, x.begin() + (t + 1) * k)));
        for (int64_t r = 0; r < n; ++r) ExpectSame(y[t * (n + 1) + r], want[r], PairName(scheme));
        EXPECT_TRUE(std::isnan(y[t * (n + 1) + n])) << "wrote beyond its columns";
      }
    }
  }
}

TEST(ReferenceFp8, ExpertsOfEveryPair) {
  Random random(2);
  constexpr int64_t kExperts = 3, kHidden = 144, kIntermediate = 160;
  for (const QuantScheme& scheme : kFp8Schemes) {
    const bool is_static = scheme.activation && scheme.activation->scale.is_static;
    std::vector<Weight> gate, up, down;
    PreparedExperts e;
    e.n_experts = kExperts;
    e.hidden = kHidden;
    e.intermediate = kIntermediate;
    e.quant.scheme = scheme;
    if (is_static) {
      e.quant.a1_scale = {0.01f, 0.02f, 0.03f, 0.03f, 0.002f, 0.01f};
      e.quant.a2_scale = {0.5f, 0.25f, 0.1f};
    }
    for (int64_t i = 0; i < kExperts; ++i) {
      gate.push_back(RandomWeight(random, *scheme.weight, kIntermediate, kHidden));
      up.push_back(RandomWeight(random, *scheme.weight, kIntermediate, kHidden));
      down.push_back(RandomWeight(random, *scheme.weight, kHidden, kIntermediate));
      for (auto* list : {&gate, &up, &down}) {
        for (float& s : list->back().scales) s *= 0.03f;
      }
      e.gate.push_back(CanonicalWeight(gate.back().View()));
      e.up.push_back(CanonicalWeight(up.back().View()));
      e.down.push_back(CanonicalWeight(down.back().View()));
      e.quant.g1_alphas.insert(e.quant.g1_alphas.end(), {gate.back().global(), up.back().global()});
      e.quant.g2_alphas.push_back(down.back().global());
    }
    constexpr int64_t kTokens = 3;
    const int32_t ids[] = {0, 2, 2, 0, 0, 2};  // expert 1 has no token
    const float weights[] = {0.7f, 0.3f, 0.6f, -0.4f, 1.0f, 0.5f};
    const auto x = RandomFloats(random, kTokens * kHidden);
    std::vector<float> y(kTokens * kHidden, NAN);
    Experts(OneThread(), e, x.data(), kTokens, ids, weights, 2, y.data());
    for (int64_t t = 0; t < kTokens; ++t) {
      const std::vector<double> row(x.begin() + t * kHidden, x.begin() + (t + 1) * kHidden);
      std::vector<double> want(kHidden);
      for (int j = 0; j < 2; ++j) {
        const int i = ids[2 * t + j];
        const auto scale = [&](const auto& list, int at) { return list ? (*list)[at] : 0.0f; };
        const auto g = Times(gate[i], Held(scheme.activation, scale(e.quant.a1_scale, 2 * i), row));
        const auto u =
            Times(up[i], Held(scheme.activation, scale(e.quant.a1_scale, 2 * i + 1), row));
        std::vector<double> h;
        for (int64_t c = 0; c < kIntermediate; ++c)
          h.push_back(g[c] / (1 + std::exp(-g[c])) * u[c]);
        const auto out = Times(down[i], Held(scheme.activation, scale(e.quant.a2_scale, i), h));
        for (int64_t c = 0; c < kHidden; ++c) want[c] += double{weights[2 * t + j]} * out[c];
      }
      for (int64_t c = 0; c < kHidden; ++c) {
        ExpectSame(y[t * kHidden + c], want[c], PairName(scheme));
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::reference
