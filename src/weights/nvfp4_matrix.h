#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "layout/canonical.h"

namespace nibble::weights {

/// Codes and block scales that own their bytes, in the canonical order. Global scales are not in
/// it: no preparation step can fold what it does not see.
struct Nvfp4Matrix {
  int64_t rows = 0, k = 0;      // k a multiple of 16
  std::vector<uint8_t> codes;   // [rows, k/2], low nibble first
  std::vector<uint8_t> scales;  // [rows, k/16] e4m3

  Nvfp4Matrix() = default;
  /// All zero: zero codes under zero scales.
  Nvfp4Matrix(int64_t n_rows, int64_t n_k)
      : rows(n_rows), k(n_k), codes(n_rows * n_k / 2), scales(n_rows * n_k / 16) {}

  /// A view under the given scalars; the matrix must outlive it.
  CanonicalNvfp4 View(float global, std::optional<float> input_scale = {}) const {
    return {rows, k, codes.data(), scales.data(), global, input_scale};
  }
};

}  // namespace nibble::weights
