// What comes before and after the grouped GEMMs over tokens sorted by expert, for every GPU from compute
// capability 8.0 on:
//   Count    routes by expert
//   Sort     every block scans the counts, makes the tile list and places its 1024 routes
//   Scatter  x to the rows of its routes, as GEMM1's shared memory wants it
//   Sum      over top-k with the router's weights, in the order of k
// each launched while the one before still runs (programmatic dependent launch, from 9.0 on).
//
// NVFP4 activations: Scatter quantizes x; FP8 ones have a Scatter of their own (moe_fp8_rows.cu). Where gate and up have gscales of their own, there are two x,
// one after the other along K.
//
// Scatter writes every token top-k times. A gather inside GEMM1 moves less, but its 16-byte copies
// hold Hopper's tensor cores back by more than the extra kernel costs (docs/performance.md).
//
// The order of an expert's routes depends on which block comes first. No result does: a route is one
// column of an mma, and columns do not meet.

#include "kernels/cuda/moe_routes.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/moe_fp8_rows.h"
#include "kernels/cuda/moe_routes.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/sm90_launch.h"

namespace nibble::cuda::prefill {
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
  const int32_t* ids;    // kFp4Expert and kFp4Shard
  const float* gscales;  // [E][shards]
  int shards;
};

/// Chunk c of a 64-block holds the pairs k = 2c, 16 + 2c, 32 + 2c, 48 + 2c: slots 2t, 2t+1 of lane t,
/// the order that hopper_tile.h gives to the k's of a weight fragment. So eight lanes have four NVFP4
/// blocks, a pair of each block a lane.
struct Chunk {
  uint32_t v[4];
};

/// The four blocks' largest magnitudes, in lanes that hold chunks 0 .. 7.
__device__ __forceinline__ void MaxOfBlocks(const Chunk& x, float (&amax)[4]) {
  uint32_t two[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t a = x.v[2 * i] & kMagnitudes, b = x.v[2 * i + 1] & kMagnitudes;
    two[i] = MaxBf16x2(__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632));
  }
  const uint32_t lanes = 0xFFu << (threadIdx.x & 24);
#pragma unroll
  for (int o = 1; o < 8; o <<= 1) {
#pragma unroll
    for (int i = 0; i < 2; ++i) two[i] = MaxBf16x2(two[i], __shfl_xor_sync(lanes, two[i], o));
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    amax[i] = fmaxf(i % 2 ? HighBf16(two[i / 2]) : LowBf16(two[i / 2]), 0.0f);
  }
}

__device__ __forceinline__ Chunk QuantizeChunk(const Chunk& x, const float (&amax)[4],
                                               float gscale) {
  const Gscale g = GscaleOf(gscale);
  Chunk q;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const BlockScale scale = ScaleOfBlock(amax[i], g);
    q.v[i] = QuantizePair(x.v[i], scale, scale);
  }
  return q;
}

/// A block a token.
template <Sm90Precision kPrecision>
__global__ void __launch_bounds__(kScatterThreads) Scatter(const __grid_constant__ ScatterArgs a) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int64_t token = blockIdx.x;
  for (int i = threadIdx.x; i < a.steps * 8; i += kScatterThreads) {
    const int c = i % 8, k = i / 8 * 64;
    const uint32_t* from = a.x + (token * a.hidden + k) / 2 + c;
    Chunk x;
#pragma unroll
    for (int t = 0; t < 4; ++t) x.v[t] = k + 16 * t < a.hidden ? __ldg(from + 8 * t) : 0;
    const auto store = [&](int row, int step, const Chunk& v) {
      const size_t place = (static_cast<size_t>(step) * a.rows + row) * 128 + ((c ^ row % 8) << 4);
      *reinterpret_cast<uint4*>(a.out + place) = make_uint4(v.v[0], v.v[1], v.v[2], v.v[3]);
    };
    float amax[4];
    if constexpr (kPrecision != Sm90Precision::kBf16) MaxOfBlocks(x, amax);
    if constexpr (kPrecision == Sm90Precision::kFp4Layer) {
      x = QuantizeChunk(x, amax, __ldg(a.gscales));
    }
#pragma unroll 8
    for (int j = 0; j < a.top_k; ++j) {
      const int64_t route = token * a.top_k + j;
      const int row = __ldcg(a.row_of_route + route);
      if (row < 0) continue;
      if constexpr (kPrecision == Sm90Precision::kBf16 || kPrecision == Sm90Precision::kFp4Layer) {
        store(row, i / 8, x);
      } else {
        const float* gscales = a.gscales + static_cast<int64_t>(__ldg(a.ids + route)) * a.shards;
        store(row, i / 8, QuantizeChunk(x, amax, __ldg(gscales)));
        if constexpr (kPrecision == Sm90Precision::kFp4Shard) {
          store(row, a.steps + i / 8, QuantizeChunk(x, amax, __ldg(gscales + 1)));
        }
      }
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
  const int32_t* ids;  // for the bias
  const float* bias;   // [E][H]
};

/// A route's share of the bias of eight columns. A weight of zero stands for a route without an
/// expert, too.
__device__ __forceinline__ void AddBias(const SumArgs& a, int route, int chunk, float weight,
                                        float (&sum)[8]) {
  if (weight == 0) return;
  const float* bias = a.bias + (static_cast<int64_t>(__ldg(a.ids + route)) * a.chunks + chunk) * 8;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum[j] += weight * __ldg(bias + j);
}

template <bool kBias>
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
      if constexpr (kBias) AddBias(a, token * a.top_k + first + k, chunk, w[k], sum);
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

struct HiddenArgs {
  const uint8_t* h;
  const int32_t* row_of_route;
  uint16_t* out;
  int routes, features, rows;
};

__global__ void __launch_bounds__(256) CopyHidden(const __grid_constant__ HiddenArgs a) {
  for (int i = blockIdx.x * 256 + threadIdx.x; i < a.routes * a.features; i += gridDim.x * 256) {
    const int f = i % a.features, row = a.row_of_route[i / a.features];
    if (row < 0) continue;
    const int place = PairPlace(f % 64 & ~1) ^ row % 8 << 4;
    a.out[i] = reinterpret_cast<const uint16_t*>(
        a.h + (static_cast<size_t>(f / 64) * a.rows + row) * 128 + place)[f % 2];
  }
}

}  // namespace

Workspace Layout(const Sm90MoeShape& shape, int tokens, int smallest_tile) {
  const size_t experts = shape.experts, routes = static_cast<size_t>(tokens) * shape.top_k;
  const size_t xs = SplitsX(shape) ? 2 : 1;
  Workspace ws{};
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    const size_t begin = at;
    at = RoundUpTo(at + bytes, 1024);
    return begin;
  };
  // Segments start at multiples of 8, and the last tile reads up to a whole N.
  ws.row_count =
      static_cast<int>(RoundUpTo(routes + 7 * std::min(experts, routes), 8) + kMostTileRows);
  // The first three are one run of counters, zero between launches.
  at = sizeof(int32_t) * (2 * experts + 2);
  ws.counts = 0;
  ws.placed = sizeof(int32_t) * experts;
  ws.next_tile = 2 * ws.placed;
  at = RoundUpTo(at, 1024);
  ws.tile_count = take(sizeof(int32_t));
  ws.tiles = take(sizeof(TokenTile) * (routes / smallest_tile + experts));
  ws.row_of_route = take(sizeof(int32_t) * routes);
  ws.h = take(sizeof(Bf16) * ws.row_count * RoundUpTo(shape.intermediate, 64));
  // GEMM1's x, then GEMM2's output.
  ws.rows = take(sizeof(Bf16) * ws.row_count * RoundUpTo(shape.hidden, 64) * xs);
  // Of x, then of h.
  const auto widest = static_cast<size_t>(std::max(shape.hidden, shape.intermediate));
  const size_t scales = shape.precision == Sm90Precision::kFp8Group   ? (widest + 127) / 128
                        : shape.precision == Sm90Precision::kFp8Token ? 1
                                                                      : 0;
  ws.row_scales = take(sizeof(float) * ws.row_count * scales);
  ws.bytes = at;
  return ws;
}

namespace {

template <class T>
T* At(const Sm90MoeParams& p, size_t offset) {
  return reinterpret_cast<T*>(p.workspace + offset);
}

Result<void> LaunchSort(const Sm90MoeParams& p, const Workspace& ws, int max_n,
                        cudaStream_t stream) {
  const int routes = p.tokens * p.shape.top_k;
  const Sm90MoeShape& shape = p.shape;
  CountArgs count{};
  count.ids = p.ids;
  count.counts = At<int32_t>(p, ws.counts);
  count.routes = routes;
  count.experts = shape.experts;
  const dim3 grid((routes + kSortThreads - 1) / kSortThreads);
  NIBBLE_CHECK_OK(LaunchDependent(Count, grid, kSortThreads, count, stream));

  SortArgs sort{};
  sort.ids = p.ids;
  sort.counts = count.counts;
  sort.placed = At<int32_t>(p, ws.placed);
  sort.routes = routes;
  sort.experts = shape.experts;
  sort.max_n = max_n;
  sort.row_of_route = At<int32_t>(p, ws.row_of_route);
  sort.tiles = At<TokenTile>(p, ws.tiles);
  sort.tile_count = At<int32_t>(p, ws.tile_count);
  return LaunchDependent(Sort, grid, kSortThreads, sort, stream);
}

Result<void> LaunchScatter(const Sm90MoeParams& p, const Workspace& ws, cudaStream_t stream) {
  ScatterArgs scatter{};
  scatter.x = reinterpret_cast<const uint32_t*>(p.x);
  scatter.out = At<uint8_t>(p, ws.rows);
  scatter.row_of_route = At<int32_t>(p, ws.row_of_route);
  scatter.top_k = p.shape.top_k;
  scatter.hidden = p.shape.hidden;
  scatter.steps = static_cast<int>((p.shape.hidden + 63) / 64);
  scatter.rows = ws.row_count;
  scatter.ids = p.ids;
  scatter.gscales = p.a1_gscale;
  scatter.shards = p.shape.shards();
  const auto launch = [&](void (*kernel)(ScatterArgs)) {
    return LaunchDependent(kernel, dim3(p.tokens), kScatterThreads, scatter, stream);
  };
  switch (p.shape.precision) {
    case Sm90Precision::kBf16:
      return launch(Scatter<Sm90Precision::kBf16>);
    case Sm90Precision::kFp4Layer:
      return launch(Scatter<Sm90Precision::kFp4Layer>);
    case Sm90Precision::kFp4Expert:
      return launch(Scatter<Sm90Precision::kFp4Expert>);
    case Sm90Precision::kFp4Shard:
      break;
    default:
      return ScatterFp8(p, ws, stream);
  }
  return launch(SplitsX(p.shape) ? Scatter<Sm90Precision::kFp4Shard>
                                 : Scatter<Sm90Precision::kFp4Expert>);
}

}  // namespace

Result<void> SortRoutes(const Sm90MoeParams& p, const Workspace& ws, int max_n,
                        cudaStream_t stream) {
  NIBBLE_CHECK_OK(LaunchSort(p, ws, max_n, stream));
  return LaunchScatter(p, ws, stream);
}

Result<void> SumRoutes(const Sm90MoeParams& p, const Workspace& ws, cudaStream_t stream) {
  SumArgs sum{};
  sum.rows = At<const uint4>(p, ws.rows);
  sum.row_of_route = At<const int32_t>(p, ws.row_of_route);
  sum.weights = p.weights;
  sum.y = reinterpret_cast<uint4*>(p.y);
  sum.counters = At<int32_t>(p, ws.counts);
  sum.chunks = p.shape.hidden / 8;
  sum.top_k = p.shape.top_k;
  sum.counter_count = 2 * p.shape.experts;
  sum.ids = p.ids;
  sum.bias = p.b2;
  const unsigned columns = (sum.chunks + kSumThreads - 1) / kSumThreads;
  return LaunchDependent(p.b2 != nullptr ? Sum<true> : Sum<false>, dim3(p.tokens, columns),
                         kSumThreads, sum, stream);
}

Result<void> CopyRoutedHidden(const Sm90MoeParams& params, const Workspace& ws, Bf16* h,
                              cudaStream_t stream) {
  HiddenArgs a{};
  a.h = reinterpret_cast<const uint8_t*>(params.workspace + ws.h);
  a.row_of_route = reinterpret_cast<const int32_t*>(params.workspace + ws.row_of_route);
  a.out = reinterpret_cast<uint16_t*>(h);
  a.routes = params.tokens * params.shape.top_k;
  a.features = params.shape.intermediate;
  a.rows = ws.row_count;
  CopyHidden<<<1024, 256, 0, stream>>>(a);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

}  // namespace nibble::cuda::prefill
