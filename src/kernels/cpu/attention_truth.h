#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/attend_args.h"
#include "layout/words.h"

namespace nibble::kernels::cpu {

/// How far, as a part of itself, the kernels' number of a query or a weight may be from what it
/// stands for.
struct AttentionRounding {
  double query = 0, weight = 0;
};

/// avx512bf16 rounds to bf16 what it multiplies with keys, or values, of 16 or 8 bits.
inline AttentionRounding RoundingOf(CpuIsa isa, KvDtype dtype) {
  const auto rounding = [isa](KvDtype cached) {
    return isa == CpuIsa::kAvx512Bf16 && cached != KvDtype::kF32 ? 0x1p-8 : 0;
  };
  return {rounding(KeysOf(dtype)), rounding(ValuesOf(dtype))};
}

/// For tests: what a query gets of n positions, in double, and how far fp32 may be from it.
struct AttentionTruth {
  std::vector<double> values, bounds;  // [dim]

  /// k_at(j) and v_at(j) give the numbers of position j, without their scales. A score is off by
  /// the rounding of its sum and its scaling, a weight by that and by the 2 ulp of 2^x, a sum by
  /// its terms' count; and by `rounding`.
  template <class Keys, class Values>
  AttentionTruth(const float* q, int64_t dim, int64_t n, Keys k_at, Values v_at,
                 AttentionRounding rounding, double k_scale = 1, double v_scale = 1) {
    constexpr double kRounding = 0x1p-24;
    const double scale = k_scale / std::sqrt(static_cast<double>(dim));
    std::vector<double> weight(n), error(n);
    double largest = -HUGE_VAL, total = 0, mean_error = 0;
    for (int64_t j = 0; j < n; ++j) {
      const float* k = k_at(j);
      double sum = 0, magnitude = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double product = static_cast<double>(q[d]) * k[d];
        sum += product;
        magnitude += std::abs(product);
      }
      weight[j] = sum * scale;
      error[j] = (static_cast<double>(dim + 4) * kRounding + rounding.query) * magnitude * scale;
      largest = std::max(largest, weight[j]);
    }
    for (int64_t j = 0; j < n; ++j) {
      error[j] += 8 * kRounding * (1 + largest - weight[j]);
      total += weight[j] = std::exp(weight[j] - largest);
      mean_error += weight[j] * error[j];
    }
    mean_error /= total;
    const auto terms = static_cast<double>(kKvBlock + 6 * (n / kKvBlock + 1) + 20);
    values.resize(dim);
    bounds.resize(dim);
    for (int64_t j = 0; j < n; ++j) {
      const float* v = v_at(j);
      const double w = weight[j] / total * v_scale;
      for (int64_t d = 0; d < dim; ++d) {
        values[d] += w * v[d];
        bounds[d] +=
            w * std::abs(v[d]) * (error[j] + mean_error + terms * kRounding + rounding.weight);
      }
    }
  }
};

}  // namespace nibble::kernels::cpu
