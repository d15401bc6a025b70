#pragma once

#include <cstdint>

#include "layout/hopper_tile.h"

// From the words of a Hopper tile (layout/hopper_tile.h) to the bf16 registers of an mma operand.

namespace nibble::cuda {

__device__ __forceinline__ uint32_t MulBf16x2(uint32_t a, uint32_t b) {
  uint32_t r;
#if __CUDA_ARCH__ >= 900
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u));  // + -0
#endif
  return r;
}

/// Scales of rows g and g + 8 as bf16 pairs (value * 2^118, twice in a register), from a lane's two
/// scale bytes in bits 0..15.
struct ScalePair {
  uint32_t low, high;
};
__device__ __forceinline__ ScalePair ExpandScales(uint32_t bytes) {
  return {__byte_perm(bytes, 0, 0x4040) * 16u + 0x72007200u,
          __byte_perm(bytes, 0, 0x4141) * 16u + 0x72007200u};
}

/// One word is one k16 step's fragment: registers {row g, row g+8} x {k 2t.., k 2t+8..}. The fourth
/// field's three parts move to their places by one multiplication (checked over all words).
__device__ __forceinline__ void Dequantize(uint32_t word, ScalePair scale, uint32_t (&a)[4]) {
  a[0] = MulBf16x2(word & 0x81C081C0u, scale.low);
  a[1] = MulBf16x2((word << 3) & 0x81C081C0u, scale.high);
  a[2] = MulBf16x2((word << 6) & 0x81C081C0u, scale.low);
  a[3] = MulBf16x2(((word >> 8 & 0x006C006Cu) * 0x421u) & 0x81C081C0u, scale.high);
}

}  // namespace nibble::cuda
