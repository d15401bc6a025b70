#pragma once

#include <cstdint>

#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/ptx.cuh"
#include "layout/hopper_tile.h"

// A matrix product with mma.sync m16n8k16, of packed weights (layout/hopper_tile.h) and of x as
// [k / 64][rows][64] bf16, rows in the 128-byte swizzle, k's in the order of the weights. D is
// [weight rows, tokens]: a block computes kWarps * kMmaTiles tiles of 16 rows for kTokens tokens, and walks k
// by 64. Weights are the A operand: a lane's share of a packed tile is its fragments, so it goes from
// memory to its registers and nowhere else, kAhead k blocks before it is needed. x, which all warps of
// the block read, passes through kMmaStages stages of shared memory.

namespace nibble::cuda {

inline constexpr int kMmaTiles = 2;  // a warp's
inline constexpr int kMmaStages = 4;

template <int T>
struct MmaConfig {
  static constexpr int kTokens = T;
  static constexpr int kWarps = T <= 16 ? 4 : 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kStageBytes = T * 128;
  static constexpr int Ahead(HopperFormat format) {
    return format == HopperFormat::kBf16 || T == 64 ? 2 : T <= 16 ? 4 : 3;
  }
};

/// One tile's sums: rows g and g + 8 of tokens 8n + 2t, 8n + 2t + 1 in lane 4g + t.
template <class C>
using MmaSums = float[kMmaTiles][C::kTokens / 8][4];

/// A lane's share of one tile. kExact: FP8 as values, not as values * 2^-120.
template <HopperFormat F, bool kExact = true>
struct MmaFragments;

template <bool kExact>
struct MmaFragments<HopperFormat::kNvfp4, kExact> {
  uint4 words;
  uint16_t scales;

  __device__ __forceinline__ void Load(const uint8_t* tile, int lane) {
    words = __ldg(reinterpret_cast<const uint4*>(tile) + lane);
    scales = __ldg(reinterpret_cast<const uint16_t*>(tile + kHopperTileCodeBytes) + lane);
  }
  __device__ __forceinline__ void Step(int j, uint32_t (&a)[4]) const {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    Dequantize(word[j], ExpandScales(scales), a);
  }
};

template <bool kExact>
struct MmaFragments<HopperFormat::kFp8, kExact> {
  uint4 words[2];

  __device__ __forceinline__ void Load(const uint8_t* tile, int lane) {
    words[0] = __ldg(reinterpret_cast<const uint4*>(tile) + lane);
    words[1] = __ldg(reinterpret_cast<const uint4*>(tile) + 32 + lane);
  }
  __device__ __forceinline__ void Step(int j, uint32_t (&a)[4]) const {
    Fp8Fragment<kExact>(words, j, a);
  }
};

template <bool kExact>
struct MmaFragments<HopperFormat::kBf16, kExact> {
  uint4 words[4];

  __device__ __forceinline__ void Load(const uint8_t* tile, int lane) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      words[j] = __ldg(reinterpret_cast<const uint4*>(tile) + 32 * j + lane);
    }
  }
  __device__ __forceinline__ void Step(int j, uint32_t (&a)[4]) const {
    a[0] = words[j].x, a[1] = words[j].y, a[2] = words[j].z, a[3] = words[j].w;
  }
};

/// Copies a k block of x, which lie together, to a stage.
template <class C>
__device__ __forceinline__ void MmaCopyX(const uint8_t* from, uint32_t stage) {
  const int place = threadIdx.x * 16;
#pragma unroll
  for (int at = 0; at < C::kStageBytes; at += C::kThreads * 16) {
    if (C::kStageBytes % (C::kThreads * 16) == 0 || at + place < C::kStageBytes) {
      CopyAsync(stage + at + place, from + at + place, true);
    }
  }
}

/// The operand B of mma step j for every 8 tokens: pairs of the k's of chunks 2j and 2j + 1. `two` is
/// kept from step to step.
template <class C>
__device__ __forceinline__ void MmaLoadX(uint32_t stage, int j, uint32_t (&b)[C::kTokens / 8][2],
                                         uint32_t (&two)[4]) {
  const int lane = threadIdx.x % 32, row = lane % 8, matrix = lane / 8;
  if constexpr (C::kTokens == 8) {  // two steps at once
    if (j % 2 == 0) LoadMatrices(two, stage + row * 128 + ((2 * j + matrix) ^ row) * 16);
    b[0][0] = two[j % 2 * 2], b[0][1] = two[j % 2 * 2 + 1];
  } else {
    const uint32_t place = stage + (matrix / 2 * 8 + row) * 128 + ((2 * j + matrix % 2) ^ row) * 16;
#pragma unroll
    for (int i = 0; i < C::kTokens / 8; i += 2) {
      uint32_t r[4];
      LoadMatrices(r, place + i * 1024);
      b[i][0] = r[0], b[i][1] = r[1], b[i + 1][0] = r[2], b[i + 1][1] = r[3];
    }
  }
}

/// What a block multiplies.
struct MmaOperands {
  const uint8_t* weights;  // of the warp's first tile, at k block 0; null: the warp has none
  int tile_stride;         // bytes to the second tile
  int step_stride;         // bytes from k block to k block
  int weight_steps;        // k blocks, after which they begin again
  const uint8_t* x;        // of the first token, at k block 0
  int64_t x_stride;        // bytes from k block to k block
  int steps;               // k blocks of x
};

/// sums += weights times x. mask(step, fragment) may change what is multiplied, after(step) sees the sums
/// behind every k block. The kernel before is waited for between the first weights, which do not depend
/// on it, and x. All threads of the block come here.
template <class C, class F, int kAhead, class Mask, class After>
__device__ __forceinline__ void MmaMultiply(const MmaOperands& o, uint32_t stages, MmaSums<C>& sums,
                                            Mask mask, After after) {
  const int lane = threadIdx.x % 32;
  F w[kAhead][kMmaTiles];
  const auto load = [&](int step, F(&to)[kMmaTiles]) {
    if (o.weights == nullptr) return;
    const int k = step >= o.weight_steps ? step - o.weight_steps : step;
#pragma unroll
    for (int m = 0; m < kMmaTiles; ++m) {
      to[m].Load(o.weights + k * o.step_stride + m * o.tile_stride, lane);
    }
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i < o.steps) load(i, w[i]);
  }
  WaitForPreviousKernel();
  LetNextKernelStart();
#pragma unroll
  for (int i = 0; i < kMmaStages - 1; ++i) {
    if (i < o.steps) MmaCopyX<C>(o.x + i * o.x_stride, stages + i * C::kStageBytes);
    CommitCopies();
  }
  for (int base = 0; base < o.steps; base += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = base + i;
      if (step >= o.steps) break;
      WaitForCopies<kMmaStages - 2>();
      __syncthreads();  // the stage is there, and everybody has left the one before
      const int next = step + kMmaStages - 1;
      if (next < o.steps) {
        MmaCopyX<C>(o.x + next * o.x_stride, stages + next % kMmaStages * C::kStageBytes);
      }
      CommitCopies();
      if (o.weights == nullptr) continue;
      const uint32_t stage = stages + step % kMmaStages * C::kStageBytes;
      uint32_t two[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t b[C::kTokens / 8][2];
        MmaLoadX<C>(stage, j, b, two);
#pragma unroll
        for (int m = 0; m < kMmaTiles; ++m) {
          uint32_t fragment[4];
          w[i][m].Step(j, fragment);
          mask(step, fragment);
#pragma unroll
          for (int n = 0; n < C::kTokens / 8; ++n) MmaBf16(sums[m][n], fragment, b[n][0], b[n][1]);
        }
      }
      after(step);
      if (step + kAhead < o.steps) load(step + kAhead, w[i]);
    }
  }
}

/// Row g of two tokens, 2t and 2t + 1, to rows g and g ^ 1 of one token, 2t + g % 2: two neighbouring
/// features as a bf16 pair.
__device__ __forceinline__ uint32_t ExchangePair(float first, float second) {
  const bool odd = threadIdx.x & 4;
  const float other = __shfl_xor_sync(~0u, odd ? first : second, 4);
  return odd ? ToPair(other, second) : ToPair(first, other);
}

}  // namespace nibble::cuda
