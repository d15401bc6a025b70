// The fp32 operators between the multiplications against plain loops in double, on every
// instruction set, which must agree to the last bit. (Attention, which need not: attention_test.cc.)
#include "kernels/cpu/glue.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/glue_test_support.h"
#include "kernels/reference/delta_rule.h"
#include "kernels/reference/reference.h"

namespace nibble::kernels::cpu {
namespace {

double Sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

/// Runs `body` for every instruction set, and sees that all give the bits of the first.
template <class Body>
std::vector<float> OnEveryIsa(Body body) {
  std::vector<float> first;
  for (CpuIsa isa : GlueIsas()) {
    const std::vector<float> out = body(GlueFor(isa));
    if (first.empty()) first = out;
    EXPECT_EQ(0, std::memcmp(first.data(), out.data(), out.size() * sizeof(float)))
        << NameOf(isa) << " differs from " << NameOf(GlueIsas()[0]);
  }
  return first;
}

TEST(Glue, ReferenceAttentionByHand) {
  // Two positions, scores 1 and 2 after scaling by 1/2: weights e / (e + e^2), e^2 / (e + e^2).
  const float q[4] = {1, 1, 0, 0}, k[8] = {2, 0, 5, 5, 2, 2, 5, 5}, v[8] = {1, 0, 0, 0, 0, 1, 0, 0};
  float out[4];
  AttendArgs args;
  args.keys = reinterpret_cast<const std::byte*>(k);
  args.values = reinterpret_cast<const std::byte*>(v);
  args.n = 2;
  args.stride = args.dim = args.q_stride = 4;
  args.q = q;
  args.group = 1;
  args.out = out;
  reference::Attend(args);
  EXPECT_NEAR(out[0], 1 / (1 + std::exp(1.0)), 1e-7);
  EXPECT_NEAR(out[1], 1 / (1 + std::exp(-1.0)), 1e-7);
  EXPECT_EQ(out[2], 0);
}

TEST(Glue, RotatesHalves) {
  for (int64_t frequencies : {1, 7, 16, 21, 64}) {
    const auto x = RandomNormal(2 * frequencies + 1, 15), angles = RandomNormal(frequencies, 16, 3);
    std::vector<float> cosines, sines;
    for (float a : angles) {
      cosines.push_back(std::cos(a));
      sines.push_back(std::sin(a));
    }
    const auto got = OnEveryIsa([&](const GlueKernels& glue) {
      auto out = x;
      glue.rotate_halves(out.data(), cosines.data(), sines.data(), frequencies);
      return out;
    });
    for (int64_t i = 0; i < frequencies; ++i) {
      const double a = x[i], b = x[frequencies + i], c = cosines[i], s = sines[i];
      const double bound = 2e-7 * (std::abs(a) + std::abs(b));
      EXPECT_NEAR(got[i], a * c - b * s, bound);
      EXPECT_NEAR(got[frequencies + i], b * c + a * s, bound);
    }
    EXPECT_EQ(got.back(), x.back());
  }
}

TEST(Glue, SigmoidGates) {
  for (int64_t n : {1, 15, 16, 33, 128}) {
    const auto x = RandomNormal(n, 5), gate = RandomNormal(n, 6, 9), y = RandomNormal(n, 7);
    const auto product = OnEveryIsa([&](const GlueKernels& glue) {
      auto out = x;
      glue.mul_sigmoid(out.data(), gate.data(), n);
      return out;
    });
    const auto sum = OnEveryIsa([&](const GlueKernels& glue) {
      auto out = y;
      glue.add_gated(out.data(), x.data(), gate[0], n);
      return out;
    });
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(product[i], x[i] * Sigmoid(gate[i]), 1e-6 * std::abs(x[i]) + 1e-37);
      EXPECT_NEAR(sum[i], y[i] + x[i] * Sigmoid(gate[0]), 1e-6 * (std::abs(x[i]) + std::abs(y[i])));
    }
  }
  for (float extreme : {-500.0f, 500.0f}) {
    float x = 3;
    GlueFor(CpuIsa::kScalar).mul_sigmoid(&x, &extreme, 1);
    EXPECT_EQ(x, extreme > 0 ? 3.0f : 0.0f);
  }
}

TEST(Glue, CausalConvolution) {
  constexpr int64_t kBefore = 3, kBehind = 5;  // channels of others
  for (int64_t n : {1, 16, 50, 192}) {
    for (int64_t taps : {1, 2, 4}) {
      const int64_t channels = kBefore + n + kBehind;
      const auto w = RandomNormal(taps * channels, 8), u = RandomNormal(taps * channels, 9);
      std::vector<const float*> rows;
      for (int64_t j = 0; j < taps; ++j) rows.push_back(u.data() + j * channels);
      const auto got = OnEveryIsa([&](const GlueKernels& glue) {
        std::vector<float> out(n + 1, kPoison);
        glue.conv_silu(rows.data(), kBefore, n, w.data(), channels, taps, out.data());
        EXPECT_TRUE(std::isnan(out.back()));
        out.back() = 0;
        return out;
      });
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0, magnitude = 0;
        for (int64_t j = 0; j < taps; ++j) {
          const int64_t at = j * channels + kBefore + i;
          sum += static_cast<double>(w[at]) * u[at];
          magnitude += std::abs(static_cast<double>(w[at]) * u[at]);
        }
        EXPECT_NEAR(got[i], sum * Sigmoid(sum), 2e-6 * magnitude);
      }
    }
  }
}

TEST(Glue, UnitLength) {
  for (int64_t n : {1, 16, 37, 128}) {
    const auto x = RandomNormal(n, 10);
    const auto got = OnEveryIsa([&](const GlueKernels& glue) {
      auto out = x;
      glue.unit_length(out.data(), n, 0.25f);
      return out;
    });
    double sum = 0;
    for (float v : x) sum += static_cast<double>(v) * v;
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(got[i], 0.25 * x[i] / std::sqrt(sum + 1e-6), 1e-6);
    }
  }
  float zero[2] = {0, 0};
  GlueFor(CpuIsa::kScalar).unit_length(zero, 2, 1);
  EXPECT_EQ(zero[0], 0);  // the epsilon keeps a zero head zero
}

TEST(Glue, DeltaRuleRowByRow) {
  struct Case {
    int64_t n, k_dim, v_dim;
  };
  for (const Case& c : {Case{1, 16, 4}, Case{5, 64, 64}, Case{9, 37, 11}, Case{40, 128, 128}}) {
    const int64_t stride = 2 * c.k_dim + c.v_dim;
    auto qkv = RandomNormal(c.n * stride, 11);
    for (int64_t i = 0; i < c.n; ++i) {
      GlueFor(CpuIsa::kScalar).unit_length(qkv.data() + i * stride, c.k_dim, 0.3f);
      GlueFor(CpuIsa::kScalar).unit_length(qkv.data() + i * stride + c.k_dim, c.k_dim, 1);
    }
    auto g = RandomNormal(c.n, 12), beta = RandomNormal(c.n, 13);
    for (float& v : g) v = -std::abs(v);
    for (float& v : beta) v = static_cast<float>(Sigmoid(v));
    const auto state = RandomNormal(c.v_dim * c.k_dim, 14);

    const auto tokens = [&](auto* q, auto* gates, auto* betas, auto* o) {
      using T = std::remove_pointer_t<decltype(o)>;
      DeltaTokens<T> t;
      t.n = c.n;
      t.k_dim = c.k_dim;
      t.v_dim = c.v_dim;
      t.q = q;
      t.k = q + c.k_dim;
      t.v = q + 2 * c.k_dim;
      t.qkv_stride = stride;
      t.g = gates;
      t.beta = betas;
      t.gate_stride = 1;
      t.o = o;
      t.o_stride = c.v_dim;
      return t;
    };
    const std::vector<double> dq(qkv.begin(), qkv.end()), dg(g.begin(), g.end()),
        db(beta.begin(), beta.end());
    std::vector<double> ds(state.begin(), state.end()), dout(c.n * c.v_dim, NAN);
    reference::DeltaRecurrence(tokens(dq.data(), dg.data(), db.data(), dout.data()), ds.data());

    const auto got = OnEveryIsa([&](const GlueKernels& glue) {
      std::vector<float> s = state, o(c.n * c.v_dim, kPoison);
      glue.delta_rows(tokens(qkv.data(), g.data(), beta.data(), o.data()), s.data());
      o.insert(o.end(), s.begin(), s.end());
      return o;
    });
    dout.insert(dout.end(), ds.begin(), ds.end());
    // A state entry has the magnitude of a few values; an error of one token fades by e^g.
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], dout[i], 1e-4) << i;
  }
}

TEST(Glue, DotsOfEveryNumberOfRowsAreThoseOfOneAlone) {
  for (int64_t n : {1, 15, 16, 33, 100, 2048}) {
    constexpr int64_t kTokens = 7, kRows = 6, kStride = kRows + 1;
    const int64_t ldx = n + 3;
    const std::vector<float> x = RandomNormal(kTokens * ldx, 5),
                             values = RandomNormal(kRows * n, 6);
    std::vector<uint8_t> w(2 * values.size() + 1);  // from an odd address on
    for (size_t i = 0; i < values.size(); ++i) {
      const Bf16 rounded = ToBf16(values[i]);
      std::memcpy(&w[1 + 2 * i], &rounded, 2);
    }
    for (int64_t tokens = 1; tokens <= kTokens; ++tokens) {
      for (int64_t rows = 1; rows <= kRows; ++rows) {
        const std::vector<float> out = OnEveryIsa([&](const GlueKernels& glue) {
          std::vector<float> dots(tokens * kStride, kPoison);
          glue.dots_bf16(x.data(), tokens, ldx, &w[1], rows, n, dots.data(), kStride);
          float alone;
          glue.dots_bf16(x.data() + (tokens - 1) * ldx, 1, ldx, &w[1 + 2 * (rows - 1) * n], 1, n,
                         &alone, 1);
          EXPECT_EQ(alone, dots[(tokens - 1) * kStride + rows - 1]) << tokens << " x " << rows;
          return dots;
        });
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t r = 0; r < kStride; ++r) {
            const float got = out[t * kStride + r];
            if (r >= rows) {
              ASSERT_TRUE(std::isnan(got)) << "wrote beyond its rows";
              continue;
            }
            double truth = 0, magnitude = 0;
            for (int64_t i = 0; i < n; ++i) {
              const double product = double{x[t * ldx + i]} * LoadBf16(&w[1 + 2 * (r * n + i)]);
              truth += product;
              magnitude += std::abs(product);
            }
            const double terms = static_cast<double>(n) / 16 + 20;
            ASSERT_NEAR(got, truth, terms * 0x1p-24 * magnitude) << n << " " << t << " " << r;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu
