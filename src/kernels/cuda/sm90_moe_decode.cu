// sm90_nvfp4_bf16_experts_decode: all routed experts of a layer for few tokens, one launch.
//
// One block a multiprocessor, all resident. Each of 16 warps runs its own ring of bulk copies over
// one sequence of weight units: its part of GEMM1 (gate and up), then its part of GEMM2 (down). No
// block-wide barrier stands in the stream, so memory stays busy across the edge of the GEMMs.
//
//   lists  every block groups the routes by expert into items of up to 8 (the n of the mma)
//   GEMM1  task = (item, 32 rows). A group of 8 warps splits K, so that a warp's slice of x stays
//          in registers while the item lasts. Partial sums meet in shared memory; the warps take
//          turns in adding them up, applying the activation and storing h.
//   GEMM2  a block owns 16 or 32 rows of y for all routes. A warp, or a pair that splits K, takes
//          an item and loads that item's h until none of it is zero: what has not been stored yet
//          is zero, so there is neither grid barrier, nor fence, nor counter. Launches use two
//          halves of h in turn, and each makes the other's half zero again.
//   sum    over top-k in shared memory in the order of k; y is stored once.
//
// Measurements and what was tried: docs/performance.md.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/sm90_moe_decode.cuh"

namespace nibble::cuda {
namespace decode {
namespace {

// --- GEMM1 ---

__device__ __forceinline__ __nv_bfloat16 Activate(float gate, float up) {
  return __float2bfloat16(__fdividef(gate, 1.0f + __expf(-gate)) * up);
}

__device__ __forceinline__ __nv_bfloat16* RowOfH(const Args& a, const Smem& s, int route) {
  return a.h + static_cast<size_t>(2 * route + s.odd_launch) * a.padded_intermediate;
}

/// Stores h of one task, four features of a route at a time. A GEMM2 lane takes its 16 k's of a
/// 64-block as two 16-byte loads 64 bytes apart, hence the slots. The four features are one 8-byte
/// store and its low word is never zero: a zero tells GEMM2 that they are not there yet, so neither a
/// fence nor a counter is needed. (-0 for +0 changes no sum.)
__device__ __forceinline__ void StoreHidden(const Args& a, Smem& s, const Place& p, const Item& it,
                                            int task, const float (&gate)[kTaskTiles][2],
                                            const float (&up)[kTaskTiles][2]) {
  uint32_t pair[kTaskTiles];  // features g & ~1 and g | 1 of route 2t + g % 2
#pragma unroll
  for (int r = 0; r < kTaskTiles; ++r) {
    const __nv_bfloat162 both(Activate(gate[r][0], up[r][0]), Activate(gate[r][1], up[r][1]));
    const uint32_t mine = reinterpret_cast<const uint32_t&>(both);
    const uint32_t other = __shfl_xor_sync(~0u, mine, 4);
    pair[r] = __byte_perm(mine, other, p.g % 2 ? 0x3276 : 0x5410);
  }
  // Lanes of g < 4 store tile 0, the others tile 1.
  const uint32_t other = __shfl_xor_sync(~0u, p.g < 4 ? pair[1] : pair[0], 16);
  const uint32_t low = p.g < 4 ? pair[0] : other, high = p.g < 4 ? other : pair[1];
  const int column = 2 * p.t + p.g % 2, w = task % 4;
  if (column >= it.routes) return;
  const int slot = w / 2 * 32 + (2 * (p.g / 2 % 2) + p.g / 4) * 8 + 4 * (w % 2);
  StoreRelaxed(RowOfH(a, s, s.route[it.first + column]) + task / 4 * 64 + slot,
               low != 0 ? low : 0x80008000u, high);
}

/// Adds up a task's partial sums, applies the activation and stores h.
__device__ __forceinline__ void FinishTask(const Args& a, Smem& s, const Place& p, const Work& w,
                                           int i, int item, int task, float2 global) {
  const int buffer = i % kPartialBuffers;
  const Item it = UnpackItem(s.item[w.first_listed + item]);
  BarrierWait(SharedAddress(&s.partial_full[p.group][buffer]), i / kPartialBuffers & 1);
  float sum[kTaskTiles][4] = {};
#pragma unroll
  for (int k = 0; k < kGroupWarps; ++k) {
#pragma unroll
    for (int r = 0; r < kTaskTiles; ++r) {
      const float4 v = s.partial[p.group][buffer][k][r][p.lane];
      sum[r][0] += v.x, sum[r][1] += v.y, sum[r][2] += v.z, sum[r][3] += v.w;
    }
  }
  BarrierArrive(SharedAddress(&s.partial_empty[p.group][buffer]));
  const float gate_scale = global.x * kHopperWeightScale, up_scale = global.y * kHopperWeightScale;
  float gate[kTaskTiles][2], up[kTaskTiles][2];
#pragma unroll
  for (int r = 0; r < kTaskTiles; ++r) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      gate[r][c] = sum[r][c] * gate_scale;
      up[r][c] = sum[r][2 + c] * up_scale;
    }
  }
  StoreHidden(a, s, p, it, task, gate, up);
}

/// The token whose activations lane group g of an item multiplies; lanes past the last route repeat
/// it, and their results are dropped.
__device__ __forceinline__ const __nv_bfloat16* RowOfX(const Args& a, const Smem& s, const Place& p,
                                                       uint32_t item) {
  const Item it = UnpackItem(item);
  const int route = s.route[it.first + min(p.g, it.routes - 1)];
  return a.x + static_cast<size_t>(route / a.by_top_k) * a.hidden;
}

template <class C>
__device__ __forceinline__ void Gemm1(const Args& a, Smem& s, const Place& p, const Work& w,
                                      WeightStream<C>& stream) {
  constexpr int kSteps = C::kAnyShape ? kUnitSteps1 : C::kXSteps;
  uint32_t x[kSteps][8];
  int item = w.first_task_item, task = w.first_task - item * a.tasks, item_in_x = -1;
  // Warp j of the group finishes tasks j, j + 8, …, each one task late: its partial sums have come.
  int finish_item = item, finish_task = task + kGroups * p.k_part;
  while (finish_task >= a.tasks) finish_task -= a.tasks, ++finish_item;
  // Its global scales are asked for long before they are needed.
  const auto globals_of = [&](int i) {
    return i < w.items ? __ldg(a.g1 + UnpackItem(s.item[w.first_listed + i]).expert)
                       : make_float2(0, 0);
  };
  float2 globals = globals_of(finish_item);
  const __nv_bfloat16* row = nullptr;
#pragma unroll 1
  for (int i = 0; i <= w.tasks1; ++i) {
    if (i < w.tasks1) {
      if (item != item_in_x) {
        item_in_x = item;
        row = RowOfX(a, s, p, s.item[w.first_listed + item]);
        if constexpr (!C::kAnyShape) {
          const uint4* from = reinterpret_cast<const uint4*>(row + w.step1 * 64 + 16 * p.t);
#pragma unroll
          for (int k = 0; k < kSteps; ++k)
            Store8(x[k], __ldg(from + 8 * k), __ldg(from + 8 * k + 1));
        }
      }
      float acc[kTaskTiles][4] = {};
      const int units = C::kAnyShape ? w.units1 : C::kXSteps / kUnitSteps1;
#pragma unroll
      for (int u = 0; u < units; ++u) {
        int steps = kUnitSteps1;
        if constexpr (C::kAnyShape) {
          steps = min(kUnitSteps1, w.steps1 - u * kUnitSteps1);
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
            const int at = (w.step1 + u * kUnitSteps1 + k) * 64 + 16 * p.t;
            const uint4* from = reinterpret_cast<const uint4*>(row + at);
            const bool inside = k < steps && at < a.hidden;
            const uint4 zero = make_uint4(0, 0, 0, 0);
            Store8(x[k], inside ? __ldg(from) : zero, inside ? __ldg(from + 1) : zero);
          }
        }
        const uint8_t* unit = stream.Wait();
        if (i == 0 && u == 0) stream.Fill(true);
#pragma unroll
        for (int k = 0; k < kUnitSteps1; ++k) {
          if (C::kAnyShape && k >= steps) break;
          const uint32_t(&b)[8] = x[C::kAnyShape ? k : u * kUnitSteps1 + k];
#pragma unroll
          for (int r = 0; r < kTaskTiles; ++r) {
            MultiplyTile(unit + (k * kTaskTiles + r) * kHopperTileBytes, p.lane, b, acc[r]);
          }
        }
        stream.Release();
      }
      const int buffer = i % kPartialBuffers;
      if (i >= kPartialBuffers) {
        BarrierWait(SharedAddress(&s.partial_empty[p.group][buffer]),
                    (i / kPartialBuffers - 1) & 1);
      }
#pragma unroll
      for (int r = 0; r < kTaskTiles; ++r) {
        s.partial[p.group][buffer][p.k_part][r][p.lane] =
            make_float4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
      }
      BarrierArrive(SharedAddress(&s.partial_full[p.group][buffer]));
      task += kGroups;
      if (task >= a.tasks) task -= a.tasks, ++item;
    }
    if (i > 0 && (i - 1) % kGroupWarps == p.k_part) {
      FinishTask(a, s, p, w, i - 1, finish_item, finish_task, globals);
      finish_task += kGroups * kGroupWarps;
      while (finish_task >= a.tasks) finish_task -= a.tasks, ++finish_item;
      globals = globals_of(finish_item);
    }
  }
}

// --- GEMM2 ---

template <class C>
__device__ __forceinline__ void StoreColumns(const Args& a, Smem& s, const Place& p, const Work& w,
                                             int item, const float (&acc)[C::kTiles2][4]) {
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
__device__ __forceinline__ void Gemm2Block(const Args& a, Smem& s, const Place& p, const Work& w,
                                           WeightStream<C>& stream) {
  float acc[C::kTiles2][4];
  uint32_t b[C::kSteps2][8];
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
            MultiplyTile(weights + (k * C::kTiles2 + r) * kHopperTileBytes, p.lane, b[k], acc[r]);
          }
        }
        load_next(k);
      }
      stream.Release();
      if (unit == w.units2 - 1) {
        BarrierWait(SharedAddress(&s.gemm1_left), 0);
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

/// y for one row block: the sum over top-k in the order of k.
template <class C>
__device__ __forceinline__ void SumBlock(const Args& a, const Smem& s, const Work& w, int block) {
  const int other_half = a.routes * C::kRows2;
  for (int i = threadIdx.x; i < a.tokens * C::kRows2; i += kThreads) {
    // Neighbouring threads store neighbouring rows: j counts rows as y does, and HopperOutputRow
    // says where the tile has them.
    const int token = i / C::kRows2, j = i % C::kRows2;
    const int tile = C::kTiles2 == 2 ? j / 4 % 2 : 0, half = j / 2 % 2;
    const int g = (C::kTiles2 == 2 ? j / 8 : j / 4) * 2 + j % 2;
    const int row =
        C::kTiles2 == 2 ? block * 32 + j : block / 2 * 32 + j / 4 * 8 + block % 2 * 4 + j % 4;
    const float* out = s.out + token * a.top_k * C::kRows2 + tile * 16 + half * 8 + g;
    float sum = 0;
#pragma unroll 8
    for (int k = 0; k < a.top_k; ++k) {
      const int route = token * a.top_k + k;
      float v = out[k * C::kRows2];
      if (w.split_k) v += out[k * C::kRows2 + other_half];
      sum += s.valid[route / 32] >> (route % 32) & 1 ? v : 0.0f;
    }
    if (row < a.hidden) a.y[static_cast<size_t>(token) * a.hidden + row] = __float2bfloat16(sum);
  }
}

__device__ __forceinline__ void InitBarriers(Smem& s, const Place& p) {
  if (p.lane == 0) {
    for (int i = 0; i < kSlots; ++i) BarrierInit(SharedAddress(&s.full[p.warp][i]), 1);
    if (p.warp == 0) BarrierInit(SharedAddress(&s.gemm1_left), kThreads);
    if (p.k_part == 0) {
      for (int i = 0; i < kPartialBuffers; ++i) {
        BarrierInit(SharedAddress(&s.partial_full[p.group][i]), kGroupWarps * 32);
        BarrierInit(SharedAddress(&s.partial_empty[p.group][i]), 32);
      }
    }
  }
  BarrierInitFence();
}

/// Which half of h is this launch's and how much of the other is not zero. One thread asks, early;
/// the answer is stored when it is there.
struct Arrival {
  uint32_t before = 0, routes[2] = {};
};
__device__ __forceinline__ Arrival Arrive(const Args& a) {
  Arrival r;
  if (threadIdx.x == kThreads - 1) {
    r.routes[0] = a.state->routes[0], r.routes[1] = a.state->routes[1];
    r.before = atomicInc(&a.state->arrivals, 2 * gridDim.x - 1);
  }
  return r;
}
__device__ __forceinline__ void StoreArrival(const Args& a, Smem& s, const Arrival& r) {
  if (threadIdx.x != kThreads - 1) return;
  const bool odd = r.before >= gridDim.x;
  s.odd_launch = odd;
  s.old_routes = static_cast<int>(odd ? r.routes[0] : r.routes[1]);
  if (blockIdx.x == 0) a.state->routes[odd] = a.routes;
}

/// The h of the launch before becomes zero for the launch after this one.
__device__ __forceinline__ void ZeroOldHidden(const Args& a, const Smem& s) {
  const int row = a.padded_intermediate / 8, n = s.old_routes * row;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < n; i += gridDim.x * kThreads) {
    const int route = i / row;
    reinterpret_cast<uint4*>(a.h)[i + (route + 1 - s.odd_launch) * row] = make_uint4(0, 0, 0, 0);
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads, 1) MoeDecode(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) uint8_t raw[];
  Smem& s = *reinterpret_cast<Smem*>(raw);
  const Place p;
  InitBarriers(s, p);
  LetNextKernelStart();
  WaitForPreviousKernel();

  const Arrival arrival = Arrive(a);
  int items = -1;
  Work w;
  if (a.routes <= kFewRoutes) {
    items = ListsByWarp(a, s, p, p.lane < a.routes ? __ldg(a.ids + p.lane) : -1);
    w = Divide<C>(a, p, items, 32 * p.warp);
  }
  ThreadRoutes mine;
  const bool by_block = items < 0;
  if (by_block) {
    mine = LoadRoutes(a);
    LoadGlobals(a, mine);
    items = ListItems(a, s, p, mine);
    w = Divide<C>(a, p, items, 0);  // in either branch: a few tokens' path is shorter by the jump
  }
  WeightStream<C> stream(a, s, p, w);
  stream.Fill(false);
  StoreArrival(a, s, arrival);
  if (by_block) {
    ListRoutes(s, mine);
  } else {
    mine = LoadRoutes(a);
    LoadGlobals(a, mine);
    __syncthreads();
  }

  StoreFactors(a, s, mine);
  ZeroOldHidden(a, s);
  Gemm1<C>(a, s, p, w, stream);
  stream.Fill(true);
  BarrierArrive(SharedAddress(&s.gemm1_left));

  for (int i = 0; i < w.blocks2; ++i) {
    Gemm2Block<C>(a, s, p, w, stream);
    __syncthreads();
    SumBlock<C>(a, s, w, blockIdx.x + i * gridDim.x);
    if (i + 1 < w.blocks2) __syncthreads();
  }
}

// --- launch ---

// The workspace: LaunchState, then h. Neither's place depends on the number of tokens.
constexpr size_t kHiddenOffset = 256;
static_assert(sizeof(LaunchState) <= kHiddenOffset);

template <class C>
Result<void> Launch(Args args, cudaStream_t stream) {
  NIBBLE_TRY(const int blocks, MultiprocessorCount());
  args.by_grid = Divisor(blocks);
  args.by_weight = 1.0f / static_cast<float>(2 * blocks + std::max(blocks - args.row_blocks, 0));
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(MoeDecode<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       sizeof(Smem)));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Smem);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, MoeDecode<C>, args));
  return {};
}

Result<void> LaunchFor(const Args& args, cudaStream_t stream) {
  const bool wide = args.hidden > 2048;  // HopperW2Layout: two tiles a row block
  if (!wide && args.hidden == 2048) {
    if (args.steps2 % 8 == 0 && args.tokens >= 4) return Launch<Config<4, 1, 8>>(args, stream);
    if (args.steps2 % 6 == 0) return Launch<Config<4, 1, 6>>(args, stream);
    if (args.steps2 % 4 == 0) return Launch<Config<4, 1, 4>>(args, stream);
  }
  if (args.hidden == 4096 && args.steps2 % 4 == 0) return Launch<Config<8, 2, 4>>(args, stream);
  if (wide) return Launch<Config<0, 2, 4>>(args, stream);
  return Launch<Config<0, 1, 4>>(args, stream);
}

}  // namespace
}  // namespace decode

int Sm90MoeDecodeMaxTokens(const Sm90MoeShape& shape) {
  const int rows = HopperW2Layout(shape.hidden, shape.intermediate).tiles_per_block * 16;
  const int routes = std::min(decode::kMaxRoutes, decode::kOutFloats / rows);
  return routes / shape.top_k;
}

size_t Sm90MoeDecodeWorkspace(const Sm90MoeShape& shape, int tokens) {
  return decode::kHiddenOffset + static_cast<size_t>(tokens) * shape.top_k * 2 *
                                     RoundUpTo(shape.intermediate, 64) * sizeof(Bf16);
}

Result<void> LaunchSm90MoeDecode(const Sm90MoeParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Moe(params, Sm90MoeDecodeMaxTokens(params.shape)));
  const Sm90MoeShape& shape = params.shape;
  const HopperLayout l13 = HopperW13Layout(shape.hidden, shape.intermediate);
  const HopperLayout l2 = HopperW2Layout(shape.hidden, shape.intermediate);
  decode::Args a{};
  a.x = reinterpret_cast<const __nv_bfloat16*>(params.x);
  a.ids = params.ids;
  a.route_weights = params.weights;
  a.w13 = params.w13;
  a.w2 = params.w2;
  a.g1 = reinterpret_cast<const float2*>(params.g1);
  a.g2 = params.g2;
  a.y = reinterpret_cast<__nv_bfloat16*>(params.y);
  a.state = reinterpret_cast<decode::LaunchState*>(params.workspace);
  a.h = reinterpret_cast<__nv_bfloat16*>(params.workspace + decode::kHiddenOffset);
  a.tokens = params.tokens;
  a.top_k = shape.top_k;
  a.routes = params.tokens * shape.top_k;
  a.experts = shape.experts;
  a.hidden = shape.hidden;
  a.padded_intermediate = static_cast<int>(RoundUpTo(shape.intermediate, 64));
  a.steps1 = static_cast<int>(l13.k_blocks);
  a.steps2 = static_cast<int>(l2.k_blocks);
  a.tasks = static_cast<int>(l13.tiles / decode::kTaskTiles);
  a.row_blocks = static_cast<int>(l2.tiles / l2.tiles_per_block);
  a.by_top_k = decode::Divisor(shape.top_k);
  a.by_tasks = decode::Divisor(a.tasks);
  a.tiles13 = static_cast<uint32_t>(l13.tiles * l13.k_blocks);
  a.tiles2 = static_cast<uint32_t>(l2.tiles * l2.k_blocks);
  return decode::LaunchFor(a, stream);
}

}  // namespace nibble::cuda
