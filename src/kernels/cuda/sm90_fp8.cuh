#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/sm90_dequant.cuh"
#include "kernels/cuda/sm90_quantize.cuh"

// FP8 on its way into a bf16 mma: e4m3 codes are exact in bf16.

namespace nibble::cuda {

/// Four codes of a Hopper FP8 tile (layout/hopper_tile.h) as two bf16 pairs. A code's magnitude in bits
/// 10..4 is a bf16 of value * 2^-120, subnormals included; the multiplication makes it exact.
__device__ __forceinline__ void DequantizeFp8(uint32_t word, uint32_t& first, uint32_t& second) {
  constexpr uint32_t kScale = 0x7B807B80u;  // 2^120, twice
  const uint32_t swapped = __byte_perm(word, 0, 0x2301);
  first = MulBf16x2(word & 0x87F087F0u, kScale);
  second = MulBf16x2((swapped & 0x07700770u) + (swapped & 0x08080808u) * 16, kScale);
}

/// An FP8 scale, its reciprocal, rounded once, and 512 of it as a bf16 pair.
struct Fp8Scale {
  float value, inverse;
  uint32_t limit;
};
__device__ __forceinline__ Fp8Scale MakeFp8Scale(float scale) {
  const uint32_t limit = min(__float_as_uint(scale * 512.0f), 0x7F7FFFFFu) >> 16;
  return {scale, Reciprocal(scale), limit | limit << 16};
}

/// What DynamicFp8Scale<float> (numerics/fp8.h) says.
__device__ __forceinline__ float DynamicScale(float amax) {
  return __fdiv_rn(fmaxf(amax, 1e-10f), 448.0f);
}

/// x / scale, rounded once. Neither it nor x overflows.
__device__ __forceinline__ float Quotient(float x, const Fp8Scale& s) {
  const float q = __fmul_rn(x, s.inverse);
  return __fmaf_rn(__fmaf_rn(-q, s.value, x), s.inverse, q);
}

/// Two elements as the values of their codes. What is beyond 512 scales becomes 448 anyway, and is
/// brought to `limit` so that the quotient cannot overflow; a NaN stays one.
__device__ __forceinline__ uint32_t QuantizeFp8Pair(uint32_t pair, const Fp8Scale& s) {
  asm("{ .reg .b32 m; min.NaN.bf16x2 m, %0, %1; max.NaN.bf16x2 %0, m, %2; }"
      : "+r"(pair)
      : "r"(s.limit), "r"(s.limit | kSigns));
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
      : "=h"(codes)
      : "f"(Quotient(HighBf16(pair), s)), "f"(Quotient(LowBf16(pair), s)));
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
  float low, high;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
      : "=f"(low), "=f"(high)
      : "r"(halves));
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

template <int n>
__device__ __forceinline__ void QuantizeFp8Pairs(uint32_t (&x)[n], const Fp8Scale& s) {
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = QuantizeFp8Pair(x[i], s);
}

}  // namespace nibble::cuda
