#include "synth/noise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"

namespace nibble::synth {
namespace {

using Bytes = std::span<const std::byte>;

constexpr uint64_t kMiB = uint64_t{1} << 20;
const Noise kCodes{Noise::Kind::kE2m1Pairs, 0, 0};
const Noise kScales{Noise::Kind::kBlockScales, 0, 0};
const Noise kFp8{Noise::Kind::kFp8Codes, 0, 0};

bool Same(Bytes a, Bytes b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

/// A view of a pool of its own.
struct Viewed {
  explicit Viewed(const Noise& noise, uint64_t bytes, uint64_t seed = 1) : pools(seed) {
    pools.Expect(noise, bytes);
    auto view = pools.View(noise, "a", bytes);
    EXPECT_TRUE(view.ok());
    data = *view;
  }
  NoisePools pools;
  Bytes data;
};

TEST(Noise, SeedNameAndNothingElseDecide) {
  NoisePools a(7), b(7), c(8);
  for (NoisePools* pools : {&a, &b, &c}) pools->Expect(kCodes, kMiB);
  const Bytes of_a = *a.View(kCodes, "x", kMiB);
  ASSERT_TRUE(b.View(kCodes, "other", 4096).ok());  // asked first, and no matter
  EXPECT_TRUE(Same(of_a, *b.View(kCodes, "x", kMiB)));
  EXPECT_FALSE(Same(of_a, *b.View(kCodes, "y", kMiB)));
  EXPECT_FALSE(Same(of_a, *c.View(kCodes, "x", kMiB)));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(of_a.data()) % 64, 0u);
}

TEST(Noise, TensorsLargerThanThePoolRepeatIt) {
  constexpr uint64_t kLarge = 50 * kMiB, kPool = 257 * 65536;
  const Viewed v(kCodes, kLarge);
  ASSERT_EQ(v.data.size(), kLarge);
  for (uint64_t at = 0; at + kPool < kLarge; at += kPool) {
    const uint64_t n = std::min(kPool, kLarge - kPool - at);
    EXPECT_TRUE(Same(v.data.subspan(at, n), v.data.subspan(at + kPool, n))) << at;
  }
  EXPECT_FALSE(Same(v.data.first(kPool / 2), v.data.subspan(kPool / 2, kPool / 2)));
}

TEST(Noise, CodesHaveTheRmsThatIsPromised) {
  const Viewed codes(kCodes, kMiB), fp8(kFp8, kMiB), scales(kScales, kMiB);
  double e2m1 = 0, e4m3 = 0, block = 0;
  for (const std::byte b : codes.data) {
    const auto byte = std::to_integer<unsigned>(b);
    for (const unsigned code : {byte & 15, byte >> 4}) e2m1 += std::pow(DecodeE2m1(code), 2);
  }
  for (const std::byte b : fp8.data) {
    const auto code = std::to_integer<uint8_t>(b);
    ASSERT_FALSE(IsNanE4m3(code));
    e4m3 += std::pow(DecodeE4m3(code), 2);
  }
  for (const std::byte b : scales.data) {
    const float scale = DecodeE4m3(std::to_integer<uint8_t>(b));
    ASSERT_TRUE(scale >= 64 && scale <= 448) << scale;  // false for a NaN
    block += std::pow(scale, 2);
  }
  // A million draws: the mean square is within 0.5 % of its expectation, five standard errors.
  EXPECT_NEAR(e2m1 / (2 * kMiB), E2m1Rms() * E2m1Rms(), 0.005 * E2m1Rms() * E2m1Rms());
  EXPECT_NEAR(e4m3 / kMiB, Fp8CodeRms() * Fp8CodeRms(), 0.01 * Fp8CodeRms() * Fp8CodeRms());
  EXPECT_NEAR(block / kMiB, BlockScaleRms() * BlockScaleRms(),
              0.005 * BlockScaleRms() * BlockScaleRms());
}

TEST(Noise, BellsHaveTheirCentreAndSpread) {
  const struct { float centre, spread; } cases[] = {{0, 1}, {1, 0.0625f}, {-4.6f, 0.9f}};
  for (const auto& c : cases) {
    const Viewed v({Noise::Kind::kBf16, c.centre, c.spread}, kMiB);
    const Viewed f({Noise::Kind::kF32, c.centre, c.spread}, kMiB);
    for (const bool wide : {false, true}) {
      const size_t n = kMiB / (wide ? 4 : 2);
      double sum = 0, squares = 0;
      for (size_t i = 0; i < n; ++i) {
        float value = 0;
        if (wide)
          std::memcpy(&value, f.data.data() + 4 * i, 4);
        else
          value = LoadBf16(v.data.data() + 2 * i);
        sum += value;
        squares += std::pow(value - c.centre, 2);
      }
      const double count = static_cast<double>(n);
      EXPECT_NEAR(sum / count, c.centre, 0.01 * c.spread) << c.centre << wide;
      EXPECT_NEAR(std::sqrt(squares / count), c.spread, 0.01 * c.spread) << c.centre << wide;
    }
  }
}

TEST(Noise, NumbersInBothTypes) {
  NoisePools pools(0);
  const Bytes f32 = pools.Scalar(0.3f, checkpoint::DType::kF32);
  const Bytes bf16 = pools.Scalar(0.3f, checkpoint::DType::kBf16);
  for (int i = 0; i < 10000; ++i) pools.Scalar(0, checkpoint::DType::kF32);  // must not move those
  ASSERT_EQ(f32.size(), 4u);
  ASSERT_EQ(bf16.size(), 2u);
  float value = 0;
  std::memcpy(&value, f32.data(), 4);
  EXPECT_EQ(value, 0.3f);
  EXPECT_EQ(LoadBf16(bf16.data()), 0.30078125f);
}

}  // namespace
}  // namespace nibble::synth
