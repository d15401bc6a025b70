#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/ptx.cuh"

// Activations to NVFP4 on the way into an mma: what QuantizeNvfp4Block<float> (numerics/nvfp4.h)
// says, bit for bit, but the result is not a code and a scale but their product. It has at most six
// significant bits, so bf16 holds it exactly, and the bf16 kernels multiply it like any other
// activation; 1 / gscale goes onto the accumulator.

namespace nibble::cuda {

inline constexpr uint32_t kMagnitudes = 0x7FFF7FFFu;  // of two bf16
inline constexpr uint32_t kSigns = 0x80008000u;

/// The larger of either half; a NaN counts as nothing, as in the definition.
__device__ __forceinline__ uint32_t MaxBf16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

/// 1 / a, rounded once, where neither a nor it is subnormal; NaN for 0. What __frcp_rn does for these,
/// without its branch.
__device__ __forceinline__ float Reciprocal(float a) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return __fmaf_rn(r, -__fmaf_rn(a, r, -1.0f), r);
}

/// gscale and its reciprocal, rounded once.
struct Gscale {
  float value, inverse;
};
__device__ __forceinline__ Gscale GscaleOf(float gscale) { return {gscale, Reciprocal(gscale)}; }

/// One block's scale: e4m3, and what its elements are multiplied with.
struct BlockScale {
  float scale, inverse;
};
/// `amax`: of the block's magnitudes, not NaN. A scale of zero makes the inverse NaN, which does no
/// harm: every magnitude becomes 6, and 6 * 0 is 0.
__device__ __forceinline__ BlockScale ScaleOfBlock(float amax, const Gscale& g) {
  constexpr float kSixth = static_cast<float>(1.0 / 6.0);
  const float wanted = __fmul_rn(g.value, __fmul_rn(amax, kSixth));
#if __CUDA_ARCH__ >= 890
  uint16_t e4m3;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(e4m3) : "f"(0.0f), "f"(wanted));
  float scale;
  asm("{ .reg .b32 p; .reg .b16 l, h; cvt.rn.f16x2.e4m3x2 p, %1; mov.b32 {l, h}, p;"
      " cvt.f32.f16 %0, l; }"
      : "=f"(scale)
      : "h"(e4m3));
#else
  const __nv_fp8_storage_t e4m3 = __nv_cvt_float_to_fp8(wanted, __NV_SATFINITE, __NV_E4M3);
  const float scale = __half2float(__half(__nv_cvt_fp8_to_halfraw(e4m3, __NV_E4M3)));
#endif
  return {scale, Reciprocal(__fmul_rn(scale, g.inverse))};
}

/// |x * inverse| as the nearest e2m1 magnitude, ties to the even code. An e2m1 magnitude is a float
/// with one mantissa bit and the step 0.5 below 1; adding 2^22 times a power of two and taking it
/// off again rounds to just that step.
__device__ __forceinline__ float RoundToE2m1(float x, float inverse) {
  constexpr int kShift = 22 << 23;
  const float v = fminf(fabsf(__fmul_rn(x, inverse)), 6.0f);  // NaN gives 6
  const int exponent = __float_as_int(v) & 0x7F800000;
  const float magic = __int_as_float(__viaddmax_s32(exponent, kShift, 0x3F800000 + kShift));
  return __fsub_rn(__fadd_rn(v, magic), magic);
}

/// Two elements, of one block or of two, as code * scale.
__device__ __forceinline__ uint32_t QuantizePair(uint32_t pair, BlockScale low, BlockScale high) {
  const float a = RoundToE2m1(LowBf16(pair), low.inverse);
  const float b = RoundToE2m1(HighBf16(pair), high.inverse);
  const uint32_t codes = __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
  const uint32_t scales =
      __byte_perm(__float_as_uint(low.scale), __float_as_uint(high.scale), 0x7632);
  return MulBf16x2(codes, scales) | (pair & kSigns);
}

/// The largest magnitude of some pairs, one in either half.
template <int n>
__device__ __forceinline__ uint32_t MaxOfPairs(const uint32_t (&x)[n]) {
  uint32_t amax = x[0] & kMagnitudes;
#pragma unroll
  for (int i = 1; i < n; ++i) amax = MaxBf16x2(amax, x[i] & kMagnitudes);
  return amax;
}

/// A block of 16, or the half of it, two a register; `amax` is the whole block's, as MaxOfPairs.
template <int n>
__device__ __forceinline__ void QuantizeBlock(uint32_t (&x)[n], uint32_t amax, const Gscale& g) {
  const BlockScale scale = ScaleOfBlock(fmaxf(fmaxf(LowBf16(amax), HighBf16(amax)), 0.0f), g);
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] = QuantizePair(x[i], scale, scale);
}
__device__ __forceinline__ void QuantizeBlock(uint32_t (&x)[8], const Gscale& g) {
  QuantizeBlock(x, MaxOfPairs(x), g);
}

}  // namespace nibble::cuda
