// sm90_nvfp4_bf16_experts_prefill: all routed experts of a layer for many tokens.
//
// Six kernels, each launched while the one before still runs (programmatic dependent launch):
//   Count    routes by expert
//   Sort     every block scans the counts, makes the tile list and places its 1024 routes
//   Scatter  x to the rows of its routes, as GEMM1's shared memory wants it
//   GEMM1    gate, up and activation        (sm90_moe_prefill_gemm.cu)
//   GEMM2    down                           (the same)
//   Sum      over top-k with the router's weights, in the order of k
//
// Scatter writes every token top-k times. A gather inside GEMM1 moves less, but its 16-byte copies
// hold the tensor cores back by more than the extra kernel costs (docs/performance.md).
//
// The order of an expert's routes depends on which block comes first. No result does: a route is one
// column of an mma, and columns do not meet.

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/sm90_moe_prefill.h"
#include "kernels/cuda/sm90_ptx.cuh"
#include "layout/hopper_tile.h"

namespace nibble::cuda {
namespace prefill {
namespace {

constexpr int kMaxExperts = 1024;
constexpr int kSortThreads = 1024;  // one an expert, and one a route
constexpr int kScatterThreads = 256;
constexpr int kSumThreads = 256;

// --- Count ---

struct CountArgs {
  const int32_t* ids;
  int32_t* counts;
  int routes, experts;
};

__global__ void __launch_bounds__(kSortThreads) Count(const __grid_constant__ CountArgs a) {
  __shared__ int32_t count[kMaxExperts];
  WaitForPreviousKernel();
  LetNextKernelStart();
  count[threadIdx.x] = 0;
  __syncthreads();
  const int route = blockIdx.x * kSortThreads + threadIdx.x;
  const int id = route < a.routes ? __ldg(a.ids + route) : -1;
  if (static_cast<unsigned>(id) < static_cast<unsigned>(a.experts)) atomicAdd(&count[id], 1);
  __syncthreads();
  if (count[threadIdx.x]) atomicAdd(a.counts + threadIdx.x, count[threadIdx.x]);
}

// --- Sort ---

struct SortArgs {
  const int32_t *ids, *counts;
  int32_t* placed;  // routes of an expert that earlier blocks have placed
  int routes, experts, max_n;
  int32_t* row_of_route;
  TokenTile* tiles;
  int32_t* tile_count;
};

/// The smallest N of the GEMM's that holds n tokens; 136 and 144 are there for the halves of 272 and
/// 288.
__device__ __forceinline__ int RoundToN(int n) {
  if (n <= 128) return (n + 15) / 16 * 16;
  return n <= 136 ? 136 : n <= 144 ? 144 : 160;
}

__global__ void __launch_bounds__(kSortThreads) Sort(const __grid_constant__ SortArgs a) {
  __shared__ int first_row[kMaxExperts], placed[kMaxExperts], warp_rows[32], warp_tiles[32];
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int e = threadIdx.x, lane = e % 32, warp = e / 32;
  const int n = e < a.experts ? __ldcg(a.counts + e) : 0;
  const int parts = (n + a.max_n - 1) / a.max_n, padded = (n + 7) / 8 * 8;
  int rows = padded, tiles = parts;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const int r = __shfl_up_sync(~0u, rows, o), t = __shfl_up_sync(~0u, tiles, o);
    if (lane >= o) rows += r, tiles += t;
  }
  if (lane == 31) warp_rows[warp] = rows, warp_tiles[warp] = tiles;
  placed[e] = 0;
  __syncthreads();
  for (int w = 0; w < warp; ++w) rows += warp_rows[w], tiles += warp_tiles[w];
  first_row[e] = rows - padded;
  __syncthreads();

  if (blockIdx.x == 0) {
    if (e == kSortThreads - 1) *a.tile_count = tiles;
    // An expert's routes are split evenly, not into full tiles and a rest.
    const int size = parts ? ((n + parts - 1) / parts + 7) / 8 * 8 : 0;
    for (int i = 0; i < parts; ++i) {
      const int count = min(size, n - i * size);  // above 0: size is at most max_n
      a.tiles[tiles - parts + i] = {e, rows - padded + i * size, count, RoundToN(count)};
    }
  }

  const int route = blockIdx.x * kSortThreads + threadIdx.x;
  int id = route < a.routes ? __ldg(a.ids + route) : -1, rank = 0;
  if (static_cast<unsigned>(id) >= static_cast<unsigned>(a.experts)) id = -1;
  if (id >= 0) rank = atomicAdd(&placed[id], 1);
  __syncthreads();
  if (e < a.experts && placed[e]) placed[e] = atomicAdd(a.placed + e, placed[e]);
  __syncthreads();
  if (route >= a.routes) return;
  a.row_of_route[route] = id >= 0 ? first_row[id] + placed[id] + rank : -1;
}

// --- Scatter ---

struct ScatterArgs {
  const uint32_t* x;  // [T][H/2] pairs
  uint8_t* out;       // [steps][rows][128 bytes], see sm90_moe_prefill.h
  const int32_t* row_of_route;
  int top_k, hidden, steps, rows;
};

/// A block a token. Chunk c of a 64-block holds the pairs k = 2c, 16 + 2c, 32 + 2c, 48 + 2c: slots 2t,
/// 2t+1 of lane t, the order that hopper_tile.h gives to the k's of a weight fragment.
__global__ void __launch_bounds__(kScatterThreads) Scatter(const __grid_constant__ ScatterArgs a) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int64_t token = blockIdx.x;
  for (int i = threadIdx.x; i < a.steps * 8; i += kScatterThreads) {
    const int c = i % 8, k = i / 8 * 64;
    const uint32_t* from = a.x + (token * a.hidden + k) / 2 + c;
    uint32_t v[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) v[t] = k + 16 * t < a.hidden ? __ldg(from + 8 * t) : 0;
#pragma unroll 8
    for (int j = 0; j < a.top_k; ++j) {
      const int row = __ldcg(a.row_of_route + token * a.top_k + j);
      if (row < 0) continue;
      const size_t place = (static_cast<size_t>(i / 8) * a.rows + row) * 128 + ((c ^ row % 8) << 4);
      *reinterpret_cast<uint4*>(a.out + place) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

// --- Sum ---

struct SumArgs {
  const uint4* rows;  // [rows][H/8]
  const int32_t* row_of_route;
  const float* weights;
  uint4* y;
  int32_t* counters;  // reset for the next launch
  int chunks, top_k, counter_count;
};

__global__ void __launch_bounds__(kSumThreads) Sum(const __grid_constant__ SumArgs a) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  if (blockIdx.x == 0 && blockIdx.y == 0) {
    for (int i = threadIdx.x; i < a.counter_count; i += kSumThreads) a.counters[i] = 0;
  }
  const int token = blockIdx.x, chunk = blockIdx.y * kSumThreads + threadIdx.x;
  if (chunk >= a.chunks) return;
  constexpr int kInFlight = 8;
  float sum[8] = {};
  for (int first = 0; first < a.top_k; first += kInFlight) {
    uint4 v[kInFlight];
    float w[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int route = token * a.top_k + first + k;
      const int row = first + k < a.top_k ? __ldcg(a.row_of_route + route) : -1;
      w[k] = row >= 0 ? __ldg(a.weights + route) : 0.0f;
      v[k] = row >= 0 ? __ldcs(a.rows + static_cast<size_t>(row) * a.chunks + chunk)
                      : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const uint32_t words[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[2 * j] += w[k] * __uint_as_float(words[j] << 16);
        sum[2 * j + 1] += w[k] * __uint_as_float(words[j] & 0xFFFF0000u);
      }
    }
  }
  uint32_t out[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(sum[2 * j], sum[2 * j + 1]);
    out[j] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  a.y[static_cast<size_t>(token) * a.chunks + chunk] = make_uint4(out[0], out[1], out[2], out[3]);
}

// --- workspace and launch ---

struct Workspace {
  size_t counts, placed, next_tile, tile_count, tiles, token_of_row, row_of_route, x, h, rows,
      bytes;
  int row_count;
};

Workspace Layout(const Sm90MoeShape& shape, int tokens) {
  const size_t experts = shape.experts, routes = static_cast<size_t>(tokens) * shape.top_k;
  Workspace ws{};
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    const size_t begin = at;
    at = RoundUpTo(at + bytes, 1024);
    return begin;
  };
  // Segments start at multiples of 8, and the last tile reads up to a whole N.
  ws.row_count = static_cast<int>(RoundUpTo(routes + 7 * std::min(experts, routes), 8) +
                                  MaxN(TileShape::kWide));
  // The first three are one run of counters, zero between launches.
  at = sizeof(int32_t) * (2 * experts + 2);
  ws.counts = 0;
  ws.placed = sizeof(int32_t) * experts;
  ws.next_tile = 2 * ws.placed;
  at = RoundUpTo(at, 1024);
  ws.tile_count = take(sizeof(int32_t));
  ws.tiles = take(sizeof(TokenTile) * (routes / MaxN(TileShape::kNarrow) + experts));
  ws.row_of_route = take(sizeof(int32_t) * routes);
  ws.h = take(sizeof(Bf16) * ws.row_count * RoundUpTo(shape.intermediate, 64));
  // GEMM1's x, then GEMM2's output.
  ws.rows = take(sizeof(Bf16) * ws.row_count * RoundUpTo(shape.hidden, 64));
  ws.bytes = at;
  return ws;
}

template <class Args>
Result<void> LaunchDependent(void (*kernel)(Args), dim3 grid, int threads, const Args& args,
                             cudaStream_t stream) {
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = 1;
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, args));
  return {};
}

/// A map of one layer's packed matrix whose boxes are 256 rows of one k block. Rows past the last
/// block read as zeros.
Result<void> MapWeights(GemmArgs& a, const uint8_t* weights, const HopperLayout& layout,
                        int experts) {
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
  const auto step_bytes = static_cast<cuuint64_t>(layout.tiles_per_block) * kHopperTileBytes;
  const auto blocks = static_cast<cuuint64_t>(layout.tiles / layout.tiles_per_block);
  const cuuint64_t row = layout.k_blocks * step_bytes;
  const cuuint64_t sizes[3] = {row / 8, blocks, static_cast<cuuint64_t>(experts)};
  const cuuint64_t strides[2] = {row, row * blocks};
  a.bytes_a_step = static_cast<int>(step_bytes / 8);
  a.blocks_a_tile = 16 / layout.tiles_per_block;
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(step_bytes / 8),
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

}  // namespace
}  // namespace prefill

size_t Sm90MoePrefillWorkspace(const Sm90MoeShape& shape, int tokens) {
  return prefill::Layout(shape, tokens).bytes;
}

Result<void> LaunchSm90MoePrefill(const Sm90MoeParams& params, cudaStream_t stream) {
  using namespace prefill;
  const Sm90MoeShape& shape = params.shape;
  NIBBLE_CHECK_OK(CheckSm90Moe(params, 1 << 20));
  NIBBLE_TRY(const int blocks, MultiprocessorCount());
  const Workspace ws = Layout(shape, params.tokens);
  const HopperLayout l13 = HopperW13Layout(shape.hidden, shape.intermediate);
  const HopperLayout l2 = HopperW2Layout(shape.hidden, shape.intermediate);
  const auto at = [&]<class T>(T*, size_t offset) {
    return reinterpret_cast<T*>(params.workspace + offset);
  };
  int32_t* const ints = nullptr;
  const int routes = params.tokens * shape.top_k;
  // Few tokens an expert: more warps a block. The narrow GEMM takes its k blocks in pairs.
  const bool narrow = routes <= MaxN(TileShape::kNarrow) * static_cast<int64_t>(shape.experts) &&
                      l13.k_blocks % 2 == 0 && l2.k_blocks % 2 == 0;
  const TileShape tile_shape = narrow ? TileShape::kNarrow : TileShape::kWide;

  CountArgs count{};
  count.ids = params.ids;
  count.counts = at(ints, ws.counts);
  count.routes = routes;
  count.experts = shape.experts;
  const int sort_blocks = (routes + kSortThreads - 1) / kSortThreads;
  NIBBLE_CHECK_OK(LaunchDependent(Count, dim3(sort_blocks), kSortThreads, count, stream));

  SortArgs sort{};
  sort.ids = params.ids;
  sort.counts = at(ints, ws.counts);
  sort.placed = at(ints, ws.placed);
  sort.routes = routes;
  sort.experts = shape.experts;
  sort.max_n = MaxN(tile_shape);
  sort.row_of_route = at(ints, ws.row_of_route);
  sort.tiles = reinterpret_cast<TokenTile*>(params.workspace + ws.tiles);
  sort.tile_count = at(ints, ws.tile_count);
  NIBBLE_CHECK_OK(LaunchDependent(Sort, dim3(sort_blocks), kSortThreads, sort, stream));

  ScatterArgs scatter{};
  scatter.x = reinterpret_cast<const uint32_t*>(params.x);
  scatter.out = reinterpret_cast<uint8_t*>(params.workspace + ws.rows);
  scatter.row_of_route = sort.row_of_route;
  scatter.top_k = shape.top_k;
  scatter.hidden = shape.hidden;
  scatter.steps = static_cast<int>(l13.k_blocks);
  scatter.rows = ws.row_count;
  NIBBLE_CHECK_OK(LaunchDependent(Scatter, dim3(params.tokens), kScatterThreads, scatter, stream));

  GemmArgs gemm{};
  NIBBLE_CHECK_OK(MapWeights(gemm, params.w13, l13, shape.experts));
  gemm.globals = params.g1;
  gemm.x = scatter.out;
  gemm.tiles = sort.tiles;
  gemm.tile_count = sort.tile_count;
  gemm.next_tile = at(ints, ws.next_tile);
  gemm.out = reinterpret_cast<uint8_t*>(params.workspace + ws.h);
  gemm.steps = static_cast<int>(l13.k_blocks);
  gemm.row_blocks = static_cast<int>(l13.tiles / 8);
  gemm.row_tiles = (gemm.row_blocks + 1) / 2;
  gemm.rows = ws.row_count;
  NIBBLE_CHECK_OK(LaunchGemm1(tile_shape, gemm, blocks, stream));

  NIBBLE_CHECK_OK(MapWeights(gemm, params.w2, l2, shape.experts));
  gemm.globals = params.g2;
  gemm.x = reinterpret_cast<const uint8_t*>(params.workspace + ws.h);
  gemm.next_tile = at(ints, ws.next_tile) + 1;
  gemm.out = reinterpret_cast<uint8_t*>(params.workspace + ws.rows);
  gemm.steps = static_cast<int>(l2.k_blocks);
  gemm.row_blocks = static_cast<int>((l2.tiles + 7) / 8);
  gemm.row_tiles = (gemm.row_blocks + 1) / 2;
  gemm.out_columns = shape.hidden;
  NIBBLE_CHECK_OK(LaunchGemm2(tile_shape, gemm, blocks, stream));

  SumArgs sum{};
  sum.rows = reinterpret_cast<const uint4*>(params.workspace + ws.rows);
  sum.row_of_route = sort.row_of_route;
  sum.weights = params.weights;
  sum.y = reinterpret_cast<uint4*>(params.y);
  sum.counters = count.counts;
  sum.chunks = shape.hidden / 8;
  sum.top_k = shape.top_k;
  sum.counter_count = 2 * shape.experts;
  const unsigned columns = (sum.chunks + kSumThreads - 1) / kSumThreads;
  return LaunchDependent(Sum, dim3(params.tokens, columns), kSumThreads, sum, stream);
}

}  // namespace nibble::cuda
