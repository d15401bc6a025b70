#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/linear_shard.h"
#include "kernels/cuda/linear_store.cuh"
#include "kernels/cuda/sm90_ptx.cuh"

// What the kernels of dense linears share: a tile's way into registers.

namespace nibble::cuda::linear {

/// One mma step's register operand from a tile in shared memory.
/// kExact: FP8 as values, not as values * 2^-120.
template <Sm90Weight kWeight, bool kExact>
struct Tile {  // FP8
  static constexpr int kBytes = 1024;
  uint4 words[2];
  __device__ __forceinline__ Tile(const uint8_t* tile, int lane) {
    words[0] = reinterpret_cast<const uint4*>(tile)[lane];
    words[1] = reinterpret_cast<const uint4*>(tile + 512)[lane];
  }
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    Fp8Fragment<kExact>(words, j, a);
  }
};

template <bool kExact>
struct Tile<Sm90Weight::kNvfp4, kExact> {
  static constexpr int kBytes = kHopperTileBytes;
  uint4 words;
  ScalePair scale;
  __device__ __forceinline__ Tile(const uint8_t* tile, int lane) {
    words = reinterpret_cast<const uint4*>(tile)[lane];
    scale = ExpandScales(reinterpret_cast<const uint16_t*>(tile + kHopperTileCodeBytes)[lane]);
  }
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    Dequantize(j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w, scale, a);
  }
};

template <bool kExact>
struct Tile<Sm90Weight::kBf16, kExact> {
  static constexpr int kBytes = 2048;
  const uint4* lane_;
  __device__ __forceinline__ Tile(const uint8_t* tile, int lane)
      : lane_(reinterpret_cast<const uint4*>(tile) + lane) {}
  __device__ __forceinline__ void Fragment(int j, uint32_t (&a)[4]) const {
    const uint4 w = lane_[32 * j];
    a[0] = w.x, a[1] = w.y, a[2] = w.z, a[3] = w.w;
  }
};

}  // namespace nibble::cuda::linear
