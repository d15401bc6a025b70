#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/delta_args.h"
#include "kernels/cuda/sm90_ptx.cuh"

// What decode and prefill of gated DeltaNet share on the device: where a row's inputs lie, and the
// arithmetic of one row before the recurrence. Both prepare a row by the same instructions.

namespace nibble::cuda::delta {

// --- programmatic dependent launch, where the device has it ---

__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  WaitForPreviousKernel();
#endif
}
__device__ __forceinline__ void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  LetNextKernelStart();
#endif
}

// --- a row's inputs ---

/// A sequence's descriptor, and what of it is not looked at made 0. It lies in L2, where whoever
/// wrote it left it.
__device__ __forceinline__ DeltaSequence LoadSequence(const Args& a, int index) {
  const int* p = reinterpret_cast<const int*>(a.sequences + index);
  DeltaSequence s{__ldcg(p),     __ldcg(p + 1), __ldcg(p + 2),
                  __ldcg(p + 3), __ldcg(p + 4), __ldcg(p + 5)};
  if (s.start == 0) s.kept = 0;
  return s;
}

__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void WaitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ Bf16 LoadOne(const Bf16* p) {
  return Bf16{__ldcg(reinterpret_cast<const unsigned short*>(p))};
}
__device__ __forceinline__ float Float(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ Bf16 Round(float x) {
  return Bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

/// N neighbouring channels of an input, as bits.
template <int N>
struct Raw {
  uint32_t pair[N / 2];

  __device__ __forceinline__ float operator[](int i) const {
    return __uint_as_float(i % 2 ? pair[i / 2] & 0xFFFF0000u : pair[i / 2] << 16);
  }
};

/// From device memory.
template <int N>
__device__ __forceinline__ Raw<N> LoadRaw(const Bf16* p) {
  Raw<N> r;
  if constexpr (N == 4) {
    const uint2 v = __ldcg(reinterpret_cast<const uint2*>(p));
    r.pair[0] = v.x, r.pair[1] = v.y;
  } else {
    static_assert(N == 2);
    r.pair[0] = __ldcg(reinterpret_cast<const uint32_t*>(p));
  }
  return r;
}

__device__ __forceinline__ Bf16* RingRow(const Args& a, int slot, int position) {
  return a.ring +
         (static_cast<int64_t>(slot) * a.ring_rows + position % a.ring_rows) * a.ring_width;
}

/// Where the input at `position` lies, which is not negative.
__device__ __forceinline__ const Bf16* InputRow(const Args& a, const DeltaSequence& s,
                                                int position) {
  if (position < s.start) return RingRow(a, s.slot, position);
  return a.in + (s.first_row + static_cast<int64_t>(position - s.start)) * a.in_width;
}

// --- arithmetic ---

__device__ __forceinline__ float Silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

__device__ __forceinline__ float SumOfWarp(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

/// A head's rates: beta, and g = -e^a_log softplus(a + dt_bias), the logarithm of the decay.
__device__ __forceinline__ float Beta(float b) { return __fdividef(1.0f, 1.0f + expf(-b)); }
__device__ __forceinline__ float LogDecay(float a, float a_log, float dt_bias) {
  const float x = a + dt_bias;
  return -expf(a_log) * (x > 20 ? x : log1pf(expf(x)));
}

/// The convolution's weights of N channels; where there are fewer than kMaxTaps, the first are
/// zero.
template <int N>
struct Taps {
  float w[kMaxTaps][N];

  __device__ __forceinline__ Taps(const Args& a, int channel) {
#pragma unroll
    for (int j = 0; j < kMaxTaps; ++j) {
      const int tap = j - (kMaxTaps - a.taps);
#pragma unroll
      for (int i = 0; i < N; i += 2) {
        float2 two = make_float2(0, 0);
        if (tap >= 0)
          two = *reinterpret_cast<const float2*>(a.conv + tap * a.channels + channel + i);
        w[j][i] = two.x, w[j][i + 1] = two.y;
      }
    }
  }
};

/// silu of the convolution over the last kMaxTaps inputs, of which the last is the row's own.
template <int N>
__device__ __forceinline__ void ConvSilu(const Taps<N>& taps, const Raw<N> (&x)[kMaxTaps],
                                         float (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kMaxTaps; ++j) sum = __fmaf_rn(taps.w[j][i], x[j][i], sum);
    out[i] = Silu(sum);
  }
}

/// Over a warp that holds a head: to length `scale`.
template <int N>
__device__ __forceinline__ void UnitLength(float (&x)[N], float scale) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum = __fmaf_rn(x[i], x[i], sum);
  const float factor = scale * rsqrtf(SumOfWarp(sum) + 1e-6f);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] *= factor;
}

}  // namespace nibble::cuda::delta
