#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "layout/quant_key.h"
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

/// W[n,k] = e4m3(code) * the scale of its group
struct CanonicalFp8 {
  int64_t n = 0, k = 0;
  const uint8_t* codes = nullptr;  // [n, k] e4m3, none NaN
  GroupShape group;                // PerTensor(), PerChannel() or {128, 128}
  /// Multipliers, finite, none negative: [1], [n] or [ceil(n/128), ceil(k/128)] row-major. The only
  /// numbers of a weight that are copied out of the file: they come as bf16 or as fp32.
  std::vector<float> scales;
  std::optional<float> input_scale;  // statically quantized activations alone: finite, > 0
};

/// Sixteen-bit weights as they lie in the file.
struct CanonicalBf16 {
  int64_t n = 0, k = 0;
  const uint8_t* data = nullptr;  // [n, k] little-endian bf16, any address
};

using CanonicalWeight = std::variant<CanonicalNvfp4, CanonicalBf16, CanonicalFp8>;

inline int64_t RowsOf(const CanonicalWeight& w) {
  return std::visit([](const auto& v) { return v.n; }, w);
}
inline int64_t ColumnsOf(const CanonicalWeight& w) {
  return std::visit([](const auto& v) { return v.k; }, w);
}

}  // namespace nibble
