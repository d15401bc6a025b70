#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <limits>

namespace nibble {

// E4M3 in its "fn" form (OCP OFP8 v1.0): bias 7, no infinities, 0x7F and 0xFF are NaN, largest 448,
// subnormal step 2^-9.

inline constexpr float kE4m3Max = 448.0f;

constexpr bool IsNanE4m3(uint8_t byte) { return (byte & 0x7F) == 0x7F; }

constexpr float DecodeE4m3Slow(uint8_t byte) {
  if (IsNanE4m3(byte)) return std::numeric_limits<float>::quiet_NaN();
  const unsigned exponent = (byte >> 3) & 15, mantissa = byte & 7;
  float value = exponent == 0 ? static_cast<float>(mantissa) : static_cast<float>(8 + mantissa);
  const int power = exponent == 0 ? -9 : static_cast<int>(exponent) - 10;
  for (int i = 0; i < power; ++i) value *= 2.0f;
  for (int i = 0; i > power; --i) value *= 0.5f;
  return (byte & 0x80) ? -value : value;
}

inline constexpr std::array<float, 256> kE4m3 = [] {
  std::array<float, 256> table{};
  for (unsigned i = 0; i < 256; ++i) table[i] = DecodeE4m3Slow(static_cast<uint8_t>(i));
  return table;
}();

constexpr float DecodeE4m3(uint8_t byte) { return kE4m3[byte]; }

/// The nearest byte, ties to even, saturating at +-448 (never NaN for a number). NaN gives 0x7F
/// with x's sign.
constexpr uint8_t EncodeE4m3(double x) {
  const uint8_t sign = (std::bit_cast<uint64_t>(x) >> 63) ? 0x80 : 0x00;
  if (x != x) return sign | 0x7F;
  const double a = sign ? -x : x;
  // The 127 magnitudes ascend with their byte: find the last one not above a, then see which
  // neighbour is nearer.
  unsigned low = 0, high = 0x7E;
  while (low < high) {
    const unsigned middle = (low + high + 1) / 2;
    if (kE4m3[middle] <= a)
      low = middle;
    else
      high = middle - 1;
  }
  if (low < 0x7E) {
    const double half = (static_cast<double>(kE4m3[low]) + static_cast<double>(kE4m3[low + 1])) / 2;
    if (a > half || (a == half && low % 2 == 1)) ++low;
  }
  return static_cast<uint8_t>(sign | low);
}

static_assert(DecodeE4m3(0x7E) == 448.0f && DecodeE4m3(0x01) == 0.001953125f &&
              DecodeE4m3(0x38) == 1.0f);
static_assert(EncodeE4m3(1e9) == 0x7E && EncodeE4m3(0.0009765625) == 0 && EncodeE4m3(0.00098) == 1);

}  // namespace nibble
