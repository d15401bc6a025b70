#pragma once

#include <cstdint>

#include "kernels/cuda/fp8.cuh"

// Dynamic FP8 scales of rows in chunks. Chunk c of a 64-block has the pairs k = 2c, 16 + 2c, 32 + 2c,
// 48 + 2c: the slots 2t, 2t + 1 of lane t in the order of layout/hopper_tile.h. Eight chunks are 64 k.

namespace nibble::cuda {

/// The larger of a pair of magnitudes; a NaN counts as nothing.
__device__ __forceinline__ float LargestOf(uint32_t amax) {
  return fmaxf(fmaxf(LowBf16(amax), HighBf16(amax)), 0.0f);
}

/// Of 128 k's: sixteen lanes that follow each other have a chunk each. All lanes come here.
__device__ __forceinline__ float GroupScale(const uint32_t (&chunk)[4]) {
  uint32_t amax = MaxOfPairs(chunk);
#pragma unroll
  for (int o = 1; o < 16; o <<= 1) amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, o));
  return DynamicScale(LargestOf(amax));
}

/// Of a row that a block has; `amax`: of the thread's part, as MaxOfPairs.
template <int kWarps>
__device__ __forceinline__ float TokenScale(uint32_t amax, float (&largest)[kWarps]) {
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, o));
  __syncthreads();
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = LargestOf(amax);
  __syncthreads();
  float all = 0;
  for (int w = 0; w < kWarps; ++w) all = fmaxf(all, largest[w]);
  return DynamicScale(all);
}

}  // namespace nibble::cuda
