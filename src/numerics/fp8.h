#pragma once

#include <cstdint>
#include <span>

#include "numerics/e4m3.h"

namespace nibble {

// FP8: e4m3 codes under fp32 scales that multiply. A code is exact in bf16, so a product of codes
// needs nothing finer than bf16 in and fp32 out, and scales meet the finished sums.
//
//   code = e4m3(x / scale), nearest, ties to even, saturating at +-448; a NaN stays one.
//
// The quotient is rounded to Real once before it is rounded to e4m3: it is a division, as in the
// quantizers' own reference of static scales (x / input_scale, then a clamp to +-448, then the
// conversion) and in the dynamic kernels of the engines that serve such files. Multiplying with
// 1 / scale instead moves quotients across the middle of two codes.

/// Values along K that share a scale: of a dynamically quantized activation, and a weight's blocks
/// in both directions.
inline constexpr int64_t kFp8Block = 128;

/// With Real = float bit for bit what the references hold, with Real = double the truth.
template <class Real>
constexpr uint8_t QuantizeFp8(Real x, Real scale) {
  return EncodeE4m3(static_cast<double>(x / scale));
}

/// The scale of dynamically quantized values of which `amax` is the largest magnitude: it becomes
/// 448. The floor, 1e-10 as in the field's quantizers by group, is there for zeros: any scale
/// serves those, but 0 / 0 is no number. (vLLM's quantizer by token has its floor at amax = 1/512,
/// which takes bits from small rows; the label does not ask for that.)
template <class Real>
constexpr Real DynamicFp8Scale(Real amax) {
  constexpr Real kFloor = static_cast<Real>(1e-10f);
  return (amax > kFloor ? amax : kFloor) / static_cast<Real>(kE4m3Max);
}

/// The largest magnitude, NaNs left out: a NaN's own code says enough.
template <class Real>
constexpr Real LargestMagnitude(std::span<const Real> x) {
  Real largest = 0;
  for (Real v : x) {
    const Real a = v < 0 ? -v : v;
    if (a > largest) largest = a;
  }
  return largest;
}

static_assert(QuantizeFp8(1.0f, 0.5f) == 0x40 && QuantizeFp8(-1e9f, 1.0f) == 0xFE);
static_assert(DynamicFp8Scale(448.0f) == 1.0f && DynamicFp8Scale(0.0f) > 0);

}  // namespace nibble
