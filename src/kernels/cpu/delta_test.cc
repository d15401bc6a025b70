// The delta rule in chunks against the recurrence in double, within bounds computed from the
// magnitudes, and on every instruction set to the last bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/glue.h"
#include "kernels/cpu/glue_test_support.h"
#include "kernels/reference/delta_rule.h"

namespace nibble::kernels::cpu {
namespace {

constexpr double kEps = 0x1p-24;

struct Case {
  int64_t n, k_dim, v_dim, heads;
  double least_g;         // g is uniform in [least_g, 0]
  int64_t weak_from = 0;  // from here on in [-0.001, 0] instead, if not 0
};

/// Tokens of some value heads that share a key head, with strangers' numbers between the rows.
struct Problem {
  Case c;
  int64_t stride, o_stride, gate_stride;
  std::vector<float> qkv, g, beta, states;

  explicit Problem(const Case& shape)
      : c(shape),
        stride(2 * c.k_dim + c.heads * c.v_dim + 3),
        o_stride(c.heads * c.v_dim + 2),
        gate_stride(c.heads + 1),
        qkv(c.n * stride),
        g(c.n * gate_stride),
        beta(g.size()),
        states(c.heads * c.v_dim * c.k_dim) {
    std::mt19937_64 random(static_cast<uint64_t>(c.n * 131 + c.k_dim + c.v_dim));
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<double> uniform(0, 1);
    for (float& v : qkv) v = normal(random);
    for (int64_t i = 0; i < c.n; ++i) {
      // Neighbours' keys resemble each other, so that the triangular system is not nearly diagonal.
      float* k = qkv.data() + i * stride + c.k_dim;
      for (int64_t j = 0; i > 0 && j < c.k_dim; ++j) k[j] += (k - stride)[j];
      GlueFor(CpuIsa::kScalar).unit_length(k - c.k_dim, c.k_dim, 0.3f);
      GlueFor(CpuIsa::kScalar).unit_length(k, c.k_dim, 1);
    }
    for (size_t i = 0; i < g.size(); ++i) {
      const bool weak = c.weak_from && static_cast<int64_t>(i) >= c.weak_from * gate_stride;
      g[i] = static_cast<float>((weak ? -0.001 : c.least_g) * uniform(random));
      beta[i] = static_cast<float>(uniform(random));
    }
    for (float& v : states) v = normal(random);
  }

  template <class T>
  DeltaTokens<T> Tokens(const T* rows, const T* gates, const T* betas, T* o) const {
    return {c.n,   c.k_dim, c.v_dim,     rows, rows + c.k_dim, rows + 2 * c.k_dim, stride,
            gates, betas,   gate_stride, o,    o_stride};
  }

  /// o [n][o_stride], then the states.
  std::vector<float> InChunks(const GlueKernels& glue) const {
    std::vector<float> o(c.n * o_stride, kPoison),
        s = states, scratch(glue.delta_scratch(c.k_dim, c.v_dim, c.heads), kPoison);
    const auto all = Tokens(qkv.data(), g.data(), beta.data(), o.data());
    glue.delta_load(all, c.heads, s.data(), scratch.data());
    for (int64_t first = 0; first < c.n; first += kDeltaChunk) {
      auto t = all;
      t.n = std::min(kDeltaChunk, c.n - first);
      t.q += first * stride;
      t.k += first * stride;
      t.v += first * stride;
      t.g += first * gate_stride;
      t.beta += first * gate_stride;
      t.o += first * o_stride;
      glue.delta_chunk(t, c.heads, scratch.data());
    }
    std::fill(s.begin(), s.end(), kPoison);
    glue.delta_store(all, c.heads, scratch.data(), s.data());
    o.insert(o.end(), s.begin(), s.end());
    return o;
  }

  /// The same by the recurrence in double.
  std::vector<double> Truth() const {
    const std::vector<double> rows(qkv.begin(), qkv.end()), gates(g.begin(), g.end()),
        betas(beta.begin(), beta.end());
    std::vector<double> o(c.n * o_stride, NAN), s(states.begin(), states.end());
    for (int64_t h = 0; h < c.heads; ++h) {
      auto t = Tokens(rows.data(), gates.data() + h, betas.data() + h, o.data() + h * c.v_dim);
      t.v += h * c.v_dim;
      reference::DeltaRecurrence(t, s.data() + h * c.v_dim * c.k_dim);
    }
    o.insert(o.end(), s.begin(), s.end());
    return o;
  }

  std::vector<double> Bounds() const;
};

/// How far the chunk form may be from the truth, in the layout of Truth(). Row r of S is a problem
/// of its own. A token's rounding errors are, to first order, those of a sum of at most
/// k_dim + 64 terms (and some more for exp and the products around it), so they are bounded by
///   e_i = (k_dim + 128) eps (|v_ir| + e^G_i |S0_r| + sum_j D_ij |V'_jr|)
/// with Euclidean norms, |k| = 1 and V' the recurrence's delta. They act as if v_ir had been
/// another, and what that changes in S_r never grows: |I - beta k k^T| <= 1 and e^g <= 1. So the
/// error of S_r is below the sum of e_i, each faded by what came after it, and |q| times that is an
/// error of o.
std::vector<double> Problem::Bounds() const {
  std::vector<double> out(c.n * o_stride, 0), states_out(states.size());
  const double unit = static_cast<double>(c.k_dim + 128) * kEps;
  for (int64_t row = 0; row < c.heads * c.v_dim; ++row) {
    const int64_t h = row / c.v_dim;
    std::vector<double> s(states.begin() + row * c.k_dim, states.begin() + (row + 1) * c.k_dim);
    double error = 0, magnitude = 0;  // of S_r; of e^G_i |S0_r| + sum_j D_ij |V'_jr|
    for (int64_t i = 0; i < c.n; ++i) {
      const float *q = qkv.data() + i * stride, *k = q + c.k_dim;
      const double v = q[2 * c.k_dim + row], decay = std::exp(double{g[i * gate_stride + h]});
      if (i % kDeltaChunk == 0) {
        double square = 0;
        for (double x : s) square += x * x;
        error += unit * (magnitude = std::sqrt(square));
      }
      double read = 0, length = 0;
      for (int64_t j = 0; j < c.k_dim; ++j) {
        s[j] *= decay;
        read += s[j] * k[j];
        length += double{q[j]} * q[j];
      }
      const double delta = beta[i * gate_stride + h] * (v - read);
      for (int64_t j = 0; j < c.k_dim; ++j) s[j] += delta * k[j];
      magnitude = magnitude * decay + std::abs(delta);
      error = error * decay + unit * (std::abs(v) + magnitude);
      out[i * o_stride + row] = std::sqrt(length) * (error + unit * magnitude);
    }
    std::fill_n(states_out.begin() + row * c.k_dim, c.k_dim, error + unit * magnitude);
  }
  out.insert(out.end(), states_out.begin(), states_out.end());
  return out;
}

double RelativeL2(const std::vector<float>& got, const std::vector<double>& wanted) {
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(wanted[i])) continue;
    error += std::pow(got[i] - wanted[i], 2);
    size += wanted[i] * wanted[i];
  }
  return std::sqrt(error / size);
}

TEST(Delta, ChunksFollowTheRecurrenceInDouble) {
  std::vector<Case> cases;
  for (int64_t n : {1, 2, 15, 16, 63, 64, 65, 130, 200}) {
    for (double least_g : {-40.0, -1.0, -0.001}) {
      cases.push_back({n, 16, 16, 2, least_g});
      cases.push_back({n, 37, 11, 3, least_g});
    }
  }
  for (double least_g : {-40.0, -0.1, -0.001}) {
    cases.push_back({130, 128, 128, 2, least_g});
    cases.push_back({64, 64, 128, 1, least_g});
    cases.push_back({65, 128, 33, 1, least_g});
    cases.push_back({70, 1, 1, 1, least_g});
    cases.push_back({63, 100, 70, 4, least_g});
  }
  cases.push_back({200, 64, 64, 1, -40, 30});  // G stands at -600 where weak gates begin
  cases.push_back({64, 32, 32, 2, -1000});     // beyond what exp() can show
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << "n " << c.n << " k_dim " << c.k_dim << " v_dim " << c.v_dim
                                    << " least g " << c.least_g);
    const Problem problem(c);
    const auto wanted = problem.Truth(), bounds = problem.Bounds();
    std::vector<float> first;
    for (CpuIsa isa : GlueIsas()) {
      const auto got = problem.InChunks(GlueFor(isa));
      if (first.empty()) first = got;
      EXPECT_EQ(0, std::memcmp(first.data(), got.data(), got.size() * sizeof(float)))
          << NameOf(isa) << " differs from " << NameOf(GlueIsas()[0]);
    }
    for (size_t i = 0; i < first.size(); ++i) {
      if (std::isnan(wanted[i])) {
        ASSERT_TRUE(std::isnan(first[i])) << "wrote between the rows, at " << i;
      } else {
        ASSERT_NEAR(first[i], wanted[i], bounds[i]) << i;
      }
    }
    // The bounds are of worst cases; errors that do not conspire stay far below.
    EXPECT_LE(RelativeL2(first, wanted), 2e-6);
  }
}

TEST(Delta, RowByRowStaysWithinTheSameBounds) {
  const Problem problem({150, 128, 64, 2, -0.05});
  const auto wanted = problem.Truth(), bounds = problem.Bounds();
  for (CpuIsa isa : GlueIsas()) {
    const GlueKernels& glue = GlueFor(isa);
    std::vector<float> o(problem.c.n * problem.o_stride, kPoison), s = problem.states;
    for (int64_t h = 0; h < problem.c.heads; ++h) {
      auto t = problem.Tokens(problem.qkv.data(), problem.g.data() + h, problem.beta.data() + h,
                              o.data() + h * problem.c.v_dim);
      t.v += h * problem.c.v_dim;
      glue.delta_rows(t, s.data() + h * problem.c.v_dim * problem.c.k_dim);
    }
    o.insert(o.end(), s.begin(), s.end());
    EXPECT_LE(RelativeL2(o, wanted), 2e-6) << NameOf(isa);
    for (size_t i = 0; i < o.size(); ++i) {
      if (std::isnan(wanted[i])) continue;
      ASSERT_NEAR(o[i], wanted[i], bounds[i]) << NameOf(isa) << " " << i;
    }
  }
}

TEST(Delta, Gates) {
  constexpr int64_t kN = 48;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 8);
  std::vector<float> a(kN), b(kN), rate(kN);
  for (int64_t i = 0; i < kN; ++i) {
    a[i] = normal(random);
    b[i] = normal(random);
    rate[i] = std::abs(normal(random));
  }
  const float extremes[] = {0, -0.0f, 20, 25, 80, 1e4f, -20, -60, -1e4f, 1e-6f};
  for (size_t i = 0; i < std::size(extremes); ++i) a[i] = b[i] = extremes[i];
  std::vector<float> first;
  for (CpuIsa isa : GlueIsas()) {
    std::vector<float> out = b;
    out.resize(2 * kN, kPoison);
    GlueFor(isa).delta_gates(a.data(), rate.data(), kN, out.data(), out.data() + kN);
    if (first.empty()) first = out;
    EXPECT_EQ(0, std::memcmp(first.data(), out.data(), out.size() * sizeof(float))) << NameOf(isa);
  }
  for (int64_t i = 0; i < kN; ++i) {
    const double x = a[i], softplus = std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
    const double beta = 1 / (1 + std::exp(-double{b[i]})), g = -rate[i] * softplus;
    // exp() takes its argument's rounding error along; below e^-87 it is 0.
    const double ulps = 8 + std::abs(x), ulps_b = 8 + std::abs(double{b[i]});
    EXPECT_NEAR(first[i], beta, kEps * ulps_b * beta + 1e-37) << b[i];
    EXPECT_NEAR(first[kN + i], g, kEps * (x > 0 ? 8 : ulps) * std::abs(g) + rate[i] * 1e-37) << x;
    EXPECT_LE(first[kN + i], 0);
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu
