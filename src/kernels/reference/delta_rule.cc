#include "kernels/reference/delta_rule.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace nibble::kernels::reference {
namespace {

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// With G the running sum of g, D_ij = e^(G_i - G_j), K and Q the rows k and q:
///   (I + strict_lower(diag(beta) (K K^T * D))) V' = diag(beta) (V - diag(e^G) K S0^T)
///   O = diag(e^G) Q S0^T + lower(Q K^T * D) V'
///   S1 = e^(G_n) S0 + V'^T diag(e^(G_n - G)) K
/// The triangular system is solved row by row; only differences of G that are <= 0 meet exp().
void OneChunk(const DeltaTokens<double>& t, int64_t first, int64_t n, double* state) {
  const auto q = [&](int64_t i) { return t.q + (first + i) * t.qkv_stride; };
  const auto k = [&](int64_t i) { return t.k + (first + i) * t.qkv_stride; };
  std::vector<double> decay(n), rows(n * t.v_dim);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) decay[i] = sum += t.g[(first + i) * t.gate_stride];

  for (int64_t i = 0; i < n; ++i) {
    double* row = rows.data() + i * t.v_dim;
    const double* v = t.v + (first + i) * t.qkv_stride;
    for (int64_t r = 0; r < t.v_dim; ++r) {
      row[r] = v[r] - std::exp(decay[i]) * Dot(state + r * t.k_dim, k(i), t.k_dim);
    }
    for (int64_t j = 0; j < i; ++j) {
      const double weight = Dot(k(i), k(j), t.k_dim) * std::exp(decay[i] - decay[j]);
      for (int64_t r = 0; r < t.v_dim; ++r) row[r] -= weight * rows[j * t.v_dim + r];
    }
    for (int64_t r = 0; r < t.v_dim; ++r) row[r] *= t.beta[(first + i) * t.gate_stride];
  }
  for (int64_t i = 0; i < n; ++i) {
    double* o = t.o + (first + i) * t.o_stride;
    for (int64_t r = 0; r < t.v_dim; ++r) {
      o[r] = std::exp(decay[i]) * Dot(state + r * t.k_dim, q(i), t.k_dim);
    }
    for (int64_t j = 0; j <= i; ++j) {
      const double weight = Dot(q(i), k(j), t.k_dim) * std::exp(decay[i] - decay[j]);
      for (int64_t r = 0; r < t.v_dim; ++r) o[r] += weight * rows[j * t.v_dim + r];
    }
  }
  for (int64_t r = 0; r < t.v_dim; ++r) {
    double* s = state + r * t.k_dim;
    for (int64_t c = 0; c < t.k_dim; ++c) s[c] *= std::exp(decay[n - 1]);
    for (int64_t j = 0; j < n; ++j) {
      const double weight = rows[j * t.v_dim + r] * std::exp(decay[n - 1] - decay[j]);
      for (int64_t c = 0; c < t.k_dim; ++c) s[c] += weight * k(j)[c];
    }
  }
}

}  // namespace

void DeltaRecurrence(const DeltaTokens<double>& t, double* state) {
  for (int64_t i = 0; i < t.n; ++i) {
    const double* q = t.q + i * t.qkv_stride;
    const double* k = t.k + i * t.qkv_stride;
    const double decay = std::exp(t.g[i * t.gate_stride]);
    for (int64_t r = 0; r < t.v_dim; ++r) {
      double* s = state + r * t.k_dim;
      for (int64_t c = 0; c < t.k_dim; ++c) s[c] *= decay;
      const double delta =
          t.beta[i * t.gate_stride] * (t.v[i * t.qkv_stride + r] - Dot(s, k, t.k_dim));
      for (int64_t c = 0; c < t.k_dim; ++c) s[c] += delta * k[c];
      t.o[i * t.o_stride + r] = Dot(s, q, t.k_dim);
    }
  }
}

void DeltaChunks(const DeltaTokens<double>& t, double* state) {
  constexpr int64_t kChunk = 64;
  for (int64_t first = 0; first < t.n; first += kChunk) {
    OneChunk(t, first, std::min(kChunk, t.n - first), state);
  }
}

}  // namespace nibble::kernels::reference
