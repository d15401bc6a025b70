// FP8 activations on their way to the grouped GEMMs over routes: x, scattered to the rows of its routes,
// and h where a whole row of it, or 128 k, decides its scale. As QuantizeFp8<float> and DynamicFp8Scale
// <float> (numerics/fp8.h) say, bit for bit.

#include "kernels/cuda/moe_fp8_rows.h"

#include "kernels/cuda/fp8_rows.cuh"
#include "kernels/cuda/sm90_launch.h"

namespace nibble::cuda::prefill {
namespace {

constexpr int kScatterThreads = 256;
constexpr int kHiddenThreads = 128;

struct RowArgs {
  const uint32_t* x;  // Scatter: [T][H/2] pairs
  uint8_t* rows_at;   // [steps][rows][128 bytes]: Scatter's output, or h
  const int32_t* row_of_route;
  int top_k, k, steps, rows;
  const int32_t* ids;
  const float* scales;  // static ones: [E][shards]
  int shards;
  float* row_scales;  // dynamic ones
};

/// Chunk i of a row.
__device__ __forceinline__ uint4* ChunkAt(const RowArgs& a, int row, int i) {
  const size_t place = (static_cast<size_t>(i / 8) * a.rows + row) * 128;
  return reinterpret_cast<uint4*>(a.rows_at + place + ((i % 8 ^ row % 8) << 4));
}

__device__ __forceinline__ uint4 ToUint4(const uint32_t (&v)[4]) {
  return make_uint4(v[0], v[1], v[2], v[3]);
}

/// Quantizes a row under its own scales: load(i, chunk) is asked for every chunk, twice by token;
/// store(i, chunk) gets each, and store_scale(group, scale) every scale, once. The whole block comes here.
template <Sm90Precision kPrecision, int kThreads, class Load, class Store, class StoreScale>
__device__ __forceinline__ void QuantizeRow(int steps, Load load, Store store,
                                            StoreScale store_scale) {
  __shared__ float largest[kThreads / 32];
  const int chunks = steps * 8, rounded = (chunks + 31) & ~31;
  float scale = 0;
  if constexpr (kPrecision == Sm90Precision::kFp8Token) {
    uint32_t amax = 0;
    for (int i = threadIdx.x; i < chunks; i += kThreads) {
      uint32_t x[4];
      load(i, x);
      amax = MaxBf16x2(amax, MaxOfPairs(x));
    }
    scale = TokenScale(amax, largest);
    if (threadIdx.x == 0) store_scale(0, scale);
  }
  for (int i = threadIdx.x; i < rounded; i += kThreads) {
    uint32_t x[4] = {};
    if (i < chunks) load(i, x);
    if constexpr (kPrecision == Sm90Precision::kFp8Group) {
      scale = GroupScale(x);
      if (i % 16 == 0 && i < chunks) store_scale(i / 16, scale);
    }
    QuantizeFp8Pairs(x, MakeFp8Scale(scale));
    if (i < chunks) store(i, x);
  }
}

/// A block a token.
template <Sm90Precision kPrecision>
__global__ void __launch_bounds__(kScatterThreads) Scatter(const __grid_constant__ RowArgs a) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int64_t token = blockIdx.x;
  const auto load = [&](int i, uint32_t(&x)[4]) {
    const uint32_t* from = a.x + (token * a.k + i / 8 * 64) / 2 + i % 8;
#pragma unroll
    for (int t = 0; t < 4; ++t) x[t] = i / 8 * 64 + 16 * t < a.k ? __ldg(from + 8 * t) : 0;
  };
  const auto for_each_row = [&](auto what) {
#pragma unroll 8
    for (int j = 0; j < a.top_k; ++j) {
      const int64_t route = token * a.top_k + j;
      const int row = __ldcg(a.row_of_route + route);
      if (row >= 0) what(row, route);
    }
  };
  if constexpr (kPrecision == Sm90Precision::kFp8Token || kPrecision == Sm90Precision::kFp8Group) {
    QuantizeRow<kPrecision, kScatterThreads>(
        a.steps, load,
        [&](int i, const uint32_t(&x)[4]) {
          for_each_row([&](int row, int64_t) { *ChunkAt(a, row, i) = ToUint4(x); });
        },
        [&](int group, float scale) {
          for_each_row([&](int row, int64_t) {
            a.row_scales[static_cast<int64_t>(group) * a.rows + row] = scale;
          });
        });
  } else {
    for (int i = threadIdx.x; i < a.steps * 8; i += kScatterThreads) {
      uint32_t x[4];
      load(i, x);
      if constexpr (kPrecision == Sm90Precision::kFp8Layer) {
        QuantizeFp8Pairs(x, MakeFp8Scale(__ldg(a.scales)));
        for_each_row([&](int row, int64_t) { *ChunkAt(a, row, i) = ToUint4(x); });
      } else {
        for_each_row([&](int row, int64_t route) {
          const float* scales = a.scales + static_cast<int64_t>(__ldg(a.ids + route)) * a.shards;
          constexpr int kXs = kPrecision == Sm90Precision::kFp8Shard ? 2 : 1;
#pragma unroll
          for (int s = 0; s < kXs; ++s) {
            uint32_t q[4] = {x[0], x[1], x[2], x[3]};
            QuantizeFp8Pairs(q, MakeFp8Scale(__ldg(scales + s)));
            *ChunkAt(a, row, s * a.steps * 8 + i) = ToUint4(q);
          }
        });
      }
    }
  }
}

/// A block a route.
template <Sm90Precision kPrecision>
__global__ void __launch_bounds__(kHiddenThreads)
    QuantizeHidden(const __grid_constant__ RowArgs a) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int row = __ldcg(a.row_of_route + blockIdx.x);
  if (row < 0) return;
  QuantizeRow<kPrecision, kHiddenThreads>(
      a.steps,
      [&](int i, uint32_t(&x)[4]) {
        const uint4 v = *ChunkAt(a, row, i);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
      },
      [&](int i, const uint32_t(&x)[4]) { *ChunkAt(a, row, i) = ToUint4(x); },
      [&](int group, float scale) {
        a.row_scales[static_cast<int64_t>(group) * a.rows + row] = scale;
      });
}

struct CopyArgs {
  const float* row_scales;
  const int32_t* row_of_route;
  float* out;
  int routes, groups, rows;
};

__global__ void __launch_bounds__(256) CopyScales(const __grid_constant__ CopyArgs a) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= a.routes * a.groups) return;
  const int row = a.row_of_route[i / a.groups];
  if (row >= 0) a.out[i] = a.row_scales[static_cast<int64_t>(i % a.groups) * a.rows + row];
}

/// What both kernels are told, of rows of `k` at `rows_at`.
RowArgs ArgsOf(const Sm90MoeParams& p, const Workspace& ws, size_t rows_at, int k) {
  RowArgs a{};
  a.rows_at = reinterpret_cast<uint8_t*>(p.workspace + rows_at);
  a.row_of_route = reinterpret_cast<const int32_t*>(p.workspace + ws.row_of_route);
  a.top_k = p.shape.top_k;
  a.k = k;
  a.steps = static_cast<int>(CeilDiv(k, 64));
  a.rows = ws.row_count;
  a.row_scales = reinterpret_cast<float*>(p.workspace + ws.row_scales);
  return a;
}

}  // namespace

Result<void> ScatterFp8(const Sm90MoeParams& p, const Workspace& ws, cudaStream_t stream) {
  RowArgs a = ArgsOf(p, ws, ws.rows, p.shape.hidden);
  a.x = reinterpret_cast<const uint32_t*>(p.x);
  a.ids = p.ids;
  a.scales = p.a1_scale;
  a.shards = p.shape.shards();
  const auto launch = [&](void (*kernel)(RowArgs)) {
    return LaunchDependent(kernel, dim3(p.tokens), kScatterThreads, a, stream);
  };
  if (SplitsX(p.shape)) return launch(Scatter<Sm90Precision::kFp8Shard>);
  switch (p.shape.precision) {
    case Sm90Precision::kFp8Layer:
      return launch(Scatter<Sm90Precision::kFp8Layer>);
    case Sm90Precision::kFp8Token:
      return launch(Scatter<Sm90Precision::kFp8Token>);
    case Sm90Precision::kFp8Group:
      return launch(Scatter<Sm90Precision::kFp8Group>);
    default:
      return launch(Scatter<Sm90Precision::kFp8Expert>);
  }
}

Result<void> QuantizeHiddenFp8(const Sm90MoeParams& p, const Workspace& ws, cudaStream_t stream) {
  const auto kernel = p.shape.precision == Sm90Precision::kFp8Token
                          ? QuantizeHidden<Sm90Precision::kFp8Token>
                          : QuantizeHidden<Sm90Precision::kFp8Group>;
  return LaunchDependent(kernel, dim3(p.tokens * p.shape.top_k), kHiddenThreads,
                         ArgsOf(p, ws, ws.h, p.shape.intermediate), stream);
}

Result<void> CopyRowScales(const Sm90MoeParams& p, const Workspace& ws, float* scales,
                           cudaStream_t stream) {
  CopyArgs a{};
  a.row_scales = reinterpret_cast<const float*>(p.workspace + ws.row_scales);
  a.row_of_route = reinterpret_cast<const int32_t*>(p.workspace + ws.row_of_route);
  a.out = scales;
  a.routes = p.tokens * p.shape.top_k;
  a.groups = p.shape.precision == Sm90Precision::kFp8Group
                 ? static_cast<int>(CeilDiv(p.shape.intermediate, 128))
                 : 1;
  a.rows = ws.row_count;
  CopyScales<<<static_cast<unsigned>(CeilDiv(int64_t{a.routes} * a.groups, 256)), 256, 0, stream>>>(
      a);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

}  // namespace nibble::cuda::prefill
