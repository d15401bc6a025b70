#!/usr/bin/env python3
"""Writes sm90_wgmma.cuh: one wrapper an N, because wgmma's accumulator operands must be spelled out."""
SIZES = [16, 32, 48, 64, 80, 96, 112, 128, 136, 144, 160]

print("""#pragma once

// Made by make_sm90_wgmma.py.

#include <cstdint>

namespace nibble::cuda {

/// d[64, N] += a[64, 16] * b[16, N]: a in the registers of four warps, b in shared memory behind a
/// matrix descriptor, bf16 operands, fp32 accumulators. Asynchronous: see WgmmaWait.
template <int N>
struct Wgmma;
""")
for n in SIZES:
    count = n // 2
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    names = ",".join(f"%{i}" for i in range(count))
    a = ",".join(f"%{count + i}" for i in range(4))
    print(f"""template <>
struct Wgmma<{n}> {{
  static __device__ __forceinline__ void Issue(float (&d)[{count}], const uint32_t (&a)[4], uint64_t b) {{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{names}}}, {{{a}}}, %{count + 4}, 1, 1, 1, 0;"
        : {outputs}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }}
}};
""")
print("""/// d[64, N] (+)= a[64, 16] * b[16, N], both in shared memory; `add`: to what d holds.
template <int N>
struct WgmmaShared;

/// d[64, N] += a[64, 16] * b[16, N]: a in registers, b in shared memory with its N contiguous.
template <int N>
struct WgmmaAcross;
""")
for n in [64, 128, 256]:
    count = n // 2
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    names = ",".join(f"%{i}" for i in range(count))
    a = ",".join(f"%{count + i}" for i in range(4))
    if n < 256:
        print(f"""template <>
struct WgmmaShared<{n}> {{
  static __device__ __forceinline__ void Issue(float (&d)[{count}], uint64_t a, uint64_t b, int add) {{
    asm volatile(
        "{{ .reg .pred p; setp.ne.b32 p, %{count + 2}, 0;"
        " wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{names}}}, %{count}, %{count + 1}, p, 1, 1, 0, 0; }}"
        : {outputs}
        : "l"(a), "l"(b), "r"(add));
  }}
}};
""")
    if n > 64:
        print(f"""template <>
struct WgmmaAcross<{n}> {{
  static __device__ __forceinline__ void Issue(float (&d)[{count}], const uint32_t (&a)[4], uint64_t b) {{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{names}}}, {{{a}}}, %{count + 4}, 1, 1, 1, 1;"
        : {outputs}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }}
}};
""")
print("""/// Orders register writes (accumulators, a) before the next Wgmma.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// Ends a group of Wgmmas.
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kGroups groups are in flight.
template <int kGroups>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

/// The descriptor of a [N][64] bf16 tile with the 128-byte swizzle, at a 1024-byte boundary; a k16
/// step is 2 further.
__device__ __forceinline__ uint64_t SwizzledTile(uint32_t address) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kStride1024 = 64ull << 32, kLeading = 1ull << 16;
  return kSwizzle128 | kStride1024 | kLeading | (address >> 4);
}

/// The descriptor of [blocks of 64 n][k][64] for WgmmaAcross, with the 128-byte swizzle, `block_bytes` from
/// block to block; a k16 step is 128 further.
__device__ __forceinline__ uint64_t SwizzledTileAcross(uint32_t address, uint32_t block_bytes) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kStride1024 = 64ull << 32;
  return kSwizzle128 | kStride1024 | static_cast<uint64_t>(block_bytes >> 4) << 16 | (address >> 4);
}

}  // namespace nibble::cuda""")
