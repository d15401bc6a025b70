#include "layout/hopper_pack.h"

#include <cstring>
#include <type_traits>

#include "base/error.h"
#include "numerics/nvfp4.h"

namespace nibble {
namespace {

constexpr int kGroup = 16;  // k's of a row that a lane holds

struct Nvfp4Group {
  uint64_t codes = 0;
  uint8_t scale = 0;
};
struct Bf16Group {
  uint16_t bits[kGroup] = {};
};
struct Fp8Group {
  uint8_t codes[kGroup] = {};
};

// Sixteen codes and their scale; zeros outside the matrix.
Nvfp4Group GroupAt(const CanonicalNvfp4& w, int64_t row, int64_t k) {
  Nvfp4Group group;
  if (row >= w.n || k >= w.k) return group;
  for (int i = 0; i < kGroup; ++i) {
    group.codes |= static_cast<uint64_t>(Nvfp4Code(w.codes + row * (w.k / 2), k + i)) << (4 * i);
  }
  group.scale = w.scales[(row * w.k + k) / kNvfp4Group];
  return group;
}
Bf16Group GroupAt(const CanonicalBf16& w, int64_t row, int64_t k) {
  Bf16Group group;
  if (row < w.n && k < w.k) std::memcpy(group.bits, w.data + 2 * (row * w.k + k), sizeof group);
  return group;
}
Fp8Group GroupAt(const CanonicalFp8& w, int64_t row, int64_t k) {
  Fp8Group group;
  if (row < w.n && k < w.k) std::memcpy(group.codes, w.codes + row * w.k + k, sizeof group);
  return group;
}

// A lane's share of a tile, from rows g and g + 8.
void PackLane(const Nvfp4Group& low, const Nvfp4Group& high, int lane, std::byte* tile) {
  const HopperLane packed = PackHopperLane(low.codes, high.codes, low.scale, high.scale);
  std::memcpy(tile + lane * 16, packed.words, 16);
  std::memcpy(tile + kHopperTileCodeBytes + lane * 2, &packed.scales, 2);
}
void PackLane(const Bf16Group& low, const Bf16Group& high, int lane, std::byte* tile) {
  for (int pair = 0; pair < kGroup / 2; ++pair) {
    std::byte* const to = tile + pair / 2 * 512 + lane * 16 + pair % 2 * 8;
    std::memcpy(to, low.bits + 2 * pair, 4);
    std::memcpy(to + 4, high.bits + 2 * pair, 4);
  }
}
void PackLane(const Fp8Group& low, const Fp8Group& high, int lane, std::byte* tile) {
  const auto word = [](const Fp8Group& group, int step) {
    uint32_t codes;
    std::memcpy(&codes, group.codes + 4 * step, sizeof codes);
    return HopperFp8Word(codes);
  };
  for (int step = 0; step < kGroup / 4; ++step) {
    const uint32_t words[2] = {word(low, step), word(high, step)};
    std::memcpy(tile + step / 2 * 512 + lane * 16 + step % 2 * 8, words, sizeof words);
  }
}

template <class Matrix>
constexpr HopperFormat kFormatOf = std::is_same_v<Matrix, CanonicalNvfp4> ? HopperFormat::kNvfp4
                                   : std::is_same_v<Matrix, CanonicalFp8> ? HopperFormat::kFp8
                                                                          : HopperFormat::kBf16;

// row(tile, half, g) is where row g + 8 half of a tile comes from, in `low` or in `high`.
template <class Matrix, class Row>
void PackTiles(const HopperLayout& layout, const Matrix& low, const Matrix& high, Row row,
               std::span<std::byte> out) {
  constexpr HopperFormat format = kFormatOf<Matrix>;
  NIBBLE_CHECK(out.size() == static_cast<size_t>(layout.bytes(format)),
               "size of a packed Hopper matrix");
  for (int64_t tile = 0; tile < layout.tiles; ++tile) {
    for (int64_t block = 0; block < layout.k_blocks; ++block) {
      std::byte* const to = out.data() + layout.OffsetOf(tile, block, format);
      for (int lane = 0; lane < 32; ++lane) {
        const int64_t k = block * kHopperTileK + lane % 4 * kGroup;
        PackLane(GroupAt(low, row(tile, 0, lane / 4), k), GroupAt(high, row(tile, 1, lane / 4), k),
                 lane, to);
      }
    }
  }
}

template <class Matrix>
void PackW13(const Matrix& gate, const Matrix& up, std::span<std::byte> out) {
  NIBBLE_CHECK(gate.n == up.n && gate.k == up.k, "gate and up of one expert have one shape");
  const auto row = [](int64_t tile, int, int g) { return HopperFeature(tile, g); };
  PackTiles(HopperW13Layout(gate.k, gate.n), gate, up, row, out);
}

template <class Matrix>
void PackW1(const Matrix& up, std::span<std::byte> out) {
  PackTiles(HopperW1Layout(up.k, up.n), up, up, HopperUngatedFeature, out);
}

template <class Matrix>
void PackW2(const Matrix& down, std::span<std::byte> out) {
  PackTiles(HopperW2Layout(down.n, down.k), down, down, HopperOutputRow, out);
}

}  // namespace

void PackHopperW13(const CanonicalNvfp4& gate, const CanonicalNvfp4& up, std::span<std::byte> out) {
  PackW13(gate, up, out);
}
void PackHopperW13(const CanonicalBf16& gate, const CanonicalBf16& up, std::span<std::byte> out) {
  PackW13(gate, up, out);
}
void PackHopperW13(const CanonicalFp8& gate, const CanonicalFp8& up, std::span<std::byte> out) {
  PackW13(gate, up, out);
}
void PackHopperW1(const CanonicalNvfp4& up, std::span<std::byte> out) { PackW1(up, out); }
void PackHopperW1(const CanonicalBf16& up, std::span<std::byte> out) { PackW1(up, out); }
void PackHopperW1(const CanonicalFp8& up, std::span<std::byte> out) { PackW1(up, out); }
void PackHopperW2(const CanonicalNvfp4& down, std::span<std::byte> out) { PackW2(down, out); }
void PackHopperW2(const CanonicalBf16& down, std::span<std::byte> out) { PackW2(down, out); }
void PackHopperW2(const CanonicalFp8& down, std::span<std::byte> out) { PackW2(down, out); }

}  // namespace nibble
