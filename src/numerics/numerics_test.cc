// Every number format, exhaustively, against definitions written down here a second time (in ldexp
// and by search), not by calling the code under test.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/fp8.h"
#include "numerics/nvfp4.h"

namespace nibble {
namespace {

double E4m3ByFormula(unsigned byte) {
  const int e = (byte >> 3) & 15, m = byte & 7;
  const double magnitude = e == 0 ? std::ldexp(m / 8.0, -6) : std::ldexp(1 + m / 8.0, e - 7);
  return (byte & 0x80) ? -magnitude : magnitude;
}

double E2m1ByFormula(unsigned code) {
  const int e = (code >> 1) & 3, m = code & 1;
  const double magnitude = e == 0 ? m * 0.5 : std::ldexp(1 + m / 2.0, e - 1);
  return (code & 8) ? -magnitude : magnitude;
}

TEST(E4m3, DecodesAll256Bytes) {
  for (unsigned b = 0; b < 256; ++b) {
    if ((b & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(DecodeE4m3(static_cast<uint8_t>(b)))) << b;
    } else {
      EXPECT_EQ(DecodeE4m3(static_cast<uint8_t>(b)), E4m3ByFormula(b)) << b;
      EXPECT_EQ(std::signbit(DecodeE4m3(static_cast<uint8_t>(b))), b >= 0x80) << b;
    }
  }
}

TEST(E2m1, DecodesAll16Codes) {
  for (unsigned c = 0; c < 16; ++c) {
    EXPECT_EQ(DecodeE2m1(c), E2m1ByFormula(c)) << c;
    EXPECT_EQ(std::signbit(DecodeE2m1(c)), c >= 8) << c;
  }
}

TEST(E4m3, RoundsToNearestWithTiesToEvenAndSaturates) {
  for (unsigned b = 0; b < 0x7E; ++b) {
    const double low = E4m3ByFormula(b), high = E4m3ByFormula(b + 1), middle = (low + high) / 2;
    EXPECT_EQ(EncodeE4m3(low), b);
    EXPECT_EQ(EncodeE4m3(middle), b % 2 == 0 ? b : b + 1) << "tie above byte " << b;
    EXPECT_EQ(EncodeE4m3(std::nextafter(middle, 0)), b);
    EXPECT_EQ(EncodeE4m3(std::nextafter(middle, 1e9)), b + 1);
    EXPECT_EQ(EncodeE4m3(-std::nextafter(middle, 1e9)), (b + 1) | 0x80);
  }
  for (double x : {448.0, 449.0, 464.0, 1e6, 1e300, HUGE_VAL}) {
    EXPECT_EQ(EncodeE4m3(x), 0x7E) << x;
    EXPECT_EQ(EncodeE4m3(-x), 0xFE) << x;
  }
  EXPECT_EQ(EncodeE4m3(std::nan("")) & 0x7F, 0x7F);
  EXPECT_EQ(EncodeE4m3(-0.0), 0x80);
}

TEST(E2m1, RoundsToNearestWithTiesToEvenAndSaturates) {
  struct Tie {
    double at;
    unsigned code;
  };
  const Tie kTies[] = {{.25, 0}, {.75, 2}, {1.25, 2}, {1.75, 4}, {2.5, 4}, {3.5, 6}, {5.0, 6}};
  for (const Tie& t : kTies) {
    EXPECT_EQ(EncodeE2m1(t.at), t.code) << t.at;
    EXPECT_EQ(EncodeE2m1(-t.at), t.code | 8) << t.at;
  }
  for (unsigned c = 0; c < 7; ++c) {
    const double middle = (E2m1ByFormula(c) + E2m1ByFormula(c + 1)) / 2;
    EXPECT_EQ(EncodeE2m1(E2m1ByFormula(c)), c);
    EXPECT_EQ(EncodeE2m1(std::nextafter(middle, 0)), c);
    EXPECT_EQ(EncodeE2m1(std::nextafter(middle, 9)), c + 1);
  }
  for (double x : {6.0, 6.5, 7.0, 100.0, HUGE_VAL}) {
    EXPECT_EQ(EncodeE2m1(x), 7u);
    EXPECT_EQ(EncodeE2m1(-x), 15u);
  }
}

TEST(Bf16, RoundsEveryUpperHalfWithTiesToEven) {
  for (uint32_t high = 0; high < 0x10000; ++high) {
    const float base = std::bit_cast<float>(high << 16);
    if (std::isnan(base)) {
      EXPECT_TRUE(std::isnan(RoundToBf16(base)));
      continue;
    }
    EXPECT_EQ(ToBf16(base).bits, high);
    if (std::isinf(base)) continue;
    EXPECT_EQ(ToBf16(std::bit_cast<float>((high << 16) | 0x7FFF)).bits, high);
    EXPECT_EQ(ToBf16(std::bit_cast<float>((high << 16) | 0x8000)).bits, high + (high & 1));
    EXPECT_EQ(ToBf16(std::bit_cast<float>((high << 16) | 0x8001)).bits, high + 1);
  }
  EXPECT_TRUE(std::isnan(RoundToBf16(std::bit_cast<float>(0x7F800001u))))
      << "a NaN must not round to infinity";
}

TEST(Nvfp4, EveryCodeTimesEveryScaleIsExactInBf16) {
  for (unsigned c = 0; c < 16; ++c) {
    for (unsigned s = 0; s < 256; ++s) {
      if ((s & 0x7F) == 0x7F) continue;
      const double truth = E2m1ByFormula(c) * E4m3ByFormula(s);
      const float product = Nvfp4Product(c, static_cast<uint8_t>(s));
      EXPECT_EQ(product, truth);
      EXPECT_EQ(RoundToBf16(product), truth) << "code " << c << " scale " << s;
    }
  }
}

TEST(Nvfp4, UnpacksTheLowNibbleFirst) {
  const uint8_t row[] = {0x21, 0x43, 0xF8};
  const unsigned expected[] = {1, 2, 3, 4, 8, 15};
  for (int i = 0; i < 6; ++i) EXPECT_EQ(Nvfp4Code(row, i), expected[i]);
}

// A quantizer written the slow way: try every scale byte for nearness, then every code.
Nvfp4Block QuantizeBySearch(std::span<const double, 16> x, double gscale) {
  auto nearest = [](double v, unsigned count, auto value) {
    unsigned best = 0;
    for (unsigned i = 1; i < count; ++i) {
      const double d = std::abs(value(i) - v), e = std::abs(value(best) - v);
      if (d < e || (d == e && i % 2 == 0)) best = i;
    }
    return best;
  };
  double amax = 0;
  for (double v : x) amax = std::max(amax, std::abs(v));
  Nvfp4Block b;
  b.scale = static_cast<uint8_t>(
      nearest(std::min(448.0, gscale * (amax * (1.0 / 6.0))), 127, E4m3ByFormula));
  if (b.scale == 0) return b;
  const double inverse = 1.0 / (E4m3ByFormula(b.scale) * (1.0 / gscale));
  for (int i = 0; i < 16; ++i) {
    const unsigned code = nearest(std::min(6.0, std::abs(x[i] * inverse)), 8, E2m1ByFormula);
    b.codes[i] = static_cast<uint8_t>(code | (std::signbit(x[i]) ? 8 : 0));
  }
  return b;
}

TEST(Nvfp4, QuantizesRandomBlocksAsTheDefinitionSays) {
  std::mt19937_64 rng(7);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 20000; ++trial) {
    std::array<double, 16> x;
    const double size = std::exp(normal(rng) * 4);
    for (double& v : x) v = normal(rng) * size;
    const double gscale = std::exp(normal(rng) * 3) * 100;
    const Nvfp4Block got = QuantizeNvfp4Block<double>(x, gscale),
                     want = QuantizeBySearch(x, gscale);
    ASSERT_EQ(got.scale, want.scale) << trial;
    ASSERT_EQ(got.codes, want.codes) << trial;
  }
}

TEST(Nvfp4, BlockEdges) {
  std::array<double, 16> x{};
  EXPECT_EQ(QuantizeNvfp4Block<double>(x, 1.0).scale, 0) << "an all-zero block";
  x[3] = 6.0 / 1024 * 0.999;  // the scale rounds to zero below 2^-10
  EXPECT_EQ(QuantizeNvfp4Block<double>(x, 1.0).scale, 0);
  x[3] = 6.0 / 1024 * 1.001;
  EXPECT_EQ(QuantizeNvfp4Block<double>(x, 1.0).scale, 1);
  x[3] = -1e9;
  const Nvfp4Block saturated = QuantizeNvfp4Block<double>(x, 1.0);
  EXPECT_EQ(saturated.scale, 0x7E);
  EXPECT_EQ(saturated.codes[3], 15);
}

TEST(E4m3, EveryByteIsExactInBf16) {
  for (unsigned b = 0; b < 256; ++b) {
    if ((b & 0x7F) == 0x7F) continue;
    EXPECT_EQ(RoundToBf16(DecodeE4m3(static_cast<uint8_t>(b))), E4m3ByFormula(b));
  }
}

/// Every code's borders under scales whose products with them are exact, so that the quotient is
/// the number meant: a power of two, in both arithmetics.
TEST(Fp8, QuantizesEveryBorderOfEveryCode) {
  for (double scale : {1.0, 0x1p-9, 0x1p5}) {
    const auto expect = [&](double quotient, unsigned byte) {
      const double x = quotient * scale;
      const float near = static_cast<float>(x);
      EXPECT_EQ(QuantizeFp8(x, scale), byte) << quotient << " under " << scale;
      EXPECT_EQ(QuantizeFp8(-x, scale), byte | 0x80) << quotient << " under " << scale;
      if (near == x) {
        EXPECT_EQ(QuantizeFp8(near, static_cast<float>(scale)), byte) << quotient;
      }
    };
    for (unsigned b = 0; b < 0x7E; ++b) {
      const double low = E4m3ByFormula(b), middle = (low + E4m3ByFormula(b + 1)) / 2;
      expect(low, b);
      expect(std::nextafterf(static_cast<float>(middle), 0), b);
      expect(middle, b % 2 == 0 ? b : b + 1);
      expect(std::nextafterf(static_cast<float>(middle), 1e9f), b + 1);
    }
    for (double beyond : {448.0, 463.9, 464.0, 480.0, 1e30}) expect(beyond, 0x7E);
  }
  EXPECT_EQ(QuantizeFp8(HUGE_VALF, 1.0f), 0x7E);
  EXPECT_EQ(QuantizeFp8(-HUGE_VALF, 1.0f), 0xFE);
  EXPECT_EQ(QuantizeFp8(3e38f, 1e-3f), 0x7E) << "a quotient beyond fp32 saturates too";
  EXPECT_TRUE(IsNanE4m3(QuantizeFp8(std::nanf(""), 1.0f)));
}

/// The quotient, not the product with a reciprocal, as the references have it.
TEST(Fp8, DividesByTheScale) {
  // On and just below the middle of two codes the two differ for some scales: there must be such
  // numbers among these, or the test says nothing.
  int told_apart = 0;
  std::mt19937 rng(5);
  std::uniform_real_distribution<float> uniform(0.01f, 1.0f);
  for (int i = 0; i < 200; ++i) {
    const float scale = uniform(rng);
    for (unsigned b = 0; b < 0x7E; ++b) {
      const auto middle = static_cast<float>((E4m3ByFormula(b) + E4m3ByFormula(b + 1)) / 2);
      float x = middle * scale;
      for (int step = 0; step < 2; ++step, x = std::nextafterf(x, 0)) {
        volatile float quotient = x / scale, product = x * (1.0f / scale);
        const unsigned by_quotient =
            quotient < middle || (quotient == middle && b % 2 == 0) ? b : b + 1;
        const unsigned by_product =
            product < middle || (product == middle && b % 2 == 0) ? b : b + 1;
        EXPECT_EQ(QuantizeFp8(x, scale), by_quotient) << x << " / " << scale;
        told_apart += by_quotient != by_product;
      }
    }
  }
  EXPECT_GT(told_apart, 0);
}

TEST(Fp8, DynamicScalesMakeTheLargestMagnitude448) {
  const float x[] = {0.5f, -3.0f, std::nanf(""), 2.0f};
  EXPECT_EQ(LargestMagnitude<float>(x), 3.0f);
  EXPECT_EQ(DynamicFp8Scale(3.0f), 3.0f / 448.0f);
  EXPECT_EQ(DynamicFp8Scale(1e-4f), 1e-4f / 448.0f) << "small rows keep their own scale";
  EXPECT_EQ(QuantizeFp8(-3.0f, DynamicFp8Scale(3.0f)), 0xFE);
  EXPECT_EQ(LargestMagnitude<float>({}), 0.0f);
  EXPECT_GT(DynamicFp8Scale(0.0f), 0.0f);
  EXPECT_EQ(QuantizeFp8(0.0f, DynamicFp8Scale(0.0f)), 0);
}

}  // namespace
}  // namespace nibble
