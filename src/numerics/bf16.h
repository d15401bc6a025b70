#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace nibble {

/// A bfloat16 by its bits. Every product of an E2M1 code and an E4M3 scale (at most 6 significant
/// bits) is exact in it.
struct Bf16 {
  uint16_t bits = 0;
  bool operator==(const Bf16&) const = default;
};

/// Nearest, ties to even; a NaN stays a NaN (quiet).
constexpr Bf16 ToBf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return Bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  return Bf16{static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
}

constexpr float ToFloat(Bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

/// Reads a little-endian bf16 at any address: tensor data need not be aligned.
inline float LoadBf16(const void* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return ToFloat(Bf16{bits});
}

/// x rounded to bf16 and back.
constexpr float RoundToBf16(float x) { return ToFloat(ToBf16(x)); }

static_assert(ToBf16(1.0f).bits == 0x3F80 && RoundToBf16(1.00390625f) == 1.0f &&
              RoundToBf16(1.01171875f) == 1.015625f);

}  // namespace nibble
