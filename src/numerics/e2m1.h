#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace nibble {

// E2M1, the 4-bit float of OCP Microscaling v1.0 and of NVFP4: bit 3 sign, bits 2..0 an index into
// eight magnitudes.

inline constexpr std::array<float, 8> kE2m1Magnitudes = {0.0f, 0.5f, 1.0f, 1.5f,
                                                         2.0f, 3.0f, 4.0f, 6.0f};
inline constexpr float kE2m1Max = 6.0f;

/// The value of a code; only the low four bits are read. Code 8 is -0.
constexpr float DecodeE2m1(unsigned code) {
  const float magnitude = kE2m1Magnitudes[code & 7];
  return (code & 8) ? -magnitude : magnitude;
}

/// The nearest code, ties to the even code, saturating at +-6. NaN gives code 7 (+6), as a
/// saturating conversion does. Source: the thresholds .25 (down) .75 (up) 1.25 1.75 2.5 3.5 5 of
/// the NVFP4 reference.
constexpr uint8_t EncodeE2m1(double x) {
  const bool negative = std::bit_cast<uint64_t>(x) >> 63;
  const double a = negative ? -x : x;
  unsigned index = 7;
  for (unsigned i = 0; i < 7; ++i) {
    const double lower = kE2m1Magnitudes[i], upper = kE2m1Magnitudes[i + 1];
    const double middle = (lower + upper) / 2;
    if (a < middle || (a == middle && i % 2 == 0)) {
      index = i;
      break;
    }
  }
  if (x != x) return 7;
  return static_cast<uint8_t>(index | (negative ? 8u : 0u));
}

static_assert(DecodeE2m1(0x7) == 6.0f && DecodeE2m1(0xF) == -6.0f);
static_assert(EncodeE2m1(0.25) == 0 && EncodeE2m1(0.75) == 2 && EncodeE2m1(1.25) == 2);
static_assert(EncodeE2m1(1.75) == 4 && EncodeE2m1(2.5) == 4 && EncodeE2m1(3.5) == 6 &&
              EncodeE2m1(5.0) == 6);
static_assert(EncodeE2m1(-1e30) == 0xF);

}  // namespace nibble
