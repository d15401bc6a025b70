#include "weights/cpu_pack.h"

#include <algorithm>
#include <cstring>

#include "numerics/nvfp4.h"

namespace nibble::weights {
namespace {

TileFormat FormatOf(const CanonicalWeight& w) {
  return std::holds_alternative<CanonicalNvfp4>(w) ? TileFormat::kNvfp4 : TileFormat::kBf16;
}

/// Eight codes in file order (low nibble first) to the two words of a lane: the even ones' nibbles in the low half, the odd ones' in
/// the high half.
uint32_t Interleave(uint32_t codes) {
  const auto gather = [](uint32_t nibbles) {
    nibbles = (nibbles | (nibbles >> 4)) & 0x00FF00FFu;
    return (nibbles | (nibbles >> 8)) & 0x0000FFFFu;
  };
  return gather(codes & 0x0F0F0F0Fu) | (gather((codes >> 4) & 0x0F0F0F0Fu) << 16);
}

void PackNvfp4Strip(const CanonicalNvfp4& from, int64_t strip, std::byte* out) {
  constexpr int64_t kGroupsATile = kTileK / kNvfp4Group, kCodeBytes = kStripRows * kTileK / 2;
  const int64_t rows = std::min(kStripRows, from.n - strip * kStripRows),
                groups = from.k / kNvfp4Group;
  std::memset(out, 0, static_cast<size_t>(StripBytes(TileFormat::kNvfp4, from.k)));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = strip * kStripRows + r;
    const uint8_t* codes = from.codes + row * (from.k / 2);
    const uint8_t* scales = from.scales + row * groups;
    for (int64_t g = 0; g < groups; ++g) {
      std::byte* tile = out + (g / kGroupsATile) * kNvfp4TileBytes;
      const int64_t in_tile = g % kGroupsATile;
      for (int64_t z = 0; z < 2; ++z) {
        uint32_t word;
        std::memcpy(&word, codes + g * 8 + z * 4, 4);
        word = Interleave(word);
        std::memcpy(tile + in_tile * 128 + z * 64 + r * 4, &word, 4);
      }
      tile[kCodeBytes + in_tile * kStripRows + r] = static_cast<std::byte>(scales[g]);
    }
  }
}

void PackBf16Strip(const CanonicalBf16& from, int64_t strip, std::byte* out) {
  const int64_t rows = std::min(kStripRows, from.n - strip * kStripRows);
  std::memset(out, 0, static_cast<size_t>(StripBytes(TileFormat::kBf16, from.k)));
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* row = from.data + 2 * (strip * kStripRows + r) * from.k;
    for (int64_t k = 0; k < from.k; k += 2) {
      std::memcpy(out + (k / 2 * kStripRows + r) * 4, row + 2 * k,
                  static_cast<size_t>(std::min<int64_t>(4, 2 * (from.k - k))));
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
  const int64_t bytes = StripBytes(FormatOf(from), ColumnsOf(from));
  for (int64_t s = first; s < last; ++s) {
    if (const auto* fp4 = std::get_if<CanonicalNvfp4>(&from))
      PackNvfp4Strip(*fp4, s, at + s * bytes);
    else
      PackBf16Strip(std::get<CanonicalBf16>(from), s, at + s * bytes);
  }
}

}  // namespace nibble::weights
