#include "kernels/reference/delta_rule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace nibble::kernels::reference {
namespace {

TEST(DeltaRule, OneTokenByHand) {
  const double q = 2, k = 1, v = 2, g = std::log(0.5), beta = 0.5;
  double state = 0.5, o = NAN;
  DeltaTokens<double> t;
  t.n = t.k_dim = t.v_dim = t.qkv_stride = t.gate_stride = t.o_stride = 1;
  t.q = &q;
  t.k = &k;
  t.v = &v;
  t.g = &g;
  t.beta = &beta;
  t.o = &o;
  DeltaRecurrence(t, &state);
  // S = 0.25; delta = 0.5 (2 - 0.25) = 0.875; S = 1.125; o = 2.25
  EXPECT_DOUBLE_EQ(state, 1.125);
  EXPECT_DOUBLE_EQ(o, 2.25);
}

struct Case {
  int64_t n, k_dim, v_dim;
  double least_g;
};

/// Random tokens of unit k, and a state that is not zero.
struct Problem {
  std::vector<double> qkv, g, beta, state;
  Case c;

  explicit Problem(const Case& shape) : c(shape) {
    std::mt19937_64 random(static_cast<uint64_t>(c.n * 131 + c.k_dim));
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(0, 1);
    const int64_t stride = Stride();
    qkv.resize(c.n * stride);
    for (double& v : qkv) v = normal(random);
    for (int64_t i = 0; i < c.n; ++i) {
      for (int64_t first : {int64_t{0}, c.k_dim}) {
        double sum = 0;
        for (int64_t j = 0; j < c.k_dim; ++j) sum += std::pow(qkv[i * stride + first + j], 2);
        for (int64_t j = 0; j < c.k_dim; ++j) qkv[i * stride + first + j] /= std::sqrt(sum);
      }
    }
    for (int64_t i = 0; i < 2 * c.n; ++i) {  // every other one belongs to another head
      g.push_back(c.least_g * uniform(random));
      beta.push_back(uniform(random));
    }
    state.resize(c.v_dim * c.k_dim);
    for (double& v : state) v = normal(random);
  }
  int64_t Stride() const { return 2 * c.k_dim + c.v_dim + 3; }

  template <class Run>
  std::pair<std::vector<double>, std::vector<double>> Through(Run run) const {
    std::vector<double> s = state, o(c.n * (c.v_dim + 2), NAN);
    DeltaTokens<double> t;
    t.n = c.n;
    t.k_dim = c.k_dim;
    t.v_dim = c.v_dim;
    t.q = qkv.data();
    t.k = qkv.data() + c.k_dim;
    t.v = qkv.data() + 2 * c.k_dim;
    t.qkv_stride = Stride();
    t.g = g.data();
    t.beta = beta.data();
    t.gate_stride = 2;
    t.o = o.data();
    t.o_stride = c.v_dim + 2;
    run(t, s.data());
    return {o, s};
  }
};

void ExpectNear(const std::vector<double>& a, const std::vector<double>& b, const char* what) {
  double largest = 0;
  for (double v : b) {
    if (!std::isnan(v)) largest = std::max(largest, std::abs(v));
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(b[i])) {
      EXPECT_TRUE(std::isnan(a[i])) << what << " wrote between its rows, at " << i;
      continue;
    }
    EXPECT_NEAR(a[i], b[i], 1e-12 * largest) << what << " " << i;
  }
}

TEST(DeltaRule, ChunksEqualTheRecurrence) {
  for (const Case& c : {Case{1, 8, 8, -1}, Case{2, 5, 3, -1}, Case{63, 16, 16, -0.2},
                        Case{64, 32, 16, -0.05}, Case{65, 16, 32, -3}, Case{200, 64, 64, -0.1},
                        Case{129, 128, 128, -0.01}, Case{70, 16, 16, -40}}) {
    const Problem problem(c);
    const auto one = problem.Through(DeltaRecurrence), other = problem.Through(DeltaChunks);
    ExpectNear(other.first, one.first, "o");
    ExpectNear(other.second, one.second, "state");
  }
}

}  // namespace
}  // namespace nibble::kernels::reference
