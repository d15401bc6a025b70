#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "kernels/cpu/cpu_kernels.h"
#include "layout/cpu_tile.h"
#include "layout/quant_key.h"
#include "numerics/fp8.h"

namespace nibble::kernels::cpu {

// Rows of activations as the kernels multiply them: values that are exact in bf16, filled up with
// zeros to whole tiles, then the scales that each row was given, if its form gives any.

/// How a row is held.
struct RowForm {
  enum class Kind : uint8_t {
    kBf16,
    kNvfp4,      // under the gscale `scale`
    kFp8Static,  // under `scale`
    kFp8Token,   // under a scale of its own
    kFp8Blocks,  // under a scale for each 128 elements
  };
  Kind kind = Kind::kBf16;
  float scale = 0;
  bool operator==(const RowForm&) const = default;

  /// Whether only the whole row says what its scales are.
  bool needs_whole_row() const { return kind == Kind::kFp8Token || kind == Kind::kFp8Blocks; }
  /// What the accumulator is still multiplied with, besides the scales that the row brings.
  float factor() const {
    if (kind == Kind::kNvfp4) return 1.0f / scale;
    return kind == Kind::kFp8Static ? scale : 1.0f;
  }
};

/// The form that `key` declares; `scale` is the gscale of NVFP4 or the scale of static FP8.
inline RowForm FormOf(const std::optional<QuantKey>& key, std::optional<float> scale) {
  using enum RowForm::Kind;
  if (!key) return {};
  if (key->dtype == ScalarType::kF8E4M3 && !key->scale.is_static) {
    return {key->scale.group == GroupShape::PerToken() ? kFp8Token : kFp8Blocks};
  }
  NIBBLE_CHECK(scale.has_value(), "an activation without its scale");
  return {key->dtype == ScalarType::kU8 ? kNvfp4 : kFp8Static, *scale};
}

inline int64_t TilesOf(int64_t k) { return (k + kTileK - 1) / kTileK; }
inline int64_t RowValueBytes(const CpuKernels& kernels, int64_t k) {
  return TilesOf(k) * kTileK * kernels.activation_bytes;
}

/// From one row to the next. The scales take at least a cache line: rows a power of two apart would
/// compete for the same few lines of L1.
inline int64_t PackedRowBytes(const CpuKernels& kernels, int64_t k) {
  const uint64_t scales = DivUp(static_cast<uint64_t>(k), kFp8Block) * sizeof(float);
  return RowValueBytes(kernels, k) + static_cast<int64_t>(RoundUp(scales, 64));
}

/// One scale (kFp8Token) or one for each 128 elements (kFp8Blocks).
inline const float* RowScales(const CpuKernels& kernels, const std::byte* row, int64_t k) {
  return reinterpret_cast<const float*>(row + RowValueBytes(kernels, k));
}

/// Packs 16 * groups activations under a form that does not need the whole row.
inline void PackGroups(const CpuKernels& kernels, const float* x, int64_t groups,
                       const RowForm& form, std::byte* out) {
  switch (form.kind) {
    case RowForm::Kind::kBf16:
      return kernels.pack_bf16(x, groups, out);
    case RowForm::Kind::kNvfp4:
      return kernels.pack_nvfp4(x, groups, form.scale, out);
    case RowForm::Kind::kFp8Static:
      return kernels.pack_fp8(x, groups, form.scale, out);
    case RowForm::Kind::kFp8Token:
    case RowForm::Kind::kFp8Blocks:
      break;
  }
  NIBBLE_CHECK(false, "a part of a row has no scale of its own");
}

/// Packs a row of k, a multiple of 16, and its scales.
inline void PackRow(const CpuKernels& kernels, const float* x, int64_t k, const RowForm& form,
                    std::byte* out) {
  std::byte* end = out + RowValueBytes(kernels, k);
  std::fill(out + k * kernels.activation_bytes, end, std::byte{0});
  if (!form.needs_whole_row()) return PackGroups(kernels, x, k / kStripRows, form, out);
  const int64_t width = form.kind == RowForm::Kind::kFp8Token ? k : kFp8Block;
  for (int64_t first = 0; first < k; first += width, end += sizeof(float)) {
    const int64_t groups = std::min(width, k - first) / kStripRows;
    const float scale = DynamicFp8Scale(kernels.largest_magnitude(x + first, groups));
    kernels.pack_fp8(x + first, groups, scale, out + first * kernels.activation_bytes);
    std::memcpy(end, &scale, sizeof scale);
  }
}

/// Below so many activations the caller packs them itself: a region costs more.
inline constexpr int64_t kInlinePackElements = 16384;

}  // namespace nibble::kernels::cpu
