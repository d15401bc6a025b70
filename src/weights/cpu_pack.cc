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
  if (std::holds_alternative<CanonicalFp8>(w)) return TileFormat::kFp8;
  return std::holds_alternative<CanonicalNvfp4>(w) ? TileFormat::kNvfp4 : TileFormat::kBf16;
}

GroupShape GroupOf(const CanonicalWeight& w) {
  const auto* fp8 = std::get_if<CanonicalFp8>(&w);
  return fp8 != nullptr ? fp8->group : GroupShape{};
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

void PackFp8Strips(const CanonicalFp8& w, int64_t first, int64_t last, std::byte* out) {
  for (int64_t s = first; s < last; ++s) {
    std::byte* tile = out + s * StripBytes(TileFormat::kFp8, w.k);
    const int64_t row = s * kStripRows, rows = std::min(kStripRows, w.n - row);
    for (int64_t k = 0; k < w.k; k += kTileK, tile += kFp8TileBytes) {
      const int64_t width = std::min(kTileK, w.k - k);
      if (rows < kStripRows || width < kTileK) std::memset(tile, 0, kFp8TileBytes);
      for (int64_t r = 0; r < rows; ++r) {
        uint8_t codes[kTileK] = {};
        std::memcpy(codes, w.codes + (row + r) * w.k + k, width);
        for (int64_t p = 0; p < kTileK / 2; ++p) {
          std::memcpy(tile + p * 32 + r * 2, codes + p * 2, 2);
        }
      }
    }
  }
}

/// Where the strips end and the scales begin.
std::byte* ScalesOf(const CanonicalWeight& from, std::byte* at) {
  return at + PackedBytes(FormatOf(from), RowsOf(from), ColumnsOf(from));
}

}  // namespace

uint64_t PackedBytesOf(const CanonicalWeight& from) {
  return static_cast<uint64_t>(
      PackedBytes(FormatOf(from), RowsOf(from), ColumnsOf(from), GroupOf(from)));
}

PackedMatrix DescribePacked(const CanonicalWeight& from, std::byte* at) {
  PackedMatrix packed{FormatOf(from), RowsOf(from), ColumnsOf(from), at, GroupOf(from)};
  if (ScaleCount(packed.group, packed.n, packed.k) > 0) {
    packed.scales = reinterpret_cast<const float*>(ScalesOf(from, at));
  }
  return packed;
}

void PackStrips(const CanonicalWeight& from, int64_t first, int64_t last, std::byte* at) {
  if (const auto* fp4 = std::get_if<CanonicalNvfp4>(&from)) {
    PackNvfp4Strips(*fp4, first, last, at);
  } else if (const auto* fp8 = std::get_if<CanonicalFp8>(&from)) {
    PackFp8Strips(*fp8, first, last, at);
  } else {
    PackBf16Strips(std::get<CanonicalBf16>(from), first, last, at);
  }
}

void PackScales(const CanonicalWeight& from, std::byte* at) {
  const auto* fp8 = std::get_if<CanonicalFp8>(&from);
  if (fp8 == nullptr || ScaleCount(fp8->group, fp8->n, fp8->k) == 0) return;
  std::byte* scales = ScalesOf(from, at);
  std::memset(scales, 0, at + PackedBytesOf(from) - scales);
  std::memcpy(scales, fp8->scales.data(), fp8->scales.size() * sizeof(float));
}

}  // namespace nibble::weights
