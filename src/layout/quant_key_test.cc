#include "layout/quant_key.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(QuantKey, PrintsTheFieldsExactForm) {
  // From the reference's vocabulary (section 2), literally.
  EXPECT_EQ(ToString(kNvfp4Static),
            "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, "
            "col=16)),scale2(f32,static,per_tensor),symmetric)");
  EXPECT_EQ(ToString(kNvfp4Dynamic),
            "QuantKey(u8,scale(f8e4m3fn,dynamic,GroupShape(row=1, "
            "col=16)),scale2(f32,static,per_tensor),symmetric)");
  EXPECT_EQ(ToString(kFp8StaticTensor),
            "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric)");
  EXPECT_EQ(ToString(kFp8DynamicToken),
            "QuantKey(f8e4m3fn,scale(f32,dynamic,per_token),symmetric)");
  EXPECT_EQ(ToString(kFp8StaticChannel),
            "QuantKey(f8e4m3fn,scale(f32,static,per_channel),symmetric)");
  EXPECT_EQ(ToString(kFp8Dynamic128),
            "QuantKey(f8e4m3fn,scale(f32,dynamic,GroupShape(row=1, col=128)),symmetric)");
  EXPECT_EQ(ToString(kFp8StaticBlock128),
            "QuantKey(f8e4m3fn,scale(f32,static,GroupShape(row=128, col=128)),symmetric)");
  QuantKey asymmetric = kFp8StaticTensor;
  asymmetric.symmetric = false;
  EXPECT_EQ(ToString(asymmetric), "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),asymmetric)");
}

TEST(QuantScheme, PrintsPairsWithNoneForSixteenBits) {
  EXPECT_EQ(PairName(kW4A16),
            "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, "
            "col=16)),scale2(f32,static,per_tensor),symmetric)xNone");
  EXPECT_EQ(PairName(kBf16Scheme), "NonexNone");
  EXPECT_EQ(ShortName(kW4A16), "W4A16");
  EXPECT_EQ(ShortName(kW4A4), "W4A4");
  EXPECT_EQ(ShortName(kBf16Scheme), "BF16");
}

TEST(QuantKey, StaticAndDynamicDifferOnlyInTheScale) {
  EXPECT_NE(kNvfp4Static, kNvfp4Dynamic);
  QuantKey key = kNvfp4Static;
  key.scale.is_static = false;
  EXPECT_EQ(key, kNvfp4Dynamic);
}

}  // namespace
}  // namespace nibble
