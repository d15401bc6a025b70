#include "layout/hopper_pack.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/nvfp4.h"

namespace nibble {
namespace {

struct Matrix {
  std::vector<uint8_t> codes, scales;
  CanonicalNvfp4 view;
};

// Random codes under every legal scale byte, zero and the subnormals often.
Matrix RandomMatrix(int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  Matrix m;
  m.codes.resize(n * k / 2);
  m.scales.resize(n * k / 16);
  for (auto& byte : m.codes) byte = static_cast<uint8_t>(random());
  for (auto& byte : m.scales)
    byte = static_cast<uint8_t>(random() % 4 ? random() % 127 : random() % 9);
  m.view = {n, k, m.codes.data(), m.scales.data(), 1.0f, {}};
  return m;
}

double ValueAt(const CanonicalNvfp4& w, int64_t row, int64_t k) {
  if (row >= w.n || k >= w.k) return 0;
  return Nvfp4Product(Nvfp4Code(w.codes + row * (w.k / 2), k), w.scales[(row * w.k + k) / 16]);
}

float Bf16Of(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

// A tile's element as the kernels read it: masks and shifts on the word, the scale as a bf16, one
// multiplication. `half` picks row g or g + 8, `i` the position 0 .. 15 in lane (g, t).
double ElementOf(const std::byte* tile, int g, int t, int half, int i) {
  const int lane = 4 * g + t, j = i / 4, second = i % 4 / 2, q = i % 2;
  uint16_t word, scales;
  std::memcpy(&word, tile + 16 * lane + 4 * j + 2 * q, 2);
  std::memcpy(&scales, tile + kHopperTileCodeBytes + 2 * lane, 2);
  uint32_t code;
  switch (2 * second + half) {
    case 0:
      code = word & 0x81C0u;
      break;
    case 1:
      code = (uint32_t{word} << 3) & 0x81C0u;
      break;
    case 2:
      code = (uint32_t{word} << 6) & 0x81C0u;
      break;
    default:
      code = ((word >> 8 & 0x006Cu) * 0x421u) & 0x81C0u;
  }
  const uint32_t scale = ((scales >> (8 * half) & 0xFFu) << 4) + 0x7200u;
  const double product = static_cast<double>(Bf16Of(code)) * Bf16Of(scale);
  EXPECT_EQ(product, RoundToBf16(static_cast<float>(product))) << "not exact in bf16";
  return product * kHopperWeightScale;
}

struct Shape {
  const char* what;
  int64_t hidden, intermediate;
};
const Shape kShapes[] = {{"one tile of everything", 64, 64},
                         {"nothing is a multiple of a block", 80, 48},
                         {"odd number of 128-row blocks", 320, 192},
                         {"the row block of two tiles", 2064, 16}};

TEST(HopperPack, EveryWeightIsWhereTheKernelsLookAndExact) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(s.what);
    const Matrix gate = RandomMatrix(s.intermediate, s.hidden, 1);
    const Matrix up = RandomMatrix(s.intermediate, s.hidden, 2);
    const Matrix down = RandomMatrix(s.hidden, s.intermediate, 3);
    const HopperLayout l13 = HopperW13Layout(s.hidden, s.intermediate);
    const HopperLayout l2 = HopperW2Layout(s.hidden, s.intermediate);
    const HopperLayout l1 = HopperW1Layout(s.hidden, s.intermediate);
    std::vector<std::byte> w13(l13.bytes()), w2(l2.bytes()), w1(l1.bytes());
    PackHopperW1(up.view, w1);
    PackHopperW13(gate.view, up.view, w13);
    PackHopperW2(down.view, w2);

    std::vector<int> seen13(2 * s.intermediate * s.hidden), seen2(s.hidden * s.intermediate);
    auto check = [](const HopperLayout& l, const std::vector<std::byte>& packed, auto row_of,
                    auto value_of, auto count) {
      for (int64_t tile = 0; tile < l.tiles; ++tile) {
        for (int64_t kb = 0; kb < l.k_blocks; ++kb) {
          for (int e = 0; e < 16 * 64; ++e) {
            const int half = e / 512, g = e / 64 % 8, t = e / 16 % 4, i = e % 16;
            const int64_t row = row_of(tile, half, g), k = kb * 64 + 16 * t + i;
            ASSERT_EQ(ElementOf(packed.data() + l.OffsetOf(tile, kb), g, t, half, i),
                      value_of(half, row, k))
                << "tile " << tile << " k block " << kb << " row " << row << " k " << k;
            count(half, row, k);
          }
        }
      }
    };
    check(
        l13, w13, [](int64_t tile, int, int g) { return HopperFeature(tile, g); },
        [&](int half, int64_t row, int64_t k) {
          return ValueAt(half ? up.view : gate.view, row, k);
        },
        [&](int half, int64_t row, int64_t k) {
          if (row < s.intermediate && k < s.hidden)
            ++seen13[(half * s.intermediate + row) * s.hidden + k];
        });
    std::vector<int> seen1(s.intermediate * s.hidden);
    check(
        l1, w1, [](int64_t tile, int half, int g) { return HopperUngatedFeature(tile, half, g); },
        [&](int, int64_t row, int64_t k) { return ValueAt(up.view, row, k); },
        [&](int, int64_t row, int64_t k) {
          if (row < s.intermediate && k < s.hidden) ++seen1[row * s.hidden + k];
        });
    EXPECT_EQ(seen1, std::vector<int>(seen1.size(), 1));
    check(
        l2, w2, [](int64_t tile, int half, int g) { return HopperOutputRow(tile, half, g); },
        [&](int, int64_t row, int64_t k) { return ValueAt(down.view, row, k); },
        [&](int, int64_t row, int64_t k) {
          if (row < s.hidden && k < s.intermediate) ++seen2[row * s.intermediate + k];
        });
    EXPECT_EQ(seen13, std::vector<int>(seen13.size(), 1));
    EXPECT_EQ(seen2, std::vector<int>(seen2.size(), 1));
  }
}

// A BF16 tile's element as the mma reads it: register 2 * (i / 2 % 2) + half of step i / 4.
uint16_t Bf16ElementOf(const std::byte* tile, int g, int t, int half, int i) {
  const int lane = 4 * g + t, reg = i / 2 % 2 * 2 + half;
  uint16_t bits;
  std::memcpy(&bits, tile + i / 4 * 512 + 16 * lane + 4 * reg + i % 2 * 2, 2);
  return bits;
}

// An FP8 tile's element as the kernels' masks, byte swap and shift by four find it.
uint16_t Fp8ElementOf(const std::byte* tile, int g, int t, int half, int i) {
  const int lane = 4 * g + t, j = i / 4;
  uint16_t word;
  std::memcpy(&word, tile + j / 2 * 512 + 16 * lane + j % 2 * 8 + half * 4 + i % 2 * 2, 2);
  const unsigned swapped = (word >> 8 & 0xFFu) | (word & 0xFFu) << 8;
  const unsigned bf16 = i % 4 / 2 ? (swapped & 0x0770u) + (swapped & 0x0808u) * 16 : word & 0x87F0u;
  return static_cast<uint16_t>(bf16 >> 8 & 0x80) | (bf16 >> 4 & 0x7F);
}

// Codes of one or two bytes.
template <class View>
struct Codes {
  static constexpr int kBytes = std::is_same_v<View, CanonicalBf16> ? 2 : 1;
  std::vector<uint8_t> bytes;
  View view;

  Codes(int64_t n, int64_t k, uint32_t seed) : bytes(static_cast<size_t>(kBytes * n * k)) {
    std::mt19937 random(seed);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
    view.n = n, view.k = k;
    if constexpr (kBytes == 2) {
      view.data = bytes.data();
    } else {
      view.codes = bytes.data();
    }
  }
  uint16_t At(int64_t row, int64_t k) const {
    if (row >= view.n || k >= view.k) return 0;
    uint16_t code = 0;
    std::memcpy(&code, &bytes[static_cast<size_t>(kBytes * (row * view.k + k))], kBytes);
    return code;
  }
};

template <class View, class ElementOf>
void ExpectEveryCodeWhereTheKernelsLook(HopperFormat format, ElementOf element_of) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(s.what);
    const Codes<View> gate(s.intermediate, s.hidden, 1), up(s.intermediate, s.hidden, 2),
        down(s.hidden, s.intermediate, 3);
    const HopperLayout l13 = HopperW13Layout(s.hidden, s.intermediate);
    const HopperLayout l1 = HopperW1Layout(s.hidden, s.intermediate);
    const HopperLayout l2 = HopperW2Layout(s.hidden, s.intermediate);
    std::vector<std::byte> w13(l13.bytes(format)), w1(l1.bytes(format)), w2(l2.bytes(format));
    PackHopperW13(gate.view, up.view, w13);
    PackHopperW1(up.view, w1);
    PackHopperW2(down.view, w2);
    const auto check = [&](const HopperLayout& l, const std::vector<std::byte>& packed,
                           const Codes<View>& low, const Codes<View>& high, auto row_of) {
      for (int64_t tile = 0; tile < l.tiles; ++tile) {
        for (int64_t kb = 0; kb < l.k_blocks; ++kb) {
          for (int e = 0; e < 16 * 64; ++e) {
            const int half = e / 512, g = e / 64 % 8, t = e / 16 % 4, i = e % 16;
            const int64_t row = row_of(tile, half, g), k = kb * 64 + 16 * t + i;
            ASSERT_EQ(element_of(packed.data() + l.OffsetOf(tile, kb, format), g, t, half, i),
                      (half ? high : low).At(row, k))
                << "tile " << tile << " k block " << kb << " row " << row << " k " << k;
          }
        }
      }
    };
    check(l13, w13, gate, up, [](int64_t tile, int, int g) { return HopperFeature(tile, g); });
    check(l1, w1, up, up, HopperUngatedFeature);
    check(l2, w2, down, down, HopperOutputRow);
  }
}

TEST(HopperPack, EveryBf16WeightIsWhereTheKernelsLook) {
  ExpectEveryCodeWhereTheKernelsLook<CanonicalBf16>(HopperFormat::kBf16, Bf16ElementOf);
}
TEST(HopperPack, EveryFp8WeightIsWhereTheKernelsLook) {
  ExpectEveryCodeWhereTheKernelsLook<CanonicalFp8>(HopperFormat::kFp8, Fp8ElementOf);
}

TEST(HopperPack, EveryScaleAndCodeIsExact) {
  for (int scale = 0; scale < 127; ++scale) {
    for (unsigned code = 0; code < 16; ++code) {
      uint64_t codes = 0;
      for (int i = 0; i < 16; ++i) codes |= uint64_t{(code + i) % 16} << (4 * i);
      const auto lane = PackHopperLane(codes, ~codes, static_cast<uint8_t>(scale), 0x38);
      std::byte tile[kHopperTileBytes] = {};
      std::memcpy(tile, lane.words, 16);
      std::memcpy(tile + kHopperTileCodeBytes, &lane.scales, 2);
      for (int i = 0; i < 16; ++i) {
        const unsigned c = (code + i) % 16;
        EXPECT_EQ(ElementOf(tile, 0, 0, 0, i), Nvfp4Product(c, static_cast<uint8_t>(scale)));
        EXPECT_EQ(ElementOf(tile, 0, 0, 1, i), DecodeE2m1(15 - c));
      }
    }
  }
}

// What lets a kernel quantize h where it makes it.
TEST(HopperPack, AnNvfp4BlockOfTheIntermediateIsTwoTilesOrOne) {
  for (int tile = 0; tile < 32; ++tile) {
    for (int g = 0; g < 8; ++g) {
      EXPECT_EQ(HopperFeature(tile, g) / 16, tile / 2);
      EXPECT_EQ(HopperUngatedFeature(tile, 0, g) / 16, tile);
      EXPECT_EQ(HopperUngatedFeature(tile, 1, g) / 16, tile);
    }
  }
}

TEST(HopperPack, TheRunsThatTheKernelsFetchAreContiguous) {
  const HopperLayout w13 = HopperW13Layout(2048, 512), w2 = HopperW2Layout(2048, 512);
  EXPECT_EQ(w13.bytes(), 2 * 512 * 2048 / 16 * 9);
  EXPECT_EQ(w2.bytes(), 512 * 2048 / 16 * 9);
  EXPECT_EQ(w13.OffsetOf(2, 3), (w13.k_blocks + 3) * 2 * kHopperTileBytes);
  EXPECT_EQ(w13.OffsetOf(3, 3) - w13.OffsetOf(2, 3), kHopperTileBytes);
  EXPECT_EQ(w2.OffsetOf(5, 1) - w2.OffsetOf(5, 0), kHopperTileBytes);
  EXPECT_EQ(HopperW2Layout(4096, 512).tiles_per_block, 2);
}

// All pairs of codes: what the kernels' masks, byte swap and shift by four must find.
TEST(HopperFp8Word, FieldsAreWhereTheKernelsLook) {
  const auto as_bf16 = [](unsigned code) { return (code & 0x80) << 8 | (code & 0x7F) << 4; };
  for (unsigned first = 0; first < 256; ++first) {
    for (unsigned second = 0; second < 256; ++second) {
      const uint32_t codes[2] = {first | second << 16, first << 8 | second << 24};
      for (int half = 0; half < 2; ++half) {
        const uint32_t word = HopperFp8Word(codes[half]) >> (16 * half);
        ASSERT_EQ(word & 0x87F0u, as_bf16(first));
        const uint32_t swapped = (word >> 8 & 0xFF) | (word & 0xFF) << 8;
        ASSERT_EQ((swapped & 0x0770u) + (swapped & 0x0808u) * 16, as_bf16(second));
      }
    }
  }
}

}  // namespace
}  // namespace nibble
