#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/mma_gemm.cuh"
#include "kernels/cuda/moe_routes.cuh"
#include "kernels/cuda/moe_routes.h"
#include "kernels/cuda/sm90_launch.h"

// What the grouped GEMMs of experts by mma.sync share, whatever the weights' format (moe_mma.cu,
// moe_mma_fp8.cu): each block multiplies some weight rows of an expert with up to kTokens of its routes
// (mma_gemm.cuh), and stores h or the routes' output.

namespace nibble::cuda::moe_mma {

using prefill::TokenTile;

inline constexpr int kSmallestTile = 8;

/// What a launch is made for.
template <HopperFormat F, int T>
struct Config : MmaConfig<T> {
  static constexpr HopperFormat kFormat = F;
  /// 16 warps a multiprocessor; wider tiles for more tokens take too many registers for that.
  static constexpr int kBlocks =
      T >= 32 && F != HopperFormat::kNvfp4 ? 1 : 16 / MmaConfig<T>::kWarps;
};

struct GemmArgs {
  const uint8_t* weights;  // [E] of expert_bytes
  int64_t expert_bytes;
  int tile_stride,
      step_stride;  // bytes from a warp's first tile to its second, to its next k block
  int row_tiles, k_blocks;
  const float* globals;  // GEMM1: [E][shards], GEMM2: [E]; null where there are none
  // What x was quantized under, shaped as globals: NVFP4's gscales, FP8's static scales; and, GEMM1,
  // what h is: [E]. Null where it is not.
  const float *x_scales, *h_scales;
  // FP8 alone: the weights' scales by channel or by block (sm90_moe.h), the dynamic scales of x:
  // [rows], or, of groups, [k / 128][rows]. Null where there are none.
  const float *weight_scales, *row_scales;
  ActivationArgs activation;
  const uint8_t* x;  // see SortRoutes
  const TokenTile* tiles;
  const int32_t* tile_count;
  uint8_t* out;  // GEMM1: h, GEMM2: [rows][columns] bf16
  int rows, columns;
};

/// Whether the block has no tile: there are as many blocks as tiles at most. The tiles are made two
/// kernels ahead, and the kernel before waits for them.
__device__ __forceinline__ bool HasNoTile(const GemmArgs& a) {
  if (static_cast<int>(blockIdx.x) < __ldcg(a.tile_count)) return false;
  WaitForPreviousKernel();
  LetNextKernelStart();
  return true;
}

/// The first of the warp's tiles of weight rows.
template <class C>
__device__ __forceinline__ int FirstTile() {
  return (blockIdx.y * C::kWarps + threadIdx.x / 32) * kMmaTiles;
}

/// Tiles `first` and `first + 1` of the expert times the routes; after(step) as in MmaMultiply. kSplit:
/// gate's rows with the first half of the steps, up's with the second.
template <class C, bool kSplit, bool kExact, class After>
__device__ __forceinline__ void Multiply(const GemmArgs& a, const TokenTile& tile, int first,
                                         uint32_t stages, MmaSums<C>& sums, After after) {
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
  MmaMultiply<C, MmaFragments<C::kFormat, kExact>, C::Ahead(C::kFormat)>(o, stages, sums, mask,
                                                                         after);
}

// Eight features each of GEMM1: of a tile with a gate, of half a tile without. Two are one NVFP4 block.
template <class K>
inline constexpr int kPieces = K::kGated ? kMmaTiles : 2 * kMmaTiles;

/// The feature of piece i in this lane's row of a tile.
template <class K>
__device__ __forceinline__ int FeatureOf(int first, int i) {
  return 8 * ((K::kGated ? first : 2 * first) + i) + HopperInEight(threadIdx.x % 32 / 4);
}

/// h of the tile's routes: the activation of the sums times scale(piece, shard, n, token), of which token
/// is 0 or 1 for tokens 8n + 2t and the one behind it; through quantize(pairs), a pair of features a
/// piece, whose lanes 4g + t, g = 0 .. 7 hold one token of eight features.
template <class K, class Scale, class Quantize>
__device__ __forceinline__ void StoreHidden(const GemmArgs& a, const TokenTile& tile, int first,
                                            const MmaSums<K>& sums, Scale scale,
                                            Quantize quantize) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Biases biases[kPieces<K>];
#pragma unroll
  for (int i = 0; i < kPieces<K>; ++i) {
    biases[i] = BiasesOf<K::kActivate>(a.activation, tile.expert, FeatureOf<K>(first, i));
  }
#pragma unroll
  for (int n = 0; n < K::kTokens / 8; ++n) {
    if (8 * n >= tile.rows) break;
    uint32_t pairs[kPieces<K>];
#pragma unroll
    for (int i = 0; i < kPieces<K>; ++i) {
      const float* const d = sums[K::kGated ? i : i / 2][n];
      const auto value = [&](int token) {
        const float gate = K::kGated ? d[token] * scale(i, 0, n, token) : 0.0f;
        const float up =
            d[K::kGated ? 2 + token : i % 2 * 2 + token] * scale(i, K::kGated, n, token);
        return Apply<K::kActivate>(a.activation, biases[i], gate, up);
      };
      pairs[i] = ExchangePair(value(0), value(1));
    }
    quantize(pairs);
    const int token = 8 * n + 2 * t + g % 2;
    if (token >= tile.rows) continue;
    const int row = tile.first_row + token;
#pragma unroll
    for (int i = 0; i < kPieces<K>; ++i) {
      const int feature = FeatureOf<K>(first, i) & ~1;
      const int place = prefill::PairPlace(feature % 64) ^ row % 8 << 4;
      *reinterpret_cast<uint32_t*>(
          a.out + (static_cast<size_t>(feature / 64) * a.rows + row) * 128 + place) = pairs[i];
    }
  }
}

/// The routes' output: sums times scale(i, n, token), i as in HopperOutputRow(first + i / 2, i % 2, g).
template <class C, class Scale>
__device__ __forceinline__ void StoreOutput(const GemmArgs& a, const TokenTile& tile, int first,
                                            const MmaSums<C>& sums, Scale scale) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
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
      pairs[i] = ExchangePair(d[0] * scale(i, n, 0), d[1] * scale(i, n, 1));
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
inline int TokensATile(const Sm90MoeParams& p) {
  const int64_t routes = static_cast<int64_t>(p.tokens) * p.shape.top_k;
  const int64_t each = routes / p.shape.experts;
  // Sums of 128 k beside those of all leave no registers for 64.
  const int most = p.shape.weight_scales == Fp8Scales::kBlock128 ? 32 : 64;
  return each <= 2 ? 8 : each <= 8 ? 16 : each <= 24 ? 32 : most;
}

/// The [E] matrices of a GEMM. A warp's two tiles are a row block, or two of them.
inline void SetWeights(const uint8_t* weights, const HopperLayout& layout, HopperFormat format,
                       GemmArgs* a) {
  a->weights = weights;
  a->expert_bytes = layout.bytes(format);
  a->tile_stride = static_cast<int>(layout.OffsetOf(1, 0, format));
  a->step_stride = static_cast<int>(layout.OffsetOf(0, 1, format));
  a->row_tiles = static_cast<int>(layout.tiles);
  a->k_blocks = static_cast<int>(layout.k_blocks);
}

/// GEMM1, but for the scales.
inline GemmArgs HiddenArgs(const Sm90MoeParams& p, const prefill::Workspace& ws) {
  const auto at = [&](size_t offset) { return reinterpret_cast<uint8_t*>(p.workspace + offset); };
  GemmArgs a{};
  SetWeights(p.w13, W13LayoutOf(p.shape), p.shape.weights, &a);
  a.globals = p.g1;
  a.activation = ActivationOf(p);
  a.x = at(ws.rows);
  a.tiles = reinterpret_cast<const TokenTile*>(at(ws.tiles));
  a.tile_count = reinterpret_cast<const int32_t*>(at(ws.tile_count));
  a.out = at(ws.h);
  a.rows = ws.row_count;
  return a;
}

/// GEMM2, likewise.
inline GemmArgs OutputArgs(const Sm90MoeParams& p, const prefill::Workspace& ws) {
  GemmArgs a = HiddenArgs(p, ws);
  SetWeights(p.w2, HopperW2Layout(p.shape.hidden, p.shape.intermediate), p.shape.weights, &a);
  a.globals = p.g2;
  a.out = reinterpret_cast<uint8_t*>(p.workspace + ws.rows);
  a.x = reinterpret_cast<const uint8_t*>(p.workspace + ws.h);
  a.columns = p.shape.hidden;
  return a;
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

}  // namespace nibble::cuda::moe_mma
