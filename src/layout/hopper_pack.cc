#include "layout/hopper_pack.h"

#include <cstring>

#include "base/error.h"
#include "numerics/nvfp4.h"

namespace nibble {
namespace {

struct Group {
  uint64_t codes = 0;
  uint8_t scale = 0;
};

// Sixteen codes and their scale; zeros outside the matrix.
Group GroupAt(const CanonicalNvfp4& w, int64_t row, int64_t k) {
  Group group;
  if (row >= w.n || k >= w.k) return group;
  for (int i = 0; i < kNvfp4Group; ++i) {
    group.codes |= static_cast<uint64_t>(Nvfp4Code(w.codes + row * (w.k / 2), k + i)) << (4 * i);
  }
  group.scale = w.scales[(row * w.k + k) / kNvfp4Group];
  return group;
}

// low(tile, g) and high(tile, g, k) give the groups of rows g and g + 8.
template <class Low, class High>
void PackTiles(const HopperLayout& layout, std::span<std::byte> out, Low low, High high) {
  NIBBLE_CHECK(out.size() == static_cast<size_t>(layout.bytes()), "size of a packed Hopper matrix");
  for (int64_t tile = 0; tile < layout.tiles; ++tile) {
    for (int64_t block = 0; block < layout.k_blocks; ++block) {
      std::byte* p = out.data() + layout.OffsetOf(tile, block);
      for (int lane = 0; lane < 32; ++lane) {
        const int64_t k = block * kHopperTileK + lane % 4 * kNvfp4Group;
        const Group a = low(tile, lane / 4, k), b = high(tile, lane / 4, k);
        const HopperLane packed = PackHopperLane(a.codes, b.codes, a.scale, b.scale);
        std::memcpy(p + lane * 16, packed.words, 16);
        std::memcpy(p + kHopperTileCodeBytes + lane * 2, &packed.scales, 2);
      }
    }
  }
}

}  // namespace

void PackHopperW13(const CanonicalNvfp4& gate, const CanonicalNvfp4& up, std::span<std::byte> out) {
  NIBBLE_CHECK(gate.n == up.n && gate.k == up.k, "gate and up of one expert have one shape");
  PackTiles(
      HopperW13Layout(gate.k, gate.n), out,
      [&](int64_t tile, int g, int64_t k) { return GroupAt(gate, HopperFeature(tile, g), k); },
      [&](int64_t tile, int g, int64_t k) { return GroupAt(up, HopperFeature(tile, g), k); });
}

void PackHopperW1(const CanonicalNvfp4& up, std::span<std::byte> out) {
  PackTiles(
      HopperW1Layout(up.k, up.n), out,
      [&](int64_t tile, int g, int64_t k) {
        return GroupAt(up, HopperUngatedFeature(tile, 0, g), k);
      },
      [&](int64_t tile, int g, int64_t k) {
        return GroupAt(up, HopperUngatedFeature(tile, 1, g), k);
      });
}

void PackHopperW2(const CanonicalNvfp4& down, std::span<std::byte> out) {
  PackTiles(
      HopperW2Layout(down.n, down.k), out,
      [&](int64_t tile, int g, int64_t k) { return GroupAt(down, HopperOutputRow(tile, 0, g), k); },
      [&](int64_t tile, int g, int64_t k) {
        return GroupAt(down, HopperOutputRow(tile, 1, g), k);
      });
}

}  // namespace nibble
