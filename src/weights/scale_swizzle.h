#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble::weights {

// The order in which block-scaled tensor cores read e4m3 block scales (CUTLASS and B12X; the cuBLAS
// manual, "1D block scaling factors layout"): tiles of 128 rows x 4 groups, 512 bytes each,
// row-major over the matrix. In a tile, rows 32 apart lie side by side: 16 bytes hold rows r, r+32,
// r+64 and r+96 of all four groups. Rows are padded to 128 and groups to 4.

inline constexpr int64_t kScaleTileRows = 128;
inline constexpr int64_t kScaleTileGroups = 4;
inline constexpr int64_t kScaleTileBytes = kScaleTileRows * kScaleTileGroups;

/// Bytes of the interleaved form of [rows, groups] scales.
constexpr int64_t SwizzledScaleBytes(int64_t rows, int64_t groups) {
  return (rows + kScaleTileRows - 1) / kScaleTileRows *
         ((groups + kScaleTileGroups - 1) / kScaleTileGroups) * kScaleTileBytes;
}

/// Where the scale of (row, group) of a matrix with `groups` groups a row lies.
constexpr int64_t SwizzledScaleOffset(int64_t row, int64_t group, int64_t groups) {
  const int64_t tiles = (groups + kScaleTileGroups - 1) / kScaleTileGroups;
  return (row / kScaleTileRows * tiles + group / kScaleTileGroups) * kScaleTileBytes +
         row % 32 * 16 + row % kScaleTileRows / 32 * 4 + group % kScaleTileGroups;
}

/// Row-major [rows, groups] e4m3 scales in interleaved order; what pads is zero. A call is for one
/// expert's matrix: tiles do not reach across experts.
std::vector<uint8_t> SwizzleScales(std::span<const uint8_t> scales, int64_t rows, int64_t groups);

/// The inverse: row-major [rows, groups], without the padding.
std::vector<uint8_t> UnswizzleScales(std::span<const uint8_t> swizzled, int64_t rows,
                                     int64_t groups);

}  // namespace nibble::weights
