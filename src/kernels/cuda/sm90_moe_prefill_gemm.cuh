#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/sm90_moe_prefill.h"
#include "kernels/cuda/sm90_ptx.cuh"

// What the parts of the prefill GEMMs share: see sm90_moe_prefill_gemm.cu.

namespace nibble::cuda::prefill {

inline constexpr int kTileRows = 256;
inline constexpr int kSlots = 4;  // of the ring that tells tiles to the warps

template <TileShape kShape, HopperFormat kFormat_ = HopperFormat::kNvfp4>
struct Config {
  static constexpr HopperFormat kFormat = kFormat_;  // of the weights
  static constexpr uint32_t kWeightBytes = kTileRows / kHopperTileRows * HopperTileBytes(kFormat);
  static constexpr int kWarpgroups = kShape == TileShape::kWide ? 2 : 4;  // that compute
  static constexpr int kM = 4 / kWarpgroups;                              // m64 tiles a warpgroup
  static constexpr int kStages = kFormat == HopperFormat::kBf16 ? 4
                                 : kShape == TileShape::kWide   ? 7
                                                                : 11;
  static constexpr int kThreads = (kWarpgroups + 1) * 128;
  static constexpr uint32_t kXBytes = MaxN(kShape) * 128;
  static constexpr uint32_t kStageBytes = kXBytes + kWeightBytes;
  // Two warps share an NVFP4 block of h: one word a token, for two tiles in turn.
  static constexpr uint32_t kExchangeBytes = 2 * 4 * kWarpgroups * MaxN(kShape) * 4;
  static constexpr uint32_t kSmemBytes =
      kStages * kStageBytes + 512 + kExchangeBytes + 1024;  // 512: barriers; 1024: alignment
  static_assert(kSmemBytes <= 232448, "the shared memory of a Hopper block");
};

__device__ __forceinline__ uint4 LoadShared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
__device__ __forceinline__ uint32_t LoadShared2(uint32_t address) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ uint32_t LoadShared4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void StoreShared4(uint32_t address, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
/// Transposes an 8x8 matrix of bf16 held two a lane.
__device__ __forceinline__ uint32_t Transpose8x8(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
// --- shared memory: x stages, weight stages, barriers, tile slots ---

template <class C>
struct Addresses {
  uint32_t x, weights, full, empty, slot_full, slot_empty, slots, exchange;
  __device__ explicit Addresses(const uint8_t* raw) {
    x = (SharedAddress(raw) + 1023) & ~1023u;  // the swizzle's period
    weights = x + C::kStages * C::kXBytes;
    full = weights + C::kStages * C::kWeightBytes;
    empty = full + 8 * C::kStages;
    slot_full = empty + 8 * C::kStages;
    slot_empty = slot_full + 8 * kSlots;
    slots = (slot_empty + 8 * kSlots + 31) & ~31u;
    exchange = full + 512;
  }
};

template <int kCount>
struct Ring {
  uint32_t at = 0, parity = 0;
  __device__ __forceinline__ void Advance() {
    if (++at == kCount) {
      at = 0;
      parity ^= 1;
    }
  }
};

/// What a GEMM's instantiation knows.
template <bool kFirst_, Activate kActivate_, bool kFp4_, bool kSplit_,
          HopperFormat kFormat_ = HopperFormat::kNvfp4>
struct Kind {
  static constexpr HopperFormat kFormat = kFormat_;  // of the weights
  static constexpr bool kFirst = kFirst_;            // GEMM1
  static constexpr Activate kActivate = kActivate_;
  static constexpr bool kGated = IsGated(kActivate);
  static constexpr bool kFp4 = kFp4_;
  static constexpr bool kSplit = kSplit_;
};

/// What a warp needs to know of a tile; row_tile < 0: there are no more.
struct Tile {
  TokenTile tokens;
  int row_tile;
};

template <class C>
__device__ __forceinline__ Tile ReadTile(const Addresses<C>& s, Ring<kSlots>& ring) {
  BarrierWait(s.slot_full + 8 * ring.at, ring.parity);
  const uint32_t from = s.slots + 32 * ring.at;
  Tile tile;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(tile.tokens.expert), "=r"(tile.tokens.first_row), "=r"(tile.tokens.rows),
                 "=r"(tile.tokens.n)
               : "r"(from)
               : "memory");
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(tile.row_tile) : "r"(from + 16) : "memory");
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(s.slot_empty + 8 * ring.at);
  ring.Advance();
  // Says to the compiler what is true: that the values steering the code are the warp's.
  tile.row_tile = __shfl_sync(~0u, tile.row_tile, 0);
  tile.tokens.n = __shfl_sync(~0u, tile.tokens.n, 0);
  return tile;
}

template <class C>
__device__ __forceinline__ void WriteTile(const Addresses<C>& s, Ring<kSlots>& ring,
                                          const Tile& tile) {
  BarrierWait(s.slot_empty + 8 * ring.at, ring.parity ^ 1);
  const uint32_t to = s.slots + 32 * ring.at;
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(tile.tokens.expert),
               "r"(tile.tokens.first_row), "r"(tile.tokens.rows), "r"(tile.tokens.n)
               : "memory");
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + 16), "r"(tile.row_tile) : "memory");
  BarrierArrive(s.slot_full + 8 * ring.at);
  ring.Advance();
}

__device__ __forceinline__ Tile TileAt(const GemmArgs& a, int index, int count) {
  Tile tile{{0, 0, 0, 0}, -1};
  if (index >= count) return tile;
  const int4 v = __ldcg(reinterpret_cast<const int4*>(a.tiles) + index / a.row_tiles);
  tile.tokens = {v.x, v.y, v.z, v.w};
  tile.row_tile = index % a.row_tiles;
  return tile;
}

/// `ticket` came from the counter; whoever holds the last one resets it for the next launch.
__device__ __forceinline__ Tile TileOfTicket(const GemmArgs& a, int ticket, int count) {
  if (ticket == count - 1) *const_cast<volatile int32_t*>(a.next_tile) = 0;
  return TileAt(a, ticket + static_cast<int>(gridDim.x), count);
}

/// A computing warp's place.
template <class C, class K>
struct Consumer {
  int group, warp, lane;
  __device__ Consumer()
      : group(threadIdx.x / 128), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}
  /// The 128-row block of the 256 rows.
  __device__ int block() const { return C::kM == 2 ? group : group / 2; }
  /// The m-th of the 16 tiles of 256 rows that this warp multiplies. In GEMM1 the choice makes the
  /// stores of h wide; with a gate, neighbouring warps have the two tiles of a block of 16 features.
  __device__ int tile(int m) const {
    const int first = block() * 8;
    if constexpr (!K::kFirst) return first + 2 * warp + (C::kM == 2 ? m : group % 2);
    if constexpr (C::kM == 1) return first + group % 2 * 4 + warp;
    if constexpr (K::kGated) return first + warp / 2 * 4 + warp % 2 + 2 * m;
    return first + 2 * warp + m;
  }
};

}  // namespace nibble::cuda::prefill
