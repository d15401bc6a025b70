// The fp32 operators between the multiplications against plain loops in double, on every
// instruction set, which must agree to the last bit.
#include "kernels/cpu/glue.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/reference/delta_rule.h"
#include "kernels/reference/reference.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels::cpu {
namespace {

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> out;
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (HasIsa(isa)) out.push_back(isa);
  }
  return out;
}

std::vector<float> Random(int64_t n, uint64_t seed, float scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

double Sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

/// Runs `body` for every instruction set, and sees that all give the bits of the first.
template <class Body>
std::vector<float> OnEveryIsa(Body body) {
  std::vector<float> first;
  for (CpuIsa isa : Isas()) {
    const std::vector<float> out = body(GlueFor(isa));
    if (first.empty()) first = out;
    EXPECT_EQ(0, std::memcmp(first.data(), out.data(), out.size() * sizeof(float)))
        << NameOf(isa) << " differs from " << NameOf(Isas()[0]);
  }
  return first;
}

std::vector<std::byte> Cache(const std::vector<float>& values, KvDtype dtype) {
  std::vector<std::byte> out(values.size() * BytesOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const Bf16 rounded = ToBf16(values[i]);
    const uint8_t code = EncodeE4m3(values[i]);
    const void* from = &values[i];
    if (dtype == KvDtype::kBf16) from = &rounded;
    if (dtype == KvDtype::kFp8) from = &code;
    std::memcpy(out.data() + i * BytesOf(dtype), from, BytesOf(dtype));
  }
  return out;
}

TEST(Glue, AttentionOverEveryKindOfCache) {
  struct Case {
    int64_t n, dim, group, q_stride, stride;
  };
  for (const KvDtype dtype : {KvDtype::kF32, KvDtype::kBf16, KvDtype::kFp8}) {
    for (const Case& c :
         {Case{1, 64, 4, 64, 128}, Case{37, 128, 2, 256, 384}, Case{100, 50, 3, 53, 61},
          Case{9, 6, 1, 6, 6}, Case{300, 256, 8, 512, 512}}) {
      const auto q = Random(c.group * c.q_stride, 1), k = Random(c.n * c.stride, 2, 0.7f),
                 v = Random(c.n * c.stride, 3, 2);
      const auto keys = Cache(k, dtype), values = Cache(v, dtype);
      std::vector<float> scores(c.n), wanted(c.group * c.dim, kPoison);
      AttendArgs args;
      args.dtype = dtype;
      args.keys = keys.data();
      args.values = values.data();
      args.n = c.n;
      args.stride = c.stride;
      args.dim = c.dim;
      args.k_scale = dtype == KvDtype::kFp8 ? 0.37f : 1;
      args.v_scale = dtype == KvDtype::kFp8 ? 1.9f : 1;
      args.q = q.data();
      args.group = c.group;
      args.q_stride = c.q_stride;
      args.scores = scores.data();
      args.out = wanted.data();
      reference::Attend(args);
      const auto got = OnEveryIsa([&](const GlueKernels& glue) {
        std::vector<float> out(c.group * c.dim, kPoison);
        args.out = out.data();
        glue.attend(args);
        return out;
      });
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_NEAR(got[i], wanted[i], 2e-5) << NameOf(dtype) << " n " << c.n << " at " << i;
      }
    }
  }
}

TEST(Glue, ReferenceAttentionByHand) {
  // Two positions, scores 1 and 2 after scaling by 1/2: weights e / (e + e^2), e^2 / (e + e^2).
  const float q[4] = {1, 1, 0, 0}, k[8] = {2, 0, 5, 5, 2, 2, 5, 5}, v[8] = {1, 0, 0, 0, 0, 1, 0, 0};
  float scores[2], out[4];
  AttendArgs args;
  args.keys = reinterpret_cast<const std::byte*>(k);
  args.values = reinterpret_cast<const std::byte*>(v);
  args.n = 2;
  args.stride = args.dim = args.q_stride = 4;
  args.q = q;
  args.group = 1;
  args.scores = scores;
  args.out = out;
  reference::Attend(args);
  EXPECT_NEAR(out[0], 1 / (1 + std::exp(1.0)), 1e-7);
  EXPECT_NEAR(out[1], 1 / (1 + std::exp(-1.0)), 1e-7);
  EXPECT_EQ(out[2], 0);
}

TEST(Glue, AnFp8CacheReadsEveryCode) {
  for (int first = 0; first < 256; first += 16) {
    std::vector<std::byte> keys(16), values(16);
    for (int i = 0; i < 16; ++i) {
      const auto code =
          static_cast<uint8_t>(IsNanE4m3(static_cast<uint8_t>(first + i)) ? 0 : first + i);
      values[i] = static_cast<std::byte>(code);
    }
    const std::vector<float> q(16, 0);
    float score;
    const auto got = OnEveryIsa([&](const GlueKernels& glue) {
      std::vector<float> out(16, kPoison);
      AttendArgs args;
      args.dtype = KvDtype::kFp8;
      args.keys = keys.data();
      args.values = values.data();
      args.n = 1;
      args.stride = args.dim = args.q_stride = 16;
      args.q = q.data();
      args.group = 1;
      args.scores = &score;
      args.out = out.data();
      glue.attend(args);
      return out;
    });
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(got[i], DecodeE4m3(std::to_integer<uint8_t>(values[i]))) << first + i;
    }
  }
}

TEST(Glue, SigmoidGates) {
  for (int64_t n : {1, 15, 16, 33, 128}) {
    const auto x = Random(n, 5), gate = Random(n, 6, 9), y = Random(n, 7);
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
      const auto w = Random(taps * channels, 8), u = Random(taps * channels, 9);
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
    const auto x = Random(n, 10);
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
    auto qkv = Random(c.n * stride, 11);
    for (int64_t i = 0; i < c.n; ++i) {
      GlueFor(CpuIsa::kScalar).unit_length(qkv.data() + i * stride, c.k_dim, 0.3f);
      GlueFor(CpuIsa::kScalar).unit_length(qkv.data() + i * stride + c.k_dim, c.k_dim, 1);
    }
    auto g = Random(c.n, 12), beta = Random(c.n, 13);
    for (float& v : g) v = -std::abs(v);
    for (float& v : beta) v = static_cast<float>(Sigmoid(v));
    const auto state = Random(c.v_dim * c.k_dim, 14);

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
    const std::vector<float> x = Random(kTokens * ldx, 5), values = Random(kRows * n, 6);
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
