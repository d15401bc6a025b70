#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/quantize.cuh"

// FP8 on its way into a bf16 mma: e4m3 codes are exact in bf16.

namespace nibble::cuda {

// Weights come as value * 2^-120 from two instructions a pair, as a code's magnitude in bits 10..4 of a
// bf16 is worth that, subnormal ones included. Another instruction a pair makes them the values. Where x
// is FP8, too, it is x that comes as value * 2^112 instead, and 2^8 is left for the accumulator: no
// product is subnormal or overflows.

inline constexpr uint32_t kTwoTo120 = 0x7B807B80u;  // twice, as bf16
inline constexpr uint32_t kTwoTo112 = 0x77807780u;

/// Four codes of a Hopper FP8 tile (layout/hopper_tile.h) as two bf16 pairs.
template <bool kExact>
__device__ __forceinline__ void DequantizeFp8(uint32_t word, uint32_t& first, uint32_t& second) {
  const uint32_t swapped = __byte_perm(word, 0, 0x2301);
  first = word & 0x87F087F0u;
  second = (swapped & 0x07700770u) + (swapped & 0x08080808u) * 16;
  if constexpr (kExact) {
    first = MulBf16x2(first, kTwoTo120);
    second = MulBf16x2(second, kTwoTo120);
  }
}

/// The operand of mma step j from a lane's two words of 16 bytes of a tile (layout/hopper_tile.h).
template <bool kExact>
__device__ __forceinline__ void Fp8Fragment(const uint4 (&words)[2], int j, uint32_t (&a)[4]) {
  const uint4& w = words[j / 2];
  DequantizeFp8<kExact>(j % 2 ? w.z : w.x, a[0], a[2]);
  DequantizeFp8<kExact>(j % 2 ? w.w : w.y, a[1], a[3]);
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

/// Two elements as the values of their codes * 2^112. What is beyond 512 scales becomes 448 anyway, and is
/// brought to `limit` so that the quotient cannot overflow; a NaN stays one.
__device__ __forceinline__ uint32_t QuantizeFp8Pair(uint32_t pair, const Fp8Scale& s) {
  asm("{ .reg .b32 m; min.NaN.bf16x2 m, %0, %1; max.NaN.bf16x2 %0, m, %2; }"
      : "+r"(pair)
      : "r"(s.limit), "r"(s.limit | kSigns));
#if __CUDA_ARCH__ >= 890
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
#else
  const float2 quotients = make_float2(Quotient(LowBf16(pair), s), Quotient(HighBf16(pair), s));
  const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(
      __nv_cvt_float2_to_fp8x2(quotients, __NV_SATFINITE, __NV_E4M3), __NV_E4M3);
  const float low = __half2float(__half(__half_raw{halves.x}));
  const float high = __half2float(__half(__half_raw{halves.y}));
#endif
  return MulBf16x2(__byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632), kTwoTo112);
}

template <int n>
__device__ __forceinline__ void QuantizeFp8Pairs(uint32_t (&x)[n], const Fp8Scale& s) {
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = QuantizeFp8Pair(x[i], s);
}

}  // namespace nibble::cuda
