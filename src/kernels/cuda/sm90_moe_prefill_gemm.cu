// The grouped GEMMs of sm90_nvfp4_bf16_experts_prefill.
//
// The problem is transposed: D[weight rows, tokens] = W x^T. W is the register operand of wgmma,
// dequantized on the way from shared memory; x is the shared-memory operand. A block computes 256
// weight rows for the tokens of one tile; the number of tokens, N, is chosen tile by tile among the
// instructions' sizes, so little is wasted on experts with odd counts.
//
// One producer thread fills a ring of stages of 64 k: weights by tensor map, x by one bulk copy.
// Tiles are handed out by a counter in global memory. Nothing passes through shared memory on the way out: 8x8 pieces are
// transposed in registers, and the rows of the weights are permuted (layout/hopper_tile.h) so that
// what a quad stores is contiguous.

#include <cuda_bf16.h>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_dequant.cuh"
#include "kernels/cuda/sm90_moe_prefill.h"
#include "kernels/cuda/sm90_ptx.cuh"
#include "kernels/cuda/sm90_wgmma.cuh"

namespace nibble::cuda::prefill {
namespace {

constexpr int kTileRows = 256;
constexpr uint32_t kWeightBytes = kTileRows / kHopperTileRows * kHopperTileBytes;
constexpr int kSlots = 4;  // of the ring that tells tiles to the warps

template <TileShape kShape>
struct Config {
  static constexpr int kWarpgroups = kShape == TileShape::kWide ? 2 : 4;  // that compute
  static constexpr int kM = 4 / kWarpgroups;                              // m64 tiles a warpgroup
  static constexpr int kStages = kShape == TileShape::kWide ? 7 : 11;
  static constexpr int kThreads = (kWarpgroups + 1) * 128;
  static constexpr uint32_t kXBytes = MaxN(kShape) * 128;
  static constexpr uint32_t kStageBytes = kXBytes + kWeightBytes;
  static constexpr uint32_t kSmemBytes = kStages * kStageBytes + 512 + 1024;  // barriers, alignment
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
/// Transposes an 8x8 matrix of bf16 held two a lane.
__device__ __forceinline__ uint32_t Transpose8x8(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ __forceinline__ float Silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// --- shared memory: x stages, weight stages, barriers, tile slots ---

template <class C>
struct Addresses {
  uint32_t x, weights, full, empty, slot_full, slot_empty, slots;
  __device__ explicit Addresses(const uint8_t* raw) {
    x = (SharedAddress(raw) + 1023) & ~1023u;  // the swizzle's period
    weights = x + C::kStages * C::kXBytes;
    full = weights + C::kStages * kWeightBytes;
    empty = full + 8 * C::kStages;
    slot_full = empty + 8 * C::kStages;
    slot_empty = slot_full + 8 * kSlots;
    slots = (slot_empty + 8 * kSlots + 31) & ~31u;
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

// --- consumers ---

template <class C>
struct Consumer {
  int group, warp, lane;
  __device__ Consumer()
      : group(threadIdx.x / 128), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}
  /// The 128-row block of the 256 rows, and the first of its tiles that this warp multiplies.
  __device__ int block() const { return C::kM == 2 ? group : group / 2; }
  __device__ int first_tile() const {
    return block() * 8 + 2 * warp + (C::kM == 2 ? 0 : group % 2);
  }
};

struct PackedTile {
  uint4 words;
  uint32_t scales;
};
__device__ __forceinline__ PackedTile LoadTile(uint32_t weights, int tile, int lane) {
  const uint32_t from = weights + tile * kHopperTileBytes;
  return {LoadShared16(from + 16 * lane), LoadShared2(from + kHopperTileCodeBytes + 2 * lane)};
}

/// The a operands of a tile's four k16 steps.
struct Fragments {
  uint32_t a[4][4];
};
__device__ __forceinline__ void Expand(const PackedTile& tile, Fragments& f) {
  const ScalePair scale = ExpandScales(tile.scales);
  Dequantize(tile.words.x, scale, f.a[0]);
  Dequantize(tile.words.y, scale, f.a[1]);
  Dequantize(tile.words.z, scale, f.a[2]);
  Dequantize(tile.words.w, scale, f.a[3]);
}

template <int N>
__device__ __forceinline__ void Multiply(float (&acc)[N / 2], const Fragments& f, uint64_t x) {
  WgmmaFence();
  Wgmma<N>::Issue(acc, f.a[0], x);
  Wgmma<N>::Issue(acc, f.a[1], x + 2);
  Wgmma<N>::Issue(acc, f.a[2], x + 4);
  Wgmma<N>::Issue(acc, f.a[3], x + 6);
  WgmmaCommit();
}

/// Two m64 tiles a warpgroup: one is dequantized while the other multiplies. Draining at the end of
/// every stage keeps the accumulators out of flight across the loop's edge; with groups in flight
/// there, ptxas serialises every wgmma of the kernel (C7512).
template <class C, int N>
__device__ __forceinline__ void Accumulate2(const Addresses<C>& s, const Consumer<C>& c, int steps,
                                            Ring<C::kStages>& ring, float (&acc)[2][N / 2]) {
  Fragments f0, f1;
  BarrierWait(s.full + 8 * ring.at, ring.parity);
  PackedTile w0 = LoadTile(s.weights + ring.at * kWeightBytes, c.first_tile(), c.lane);
  PackedTile w1 = LoadTile(s.weights + ring.at * kWeightBytes, c.first_tile() + 1, c.lane);
  Expand(w0, f0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const uint32_t stage = ring.at;
    const uint64_t x = SwizzledTile(s.x + stage * C::kXBytes);
    Multiply<N>(acc[0], f0, x);
    Expand(w1, f1);
    Multiply<N>(acc[1], f1, x);
    ring.Advance();
    if (step + 1 < steps) {
      BarrierWait(s.full + 8 * ring.at, ring.parity);
      w0 = LoadTile(s.weights + ring.at * kWeightBytes, c.first_tile(), c.lane);
      w1 = LoadTile(s.weights + ring.at * kWeightBytes, c.first_tile() + 1, c.lane);
      WgmmaWait<1>();
      Expand(w0, f0);
    }
    WgmmaWait<0>();
    if (c.lane == 0) BarrierArrive(s.empty + 8 * stage);
  }
}

/// One m64 tile a warpgroup: two stages a turn, steps is even.
template <class C, int N>
__device__ __forceinline__ void Accumulate1(const Addresses<C>& s, const Consumer<C>& c, int steps,
                                            Ring<C::kStages>& ring, float (&acc)[1][N / 2]) {
  Fragments f0, f1;
  const auto load = [&] {
    BarrierWait(s.full + 8 * ring.at, ring.parity);
    return LoadTile(s.weights + ring.at * kWeightBytes, c.first_tile(), c.lane);
  };
  Expand(load(), f0);
#pragma unroll 1
  for (int step = 0; step < steps; step += 2) {
    const uint32_t first = ring.at;
    Multiply<N>(acc[0], f0, SwizzledTile(s.x + first * C::kXBytes));
    ring.Advance();
    const uint32_t second = ring.at;
    Expand(load(), f1);
    Multiply<N>(acc[0], f1, SwizzledTile(s.x + second * C::kXBytes));
    ring.Advance();
    WgmmaWait<1>();
    if (c.lane == 0) BarrierArrive(s.empty + 8 * first);
    if (step + 2 < steps) Expand(load(), f0);
    WgmmaWait<0>();
    if (c.lane == 0) BarrierArrive(s.empty + 8 * second);
  }
}

/// Activation, and h as the next GEMM wants it: rows g and g + 8 of acc are gate and up.
template <class C, int N>
__device__ __forceinline__ void StoreHidden(const GemmArgs& a, const Tile& tile,
                                            const Consumer<C>& c, float (&acc)[C::kM][N / 2]) {
  const int block = tile.row_tile * 2 + c.block(), t = c.lane % 4, q = c.lane / 4;
  if (block >= a.row_blocks) return;
  const float2 global = __ldg(reinterpret_cast<const float2*>(a.globals) + tile.tokens.expert);
  const float gate = global.x * kHopperWeightScale, up = global.y * kHopperWeightScale;
  uint8_t* to = a.out + (static_cast<size_t>(block) * a.rows + tile.tokens.first_row + q) * 128 +
                (((2 * c.warp + t / 2) ^ q) << 4) + t % 2 * 8;
#pragma unroll
  for (int i = 0; i < N / 8; ++i) {
    uint32_t v[C::kM];
#pragma unroll
    for (int m = 0; m < C::kM; ++m) {
      const float* d = acc[m] + 4 * i;
      v[m] =
          Transpose8x8(PackBf16(Silu(d[0] * gate) * (d[2] * up), Silu(d[1] * gate) * (d[3] * up)));
    }
    if (8 * i + q >= tile.tokens.rows) continue;
    if constexpr (C::kM == 2) {
      *reinterpret_cast<uint2*>(to + i * 1024) = make_uint2(v[0], v[1]);
    } else {
      *reinterpret_cast<uint32_t*>(to + i * 1024 + c.group % 2 * 4) = v[0];
    }
  }
}

template <class C, int N>
__device__ __forceinline__ void StoreOutput(const GemmArgs& a, const Tile& tile,
                                            const Consumer<C>& c, float (&acc)[C::kM][N / 2]) {
  const int t = c.lane % 4, q = c.lane / 4;
  const int column = (tile.row_tile * 2 + c.block()) * 128 + c.warp * 32 + 8 * t;
  const float global = __ldg(a.globals + tile.tokens.expert) * kHopperWeightScale;
  uint8_t* to =
      a.out + (static_cast<size_t>(tile.tokens.first_row + q) * a.out_columns + column) * 2;
#pragma unroll
  for (int i = 0; i < N / 8; ++i) {
    uint32_t v[2 * C::kM];
#pragma unroll
    for (int m = 0; m < C::kM; ++m) {
      const float* d = acc[m] + 4 * i;
      v[2 * m] = Transpose8x8(PackBf16(d[0] * global, d[1] * global));
      v[2 * m + 1] = Transpose8x8(PackBf16(d[2] * global, d[3] * global));
    }
    if (8 * i + q >= tile.tokens.rows || column >= a.out_columns) continue;
    uint8_t* row = to + static_cast<size_t>(i) * 16 * a.out_columns;
    if constexpr (C::kM == 2) {
      *reinterpret_cast<uint4*>(row) = make_uint4(v[0], v[1], v[2], v[3]);
    } else {
      *reinterpret_cast<uint2*>(row + c.group % 2 * 8) = make_uint2(v[0], v[1]);
    }
  }
}

template <class C, bool kFirst, int N>
__device__ __forceinline__ void RunTile(const GemmArgs& a, const Addresses<C>& s, const Tile& tile,
                                        const Consumer<C>& c, Ring<C::kStages>& ring) {
  float acc[C::kM][N / 2];
#pragma unroll
  for (int m = 0; m < C::kM; ++m) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) acc[m][i] = 0.0f;
  }
  if constexpr (C::kM == 2) {
    Accumulate2<C, N>(s, c, a.steps, ring, acc);
  } else {
    Accumulate1<C, N>(s, c, a.steps, ring, acc);
  }
  if constexpr (kFirst) {
    StoreHidden<C, N>(a, tile, c, acc);
  } else {
    StoreOutput<C, N>(a, tile, c, acc);
  }
}

template <class C, bool kFirst>
__device__ __forceinline__ void Consume(const GemmArgs& a, const Addresses<C>& s) {
  const Consumer<C> c;
  Ring<kSlots> slots;
  Ring<C::kStages> ring;
  for (;;) {
    const Tile tile = ReadTile(s, slots);
    if (tile.row_tile < 0) break;
    const auto run = [&]<int N>() { RunTile<C, kFirst, N>(a, s, tile, c, ring); };
    switch (tile.tokens.n) {
      case 16:
        run.template operator()<16>();
        break;
      case 32:
        run.template operator()<32>();
        break;
      case 48:
        run.template operator()<48>();
        break;
      case 64:
        run.template operator()<64>();
        break;
      case 80:
        run.template operator()<80>();
        break;
      default:
        if constexpr (C::kM == 2) {
          switch (tile.tokens.n) {
            case 96:
              run.template operator()<96>();
              break;
            case 112:
              run.template operator()<112>();
              break;
            case 128:
              run.template operator()<128>();
              break;
            case 136:
              run.template operator()<136>();
              break;
            case 144:
              run.template operator()<144>();
              break;
            case 160:
              run.template operator()<160>();
              break;
          }
        }
    }
  }
}

// --- producers ---

template <class C>
__device__ __forceinline__ void CopyWeights(const GemmArgs& a, const Addresses<C>& s,
                                            const Tile& tile, int step, uint32_t stage) {
  TensorCopy3(s.weights + stage * kWeightBytes, &a.weights, step * a.bytes_a_step,
              tile.row_tile * a.blocks_a_tile, tile.tokens.expert, s.full + 8 * stage);
}

/// Weights, x and the hand-out of tiles: one thread. Weights and tiles do not depend on the kernel
/// before, so the first stages are filled with weights while it still runs.
template <class C>
__device__ __forceinline__ void Produce(const GemmArgs& a, const Addresses<C>& s) {
  Ring<kSlots> slots;
  Ring<C::kStages> ring;
  const int count = __ldcg(a.tile_count) * a.row_tiles;
  Tile tile = TileAt(a, blockIdx.x, count);
  int filled = 0;
  if (tile.row_tile >= 0) {
    filled = min(C::kStages, a.steps);
    for (int step = 0; step < filled; ++step) {
      BarrierArriveExpect(s.full + 8 * step, kWeightBytes + tile.tokens.n * 128);
      CopyWeights(a, s, tile, step, step);
    }
  }
  WaitForPreviousKernel();
  LetNextKernelStart();
  for (;;) {
    WriteTile(s, slots, tile);
    if (tile.row_tile < 0) break;
    const int ticket = atomicAdd(a.next_tile, 1);
    const uint32_t x_bytes = tile.tokens.n * 128;
    const uint8_t* x = a.x + static_cast<size_t>(tile.tokens.first_row) * 128;
#pragma unroll 1
    for (int step = 0; step < a.steps; ++step) {
      const uint32_t full = s.full + 8 * ring.at;
      if (step >= filled) {
        BarrierWait(s.empty + 8 * ring.at, ring.parity ^ 1);
        BarrierArriveExpect(full, kWeightBytes + x_bytes);
        CopyWeights(a, s, tile, step, ring.at);
      }
      BulkCopy(s.x + ring.at * C::kXBytes, x + static_cast<size_t>(step) * a.rows * 128, x_bytes,
               full);
      ring.Advance();
    }
    filled = 0;
    tile = TileOfTicket(a, ticket, count);
  }
}

template <TileShape kShape, bool kFirst>
__global__ void __launch_bounds__(Config<kShape>::kThreads, 1)
    MoeGemm(const __grid_constant__ GemmArgs a) {
  using C = Config<kShape>;
  extern __shared__ uint8_t raw[];
  const Addresses<C> s(raw);
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::kStages; ++i) {
      BarrierInit(s.full + 8 * i, 1);
      BarrierInit(s.empty + 8 * i, 4 * C::kWarpgroups);
    }
    for (int i = 0; i < kSlots; ++i) {
      BarrierInit(s.slot_full + 8 * i, 1);
      BarrierInit(s.slot_empty + 8 * i, 4 * C::kWarpgroups);
    }
    BarrierInitFence();
  }
  __syncthreads();
  if (group == C::kWarpgroups) {
    if constexpr (kShape == TileShape::kWide) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    } else {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 64;");
    }
    if (thread == 0) Produce(a, s);
  } else {
    if constexpr (kShape == TileShape::kWide) {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    } else {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
    }
    Consume<C, kFirst>(a, s);
  }
}

template <TileShape kShape, bool kFirst>
Result<void> Launch(const GemmArgs& args, int blocks, cudaStream_t stream) {
  using C = Config<kShape>;
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(MoeGemm<kShape, kFirst>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSmemBytes));
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(C::kThreads);
  config.dynamicSmemBytes = C::kSmemBytes;
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = 1;
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, MoeGemm<kShape, kFirst>, args));
  return {};
}

}  // namespace

Result<void> LaunchGemm1(TileShape shape, const GemmArgs& args, int blocks, cudaStream_t stream) {
  return shape == TileShape::kWide ? Launch<TileShape::kWide, true>(args, blocks, stream)
                                   : Launch<TileShape::kNarrow, true>(args, blocks, stream);
}

Result<void> LaunchGemm2(TileShape shape, const GemmArgs& args, int blocks, cudaStream_t stream) {
  return shape == TileShape::kWide ? Launch<TileShape::kWide, false>(args, blocks, stream)
                                   : Launch<TileShape::kNarrow, false>(args, blocks, stream);
}

}  // namespace nibble::cuda::prefill
