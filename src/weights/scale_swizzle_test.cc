#include "weights/scale_swizzle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "weights/test_golden.h"

namespace nibble::weights {
namespace {

TEST(ScaleSwizzle, OffsetsAreThoseOfTheReference) {
  struct Sample {
    int64_t row, group, offset;
  };
  const Sample kSamples[] = {{0, 0, 0},   {1, 0, 16},     {32, 0, 4},
                             {33, 1, 21}, {31, 3, 499},   {127, 3, 511},
                             {0, 4, 512}, {128, 0, 1024}, {130, 5, 1569}};
  std::vector<uint8_t> linear(131 * 8);
  for (const auto [row, group, offset] : kSamples) {
    EXPECT_EQ(SwizzledScaleOffset(row, group, 8), offset) << row << ", " << group;
    std::fill(linear.begin(), linear.end(), uint8_t{0});
    linear[row * 8 + group] = 0x7E;
    const std::vector<uint8_t> swizzled = SwizzleScales(linear, 131, 8);
    ASSERT_EQ(swizzled.size(), 2048u);
    EXPECT_EQ(std::find(swizzled.begin(), swizzled.end(), 0x7E) - swizzled.begin(), offset);
    EXPECT_EQ(std::count(swizzled.begin(), swizzled.end(), 0), 2047);
  }
}

TEST(ScaleSwizzle, EveryByteIsTheGoldenOne) {
  const Json golden = ReadGolden("swizzle");
  ASSERT_GE(golden.array().size(), 4u);
  for (const Json& c : golden.array()) {
    const int64_t rows = IntegerOf(c, "rows"), groups = IntegerOf(c, "groups");
    SCOPED_TRACE(testing::Message() << rows << " x " << groups);
    EXPECT_EQ(SwizzleScales(BytesOf(c, "linear"), rows, groups), BytesOf(c, "swizzled"));
    EXPECT_EQ(UnswizzleScales(BytesOf(c, "swizzled"), rows, groups), BytesOf(c, "linear"));
  }
}

TEST(ScaleSwizzle, ThereAndBackIsTheSameAndPaddingIsZero) {
  struct Shape {
    int64_t rows, groups, bytes;
  };
  const Shape kShapes[] = {{1, 1, 512},      {127, 3, 512},  {128, 4, 512},    {129, 4, 1024},
                           {128, 5, 1024},   {257, 7, 3072}, {96, 128, 16384}, {300, 1, 1536},
                           {1, 17, 5 * 512}, {0, 4, 0}};
  std::mt19937 random(5);
  for (const auto [rows, groups, bytes] : kShapes) {
    SCOPED_TRACE(testing::Message() << rows << " x " << groups);
    std::vector<uint8_t> linear(rows * groups);
    for (uint8_t& b : linear) b = static_cast<uint8_t>(1 + random() % 0x7E);
    const std::vector<uint8_t> swizzled = SwizzleScales(linear, rows, groups);
    EXPECT_EQ(SwizzledScaleBytes(rows, groups), bytes);
    ASSERT_EQ(swizzled.size(), static_cast<size_t>(bytes));
    // No scale is zero here, so whatever is zero is padding, and nothing else is.
    EXPECT_EQ(std::count(swizzled.begin(), swizzled.end(), 0), bytes - rows * groups);
    EXPECT_EQ(UnswizzleScales(swizzled, rows, groups), linear);
  }
}

}  // namespace
}  // namespace nibble::weights
