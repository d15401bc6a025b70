#include "weights/common_alpha.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <optional>

#include "numerics/nvfp4.h"

namespace nibble::weights {
namespace {

// An e4m3 magnitude is an integer of at most four significant bits times 2^-9, and every such
// integer up to 448 * 2^9 is one: all that a power of two can break is seen in the integers.
constexpr uint32_t kLargest = 448 << 9;
constexpr uint8_t kNan = 0x7F;

constexpr uint32_t IntegerOf(uint8_t scale) {
  const uint32_t exponent = scale >> 3, mantissa = scale & 7;
  return exponent == 0 ? mantissa : (8 + mantissa) << (exponent - 1);
}

constexpr uint8_t ScaleOf(uint32_t integer) {
  if (integer < 8) return static_cast<uint8_t>(integer);
  const int exponent = std::bit_width(integer) - 3;
  return static_cast<uint8_t>(exponent << 3 | (integer >> (exponent - 1) & 7));
}

static_assert(IntegerOf(0x7E) == kLargest && ScaleOf(kLargest) == 0x7E && ScaleOf(8) == 0x08);

struct ShiftRange {
  int low = 0, high = 0;  // both ends included; low <= 0 <= high
};

/// The powers of two that multiply all scales of `w` exactly.
ShiftRange ExactShifts(const CanonicalNvfp4& w) {
  uint32_t bits = 0, largest = 0;
  for (int64_t i = 0; i < w.n * w.k / kNvfp4Group; ++i) {
    const uint32_t integer = IntegerOf(w.scales[i]);
    bits |= integer;
    largest = std::max(largest, integer);
  }
  constexpr int kAny = 1 << 10;  // more than any two floats are apart
  if (bits == 0) return {-kAny, kAny};
  ShiftRange range{-std::countr_zero(bits), 0};
  while (largest << (range.high + 1) <= kLargest) ++range.high;
  return range;
}

/// log2(a / b) where that is a whole number.
std::optional<int> PowerOfTwoRatio(float a, float b) {
  int a_exponent, b_exponent;
  if (std::frexp(a, &a_exponent) != std::frexp(b, &b_exponent)) return std::nullopt;
  return a_exponent - b_exponent;
}

Error NoCommonAlpha(float gate, float up, std::string_view why) {
  Error error = Err(ErrorCode::kUnsupported,
                    "the global scales of w1 and w3 are {} and {}, a ratio of {}, {}", gate, up,
                    static_cast<double>(gate) / static_cast<double>(up), why);
  error.hint = "this kernel multiplies both by one scale; choose a backend that keeps one for each";
  return error;
}

}  // namespace

Result<CommonAlpha> FindCommonAlpha(const CanonicalNvfp4& gate, const CanonicalNvfp4& up) {
  if (gate.global == up.global) return CommonAlpha{gate.global, 0, 0};
  const std::optional<int> ratio = PowerOfTwoRatio(gate.global, up.global);
  if (!ratio) {
    return NoCommonAlpha(gate.global, up.global,
                         "which is no power of two: no common scale is exact");
  }
  const ShiftRange of_gate = ExactShifts(gate), of_up = ExactShifts(up);
  // Of the gate's shift; the up's is that less the ratio.
  const int low = std::max(of_gate.low, of_up.low + *ratio);
  const int high = std::min(of_gate.high, of_up.high + *ratio);
  if (low > high) {
    return NoCommonAlpha(
        gate.global, up.global,
        "and their block scales are too far apart for e4m3 to hold both under one");
  }
  // Between 0 and the ratio, so alpha lies between the two scales and is as exact as they are.
  const int shift = std::clamp(0, low, high);
  return CommonAlpha{std::ldexp(gate.global, -shift), shift, shift - *ratio};
}

void MultiplyByPowerOfTwo(std::span<uint8_t> scales, int shift) {
  if (shift == 0) return;
  std::array<uint8_t, kNan + 1> table;
  for (unsigned scale = 0; scale <= kNan; ++scale) {
    const uint32_t integer = IntegerOf(static_cast<uint8_t>(scale));
    // Beyond 31 places nothing but zero is left of the range anyway.
    const int places = std::min(std::abs(shift), 31);
    const uint64_t product = shift > 0 ? uint64_t{integer} << places : uint64_t{integer} >> places;
    const uint64_t back = shift > 0 ? product >> places : product << places;
    const bool exact = scale != kNan && product <= kLargest && back == integer;
    table[scale] = exact ? ScaleOf(static_cast<uint32_t>(product)) : kNan;
  }
  for (uint8_t& scale : scales) {
    NIBBLE_CHECK(scale < kNan && table[scale] != kNan, "a block scale times 2^shift is in e4m3");
    scale = table[scale];
  }
}

}  // namespace nibble::weights
