#include "weights/common_alpha.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "weights/test_golden.h"

namespace nibble::weights {
namespace {

constexpr int64_t kGroups = 127;

// One row that begins with the given block scales; codes play no part, nor do scales of zero.
Nvfp4Matrix WithScales(const std::vector<uint8_t>& scales) {
  Nvfp4Matrix m(1, kGroups * 16);
  std::copy(scales.begin(), scales.end(), m.scales.begin());
  return m;
}

TEST(CommonAlpha, IsTheGoldenOneOrNone) {
  const Json golden = ReadGolden("common_alpha");
  ASSERT_GE(golden.array().size(), 12u);
  for (const Json& c : golden.array()) {
    SCOPED_TRACE(c.Find("what")->string());
    const Nvfp4Matrix gate = WithScales(BytesOf(c, "gate_scales"));
    const Nvfp4Matrix up = WithScales(BytesOf(c, "up_scales"));
    const auto found = FindCommonAlpha(gate.View(FloatOf(c, "gate")), up.View(FloatOf(c, "up")));
    if (c.Find("alpha") == nullptr) {
      ASSERT_FALSE(found.ok());
      EXPECT_EQ(found.error().code, ErrorCode::kUnsupported);
      EXPECT_NE(found.error().what.find(fmt::format("a ratio of {}", c.Find("ratio")->number())),
                std::string::npos)
          << found.error().what;
      continue;
    }
    ASSERT_TRUE(found.ok()) << found.error().Message();
    EXPECT_EQ(found->alpha, FloatOf(c, "alpha"));
    EXPECT_EQ(found->gate_shift, IntegerOf(c, "gate_shift"));
    EXPECT_EQ(found->up_shift, IntegerOf(c, "up_shift"));
    std::vector<uint8_t> scales = BytesOf(c, "gate_scales");
    MultiplyByPowerOfTwo(scales, found->gate_shift);
    EXPECT_EQ(scales, BytesOf(c, "gate_shifted"));
    scales = BytesOf(c, "up_scales");
    MultiplyByPowerOfTwo(scales, found->up_shift);
    EXPECT_EQ(scales, BytesOf(c, "up_shifted"));
  }
}

TEST(CommonAlpha, EveryScaleTimesEveryExactPowerOfTwoIsThatProduct) {
  int exact = 0;
  for (int shift = -20; shift <= 20; ++shift) {
    for (unsigned byte = 0; byte < 0x7F; ++byte) {
      const double want = std::ldexp(double{DecodeE4m3(static_cast<uint8_t>(byte))}, shift);
      if (want > kE4m3Max || double{DecodeE4m3(EncodeE4m3(want))} != want) continue;
      std::vector<uint8_t> scale = {static_cast<uint8_t>(byte)};
      MultiplyByPowerOfTwo(scale, shift);
      EXPECT_EQ(double{DecodeE4m3(scale[0])}, want) << byte << " * 2^" << shift;
      ++exact;
    }
  }
  EXPECT_GT(exact, 127);
}

// An inexact product ends the process: nothing may round a block scale.
TEST(CommonAlphaDeathTest, AnInexactProductIsABug) {
  struct Case {
    uint8_t scale;
    int shift;
  };
  for (const auto [scale, shift] : {Case{0x7E, 1}, Case{0x01, -1}, Case{0x7F, -1}, Case{0x80, 1}}) {
    std::vector<uint8_t> scales = {scale};
    EXPECT_DEATH(MultiplyByPowerOfTwo(scales, shift), "in e4m3") << int{scale};
  }
}

}  // namespace
}  // namespace nibble::weights
