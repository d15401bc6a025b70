#include "weights/cpu_pack.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace nibble::weights {
namespace {

// What strips hold is the business of kernels/cpu/pack_test.cc; here it is where they lie.

TEST(CpuPack, PlacesStripsAndPointsAtTheFile) {
  std::vector<uint8_t> codes(40 * 80 / 2), scales(40 * 80 / 16);
  alignas(64) std::byte memory[64];
  const CanonicalWeight fp4 = CanonicalNvfp4{40, 80, codes.data(), scales.data(), 1.0f, {}};
  EXPECT_EQ(HeldBytesOf(fp4, false), 3u * 2 * 576);
  EXPECT_EQ(HeldBytesOf(fp4, true), 0u);
  const CanonicalWeight bf16 = CanonicalBf16{17, 65, codes.data()};
  EXPECT_EQ(HeldBytesOf(bf16, false), 2u * 2 * 2048);
  EXPECT_EQ(HeldBytesOf(bf16, true), 0u);
  for (const bool mapped : {false, true}) {
    PackedMatrix m = PlaceMatrix(fp4, mapped, memory);
    EXPECT_EQ(m.format, TileFormat::kNvfp4);
    EXPECT_EQ(m.n, 40);
    EXPECT_EQ(m.k, 80);
    EXPECT_EQ(m.mapped(), mapped);
    EXPECT_EQ(m.data, mapped ? nullptr : memory);
    EXPECT_EQ(m.rows.values, codes.data());
    EXPECT_EQ(m.rows.block_scales, scales.data());
    EXPECT_EQ(m.scales, nullptr);
    m = PlaceMatrix(bf16, mapped, memory);
    EXPECT_EQ(m.format, TileFormat::kBf16);
    EXPECT_EQ(m.rows.values, codes.data());
    EXPECT_EQ(m.rows.block_scales, nullptr);
  }
}

TEST(CpuPack, Fp8ScalesFollowTheStripsAndStayWithAMappedMatrix) {
  struct Shape {
    int64_t n, k;
  };
  for (const auto [n, k] : {Shape{16, 64}, {33, 144}, {130, 129}, {5, 1023}, {256, 256}}) {
    for (const GroupShape group :
         {GroupShape::PerTensor(), GroupShape::PerChannel(), GroupShape{128, 128}}) {
      size_t count = 1;
      if (group == GroupShape::PerChannel()) count = n;
      if (group == GroupShape{128, 128}) count = ((n + 127) / 128) * ((k + 127) / 128);
      std::vector<float> scales(count);
      for (size_t i = 0; i < count; ++i) scales[i] = static_cast<float>(i + 1) / 7;
      const std::vector<uint8_t> codes(n * k);
      const CanonicalWeight from = CanonicalFp8{n, k, codes.data(), group, scales, {}};
      const bool beside = group != GroupShape::PerTensor();
      const size_t strips = (n + 15) / 16 * ((k + 63) / 64) * 1024;
      const size_t lines = beside ? (count * 4 + 63) / 64 : 0;
      for (const bool mapped : {false, true}) {
        const size_t before = mapped ? 0 : strips;
        ASSERT_EQ(HeldBytesOf(from, mapped), before + lines * 64);
        std::vector<std::byte> memory(before + lines * 64 + 1, std::byte{0xEE});
        const PackedMatrix m = PlaceMatrix(from, mapped, memory.data());
        EXPECT_EQ(m.format, TileFormat::kFp8);
        EXPECT_EQ(m.group, group);
        EXPECT_EQ(m.mapped(), mapped);
        ASSERT_EQ(m.scales != nullptr, beside);
        if (!beside) continue;
        const std::byte* at = memory.data() + before;
        EXPECT_EQ(reinterpret_cast<const std::byte*>(m.scales), at);
        EXPECT_EQ(std::memcmp(at, scales.data(), count * 4), 0);
        for (size_t i = count * 4; i < lines * 64; ++i) EXPECT_EQ(at[i], std::byte{0}) << i;
        EXPECT_EQ(memory.back(), std::byte{0xEE});
      }
    }
  }
}

}  // namespace
}  // namespace nibble::weights
