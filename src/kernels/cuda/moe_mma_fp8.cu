// sm80_fp8_experts and, on Hopper too, sm90_fp8_experts: routed experts with e4m3 weights, with mma.sync
// (moe_mma.cuh). Codes are exact in bf16, so a product is of codes, or of codes and bf16 activations, and
// scales meet fp32 sums: after all of K, or, of weights in blocks of 128 x 128, after 128 k.
//
// Quantized activations are values of codes * 2^112 (fp8.cuh). x comes so from moe_fp8_rows.cu. Under
// static scales GEMM1 stores h so; under dynamic ones, which need whole rows, a pass behind it does.

#include "kernels/cuda/moe_mma_fp8.h"

#include "kernels/cuda/moe_fp8_rows.h"
#include "kernels/cuda/moe_mma.cuh"

namespace nibble::cuda::moe_mma {
namespace {

/// Exact: x is bf16 as it is. Block128: weights have a scale a 128 x 128 block.
template <int T, bool Exact, bool Block128>
struct Fp8Config : Config<HopperFormat::kFp8, T> {
  static constexpr bool kExact = Exact, kBlock128 = Block128;
  /// Four k blocks ahead and two sets of sums are more registers than 16 warps leave.
  static constexpr int Ahead(HopperFormat format) {
    return Block128 && T == 16 ? 3 : MmaConfig<T>::Ahead(format);
  }
};
template <class C, Activate A, bool Split>
struct Hidden : C {
  static constexpr Activate kActivate = A;
  static constexpr bool kGated = IsGated(A), kSplit = Split;
};

/// What fp8.cuh leaves for the accumulator.
template <class C>
inline constexpr float kLeft = C::kExact ? 1.0f : 256.0f;

/// The sums of Multiply, those of 128 k under their blocks' scales where there are such. `blocks`: scales
/// of the rows g and of the rows g + 8 of the tiles, by k.
template <class C, bool kSplit>
__device__ __forceinline__ void MultiplyFp8(const GemmArgs& a, const TokenTile& tile, int first,
                                            uint32_t stages, const float* const (&blocks)[2],
                                            MmaSums<C>& sums) {
  if constexpr (!C::kBlock128) {
    Multiply<C, kSplit, C::kExact>(a, tile, first, stages, sums, [](int) {});
  } else {
    const int token = tile.first_row + threadIdx.x % 4 * 2;
    MmaSums<C> part{};
    Multiply<C, kSplit, C::kExact>(a, tile, first, stages, part, [&](int step) {
      if (step % 2 == 0 && step + 1 < a.k_blocks) return;
      const float low = __ldg(blocks[0] + step / 2), high = __ldg(blocks[1] + step / 2);
      const float* const groups = a.row_scales + static_cast<int64_t>(step / 2) * a.rows + token;
#pragma unroll
      for (int n = 0; n < C::kTokens / 8; ++n) {
        float2 group = make_float2(1, 1);
        if constexpr (!C::kExact) group = *reinterpret_cast<const float2*>(groups + 8 * n);
        const float scale[4] = {low * group.x, low * group.y, high * group.x, high * group.y};
#pragma unroll
        for (int m = 0; m < kMmaTiles; ++m) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[m][n][e] = __fmaf_rn(part[m][n][e], scale[e], sums[m][n][e]);
            part[m][n][e] = 0;
          }
        }
      }
    });
  }
}

/// Where the scales of a row's blocks begin: `matrix` of a whole of [ceil(rows / 128)][k / 128].
__device__ __forceinline__ const float* BlockScales(const GemmArgs& a, int matrix, int rows,
                                                    int row) {
  return a.weight_scales +
         (static_cast<int64_t>(matrix) * ((rows + 127) / 128) + row / 128) * ((a.k_blocks + 1) / 2);
}

/// What all sums of an expert's projection are multiplied with.
template <class C>
__device__ __forceinline__ float ScaleOfAll(const GemmArgs& a, int matrix) {
  float scale = kLeft<C>;
  if (a.globals != nullptr) scale *= __ldg(a.globals + matrix);
  if (a.x_scales != nullptr) scale *= __ldg(a.x_scales + matrix);
  return scale;
}

/// Tokens' own scales, of tokens 8n + 2t and the one behind it.
template <class C>
__device__ __forceinline__ float ScaleOfToken(const GemmArgs& a, const TokenTile& tile, int n,
                                              int token) {
  if (C::kExact || C::kBlock128 || a.row_scales == nullptr) return 1;
  return a.row_scales[tile.first_row + 8 * n + threadIdx.x % 4 * 2 + token];
}

// --- GEMM1: gate, up, activation ---

template <class K>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks)
    Gemm1(const __grid_constant__ GemmArgs a) {
  __shared__ __align__(1024) uint8_t stages[kMmaStages * K::kStageBytes];
  if (HasNoTile(a)) return;
  const TokenTile tile = a.tiles[blockIdx.x];
  const int first = FirstTile<K>(), features = a.activation.features;
  constexpr int kShards = K::kGated ? 2 : 1;
  const int gate = tile.expert * kShards, up = gate + kShards - 1;
  const int feature = K::kGated ? 8 * first : 16 * first;
  const float* const blocks[2] = {BlockScales(a, gate, features, feature),
                                  BlockScales(a, up, features, feature)};
  MmaSums<K> sums{};
  MultiplyFp8<K, K::kSplit>(a, tile, first, SharedAddress(stages), blocks, sums);
  if (first >= a.row_tiles) return;

  float scales[kPieces<K>][kShards];
#pragma unroll
  for (int shard = 0; shard < kShards; ++shard) {
    const float all = ScaleOfAll<K>(a, gate + shard);
#pragma unroll
    for (int i = 0; i < kPieces<K>; ++i) {
      scales[i][shard] = all;
      if (K::kBlock128 || a.weight_scales == nullptr) continue;
      const int row = min(FeatureOf<K>(first, i), features - 1);
      scales[i][shard] *=
          __ldg(a.weight_scales + static_cast<int64_t>(gate + shard) * features + row);
    }
  }
  const auto scale = [&](int i, int shard, int n, int token) {
    return scales[i][K::kGated ? shard : 0] * ScaleOfToken<K>(a, tile, n, token);
  };
  StoreHidden<K>(a, tile, first, sums, scale, [&](uint32_t(&pairs)[kPieces<K>]) {
    if (K::kExact || K::kBlock128 || a.h_scales == nullptr) return;
    QuantizeFp8Pairs(pairs, MakeFp8Scale(__ldg(a.h_scales + tile.expert)));
  });
}

// --- GEMM2: down ---

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    Gemm2(const __grid_constant__ GemmArgs a) {
  __shared__ __align__(1024) uint8_t stages[kMmaStages * C::kStageBytes];
  if (HasNoTile(a)) return;
  const TokenTile tile = a.tiles[blockIdx.x];
  const int first = FirstTile<C>();
  const float* const block = BlockScales(a, tile.expert, a.columns, 16 * first);
  const float* const blocks[2] = {block, block};
  MmaSums<C> sums{};
  MultiplyFp8<C, false>(a, tile, first, SharedAddress(stages), blocks, sums);
  if (first >= a.row_tiles) return;

  float scales[2 * kMmaTiles];
#pragma unroll
  for (int i = 0; i < 2 * kMmaTiles; ++i) {
    scales[i] = ScaleOfAll<C>(a, tile.expert);
    if (C::kBlock128 || a.weight_scales == nullptr) continue;
    const auto row = static_cast<int>(HopperOutputRow(first + i / 2, i % 2, threadIdx.x % 32 / 4));
    scales[i] *= __ldg(a.weight_scales + static_cast<int64_t>(tile.expert) * a.columns +
                       min(row, a.columns - 1));
  }
  StoreOutput<C>(a, tile, first, sums, [&](int i, int n, int token) {
    return scales[i] * ScaleOfToken<C>(a, tile, n, token);
  });
}

// --- launches ---

template <class C, Activate kActivate>
void (*Gemm1Of(const Sm90MoeParams& p))(GemmArgs) {
  if constexpr (IsGated(kActivate) && !C::kExact && !C::kBlock128) {
    if (prefill::SplitsX(p.shape)) return Gemm1<Hidden<C, kActivate, true>>;
  }
  return Gemm1<Hidden<C, kActivate, false>>;
}

template <class C>
Result<void> LaunchBoth(const Sm90MoeParams& p, const prefill::Workspace& ws, cudaStream_t stream) {
  const bool dynamic = IsDynamicFp8(p.shape.precision);
  const auto* row_scales =
      dynamic ? reinterpret_cast<const float*>(p.workspace + ws.row_scales) : nullptr;
  GemmArgs a = HiddenArgs(p, ws);
  a.x_scales = p.a1_scale;
  a.h_scales = p.a2_scale;
  a.weight_scales = p.w13_scales;
  a.row_scales = row_scales;
  const Activate activate = ActivateOf(p);
  const auto gemm1 = activate == Activate::kSilu     ? Gemm1Of<C, Activate::kSilu>(p)
                     : activate == Activate::kSwiglu ? Gemm1Of<C, Activate::kSwiglu>(p)
                                                     : Gemm1Of<C, Activate::kRelu2>(p);
  NIBBLE_CHECK_OK(LaunchOf<C>(gemm1, p, a, stream));
  if (dynamic) NIBBLE_CHECK_OK(prefill::QuantizeHiddenFp8(p, ws, stream));

  a = OutputArgs(p, ws);
  a.x_scales = p.a2_scale;
  a.weight_scales = p.w2_scales;
  a.row_scales = row_scales;
  return LaunchOf<C>(Gemm2<C>, p, a, stream);
}

template <int kTokens>
Result<void> Launch(const Sm90MoeParams& p, const prefill::Workspace& ws, cudaStream_t stream) {
  const bool exact = p.shape.precision == Sm90Precision::kBf16;
  if constexpr (kTokens <= 32) {
    if (p.shape.weight_scales == Fp8Scales::kBlock128) {
      return exact ? LaunchBoth<Fp8Config<kTokens, true, true>>(p, ws, stream)
                   : LaunchBoth<Fp8Config<kTokens, false, true>>(p, ws, stream);
    }
  }
  return exact ? LaunchBoth<Fp8Config<kTokens, true, false>>(p, ws, stream)
               : LaunchBoth<Fp8Config<kTokens, false, false>>(p, ws, stream);
}

}  // namespace

Result<void> LaunchFp8Gemms(const Sm90MoeParams& params, const prefill::Workspace& ws, int tokens,
                            cudaStream_t stream) {
  switch (tokens) {
    case 8:
      return Launch<8>(params, ws, stream);
    case 16:
      return Launch<16>(params, ws, stream);
    case 32:
      return Launch<32>(params, ws, stream);
    default:
      return Launch<64>(params, ws, stream);
  }
}

}  // namespace nibble::cuda::moe_mma
