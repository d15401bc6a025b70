#include "weights/cpu_pack.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace nibble::weights {
namespace {

struct Shape {
  int64_t n, k;
};
const Shape kShapes[] = {{16, 64}, {1, 16}, {17, 80}, {15, 48}, {33, 144}, {64, 256}, {5, 1024}};

TEST(CpuPack, Nvfp4TilesHoldEveryCodeAndScaleWhereTheLayoutSays) {
  std::mt19937 rng(3);
  for (const auto [n, k] : kShapes) {
    std::vector<uint8_t> codes(n * k / 2), scales(n * k / 16);
    for (auto& b : codes) b = static_cast<uint8_t>(rng());
    for (auto& b : scales) b = static_cast<uint8_t>(rng() & 0x7F);
    const CanonicalWeight from = CanonicalNvfp4{n, k, codes.data(), scales.data(), 1.0f, {}};
    std::vector<std::byte> packed(PackedBytesOf(from), std::byte{0xEE});
    const int64_t strips = (n + 15) / 16, tiles = (k + 63) / 64;
    ASSERT_EQ(packed.size(), static_cast<size_t>(strips * tiles * 576));
    PackStrips(from, 0, strips, packed.data());
    // The layout's own words (layout/cpu_tile.h): the 16-bit word of row r and parity h at g*128 +
    // z*64 + r*4 + h*2 has nibble i = code of k = 16g + 8z + 2i + h; scales follow at 512 + 16g +
    // r. Rows and columns beyond n and k are zero.
    for (int64_t row = 0; row < strips * 16; ++row) {
      for (int64_t col = 0; col < tiles * 64; ++col) {
        const std::byte* tile = packed.data() + (row / 16 * tiles + col / 64) * 576;
        const int64_t r = row % 16, c = col % 64, g = c / 16, z = c / 8 % 2, i = c % 8 / 2,
                      h = c % 2;
        uint16_t word;
        std::memcpy(&word, tile + g * 128 + z * 64 + r * 4 + h * 2, 2);
        const unsigned code = (word >> (4 * i)) & 15;
        const bool inside = row < n && col < k;
        const unsigned want = inside ? (codes[(row * k + col) / 2] >> (4 * (col % 2))) & 15 : 0;
        ASSERT_EQ(code, want) << n << "x" << k << " row " << row << " col " << col;
        const unsigned scale = static_cast<unsigned>(tile[512 + 16 * g + r]);
        ASSERT_EQ(scale, inside ? scales[(row * k + col) / 16] : 0);
      }
    }
  }
}

TEST(CpuPack, Bf16TilesHoldPairsOfColumnsARowALane) {
  std::mt19937 rng(4);
  for (const auto [n, k] : kShapes) {
    std::vector<uint16_t> w(n * k);
    for (auto& v : w) v = static_cast<uint16_t>(rng());
    // One byte off: tensor data need not be aligned.
    std::vector<uint8_t> file(w.size() * 2 + 1);
    std::memcpy(file.data() + 1, w.data(), w.size() * 2);
    const CanonicalWeight from = CanonicalBf16{n, k, file.data() + 1};
    std::vector<std::byte> packed(PackedBytesOf(from), std::byte{0xEE});
    const int64_t strips = (n + 15) / 16, tiles = (k + 63) / 64;
    ASSERT_EQ(packed.size(), static_cast<size_t>(strips * tiles * 2048));
    PackStrips(from, 0, strips, packed.data());
    for (int64_t row = 0; row < strips * 16; ++row) {
      for (int64_t col = 0; col < tiles * 64; ++col) {
        uint16_t got;
        std::memcpy(
            &got,
            packed.data() + row / 16 * tiles * 2048 + (col / 2 * 16 + row % 16) * 4 + col % 2 * 2,
            2);
        ASSERT_EQ(got, row < n && col < k ? w[row * k + col] : 0)
            << n << "x" << k << " row " << row << " col " << col;
      }
    }
  }
}

TEST(CpuPack, Fp8TilesHoldPairsOfColumnsAndTheScalesFollowThem) {
  std::mt19937 rng(5);
  const Shape shapes[] = {{16, 64},   {1, 16},   {17, 80},  {33, 144},
                          {130, 129}, {5, 1023}, {256, 256}};
  for (const auto [n, k] : shapes) {
    for (const GroupShape group :
         {GroupShape::PerTensor(), GroupShape::PerChannel(), GroupShape{128, 128}}) {
      std::vector<uint8_t> codes(n * k);
      for (auto& b : codes) b = static_cast<uint8_t>(rng());
      size_t count = 1;
      if (group == GroupShape::PerChannel()) count = n;
      if (group == GroupShape{128, 128}) count = ((n + 127) / 128) * ((k + 127) / 128);
      std::vector<float> scales(count);
      for (float& f : scales) f = static_cast<float>(rng() % 1000) / 7;
      const CanonicalWeight from = CanonicalFp8{n, k, codes.data(), group, scales, {}};
      const bool behind = group != GroupShape::PerTensor();
      const int64_t strips = (n + 15) / 16, tiles = (k + 63) / 64;
      const size_t lines = behind ? (count * 4 + 63) / 64 : 0;
      std::vector<std::byte> packed(PackedBytesOf(from), std::byte{0xEE});
      ASSERT_EQ(packed.size(), strips * tiles * 1024 + lines * 64);
      PackStrips(from, 0, strips, packed.data());
      PackScales(from, packed.data());
      for (int64_t row = 0; row < strips * 16; ++row) {
        for (int64_t col = 0; col < tiles * 64; ++col) {
          const std::byte* tile = packed.data() + (row / 16 * tiles + col / 64) * 1024;
          const auto got = static_cast<uint8_t>(tile[(col % 64 / 2 * 16 + row % 16) * 2 + col % 2]);
          ASSERT_EQ(got, row < n && col < k ? codes[row * k + col] : 0)
              << n << "x" << k << " row " << row << " col " << col;
        }
      }
      const PackedMatrix view = DescribePacked(from, packed.data());
      EXPECT_EQ(view.format, TileFormat::kFp8);
      EXPECT_EQ(view.group, group);
      ASSERT_EQ(view.scales != nullptr, behind);
      if (!behind) continue;
      const std::byte* at = packed.data() + strips * tiles * 1024;
      EXPECT_EQ(reinterpret_cast<const std::byte*>(view.scales), at);
      EXPECT_EQ(std::memcmp(at, scales.data(), count * 4), 0);
      for (size_t i = count * 4; i < lines * 64; ++i) EXPECT_EQ(at[i], std::byte{0}) << i;
    }
  }
}

TEST(CpuPack, StripsMayBePackedInAnyPieces) {
  std::vector<uint8_t> codes(48 * 32, 0x5A), scales(48 * 4, 0x38);
  const CanonicalWeight from = CanonicalNvfp4{48, 64, codes.data(), scales.data(), 1.0f, {}};
  std::vector<std::byte> whole(PackedBytesOf(from)), pieces(PackedBytesOf(from), std::byte{1});
  PackStrips(from, 0, 3, whole.data());
  PackStrips(from, 2, 3, pieces.data());
  PackStrips(from, 0, 2, pieces.data());
  EXPECT_EQ(whole, pieces);
}

}  // namespace
}  // namespace nibble::weights
