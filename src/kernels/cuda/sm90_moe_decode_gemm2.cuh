#pragma once

#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/sm90_moe_decode_gemm1.cuh"

// GEMM2 of the decode kernel: down, the sum over top-k; and what its launches are given.

namespace nibble::cuda::decode {

template <class C>
__device__ __forceinline__ void StoreColumns(const Args& a, typename C::Smem& s, const Place& p,
                                             const Work& w, int item,
                                             const float (&acc)[C::kTiles2][4]) {
  const Item it = UnpackItem(s.item[w.first_listed + item]);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (2 * p.t + c >= it.routes) continue;
    const int route = s.route[it.first + 2 * p.t + c];
    const float factor = s.factor[route];
    float* out = s.out + (w.half * a.routes + route) * C::kRows2 + p.g;
#pragma unroll
    for (int r = 0; r < C::kTiles2; ++r) {
      out[r * 16] = acc[r][c] * factor;
      out[r * 16 + 8] = acc[r][2 + c] * factor;
    }
  }
}

/// Until a unit's activations are all there, loads those again that were not.
template <class C>
__device__ __forceinline__ void AwaitHidden(const uint4* h, int steps,
                                            uint32_t (&b)[C::kSteps2][8]) {
  const auto missing = [&](int k) {
    return (!C::kAnyShape || k < steps) && min(min(b[k][0], b[k][2]), min(b[k][4], b[k][6])) == 0;
  };
  while (true) {
    bool any = false;
#pragma unroll
    for (int k = 0; k < C::kSteps2; ++k) any |= missing(k);
    if (!__any_sync(~0u, any)) return;
#pragma unroll
    for (int k = 0; k < C::kSteps2; ++k) {
      if (missing(k)) Store8(b[k], LoadRelaxed(h + 8 * k), LoadRelaxed(h + 8 * k + 4));
    }
  }
}

/// All of this warp's items for one row block.
template <class C>
__device__ __forceinline__ void Gemm2Block(const Args& a, typename C::Smem& s, const Place& p,
                                           const Work& w, WeightStream<C>& stream) {
  float acc[C::kTiles2][4];
  uint32_t b[C::kSteps2][8] = {};  // or a loop around this would keep registers of its last round
  int item = w.first_item, next_item = item, unit = 0, next_unit = 0, steps = C::kSteps2;
  const uint4* next_h = nullptr;
  const int units = w.items2 * w.units2;
#pragma unroll 1
  for (int i = -1; i < units; ++i) {  // i = -1 only loads the first activations
    const bool more = i + 1 < units;
    const uint4* h = next_h;
    int next_steps = C::kSteps2;
    if (more) {
      if (next_unit == 0) {
        const Item it = UnpackItem(s.item[w.first_listed + next_item]);
        const int route = s.route[it.first + min(p.g, it.routes - 1)];
        next_h =
            reinterpret_cast<const uint4*>(RowOfH(a, s, route) + w.unit2 * C::kSteps2 * 64) + p.t;
      } else {
        next_h += C::kSteps2 * 8;
      }
      if constexpr (C::kAnyShape) {
        next_steps = min(C::kSteps2, a.steps2 - (w.unit2 + next_unit) * C::kSteps2);
      }
    }
    const auto load_next = [&](int k) {
      if (more && (!C::kAnyShape || k < next_steps)) {
        Store8(b[k], LoadRelaxed(next_h + 8 * k), LoadRelaxed(next_h + 8 * k + 4));
      }
    };
    if (i < 0) {
#pragma unroll
      for (int k = 0; k < C::kSteps2; ++k) load_next(k);
    } else {
      const uint8_t* weights = stream.Wait();
      AwaitHidden<C>(h, steps, b);
      if (unit == 0) {
#pragma unroll
        for (int r = 0; r < C::kTiles2; ++r) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = 0.0f;
      }
      // A step's activations are replaced by the next unit's as soon as they have been used.
#pragma unroll
      for (int k = 0; k < C::kSteps2; ++k) {
        if (!C::kAnyShape || k < steps) {
#pragma unroll
          for (int r = 0; r < C::kTiles2; ++r) {
            MultiplyTile<C::kFormat>(weights + (k * C::kTiles2 + r) * C::kTileBytes, p.lane, b[k],
                                     acc[r]);
          }
        }
        load_next(k);
      }
      stream.Release();
      if (unit == w.units2 - 1) {
        BarrierWait(SharedAddress(&s.gemm1_left), w.turn);
        StoreColumns<C>(a, s, p, w, item, acc);
      }
    }
    steps = next_steps;
    item = next_item;
    unit = next_unit;
    if (++next_unit == w.units2) {
      next_unit = 0;
      next_item += w.item_stride;
    }
  }
}

/// A route's share of the bias of y.
__device__ __forceinline__ float BiasOf(const Args& a, int route, int row) {
  const int id = __ldg(a.ids + route);
  if (a.b2 == nullptr || row >= a.hidden ||
      static_cast<unsigned>(id) >= static_cast<unsigned>(a.experts)) {
    return 0.0f;
  }
  return __ldg(a.route_weights + route) * __ldg(a.b2 + static_cast<int64_t>(id) * a.hidden + row);
}

/// Where y goes.
struct GlobalOutput {
  const Args& a;
  __device__ __forceinline__ void operator()(int token, int row, float value) const {
    a.y[static_cast<size_t>(token) * a.hidden + row] = __float2bfloat16(value);
  }
};

/// y for one row block: the sum over top-k in the order of k.
template <class C, class N, class Y>
__device__ __forceinline__ void SumBlock(const Args& a, const typename C::Smem& s, const Work& w,
                                         int block, const Y& store) {
  const int other_half = a.routes * C::kRows2;
  for (int i = threadIdx.x; i < a.tokens * C::kRows2; i += kThreads) {
    // Neighbouring threads store neighbouring rows: j counts rows as y does, and HopperOutputRow
    // says where the tile has them.
    const int token = i / C::kRows2, j = i % C::kRows2;
    const int tile = C::kTiles2 == 2 ? j / 4 % 2 : 0, half = j / 2 % 2;
    const int g = (C::kTiles2 == 2 ? j / 8 : j / 4) * 2 + j % 2;
    const int row =
        C::kTiles2 == 2 ? block * 32 + j : block / 2 * 32 + j / 4 * 8 + block % 2 * 4 + j % 4;
    const int first = token * a.top_k;
    const float* out = s.out + first * C::kRows2 + tile * 16 + half * 8 + g;
    const uint32_t valid =
        __funnelshift_r(s.valid[first / 32], s.valid[first / 32 + 1], first % 32);
    float sum = 0;
#pragma unroll 1
    for (int k0 = 0; k0 < a.top_k; k0 += 16) {
      float v[16], v2[16];  // all asked for at once
#pragma unroll
      for (int k = 0; k < 16; ++k) {
        const bool is = k0 + k < a.top_k;
        v[k] = is ? out[(k0 + k) * C::kRows2] : 0.0f;
        v2[k] = is && w.split_k ? out[(k0 + k) * C::kRows2 + other_half] : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < 16; ++k) {
        float of_route = v[k] + v2[k];
        if constexpr (N::kActivate != Activate::kSilu) {
          if (k0 + k < a.top_k) of_route += BiasOf(a, first + k0 + k, row);
        }
        sum += valid >> (k0 + k) & 1 ? of_route : 0.0f;
      }
    }
    if (row < a.hidden) store(token, row, sum);
  }
}

template <class S>
__device__ __forceinline__ void InitBarriers(S& s, const Place& p) {
  if (p.lane < kSlots) BarrierInit(SharedAddress(&s.full[p.warp][p.lane]), 1);
  if (p.warp == 0 && p.lane == 31) BarrierInit(SharedAddress(&s.gemm1_left), kThreads);
  if (p.k_part == 1 && p.lane < S::kPartialBuffers) {
    BarrierInit(SharedAddress(&s.partial_full[p.group][p.lane]), kGroupWarps * 32);
    BarrierInit(SharedAddress(&s.partial_empty[p.group][p.lane]), 32);
  }
  BarrierInitFence();
}

/// Which half of h is this launch's and how much of the other is not zero. One thread asks, early; the
/// answer is stored when it is there. It is the same for all blocks: the launch before has ended, and of
/// this one a block more counts only when it leaves.
struct Arrival {
  uint32_t ended = 0, routes[2] = {};
};
__device__ __forceinline__ Arrival Arrive(const Args& a) {
  Arrival r;
  if (threadIdx.x == kThreads - 1) {
    r.routes[0] = a.state->routes[0], r.routes[1] = a.state->routes[1];
    r.ended = __ldcg(&a.state->ended);
  }
  return r;
}
template <class S>
__device__ __forceinline__ void StoreArrival(const Args& a, S& s, const Arrival& r) {
  if (threadIdx.x != kThreads - 1) return;
  const bool odd = r.ended >= gridDim.x;
  s.odd_launch = odd;
  s.old_routes = static_cast<int>(odd ? r.routes[0] : r.routes[1]);
  if (blockIdx.x == 0) a.state->routes[odd] = a.routes;
}
__device__ __forceinline__ void Leave(const Args& a) {
  if (threadIdx.x == kThreads - 1) atomicInc(&a.state->ended, 2 * gridDim.x - 1);
}

/// The h of the launch before becomes zero for the launch after this one.
template <class S>
__device__ __forceinline__ void ZeroOldHidden(const Args& a, const S& s) {
  const int row = a.padded_intermediate / 8, n = s.old_routes * row;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < n; i += gridDim.x * kThreads) {
    const int route = i / row;
    reinterpret_cast<uint4*>(a.layer.h)[i + (route + 1 - s.odd_launch) * row] =
        make_uint4(0, 0, 0, 0);
  }
}

// --- launches ---

// The workspace: LaunchState, x in NVFP4 where it comes so, then h. No place depends on the number
// of tokens.
inline constexpr size_t kXOffset = 256;
static_assert(sizeof(LaunchState) <= kXOffset);

/// Whether a configuration keeps x in registers; the others load it for every task.
inline bool KeepsX(const Sm90MoeShape& shape) {
  const bool k2_in_units = (shape.intermediate + 63) / 64 % 4 == 0;
  return (shape.hidden == 2048 && (k2_in_units || (shape.intermediate + 63) / 64 % 6 == 0)) ||
         (shape.hidden == 4096 && k2_in_units);
}

inline size_t HiddenOffset(const Sm90MoeShape& shape) {
  if (shape.precision != Sm90Precision::kFp4Layer) return kXOffset;
  return RoundUpTo(
      kXOffset + sizeof(Bf16) * Sm90MoeDecodeMaxTokens(shape) * static_cast<size_t>(shape.hidden),
      256);
}

inline Args MakeArgs(const Sm90MoeParams& params) {
  const Sm90MoeShape& shape = params.shape;
  const HopperLayout l13 = W13LayoutOf(shape);
  const HopperLayout l2 = HopperW2Layout(shape.hidden, shape.intermediate);
  Args a{};
  a.x = reinterpret_cast<const __nv_bfloat16*>(params.x);
  a.ids = params.ids;
  a.route_weights = params.weights;
  a.layer.w13 = params.w13;
  a.layer.w2 = params.w2;
  a.layer.g1 = params.g1;
  a.layer.g2 = params.g2;
  a.y = reinterpret_cast<__nv_bfloat16*>(params.y);
  a.state = reinterpret_cast<LaunchState*>(params.workspace);
  a.layer.h = reinterpret_cast<__nv_bfloat16*>(params.workspace + HiddenOffset(shape));
  a.tokens = params.tokens;
  a.top_k = shape.top_k;
  a.routes = params.tokens * shape.top_k;
  a.experts = shape.experts;
  a.hidden = shape.hidden;
  a.padded_intermediate = static_cast<int>(RoundUpTo(shape.intermediate, 64));
  a.steps1 = static_cast<int>(l13.k_blocks);
  a.steps2 = static_cast<int>(l2.k_blocks);
  a.tasks = static_cast<int>(l13.tiles / kTaskTiles);
  a.row_blocks = static_cast<int>(l2.tiles / l2.tiles_per_block);
  a.by_top_k = Divisor(shape.top_k);
  a.by_tasks = Divisor(a.tasks);
  a.tiles13 = static_cast<uint32_t>(l13.tiles * l13.k_blocks);
  a.tiles2 = static_cast<uint32_t>(l2.tiles * l2.k_blocks);
  a.activation = ActivationOf(params);
  a.b2 = params.b2;
  a.layer.a1 = params.a1_gscale;
  a.layer.a2 = params.a2_gscale;
  a.a1_step = shape.precision == Sm90Precision::kFp4Layer ? 0 : shape.shards();
  if (a.layer.a1 != nullptr) a.x_passes = shape.precision == Sm90Precision::kFp4Shard ? 2 : 1;
  return a;
}

}  // namespace nibble::cuda::decode
