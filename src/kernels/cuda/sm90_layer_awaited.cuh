#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/sm90_ptx.cuh"

// Numbers that blocks of one launch wait for: 0 until they are stored, and then never 0 (-0 for +0
// changes no sum). So neither a fence nor a counter is needed.

namespace nibble::cuda::layer {

__device__ __forceinline__ void StoreAwaited(float* to, float v) {
  StoreRelaxedFloat(to, v == 0 ? -0.0f : v);
}
__device__ __forceinline__ void StoreAwaitedBf16(float* to, float v) {
  StoreAwaited(to, __bfloat162float(__float2bfloat16(v)));
}

__device__ __forceinline__ float Await(const float* at) {
  float v;
  do {
    v = LoadRelaxedFloat(at);
  } while (__float_as_uint(v) == 0);
  return v;
}
/// Four, 16-byte aligned.
__device__ __forceinline__ float4 Await4(const float* at) {
  uint4 v;
  do {
    v = LoadRelaxed(at);
  } while (v.x == 0 || v.y == 0 || v.z == 0 || v.w == 0);
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                     __uint_as_float(v.w));
}

/// Two bf16 numbers that are there as float.
__device__ __forceinline__ uint32_t PairOfBf16s(float low, float high) {
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

}  // namespace nibble::cuda::layer
