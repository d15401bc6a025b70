// sm80_nvfp4_{bf16,nvfp4}_experts, sm80_bf16_bf16_experts: the routed experts of a layer with mma.sync.
//
// Two grouped GEMMs (moe_mma.cuh) between the kernels that sort the routes by expert and sum over them
// (moe_routes.cu). FP8 weights have theirs in moe_mma_fp8.cu.

#include "kernels/cuda/moe_mma.h"

#include "kernels/cuda/moe_fp8_rows.h"
#include "kernels/cuda/moe_mma.cuh"
#include "kernels/cuda/moe_mma_fp8.h"
#include "kernels/cuda/quantize.cuh"

namespace nibble::cuda {
namespace moe_mma {
namespace {

template <class C, Activate A, bool Fp4, bool Split>
struct Hidden : C {
  static constexpr Activate kActivate = A;
  static constexpr bool kGated = IsGated(A), kFp4 = Fp4, kSplit = Split;
};

// --- GEMM1: gate, up, activation ---

template <class K>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks)
    Gemm1(const __grid_constant__ GemmArgs a) {
  __shared__ __align__(1024) uint8_t stages[kMmaStages * K::kStageBytes];
  if (HasNoTile(a)) return;
  const TokenTile tile = a.tiles[blockIdx.x];
  const int first = FirstTile<K>();
  MmaSums<K> sums{};
  Multiply<K, K::kSplit, true>(a, tile, first, SharedAddress(stages), sums, [](int) {});
  if (first >= a.row_tiles) return;

  constexpr int kShards = K::kGated ? 2 : 1;
  const int last = tile.expert * kShards + kShards - 1;
  float gate_scale = 1, up_scale = 1;
  if constexpr (K::kFormat == HopperFormat::kNvfp4) {
    up_scale = __ldg(a.globals + last) * kHopperWeightScale;
    if constexpr (K::kGated) gate_scale = __ldg(a.globals + last - 1) * kHopperWeightScale;
  }
  if constexpr (K::kFp4) {
    up_scale *= Reciprocal(__ldg(a.x_scales + last));
    if constexpr (K::kGated) gate_scale *= Reciprocal(__ldg(a.x_scales + last - 1));
  }
  const auto scale = [&](int, int shard, int, int) {
    return K::kGated && shard == 0 ? gate_scale : up_scale;
  };
  StoreHidden<K>(a, tile, first, sums, scale, [&](uint32_t(&pairs)[kPieces<K>]) {
    if constexpr (K::kFp4) {
      const Gscale gscale = GscaleOf(__ldg(a.h_scales + tile.expert));
#pragma unroll
      for (int i = 0; i < kPieces<K>; i += 2) {
        uint32_t block[2] = {pairs[i], pairs[i + 1]};
        uint32_t amax = MaxOfPairs(block);
        amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 8));
        amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 16));
        QuantizeBlock(block, amax, gscale);
        pairs[i] = block[0], pairs[i + 1] = block[1];
      }
    }
  });
}

// --- GEMM2: down ---

template <class C, bool kFp4>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    Gemm2(const __grid_constant__ GemmArgs a) {
  __shared__ __align__(1024) uint8_t stages[kMmaStages * C::kStageBytes];
  if (HasNoTile(a)) return;
  const TokenTile tile = a.tiles[blockIdx.x];
  const int first = FirstTile<C>();
  MmaSums<C> sums{};
  Multiply<C, false, true>(a, tile, first, SharedAddress(stages), sums, [](int) {});
  if (first >= a.row_tiles) return;

  float scale = 1;
  if constexpr (C::kFormat == HopperFormat::kNvfp4)
    scale = __ldg(a.globals + tile.expert) * kHopperWeightScale;
  if constexpr (kFp4) scale *= Reciprocal(__ldg(a.x_scales + tile.expert));
  StoreOutput<C>(a, tile, first, sums, [&](int, int, int) { return scale; });
}

// --- launches ---

prefill::Workspace WorkspaceOf(const Sm90MoeParams& p) {
  return prefill::Layout(p.shape, p.tokens, kSmallestTile);
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
  GemmArgs a = HiddenArgs(p, ws);
  a.x_scales = p.a1_gscale;
  a.h_scales = p.a2_gscale;
  const Activate activate = ActivateOf(p);
  const auto gemm1 = activate == Activate::kSilu     ? Gemm1Of<C, Activate::kSilu>(p)
                     : activate == Activate::kSwiglu ? Gemm1Of<C, Activate::kSwiglu>(p)
                                                     : Gemm1Of<C, Activate::kRelu2>(p);
  NIBBLE_CHECK_OK(LaunchOf<C>(gemm1, p, a, stream));

  a = OutputArgs(p, ws);
  a.x_scales = p.a2_gscale;
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
  NIBBLE_CHECK_OK(CheckMoe(params, 1 << 20));
  const prefill::Workspace ws = moe_mma::WorkspaceOf(params);
  const int tokens = moe_mma::TokensATile(params);
  NIBBLE_CHECK_OK(prefill::SortRoutes(params, ws, tokens, stream));
  switch (params.shape.weights) {
    case HopperFormat::kNvfp4:
      NIBBLE_CHECK_OK(moe_mma::LaunchGemms<HopperFormat::kNvfp4>(params, ws, tokens, stream));
      break;
    case HopperFormat::kFp8:
      NIBBLE_CHECK_OK(moe_mma::LaunchFp8Gemms(params, ws, tokens, stream));
      break;
    case HopperFormat::kBf16:
      NIBBLE_CHECK_OK(moe_mma::LaunchGemms<HopperFormat::kBf16>(params, ws, tokens, stream));
      break;
  }
  return prefill::SumRoutes(params, ws, stream);
}

Result<void> CopyMoeMmaHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream) {
  return prefill::CopyRoutedHidden(params, moe_mma::WorkspaceOf(params), h, stream);
}

Result<void> CopyMoeMmaHiddenScales(const Sm90MoeParams& params, float* scales,
                                    cudaStream_t stream) {
  return prefill::CopyRowScales(params, moe_mma::WorkspaceOf(params), scales, stream);
}

}  // namespace nibble::cuda
