#pragma once

#include <cstdint>
#include <optional>
#include <variant>

#include "numerics/bf16.h"

namespace nibble {

// Canonical weights: what both quantizers' dialects become at once. Views into the mapped
// checkpoint; they own nothing and assume no alignment. Every global scale multiplies: the
// reciprocals that compressed-tensors stores end in scheme/.

/// W[n,k] = e2m1(code) * e4m3(scale[n, k/16]) * global
struct CanonicalNvfp4 {
  int64_t n = 0, k = 0;             // k a multiple of 16
  const uint8_t* codes = nullptr;   // [n, k/2], low nibble first
  const uint8_t* scales = nullptr;  // [n, k/16] e4m3, none NaN, none negative
  float global = 0;                 // finite, > 0
  std::optional<float>
      input_scale;  // W4A4 alone: the activation's global scale, finite, > 0. W4A16: never there.
};

/// Sixteen-bit weights as they lie in the file.
struct CanonicalBf16 {
  int64_t n = 0, k = 0;
  const uint8_t* data = nullptr;  // [n, k] little-endian bf16, any address
};

using CanonicalWeight = std::variant<CanonicalNvfp4, CanonicalBf16>;

inline int64_t RowsOf(const CanonicalWeight& w) {
  return std::visit([](const auto& v) { return v.n; }, w);
}
inline int64_t ColumnsOf(const CanonicalWeight& w) {
  return std::visit([](const auto& v) { return v.k; }, w);
}

}  // namespace nibble
