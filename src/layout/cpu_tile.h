#pragma once

#include <cstddef>
#include <cstdint>

#include "base/checked.h"
#include "layout/quant_key.h"
#include "numerics/fp8.h"

namespace nibble {

// How the CPU kernels want a weight matrix [n, k]: as strips of 16 output rows, each strip one
// contiguous stream of tiles of 64 k. A decode pass reads a strip front to back, once: measured on
// Zen 5, one core reads this stream from huge pages at 40 GB/s where the file's row-major layout
// gives 22. n is padded to 16 and k to 64 with zero codes under zero scales.
//
// NVFP4 tile, 576 bytes: 4 groups g of 16 k, each 2 halves z of 8 k of 64 bytes: for row r (32-bit
// lane r) and parity h a 16-bit word at g*128 + z*64 + r*4 + h*2 whose nibble i is the code of k =
// 16g + 8z + 2i + h; then 64 bytes of block scales, [g][r].
//   So (word >> 4i) & 15 over all lanes looks up, in each 32-bit lane, the bf16 pair (k, k+1) of
//   that row: what vdpbf16ps multiplies.
// FP8 tile, 1024 bytes: [32 pairs][16 rows] of e4m3 pairs (k, k+1).
//   A matrix with a scale a channel or a block has them behind its last strip, as fp32; one scale
//   for the whole matrix is not here: it multiplies the sums, as NVFP4's global does.
// BF16 tile, 2048 bytes: [32 pairs][16 rows] of (k, k+1) little-endian bf16 pairs. It is also the
// panel that an NVFP4 or FP8 strip expands to.

inline constexpr int64_t kStripRows = 16;
inline constexpr int64_t kTileK = 64;
inline constexpr int64_t kNvfp4TileBytes = 576;
inline constexpr int64_t kFp8TileBytes = 1024;
inline constexpr int64_t kBf16TileBytes = 2048;

/// What a strip's tiles hold.
enum class TileFormat : uint8_t { kNvfp4, kBf16, kFp8 };

constexpr int64_t TileBytes(TileFormat format) {
  switch (format) {
    case TileFormat::kNvfp4:
      return kNvfp4TileBytes;
    case TileFormat::kFp8:
      return kFp8TileBytes;
    case TileFormat::kBf16:
      break;
  }
  return kBf16TileBytes;
}
constexpr int64_t StripBytes(TileFormat format, int64_t k) {
  return static_cast<int64_t>(DivUp(static_cast<uint64_t>(k), kTileK)) * TileBytes(format);
}
constexpr int64_t StripCount(int64_t n) {
  return static_cast<int64_t>(DivUp(static_cast<uint64_t>(n), kStripRows));
}

/// The fp32 scales that lie behind the tiles.
constexpr int64_t ScaleCount(GroupShape group, int64_t n, int64_t k) {
  if (group == GroupShape::PerChannel()) return n;
  if (group != GroupShape{kFp8Block, kFp8Block}) return 0;
  return static_cast<int64_t>(DivUp(static_cast<uint64_t>(n), kFp8Block) *
                              DivUp(static_cast<uint64_t>(k), kFp8Block));
}
/// Whole cache lines of them.
constexpr int64_t ScaleBytes(GroupShape group, int64_t n, int64_t k) {
  return static_cast<int64_t>(
      RoundUp(static_cast<uint64_t>(ScaleCount(group, n, k)) * sizeof(float), 64));
}
/// Tiles and scales.
constexpr int64_t PackedBytes(TileFormat format, int64_t n, int64_t k, GroupShape group = {}) {
  return StripCount(n) * StripBytes(format, k) + ScaleBytes(group, n, k);
}

/// A matrix row by row, as the file has it, at any address: NVFP4 codes [n, k/2] and their block
/// scales [n, k/16], FP8 codes [n, k] or bf16 [n, k].
struct FileRows {
  const uint8_t* values = nullptr;
  const uint8_t* block_scales = nullptr;
};
constexpr int64_t RowBytes(TileFormat format, int64_t k) {
  if (format == TileFormat::kBf16) return 2 * k;
  return format == TileFormat::kFp8 ? k : k / 2;
}

/// A matrix in tiles, or one of which each strip becomes tiles when it is used; owns nothing.
struct PackedMatrix {
  TileFormat format = TileFormat::kNvfp4;
  int64_t n = 0, k = 0;  // the unpadded shape
  /// [StripCount(n)][StripBytes(format, k)], 64-byte aligned; null: `rows` are what there is.
  const std::byte* data = nullptr;
  GroupShape group = {};          // kFp8: what shares a scale
  const float* scales = nullptr;  // by channel: [n]; by block: [ceil(n/128), ceil(k/128)]
  FileRows rows = {};             // what strips are packed from

  bool mapped() const { return data == nullptr; }
  /// Where strip s begins in memory: its tiles, or its rows.
  const std::byte* strip(int64_t s) const {
    if (!mapped()) return data + s * StripBytes(format, k);
    return reinterpret_cast<const std::byte*>(rows.values) + s * kStripRows * RowBytes(format, k);
  }
};

}  // namespace nibble
