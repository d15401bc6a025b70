#include "weights/cpu_pack.h"

#include <algorithm>
#include <cstring>

namespace nibble::weights {
namespace {

constexpr int64_t kTileCodeBytes = kTileK / 2;  // of one row
constexpr int64_t kGroups = kTileK / 16;

// Four groups of 16 codes of one row. Tile by tile, because what is written then stays in L1 until
// it is whole. A vector of the compiler's own: with SSE2 alone two registers, which is enough.
typedef uint64_t Groups __attribute__((vector_size(32)));

constexpr Groups Repeat(uint64_t mask) { return Groups{mask, mask, mask, mask}; }

/// The even nibbles of each 32-bit half, moved together into its low 16 bits.
inline Groups EvenNibbles(Groups v) {
  v &= Repeat(0x0F0F0F0F0F0F0F0F);
  v = (v | v >> 4) & Repeat(0x00FF00FF00FF00FF);
  return (v | v >> 8) & Repeat(0x0000FFFF0000FFFF);
}

/// Row r of a tile from its 32 bytes of codes and 4 block scales: a group's 16 codes are 64 bits,
/// its two halves of 8 k the two lanes of 32, and a lane holds its even codes below its odd ones.
inline void PackTileRow(const uint8_t* codes, const uint8_t* scales, int64_t r, std::byte* tile) {
  Groups groups;
  std::memcpy(&groups, codes, sizeof groups);
  groups = EvenNibbles(groups) | EvenNibbles(groups >> 4) << 16;
  uint32_t lanes[2 * kGroups];
  std::memcpy(lanes, &groups, sizeof lanes);
  for (int64_t i = 0; i < 2 * kGroups; ++i) std::memcpy(tile + i * 64 + r * 4, &lanes[i], 4);
  for (int64_t g = 0; g < kGroups; ++g) tile[512 + g * 16 + r] = static_cast<std::byte>(scales[g]);
}

TileFormat FormatOf(const CanonicalWeight& w) {
  return std::holds_alternative<CanonicalNvfp4>(w) ? TileFormat::kNvfp4 : TileFormat::kBf16;
}

void PackNvfp4Strips(const CanonicalNvfp4& w, int64_t first, int64_t last, std::byte* out) {
  const int64_t tiles = w.k / kTileK, rest = w.k % kTileK;
  const int64_t code_stride = w.k / 2, scale_stride = w.k / 16;
  for (int64_t s = first; s < last; ++s) {
    std::byte* tile = out + s * StripBytes(TileFormat::kNvfp4, w.k);
    const int64_t row = s * kStripRows, rows = std::min(kStripRows, w.n - row);
    const uint8_t* codes = w.codes + row * code_stride;
    const uint8_t* scales = w.scales + row * scale_stride;
    for (int64_t i = 0; i < tiles; ++i, tile += kNvfp4TileBytes) {
      if (rows < kStripRows) std::memset(tile, 0, kNvfp4TileBytes);
      for (int64_t r = 0; r < rows; ++r) {
        PackTileRow(codes + r * code_stride + i * kTileCodeBytes,
                    scales + r * scale_stride + i * kGroups, r, tile);
      }
    }
    if (rest == 0) continue;
    std::memset(tile, 0, kNvfp4TileBytes);
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t last_codes[kTileCodeBytes] = {}, last_scales[kGroups] = {};
      std::memcpy(last_codes, codes + r * code_stride + tiles * kTileCodeBytes, rest / 2);
      std::memcpy(last_scales, scales + r * scale_stride + tiles * kGroups, rest / 16);
      PackTileRow(last_codes, last_scales, r, tile);
    }
  }
}

void PackBf16Strips(const CanonicalBf16& w, int64_t first, int64_t last, std::byte* out) {
  const int64_t pairs = w.k / 2;
  for (int64_t s = first; s < last; ++s) {
    std::byte* strip = out + s * StripBytes(TileFormat::kBf16, w.k);
    const int64_t row = s * kStripRows, rows = std::min(kStripRows, w.n - row);
    if (rows < kStripRows || w.k % kTileK != 0) {
      std::memset(strip, 0, StripBytes(TileFormat::kBf16, w.k));
    }
    constexpr int64_t kBlock =
        32;  // pairs: a tile at a time, so that what is written stays in L1 until it is whole
    for (int64_t block = 0; block < pairs; block += kBlock) {
      const int64_t end = std::min(block + kBlock, pairs);
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* from = w.data + (row + r) * w.k * 2;
        for (int64_t p = block; p < end; ++p) std::memcpy(strip + p * 64 + r * 4, from + p * 4, 4);
      }
    }
    if (w.k % 2 != 0) {
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(strip + pairs * 64 + r * 4, w.data + ((row + r + 1) * w.k - 1) * 2, 2);
      }
    }
  }
}

}  // namespace

uint64_t PackedBytesOf(const CanonicalWeight& from) {
  return static_cast<uint64_t>(PackedBytes(FormatOf(from), RowsOf(from), ColumnsOf(from)));
}

PackedMatrix DescribePacked(const CanonicalWeight& from, std::byte* at) {
  return {FormatOf(from), RowsOf(from), ColumnsOf(from), at};
}

void PackStrips(const CanonicalWeight& from, int64_t first, int64_t last, std::byte* at) {
  if (const auto* fp4 = std::get_if<CanonicalNvfp4>(&from)) {
    PackNvfp4Strips(*fp4, first, last, at);
  } else {
    PackBf16Strips(std::get<CanonicalBf16>(from), first, last, at);
  }
}

}  // namespace nibble::weights
