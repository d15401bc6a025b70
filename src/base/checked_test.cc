#include "base/checked.h"

#include <gtest/gtest.h>

#include <vector>

namespace nibble {
namespace {

constexpr uint64_t kMax = UINT64_MAX;

TEST(Checked, AddsAndMultipliesUpToTheEdge) {
  EXPECT_EQ(CheckedAdd<uint64_t>(kMax - 1, 1), kMax);
  EXPECT_EQ(CheckedAdd<uint64_t>(kMax, 1), std::nullopt);
  EXPECT_EQ(CheckedAdd<uint32_t>(0xFFFFFFFF, 1), std::nullopt);
  EXPECT_EQ(CheckedMul<uint64_t>(uint64_t{1} << 32, (uint64_t{1} << 32) - 1), 0xFFFFFFFF00000000);
  EXPECT_EQ(CheckedMul<uint64_t>(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(CheckedMul<uint64_t>(0, kMax), 0u);
}

TEST(Checked, ProductOfDims) {
  const struct {
    std::vector<uint64_t> dims;
    uint64_t unit;
    std::optional<uint64_t> product;
  } kCases[] = {
      {{}, 4, 4},
      {{3, 5}, 16, 240},
      {{uint64_t{1} << 40, uint64_t{1} << 40}, 1, std::nullopt},
      {{uint64_t{1} << 40, uint64_t{1} << 40, 0}, 1, 0},  // a zero, also behind the overflow
      {{kMax}, 1, kMax},
      {{kMax}, 2, std::nullopt},
      {{uint64_t{1} << 61}, 8, std::nullopt},
      {{uint64_t{1} << 60}, 8, uint64_t{1} << 63},
  };
  for (const auto& c : kCases) EXPECT_EQ(CheckedProduct(c.dims, c.unit), c.product);
}

TEST(Checked, RoundsUpWithoutWrappingInBetween) {
  EXPECT_EQ(DivUp(0, 8), 0u);
  EXPECT_EQ(DivUp(1, 8), 1u);
  EXPECT_EQ(DivUp(8, 8), 1u);
  EXPECT_EQ(DivUp(kMax, 2), uint64_t{1} << 63);
  EXPECT_EQ(RoundUp(9, 8), 16u);
  EXPECT_EQ(RoundUp(16, 8), 16u);
}

}  // namespace
}  // namespace nibble
