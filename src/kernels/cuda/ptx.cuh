#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "numerics/bf16.h"

// Instructions of every GPU from compute capability 8.0 on, one function each, and what older ones
// than 9.0 do without. Shared-memory addresses are 32-bit offsets in the shared window.

namespace nibble::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- programmatic dependent launch: before 9.0 a kernel starts when the one ahead has ended ---

/// Waits until the kernel before this one has finished and its writes are visible.
__device__ __forceinline__ void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// --- copies of 16 bytes into shared memory ---

/// Copies 16 bytes, or stores zeros if not `real`.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool real) {
  const int bytes = real ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- fragments ---

__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// d += a * b, 16x8x16, bf16 operands.
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- bf16 pairs ---

__device__ __forceinline__ float LowBf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float HighBf16(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}
__device__ __forceinline__ uint32_t ToPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

inline constexpr float kLog2E = 1.4426950408889634f;

/// Two to the power x, within two units in the last place; x below -126 gives 0.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// sum + a b, of eight.
__device__ __forceinline__ float Dot8(const uint4& a, const uint4& b, float sum) {
  sum = fmaf(LowBf16(a.x), LowBf16(b.x), sum);
  sum = fmaf(HighBf16(a.x), HighBf16(b.x), sum);
  sum = fmaf(LowBf16(a.y), LowBf16(b.y), sum);
  sum = fmaf(HighBf16(a.y), HighBf16(b.y), sum);
  sum = fmaf(LowBf16(a.z), LowBf16(b.z), sum);
  sum = fmaf(HighBf16(a.z), HighBf16(b.z), sum);
  sum = fmaf(LowBf16(a.w), LowBf16(b.w), sum);
  return fmaf(HighBf16(a.w), HighBf16(b.w), sum);
}

// --- sums over a warp, the same bits in every lane ---

__device__ __forceinline__ float WarpSum(float v) {
#pragma unroll
  for (int o = 16; o; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float WarpMax(float v) {
#pragma unroll
  for (int o = 16; o; o /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

}  // namespace nibble::cuda
