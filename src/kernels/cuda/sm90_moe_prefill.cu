// sm90_nvfp4_{bf16,nvfp4}_experts_prefill, sm90_bf16_bf16_experts_prefill: all routed experts of a layer
// for many tokens.
//
// Six kernels, each launched while the one before still runs (programmatic dependent launch): the routes
// are counted and sorted by expert, x is scattered to them (moe_routes.cu), GEMM1 makes gate, up and
// activation, GEMM2 down (sm90_moe_prefill_gemm.cu), and the sum over top-k ends it (moe_routes.cu).
//
// NVFP4 activations: x is scattered quantized, and GEMM1 quantizes what it stores of h. Where gate and
// up have gscales of their own, there are two x, and GEMM1's weights pass twice, each time with the
// other's rows at zero.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/sm90_moe_inspect.h"
#include "kernels/cuda/sm90_moe_prefill.h"
#include "layout/hopper_tile.h"

namespace nibble::cuda {
namespace prefill {
namespace {

/// A map of one layer's packed matrix whose boxes are 256 rows of one k block, or, where that has more
/// than 256 elements of 8 bytes, a tile of each row block. Rows past the last block read as zeros.
Result<void> MapWeights(GemmArgs& a, const uint8_t* weights, const HopperLayout& layout,
                        HopperFormat format, int experts) {
  static const auto encode = []() -> decltype(&cuTensorMapEncodeTiled) {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
      return nullptr;
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(f);
  }();
  const auto step_bytes = static_cast<cuuint64_t>(layout.tiles_per_block) * HopperTileBytes(format);
  const auto blocks = static_cast<cuuint64_t>(layout.tiles / layout.tiles_per_block);
  const cuuint64_t row = layout.k_blocks * step_bytes;
  const cuuint64_t sizes[3] = {row / 8, blocks, static_cast<cuuint64_t>(experts)};
  const cuuint64_t strides[2] = {row, row * blocks};
  a.bytes_a_step = static_cast<int>(step_bytes / 8);
  a.blocks_a_tile = 16 / layout.tiles_per_block;
  const cuuint32_t box[3] = {std::min(static_cast<cuuint32_t>(step_bytes / 8), 256u),
                             static_cast<cuuint32_t>(a.blocks_a_tile), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  if (encode == nullptr ||
      encode(&a.weights, CU_TENSOR_MAP_DATA_TYPE_UINT64, 3, const_cast<uint8_t*>(weights), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
    return Error{ErrorCode::kDevice, "experts on sm_90: the driver made no tensor map", {}, {}};
  }
  return {};
}

/// What the launches of one call share.
struct Call {
  const Sm90MoeParams& params;
  const Workspace ws;
  const HopperLayout l13, l2;
  const int blocks;
  cudaStream_t stream;
  GemmKind kind;

  template <class T>
  T* At(size_t offset) const {
    return reinterpret_cast<T*>(params.workspace + offset);
  }
};

Result<void> LaunchGemms(const Call& c) {
  const Sm90MoeParams& p = c.params;
  GemmArgs gemm{};
  NIBBLE_CHECK_OK(MapWeights(gemm, p.w13, c.l13, p.shape.weights, p.shape.experts));
  gemm.globals = p.g1;
  gemm.gscales = p.a1_gscale;
  gemm.h_gscales = p.a2_gscale;
  gemm.activation = ActivationOf(p);
  gemm.x = c.At<uint8_t>(c.ws.rows);
  gemm.tiles = c.At<TokenTile>(c.ws.tiles);
  gemm.tile_count = c.At<int32_t>(c.ws.tile_count);
  gemm.next_tile = c.At<int32_t>(c.ws.next_tile);
  gemm.out = c.At<uint8_t>(c.ws.h);
  gemm.weight_steps = static_cast<int>(c.l13.k_blocks);
  gemm.steps = gemm.weight_steps * (c.kind.split ? 2 : 1);
  gemm.row_tiles = static_cast<int>((c.l13.tiles + 15) / 16);
  gemm.h_blocks = static_cast<int>(c.l2.k_blocks);
  gemm.rows = c.ws.row_count;
  NIBBLE_CHECK_OK(LaunchGemm1(c.kind, gemm, c.blocks, c.stream));

  NIBBLE_CHECK_OK(MapWeights(gemm, p.w2, c.l2, p.shape.weights, p.shape.experts));
  gemm.globals = p.g2;
  gemm.gscales = p.a2_gscale;
  gemm.x = c.At<uint8_t>(c.ws.h);
  gemm.next_tile = c.At<int32_t>(c.ws.next_tile) + 1;
  gemm.out = c.At<uint8_t>(c.ws.rows);
  gemm.weight_steps = gemm.steps = static_cast<int>(c.l2.k_blocks);
  gemm.row_tiles = static_cast<int>((c.l2.tiles + 15) / 16);
  gemm.out_columns = p.shape.hidden;
  return LaunchGemm2(c.kind, gemm, c.blocks, c.stream);
}

/// Few tokens an expert: more warps a block. The narrow GEMM takes its k blocks in pairs.
GemmKind KindOf(const Sm90MoeParams& p, const HopperLayout& l13, const HopperLayout& l2) {
  const int64_t routes = static_cast<int64_t>(p.tokens) * p.shape.top_k;
  GemmKind kind{};
  kind.activate = ActivateOf(p);
  kind.weights = p.shape.weights;
  kind.fp4 = p.shape.precision != Sm90Precision::kBf16;
  kind.split = SplitsX(p.shape);
  const bool narrow = routes <= MaxN(TileShape::kNarrow) * static_cast<int64_t>(p.shape.experts) &&
                      l13.k_blocks % 2 == 0 && l2.k_blocks % 2 == 0 && !kind.split &&
                      kind.weights == HopperFormat::kNvfp4;
  kind.shape = narrow ? TileShape::kNarrow : TileShape::kWide;
  return kind;
}

Workspace WorkspaceOf(const Sm90MoeParams& p) {
  return Layout(p.shape, p.tokens, MaxN(TileShape::kNarrow));
}

}  // namespace
}  // namespace prefill

size_t Sm90MoePrefillWorkspace(const Sm90MoeShape& shape, int tokens) {
  return prefill::Layout(shape, tokens, prefill::MaxN(prefill::TileShape::kNarrow)).bytes;
}

Result<void> LaunchSm90MoePrefill(const Sm90MoeParams& params, cudaStream_t stream) {
  const Sm90MoeShape& shape = params.shape;
  NIBBLE_CHECK_OK(CheckSm90Moe(params, 1 << 20));
  NIBBLE_TRY(const int blocks, MultiprocessorCount());
  const HopperLayout l13 = W13LayoutOf(shape);
  const HopperLayout l2 = HopperW2Layout(shape.hidden, shape.intermediate);
  const prefill::Call call{params, prefill::WorkspaceOf(params),    l13, l2, blocks,
                           stream, prefill::KindOf(params, l13, l2)};
  NIBBLE_CHECK_OK(prefill::SortRoutes(params, call.ws, prefill::MaxN(call.kind.shape), stream));
  NIBBLE_CHECK_OK(prefill::LaunchGemms(call));
  return prefill::SumRoutes(params, call.ws, stream);
}

Result<void> CopySm90MoePrefillHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream) {
  return prefill::CopyRoutedHidden(params, prefill::WorkspaceOf(params), h, stream);
}

}  // namespace nibble::cuda
