#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/ptx.cuh"

// What the attention kernels share: heads in a warp's registers, normalised, rotated, stored in the
// cache; e4m3 codes on their way into a bf16 mma.

namespace nibble::cuda {

/// A lane's share of a head: kDim / 32 dimensions one after the other.
template <int kDim>
struct HeadShare {
  static constexpr int kEach = kDim / 32;
  float v[kEach];
};

template <int kDim>
__device__ __forceinline__ HeadShare<kDim> LoadShare(const Bf16* head) {
  constexpr int kPairs = kDim / 64;
  uint32_t pair[kPairs];
  const void* const at = head + threadIdx.x % 32 * (kDim / 32);
  if constexpr (kPairs == 4) {
    const uint4 u = *static_cast<const uint4*>(at);
    pair[0] = u.x, pair[1] = u.y, pair[2] = u.z, pair[3] = u.w;
  } else if constexpr (kPairs == 2) {
    const uint2 u = *static_cast<const uint2*>(at);
    pair[0] = u.x, pair[1] = u.y;
  } else {
    pair[0] = *static_cast<const uint32_t*>(at);
  }
  HeadShare<kDim> share;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    share.v[2 * i] = LowBf16(pair[i]), share.v[2 * i + 1] = HighBf16(pair[i]);
  }
  return share;
}

template <int kDim>
__device__ __forceinline__ HeadShare<kDim> LoadShare(const float* from) {
  constexpr int kPairs = kDim / 64;
  HeadShare<kDim> share;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const float2 pair = reinterpret_cast<const float2*>(from)[i];
    share.v[2 * i] = pair.x, share.v[2 * i + 1] = pair.y;
  }
  return share;
}

/// The head over its RMS times `weight`, then rotated in halves by `rope`, the row's cosines and sines,
/// in its first rotary_dim dimensions. All lanes take part.
template <int kDim>
__device__ __forceinline__ void NormAndRotate(HeadShare<kDim>& head, const HeadShare<kDim>& weight,
                                              const float* rope, int rotary_dim, float eps) {
  constexpr int kEach = HeadShare<kDim>::kEach;
  const int lane = threadIdx.x % 32, half = rotary_dim / 2 / kEach;  // lanes
  const bool first = lane < half, rotates = lane < 2 * half;
  HeadShare<kDim> cosine, sine;
  if (rotates) {
    const float* const at = rope + (first ? lane : lane - half) * kEach;
    cosine = LoadShare<kDim>(at), sine = LoadShare<kDim>(at + rotary_dim / 2);
  }
  float squares = 0;
#pragma unroll
  for (float v : head.v) squares = fmaf(v, v, squares);
  const float scale = 1 / sqrtf(WarpSum(squares) / kDim + eps);
  const int partner = first ? lane + half : rotates ? lane - half : lane;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float v = head.v[i] * scale * weight.v[i];
    const float other = __shfl_sync(~0u, v, partner);
    head.v[i] = v;
    if (rotates) head.v[i] = fmaf(v, cosine.v[i], first ? -other * sine.v[i] : other * sine.v[i]);
  }
}

/// A lane's share as it lies in the cache, kBytes bytes.
template <int kDim, bool kFp8>
struct CachedShare {
  static constexpr int kBytes = kDim / 32 * (kFp8 ? 1 : 2);
  uint32_t word[(kBytes + 3) / 4];

  __device__ __forceinline__ void Store(void* to) const {
    if constexpr (kBytes == 16) {
      *static_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
    } else if constexpr (kBytes == 8) {
      *static_cast<uint2*>(to) = make_uint2(word[0], word[1]);
    } else if constexpr (kBytes == 4) {
      *static_cast<uint32_t*>(to) = word[0];
    } else {
      *static_cast<uint16_t*>(to) = static_cast<uint16_t>(word[0]);
    }
  }
};

template <int kDim, bool kFp8>
__device__ __forceinline__ CachedShare<kDim, kFp8> ToCache(const HeadShare<kDim>& x, float scale) {
  CachedShare<kDim, kFp8> c{};
#pragma unroll
  for (int i = 0; i < HeadShare<kDim>::kEach; i += 2) {
    if constexpr (kFp8) {
      const uint32_t codes = __nv_cvt_float2_to_fp8x2(
          make_float2(__fdiv_rn(x.v[i], scale), __fdiv_rn(x.v[i + 1], scale)), __NV_SATFINITE,
          __NV_E4M3);
      c.word[i / 4] |= codes << (i % 4 * 8);
    } else {
      c.word[i / 2] = ToPair(x.v[i], x.v[i + 1]);
    }
  }
  return c;
}

/// Four codes as bf16 pairs: of bytes 0 and 2, and of bytes 1 and 3. A code's magnitude in bits 10..4 of a
/// bf16 is its value * 2^-120, subnormal ones included.
__device__ __forceinline__ void DecodeE4m3(uint32_t codes, uint32_t& even, uint32_t& odd) {
  const uint32_t low = codes << 8;
  const uint32_t e = (low & 0x80008000u) | ((low >> 4) & 0x07F007F0u);
  const uint32_t o = (codes & 0x80008000u) | ((codes >> 4) & 0x07F007F0u);
  const uint32_t factor = 0x7B807B80u;  // 2^120
  const auto times = [&](uint32_t v) {
    const __nv_bfloat162 r = __hmul2(reinterpret_cast<const __nv_bfloat162&>(v),
                                     reinterpret_cast<const __nv_bfloat162&>(factor));
    return reinterpret_cast<const uint32_t&>(r);
  };
  even = times(e), odd = times(o);
}

/// Elements from the start of keys or values to a position of a kv head.
template <int kDim>
__device__ __forceinline__ int64_t CacheAt(int page, int n_kv_heads, int kv_head, int position) {
  return ((static_cast<int64_t>(page) * n_kv_heads + kv_head) * kKvPage + position % kKvPage) *
         kDim;
}

/// Where 16-byte word `chunk` of row `row` lies in a tile whose rows are of kChunks words: rows that are
/// read together do not share banks, neither eight at one word, nor two at four words each.
template <int kChunks>
__device__ __forceinline__ uint32_t TilePlace(int row, int chunk) {
  const int mask = ((row & 1) << 2 | (row >> 1 & 3)) & (kChunks - 1);
  return (row * kChunks + (chunk ^ mask)) * 16;
}

__device__ __forceinline__ float SigmoidOf(float x) { return 1 / (1 + __expf(-x)); }

}  // namespace nibble::cuda
