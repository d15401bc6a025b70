// The grouped GEMMs of sm90_nvfp4_{bf16,nvfp4}_experts_prefill and sm90_bf16_bf16_experts_prefill.
//
// The problem is transposed: D[weight rows, tokens] = W x^T. W is the register operand of wgmma,
// dequantized on the way from shared memory; x is the shared-memory operand. A block computes 256
// weight rows for the tokens of one tile; the number of tokens, N, is chosen tile by tile among the
// instructions' sizes, so little is wasted on experts with odd counts.
//
// One producer thread fills a ring of stages of 64 k: weights by tensor map, x by one bulk copy.
// Tiles are handed out by a counter in global memory. On the way out (sm90_moe_prefill_store.cuh) 8x8
// pieces are transposed in registers, and the rows of the weights are permuted (layout/hopper_tile.h)
// so that what a quad stores is contiguous.

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_moe_prefill_gemm.cuh"
#include "kernels/cuda/sm90_moe_prefill_store.cuh"
#include "kernels/cuda/sm90_wgmma.cuh"

namespace nibble::cuda::prefill {
namespace {

// --- consumers ---

struct PackedTile {
  uint4 words;
  uint32_t scales;
};
/// A BF16 tile is its fragments: they stay where they are until they are multiplied.
struct PlainTile {
  uint32_t from;
};
template <class K>
__device__ __forceinline__ auto LoadTile(const GemmArgs& a, uint32_t weights, int tile, int lane) {
  if constexpr (K::kFormat == HopperFormat::kBf16) {
    // A row block's two tiles come as two copies, see CopyWeights.
    const int at = a.blocks_a_tile == 16 ? tile : tile % 2 * 8 + tile / 2;
    return PlainTile{weights + at * HopperTileBytes(K::kFormat) + 16 * lane};
  } else {
    const uint32_t from = weights + tile * kHopperTileBytes;
    return PackedTile{LoadShared16(from + 16 * lane),
                      LoadShared2(from + kHopperTileCodeBytes + 2 * lane)};
  }
}

/// The a operands of a tile's four k16 steps.
struct Fragments {
  uint32_t a[4][4];
};
template <bool kSplit>
__device__ __forceinline__ void Expand(const PlainTile& tile, Fragments& f, bool) {
  static_assert(!kSplit);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint4 v = LoadShared16(tile.from + 512 * j);
    f.a[j][0] = v.x, f.a[j][1] = v.y, f.a[j][2] = v.z, f.a[j][3] = v.w;
  }
}
/// kSplit: x is gate's in the first half of the steps, up's in the second; the other rows add zero.
template <bool kSplit>
__device__ __forceinline__ void Expand(const PackedTile& tile, Fragments& f, bool second_half) {
  ScalePair scale = ExpandScales(tile.scales);
  if constexpr (kSplit) {
    if (second_half) {
      scale.low = 0;
    } else {
      scale.high = 0;
    }
  }
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
template <class C, class K, int N>
__device__ __forceinline__ void Accumulate2(const GemmArgs& a, const Addresses<C>& s,
                                            const Consumer<C, K>& c, int steps,
                                            Ring<C::kStages>& ring, float (&acc)[2][N / 2]) {
  Fragments f0, f1;
  BarrierWait(s.full + 8 * ring.at, ring.parity);
  auto w0 = LoadTile<K>(a, s.weights + ring.at * C::kWeightBytes, c.tile(0), c.lane);
  auto w1 = LoadTile<K>(a, s.weights + ring.at * C::kWeightBytes, c.tile(1), c.lane);
  Expand<K::kSplit>(w0, f0, false);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const uint32_t stage = ring.at;
    const uint64_t x = SwizzledTile(s.x + stage * C::kXBytes);
    Multiply<N>(acc[0], f0, x);
    Expand<K::kSplit>(w1, f1, 2 * step >= steps);
    Multiply<N>(acc[1], f1, x);
    ring.Advance();
    if (step + 1 < steps) {
      BarrierWait(s.full + 8 * ring.at, ring.parity);
      w0 = LoadTile<K>(a, s.weights + ring.at * C::kWeightBytes, c.tile(0), c.lane);
      w1 = LoadTile<K>(a, s.weights + ring.at * C::kWeightBytes, c.tile(1), c.lane);
      WgmmaWait<1>();
      Expand<K::kSplit>(w0, f0, 2 * step + 2 >= steps);
    }
    WgmmaWait<0>();
    if (c.lane == 0) BarrierArrive(s.empty + 8 * stage);
  }
}

/// One m64 tile a warpgroup: two stages a turn, steps is even.
template <class C, class K, int N>
__device__ __forceinline__ void Accumulate1(const GemmArgs& a, const Addresses<C>& s,
                                            const Consumer<C, K>& c, int steps,
                                            Ring<C::kStages>& ring, float (&acc)[1][N / 2]) {
  static_assert(!K::kSplit);
  Fragments f0, f1;
  const auto load = [&] {
    BarrierWait(s.full + 8 * ring.at, ring.parity);
    return LoadTile<K>(a, s.weights + ring.at * C::kWeightBytes, c.tile(0), c.lane);
  };
  Expand<false>(load(), f0, false);
#pragma unroll 1
  for (int step = 0; step < steps; step += 2) {
    const uint32_t first = ring.at;
    Multiply<N>(acc[0], f0, SwizzledTile(s.x + first * C::kXBytes));
    ring.Advance();
    const uint32_t second = ring.at;
    Expand<false>(load(), f1, false);
    Multiply<N>(acc[0], f1, SwizzledTile(s.x + second * C::kXBytes));
    ring.Advance();
    WgmmaWait<1>();
    if (c.lane == 0) BarrierArrive(s.empty + 8 * first);
    if (step + 2 < steps) Expand<false>(load(), f0, false);
    WgmmaWait<0>();
    if (c.lane == 0) BarrierArrive(s.empty + 8 * second);
  }
}

template <class C, class K, int N>
__device__ __forceinline__ void RunTile(const GemmArgs& a, const Addresses<C>& s, const Tile& tile,
                                        const Consumer<C, K>& c, Ring<C::kStages>& ring, int turn) {
  float acc[C::kM][N / 2];
#pragma unroll
  for (int m = 0; m < C::kM; ++m) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) acc[m][i] = 0.0f;
  }
  if constexpr (C::kM == 2) {
    Accumulate2<C, K, N>(a, s, c, a.steps, ring, acc);
  } else {
    Accumulate1<C, K, N>(a, s, c, a.steps, ring, acc);
  }
  if constexpr (K::kFirst) {
    StoreHidden<C, K, N>(a, s, tile, c, acc, turn);
  } else {
    StoreOutput<C, K, N>(a, tile, c, acc);
  }
}

template <class C, class K>
__device__ __forceinline__ void Consume(const GemmArgs& a, const Addresses<C>& s) {
  const Consumer<C, K> c;
  Ring<kSlots> slots;
  Ring<C::kStages> ring;
  for (int turn = 0;; ++turn) {
    const Tile tile = ReadTile(s, slots);
    if (tile.row_tile < 0) break;
    const auto run = [&]<int N>() { RunTile<C, K, N>(a, s, tile, c, ring, turn); };
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

template <class C, class K>
__device__ __forceinline__ void CopyWeights(const GemmArgs& a, const Addresses<C>& s,
                                            const Tile& tile, int step, uint32_t stage) {
  if (K::kSplit && step >= a.weight_steps) step -= a.weight_steps;
  const uint32_t to = s.weights + stage * C::kWeightBytes;
  TensorCopy3(to, &a.weights, step * a.bytes_a_step, tile.row_tile * a.blocks_a_tile,
              tile.tokens.expert, s.full + 8 * stage);
  if constexpr (K::kFormat == HopperFormat::kBf16) {
    // A box has at most 256 elements a side: one tile of a row block's k block.
    if (a.blocks_a_tile == 16) return;
    TensorCopy3(to + C::kWeightBytes / 2, &a.weights, step * a.bytes_a_step + 256,
                tile.row_tile * a.blocks_a_tile, tile.tokens.expert, s.full + 8 * stage);
  }
}

/// Weights, x and the hand-out of tiles: one thread. Weights and tiles do not depend on the kernel
/// before, so the first stages are filled with weights while it still runs.
template <class C, class K>
__device__ __forceinline__ void Produce(const GemmArgs& a, const Addresses<C>& s) {
  Ring<kSlots> slots;
  Ring<C::kStages> ring;
  const int count = __ldcg(a.tile_count) * a.row_tiles;
  Tile tile = TileAt(a, blockIdx.x, count);
  int filled = 0;
  if (tile.row_tile >= 0) {
    filled = min(C::kStages, a.steps);
    for (int step = 0; step < filled; ++step) {
      BarrierArriveExpect(s.full + 8 * step, C::kWeightBytes + tile.tokens.n * 128);
      CopyWeights<C, K>(a, s, tile, step, step);
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
        BarrierArriveExpect(full, C::kWeightBytes + x_bytes);
        CopyWeights<C, K>(a, s, tile, step, ring.at);
      }
      BulkCopy(s.x + ring.at * C::kXBytes, x + static_cast<size_t>(step) * a.rows * 128, x_bytes,
               full);
      ring.Advance();
    }
    filled = 0;
    tile = TileOfTicket(a, ticket, count);
  }
}

template <TileShape kShape, class K>
__global__ void __launch_bounds__(Config<kShape, K::kFormat>::kThreads, 1)
    MoeGemm(const __grid_constant__ GemmArgs a) {
  using C = Config<kShape, K::kFormat>;
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
    if (thread == 0) Produce<C, K>(a, s);
  } else {
    if constexpr (kShape == TileShape::kWide) {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    } else {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
    }
    Consume<C, K>(a, s);
  }
}

template <TileShape kShape, class K>
Result<void> Launch(const GemmArgs& args, int blocks, cudaStream_t stream) {
  using C = Config<kShape, K::kFormat>;
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(MoeGemm<kShape, K>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSmemBytes));
  return LaunchDependent(MoeGemm<kShape, K>, dim3(blocks), C::kThreads, args, stream,
                         C::kSmemBytes);
}

template <class K>
Result<void> LaunchShape(TileShape shape, const GemmArgs& args, int blocks, cudaStream_t stream) {
  return shape == TileShape::kWide ? Launch<TileShape::kWide, K>(args, blocks, stream)
                                   : Launch<TileShape::kNarrow, K>(args, blocks, stream);
}

template <bool kFp4>
Result<void> LaunchActivate(GemmKind kind, const GemmArgs& args, int blocks, cudaStream_t stream) {
  switch (kind.activate) {
    case Activate::kSilu:
      return LaunchShape<Kind<true, Activate::kSilu, kFp4, false>>(kind.shape, args, blocks,
                                                                   stream);
    case Activate::kSwiglu:
      return LaunchShape<Kind<true, Activate::kSwiglu, kFp4, false>>(kind.shape, args, blocks,
                                                                     stream);
    case Activate::kRelu2:
      break;
  }
  return LaunchShape<Kind<true, Activate::kRelu2, kFp4, false>>(kind.shape, args, blocks, stream);
}

constexpr auto kWide = TileShape::kWide;
constexpr auto kBf16 = HopperFormat::kBf16;

}  // namespace

Result<void> LaunchGemm1(GemmKind kind, const GemmArgs& args, int blocks, cudaStream_t stream) {
  if (kind.weights == kBf16) {                                         // and the wide shape
    using Gated = Kind<true, Activate::kSwiglu, false, false, kBf16>;  // with alpha 1, beta 0 silu
    using Ungated = Kind<true, Activate::kRelu2, false, false, kBf16>;
    return IsGated(kind.activate) ? Launch<kWide, Gated>(args, blocks, stream)
                                  : Launch<kWide, Ungated>(args, blocks, stream);
  }
  if (kind.split) {
    // Whoever splits has chosen W4A4, a gate and the wide shape.
    using K = Kind<true, Activate::kSwiglu, true, true>;  // with alpha 1 and beta 0 silu
    return Launch<kWide, K>(args, blocks, stream);
  }
  return kind.fp4 ? LaunchActivate<true>(kind, args, blocks, stream)
                  : LaunchActivate<false>(kind, args, blocks, stream);
}

Result<void> LaunchGemm2(GemmKind kind, const GemmArgs& args, int blocks, cudaStream_t stream) {
  using Activate::kSilu;  // none
  if (kind.weights == kBf16) {
    return Launch<kWide, Kind<false, kSilu, false, false, kBf16>>(args, blocks, stream);
  }
  return kind.fp4 ? LaunchShape<Kind<false, kSilu, true, false>>(kind.shape, args, blocks, stream)
                  : LaunchShape<Kind<false, kSilu, false, false>>(kind.shape, args, blocks, stream);
}

}  // namespace nibble::cuda::prefill
