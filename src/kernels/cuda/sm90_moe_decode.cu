// sm90_nvfp4_bf16_experts_decode: all routed experts of a layer for few tokens, one launch.
//
// One block a multiprocessor, all resident. Each of 16 warps runs its own ring of bulk copies over
// one sequence of weight units: its part of GEMM1 (gate and up), then its part of GEMM2 (down). No
// block-wide barrier stands in the stream, so memory stays busy across the edge of the GEMMs.
//
//   lists  every block groups the routes by expert into items of up to 8 (the n of the mma)
//   GEMM1  task = (item, 32 rows). A group of 8 warps splits K, so that a warp's slice of x stays
//          in registers while the item lasts. Partial sums meet in shared memory; the warps take
//          turns in adding them up, applying the activation and storing h. A counter per item in
//          global memory says how many of its tasks are done.
//   GEMM2  a block owns 16 or 32 rows of y for all routes. A warp, or a pair that splits K, takes
//          an item and waits for that item's counter alone: there is no grid barrier.
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

/// Where, in h's 64-block, a GEMM2 lane looks for the feature of row g of a w13 tile: lane t takes
/// its 16 k's as two 16-byte loads 64 bytes apart.
__device__ __forceinline__ int HiddenSlot(int task, int tile, int g) {
  const int w = task % 4, a = g / 2;
  return w / 2 * 32 + (2 * (a % 2) + tile) * 8 + 4 * (w % 2) + 2 * (a / 2) + g % 2;
}

/// Adds up a task's partial sums, applies the activation, stores h and counts the task.
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
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (2 * p.t + c >= it.routes) continue;
    const int route = s.route[it.first + 2 * p.t + c];
    __nv_bfloat16* h = a.h + static_cast<size_t>(route) * a.padded_intermediate + task / 4 * 64;
#pragma unroll
    for (int r = 0; r < kTaskTiles; ++r) {
      const float gate = sum[r][c] * gate_scale, up = sum[r][2 + c] * up_scale;
      const float silu = __fdividef(gate, 1.0f + __expf(-gate));
      h[HiddenSlot(task, r, p.g)] = __float2bfloat16(silu * up);
    }
  }
  __syncwarp();
  if (p.lane == 0) AddRelease(a.counters + item * kCounterStride, 1);
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

/// Counts the warps, then the blocks, that will poll no more; true in the one warp of the grid that
/// is the last, which may reset the counters.
__device__ __forceinline__ bool PastPolls(const Args& a, Smem& s, int lane) {
  bool last = false;
  if (lane == 0 && atomicAdd(&s.warps_past_polls, 1u) == kWarps - 1) {
    last = atomicInc(a.exit_counter, gridDim.x - 1) == gridDim.x - 1;
  }
  return __shfl_sync(~0u, static_cast<int>(last), 0);
}

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

/// All of this warp's items for one row block. Returns true in the warp that may reset the counters.
template <class C>
__device__ __forceinline__ bool Gemm2Block(const Args& a, Smem& s, const Place& p, const Work& w,
                                           WeightStream<C>& stream, bool first_block) {
  float acc[C::kTiles2][4];
  uint32_t b[C::kSteps2][8];
  int item = w.first_item, next_item = item, unit = 0, next_unit = 0, steps = C::kSteps2;
  const uint4* h = nullptr;
  bool may_reset = false;
  const int units = w.items2 * w.units2;
#pragma unroll 1
  for (int i = -1; i < units; ++i) {  // i = -1 only loads the first activations
    const bool more = i + 1 < units;
    int next_steps = C::kSteps2;
    if (more) {
      if (next_unit == 0) {
        const Item it = UnpackItem(s.item[w.first_listed + next_item]);
        const int route = s.route[it.first + min(p.g, it.routes - 1)];
        if (first_block) {
          const uint32_t* counter = a.counters + next_item * kCounterStride;
          if (p.lane == 0) {
            while (LoadAcquire(counter) != static_cast<uint32_t>(a.tasks)) {
            }
          }
          __syncwarp();
          if (next_item + w.item_stride >= w.items) may_reset = PastPolls(a, s, p.lane);
        }
        h = reinterpret_cast<const uint4*>(a.h +
                                           static_cast<size_t>(route) * a.padded_intermediate +
                                           w.unit2 * C::kSteps2 * 64) +
            p.t;
      } else {
        h += C::kSteps2 * 8;
      }
      if constexpr (C::kAnyShape) {
        next_steps = min(C::kSteps2, a.steps2 - (w.unit2 + next_unit) * C::kSteps2);
      }
    }
    if (i < 0) {
#pragma unroll
      for (int k = 0; k < C::kSteps2; ++k) {
        if (!C::kAnyShape || k < next_steps) Store8(b[k], LoadL2(h + 8 * k), LoadL2(h + 8 * k + 4));
      }
    } else {
      const uint8_t* weights = stream.Wait();
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
        if (more && (!C::kAnyShape || k < next_steps)) {
          Store8(b[k], LoadL2(h + 8 * k), LoadL2(h + 8 * k + 4));
        }
      }
      stream.Release();
      if (unit == w.units2 - 1) StoreColumns<C>(a, s, p, w, item, acc);
    }
    steps = next_steps;
    item = next_item;
    unit = next_unit;
    if (++next_unit == w.units2) {
      next_unit = 0;
      next_item += w.item_stride;
    }
  }
  return may_reset;
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

template <class C>
__global__ void __launch_bounds__(kThreads, 1) MoeDecode(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) uint8_t raw[];
  Smem& s = *reinterpret_cast<Smem*>(raw);
  const Place p;
  int first_id = -1;
  if (a.routes <= 32 && p.lane < a.routes) first_id = __ldg(a.ids + p.lane);
  ThreadRoutes mine = LoadRoutes(a);

  if (p.lane == 0) {
    for (int i = 0; i < kSlots; ++i) BarrierInit(SharedAddress(&s.full[p.warp][i]), 1);
    if (p.k_part == 0) {
      for (int i = 0; i < kPartialBuffers; ++i) {
        BarrierInit(SharedAddress(&s.partial_full[p.group][i]), kGroupWarps * 32);
        BarrierInit(SharedAddress(&s.partial_empty[p.group][i]), 32);
      }
    }
    if (p.warp == 0) s.warps_past_polls = 0;
  }
  BarrierInitFence();

  int items = -1;
  LoadGlobals(a, mine);
  if (a.routes <= 32) items = ListsByWarp(a, s, p, first_id);
  const bool by_block = items < 0;
  if (by_block) items = ListItems(a, s, p, mine);
  const Work w = Divide<C>(a, p, items, by_block ? 0 : 32 * p.warp);
  WeightStream<C> stream(a, s, p, w);
  stream.Fill(false);
  if (by_block) {
    ListRoutes(s, mine);
  } else {
    __syncthreads();
  }

  StoreFactors(a, s, mine);
  Gemm1<C>(a, s, p, w, stream);
  stream.Fill(true);
  __syncthreads();  // the partial sums' memory becomes `out`

  bool may_reset = false;
  if (!stream.has_gemm2()) may_reset = PastPolls(a, s, p.lane);
  for (int i = 0; i < max(w.blocks2, 1); ++i) {
    if (stream.has_gemm2()) may_reset |= Gemm2Block<C>(a, s, p, w, stream, i == 0);
    __syncthreads();
    const int block = blockIdx.x + i * gridDim.x;
    if (block < a.row_blocks) SumBlock<C>(a, s, w, block);
    if (i + 1 < w.blocks2) __syncthreads();
  }
  if (may_reset) {
    for (int i = p.lane; i < items; i += 32) a.counters[i * kCounterStride] = 0;
  }
}

// --- launch ---

struct Workspace {
  size_t counters, exit_counter, h, bytes;
};
// The counters' places do not depend on the number of tokens: a launch of few tokens must leave alone
// what one of many needs to be zero.
Workspace Layout(const Sm90MoeShape& shape, int tokens) {
  Workspace ws{};
  ws.exit_counter = kMaxRoutes * kCounterStride * sizeof(uint32_t);
  ws.h = ws.exit_counter + 256;
  ws.bytes = ws.h + static_cast<size_t>(tokens) * shape.top_k * RoundUpTo(shape.intermediate, 64) *
                        sizeof(Bf16);
  return ws;
}

template <class C>
Result<void> Launch(Args args, cudaStream_t stream) {
  NIBBLE_TRY(const int blocks, MultiprocessorCount());
  args.by_grid = Divisor(blocks);
  args.by_weight = 1.0f / static_cast<float>(2 * blocks + std::max(blocks - args.row_blocks, 0));
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(MoeDecode<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       sizeof(Smem)));
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Smem);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
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
  return decode::Layout(shape, tokens).bytes;
}

Result<void> LaunchSm90MoeDecode(const Sm90MoeParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Moe(params, Sm90MoeDecodeMaxTokens(params.shape)));
  const Sm90MoeShape& shape = params.shape;
  const HopperLayout l13 = HopperW13Layout(shape.hidden, shape.intermediate);
  const HopperLayout l2 = HopperW2Layout(shape.hidden, shape.intermediate);
  const decode::Workspace ws = decode::Layout(shape, params.tokens);
  decode::Args a{};
  a.x = reinterpret_cast<const __nv_bfloat16*>(params.x);
  a.ids = params.ids;
  a.route_weights = params.weights;
  a.w13 = params.w13;
  a.w2 = params.w2;
  a.g1 = reinterpret_cast<const float2*>(params.g1);
  a.g2 = params.g2;
  a.y = reinterpret_cast<__nv_bfloat16*>(params.y);
  a.h = reinterpret_cast<__nv_bfloat16*>(params.workspace + ws.h);
  a.counters = reinterpret_cast<uint32_t*>(params.workspace);
  a.exit_counter = reinterpret_cast<uint32_t*>(params.workspace + ws.exit_counter);
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
