// sm80_nvfp4_{bf16,nvfp4}_experts, sm80_bf16_bf16_experts: the routed experts of a layer with mma.sync.
//
// Between the kernels that sort the routes by expert and sum over them (moe_routes.cu) run two grouped
// GEMMs, each block of which multiplies some weight rows of an expert with up to kTokens of its routes
// (mma_gemm.cuh).

#include "kernels/cuda/moe_mma.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/mma_gemm.cuh"
#include "kernels/cuda/moe_routes.cuh"
#include "kernels/cuda/moe_routes.h"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/sm90_launch.h"

namespace nibble::cuda {
namespace moe_mma {
namespace {

using prefill::TokenTile;

/// What a launch is made for.
template <HopperFormat F, int T>
struct Config : MmaConfig<T> {
  static constexpr HopperFormat kFormat = F;
  /// 16 warps a multiprocessor; BF16 tiles for more tokens take too many registers for that.
  static constexpr int kBlocks =
      T >= 32 && F == HopperFormat::kBf16 ? 1 : 16 / MmaConfig<T>::kWarps;
};
template <class C, Activate A, bool Fp4, bool Split>
struct Hidden : C {
  static constexpr Activate kActivate = A;
  static constexpr bool kGated = IsGated(A), kFp4 = Fp4, kSplit = Split;
};

struct GemmArgs {
  const uint8_t* weights;  // [E] of expert_bytes
  int64_t expert_bytes;
  int tile_stride,
      step_stride;  // bytes from a warp's first tile to its second, to its next k block
  int row_tiles, k_blocks;
  const float *globals, *gscales;  // GEMM1: [E][shards], GEMM2: [E]; null where there are none
  const float* h_gscales;          // GEMM1: [E], W4A4 alone
  ActivationArgs activation;
  const uint8_t* x;  // see SortRoutes
  const TokenTile* tiles;
  const int32_t* tile_count;
  uint8_t* out;  // GEMM1: h, GEMM2: [rows][columns] bf16
  int rows, columns;
};

/// Tiles `first` and `first + 1` of the expert times the routes. kSplit: gate's rows with the first half
/// of the steps, up's with the second.
template <class C, bool kSplit>
__device__ __forceinline__ void Multiply(const GemmArgs& a, const TokenTile& tile, int first,
                                         uint32_t stages, MmaSums<C>& sums) {
  constexpr int kBytes = HopperTileBytes(C::kFormat);
  MmaOperands o;
  o.weights = first < a.row_tiles ? a.weights + tile.expert * a.expert_bytes +
                                        static_cast<int64_t>(first) * a.k_blocks * kBytes
                                  : nullptr;
  o.tile_stride = a.tile_stride;
  o.step_stride = a.step_stride;
  o.weight_steps = a.k_blocks;
  o.x = a.x + static_cast<int64_t>(tile.first_row) * 128;
  o.x_stride = static_cast<int64_t>(a.rows) * 128;
  o.steps = o.weight_steps * (kSplit + 1);
  const auto mask = [&](int step, uint32_t(&fragment)[4]) {
    if constexpr (kSplit) {
      const bool up = step >= o.weight_steps;
      fragment[0] = up ? 0 : fragment[0], fragment[2] = up ? 0 : fragment[2];
      fragment[1] = up ? fragment[1] : 0, fragment[3] = up ? fragment[3] : 0;
    }
  };
  MmaMultiply<C, MmaFragments<C::kFormat>, C::Ahead(C::kFormat)>(o, stages, sums, mask, [](int) {});
}

// --- GEMM1: gate, up, activation ---

template <class K>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks)
    Gemm1(const __grid_constant__ GemmArgs a) {
  __shared__ __align__(1024) uint8_t stages[kMmaStages * K::kStageBytes];
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first = (blockIdx.y * K::kWarps + threadIdx.x / 32) * kMmaTiles;
  // The tiles are made two kernels ahead, and the kernel before waits for them.
  if (static_cast<int>(blockIdx.x) >= __ldcg(a.tile_count)) {
    WaitForPreviousKernel();
    LetNextKernelStart();
    return;
  }
  const TokenTile tile = a.tiles[blockIdx.x];
  MmaSums<K> sums{};
  Multiply<K, K::kSplit>(a, tile, first, SharedAddress(stages), sums);
  if (first >= a.row_tiles) return;

  constexpr int kShards = K::kGated ? 2 : 1;
  const int last = tile.expert * kShards + kShards - 1;
  float gate_scale = 1, up_scale = 1;
  if constexpr (K::kFormat == HopperFormat::kNvfp4) {
    up_scale = __ldg(a.globals + last) * kHopperWeightScale;
    if constexpr (K::kGated) gate_scale = __ldg(a.globals + last - 1) * kHopperWeightScale;
  }
  if constexpr (K::kFp4) {
    up_scale *= Reciprocal(__ldg(a.gscales + last));
    if constexpr (K::kGated) gate_scale *= Reciprocal(__ldg(a.gscales + last - 1));
  }
  // Eight features each: of a tile with a gate, of half a tile without. Two are one NVFP4 block.
  constexpr int kPieces = K::kGated ? kMmaTiles : 2 * kMmaTiles;
  const int first_piece = K::kGated ? first : 2 * first;
  Biases biases[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    biases[i] =
        BiasesOf<K::kActivate>(a.activation, tile.expert, 8 * (first_piece + i) + HopperInEight(g));
  }
#pragma unroll
  for (int n = 0; n < K::kTokens / 8; ++n) {
    if (8 * n >= tile.rows) break;
    uint32_t pairs[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float* const d = sums[K::kGated ? i : i / 2][n];
      const auto value = [&](int token) {
        const float gate = K::kGated ? d[token] * gate_scale : 0.0f;
        const float up = d[K::kGated ? 2 + token : i % 2 * 2 + token] * up_scale;
        return Apply<K::kActivate>(a.activation, biases[i], gate, up);
      };
      pairs[i] = ExchangePair(value(0), value(1));
    }
    if constexpr (K::kFp4) {
      const Gscale gscale = GscaleOf(__ldg(a.h_gscales + tile.expert));
#pragma unroll
      for (int i = 0; i < kPieces; i += 2) {
        uint32_t block[2] = {pairs[i], pairs[i + 1]};
        uint32_t amax = MaxOfPairs(block);
        amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 8));
        amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 16));
        QuantizeBlock(block, amax, gscale);
        pairs[i] = block[0], pairs[i + 1] = block[1];
      }
    }
    const int token = 8 * n + 2 * t + g % 2;
    if (token >= tile.rows) continue;
    const int row = tile.first_row + token;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int feature = 8 * (first_piece + i) + HopperInEight(g & ~1);
      const int place = prefill::PairPlace(feature % 64) ^ row % 8 << 4;
      *reinterpret_cast<uint32_t*>(
          a.out + (static_cast<size_t>(feature / 64) * a.rows + row) * 128 + place) = pairs[i];
    }
  }
}

// --- GEMM2: down ---

template <class C, bool kFp4>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    Gemm2(const __grid_constant__ GemmArgs a) {
  __shared__ __align__(1024) uint8_t stages[kMmaStages * C::kStageBytes];
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first = (blockIdx.y * C::kWarps + threadIdx.x / 32) * kMmaTiles;
  if (static_cast<int>(blockIdx.x) >= __ldcg(a.tile_count)) {
    WaitForPreviousKernel();
    LetNextKernelStart();
    return;
  }
  const TokenTile tile = a.tiles[blockIdx.x];
  MmaSums<C> sums{};
  Multiply<C, false>(a, tile, first, SharedAddress(stages), sums);
  if (first >= a.row_tiles) return;

  float scale = 1;
  if constexpr (C::kFormat == HopperFormat::kNvfp4)
    scale = __ldg(a.globals + tile.expert) * kHopperWeightScale;
  if constexpr (kFp4) scale *= Reciprocal(__ldg(a.gscales + tile.expert));
#pragma unroll
  for (int n = 0; n < C::kTokens / 8; ++n) {
    if (8 * n >= tile.rows) break;
    const int token = 8 * n + 2 * t + g % 2;
    uint8_t* const row =
        a.out + (static_cast<size_t>(tile.first_row) + token) * a.columns * sizeof(Bf16);
    // Two tiles hold, of one token, four neighbouring pairs of columns (hopper_tile.h).
    uint32_t pairs[2 * kMmaTiles];
#pragma unroll
    for (int i = 0; i < 2 * kMmaTiles; ++i) {
      const float* const d = sums[i / 2][n] + i % 2 * 2;
      pairs[i] = ExchangePair(d[0] * scale, d[1] * scale);
    }
    const auto column = static_cast<int>(HopperOutputRow(first, 0, g & ~1));
    if (token < tile.rows && column < a.columns) {
      *reinterpret_cast<uint4*>(row + column * sizeof(Bf16)) =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

// --- launches ---

/// Tokens a tile: what brings an expert's routes through in one, for most experts.
int TokensATile(const Sm90MoeParams& p) {
  const int64_t routes = static_cast<int64_t>(p.tokens) * p.shape.top_k;
  const int64_t each = routes / p.shape.experts;
  return each <= 2 ? 8 : each <= 8 ? 16 : each <= 24 ? 32 : 64;
}

constexpr int kSmallestTile = 8;

prefill::Workspace WorkspaceOf(const Sm90MoeParams& p) {
  return prefill::Layout(p.shape, p.tokens, kSmallestTile);
}

/// The [E] matrices of a GEMM. A warp's two tiles are a row block, or two of them.
void SetWeights(const uint8_t* weights, const HopperLayout& layout, HopperFormat format,
                GemmArgs* a) {
  a->weights = weights;
  a->expert_bytes = layout.bytes(format);
  a->tile_stride = static_cast<int>(layout.OffsetOf(1, 0, format));
  a->step_stride = static_cast<int>(layout.OffsetOf(0, 1, format));
  a->row_tiles = static_cast<int>(layout.tiles);
  a->k_blocks = static_cast<int>(layout.k_blocks);
}

template <class C>
Result<void> LaunchOf(void (*kernel)(GemmArgs), const Sm90MoeParams& p, const GemmArgs& args,
                      cudaStream_t stream) {
  const int routes = p.tokens * p.shape.top_k;
  const auto columns = CeilDiv(args.row_tiles, C::kWarps * kMmaTiles);
  // At most as many tiles as there can be: blocks behind the last one end at once.
  const auto tiles = std::min(p.shape.experts, routes) + routes / C::kTokens;
  return LaunchDependent(kernel, dim3(tiles, static_cast<unsigned>(columns)), C::kThreads, args,
                         stream);
}

template <class C, Activate kActivate>
void (*Gemm1Of(const Sm90MoeParams& p))(GemmArgs) {
  if constexpr (C::kFormat == HopperFormat::kNvfp4) {
    if (prefill::SplitsX(p.shape)) {
      if constexpr (IsGated(kActivate)) return Gemm1<Hidden<C, kActivate, true, true>>;
    }
    if (p.shape.precision != Sm90Precision::kBf16) return Gemm1<Hidden<C, kActivate, true, false>>;
  }
  return Gemm1<Hidden<C, kActivate, false, false>>;
}

template <HopperFormat kFormat, int kTokens>
Result<void> LaunchGemms(const Sm90MoeParams& p, const prefill::Workspace& ws,
                         cudaStream_t stream) {
  using C = Config<kFormat, kTokens>;
  const auto at = [&](size_t offset) { return reinterpret_cast<uint8_t*>(p.workspace + offset); };
  GemmArgs a{};
  SetWeights(p.w13, W13LayoutOf(p.shape), kFormat, &a);
  a.globals = p.g1;
  a.gscales = p.a1_gscale;
  a.h_gscales = p.a2_gscale;
  a.activation = ActivationOf(p);
  a.x = at(ws.rows);
  a.tiles = reinterpret_cast<const TokenTile*>(at(ws.tiles));
  a.tile_count = reinterpret_cast<const int32_t*>(at(ws.tile_count));
  a.out = at(ws.h);
  a.rows = ws.row_count;
  const Activate activate = ActivateOf(p);
  const auto gemm1 = activate == Activate::kSilu     ? Gemm1Of<C, Activate::kSilu>(p)
                     : activate == Activate::kSwiglu ? Gemm1Of<C, Activate::kSwiglu>(p)
                                                     : Gemm1Of<C, Activate::kRelu2>(p);
  NIBBLE_CHECK_OK(LaunchOf<C>(gemm1, p, a, stream));

  SetWeights(p.w2, HopperW2Layout(p.shape.hidden, p.shape.intermediate), kFormat, &a);
  a.globals = p.g2;
  a.gscales = p.a2_gscale;
  a.x = at(ws.h);
  a.out = at(ws.rows);
  a.columns = p.shape.hidden;
  void (*gemm2)(GemmArgs) = Gemm2<C, false>;
  if constexpr (kFormat == HopperFormat::kNvfp4) {
    if (p.shape.precision != Sm90Precision::kBf16) gemm2 = Gemm2<C, true>;
  }
  return LaunchOf<C>(gemm2, p, a, stream);
}

template <HopperFormat kFormat>
Result<void> LaunchGemms(const Sm90MoeParams& p, const prefill::Workspace& ws, int tokens,
                         cudaStream_t stream) {
  switch (tokens) {
    case 8:
      return LaunchGemms<kFormat, 8>(p, ws, stream);
    case 16:
      return LaunchGemms<kFormat, 16>(p, ws, stream);
    case 32:
      return LaunchGemms<kFormat, 32>(p, ws, stream);
    default:
      return LaunchGemms<kFormat, 64>(p, ws, stream);
  }
}

}  // namespace
}  // namespace moe_mma

size_t MoeMmaWorkspace(const Sm90MoeShape& shape, int tokens) {
  return prefill::Layout(shape, tokens, moe_mma::kSmallestTile).bytes;
}

Result<void> LaunchMoeMma(const Sm90MoeParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Moe(params, 1 << 20));
  const prefill::Workspace ws = moe_mma::WorkspaceOf(params);
  const int tokens = moe_mma::TokensATile(params);
  NIBBLE_CHECK_OK(prefill::SortRoutes(params, ws, tokens, stream));
  NIBBLE_CHECK_OK(params.shape.weights == HopperFormat::kBf16
                      ? moe_mma::LaunchGemms<HopperFormat::kBf16>(params, ws, tokens, stream)
                      : moe_mma::LaunchGemms<HopperFormat::kNvfp4>(params, ws, tokens, stream));
  return prefill::SumRoutes(params, ws, stream);
}

Result<void> CopyMoeMmaHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream) {
  return prefill::CopyRoutedHidden(params, moe_mma::WorkspaceOf(params), h, stream);
}

}  // namespace nibble::cuda
