#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/sm90_divisor.cuh"
#include "kernels/cuda/sm90_ptx.cuh"

// sm90_nvfp4_{bf16,nvfp4}_experts_decode: what its parts share. See sm90_moe_decode.cu for the whole.

namespace nibble::cuda::decode {

inline constexpr int kWarps = 16;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kGroups = 2;      // of kGroupWarps warps, which share a GEMM1 task
inline constexpr int kGroupWarps = 8;  // each takes an eighth of K
inline constexpr int kSlots = 2;       // of a warp's ring
inline constexpr int kSlotBytes = 8 * kHopperTileBytes;
inline constexpr int kItemRoutes = 8;  // the n of the mma
inline constexpr int kEvenTasks = 13;  // a block; from there on the shares are uneven
inline constexpr int kMaxRoutes = 1024;
inline constexpr int kFewRoutes = 32;  // a warp lists them by itself
inline constexpr int kMaxExperts = 1024;
inline constexpr int kOutFloats = 16384;
inline constexpr int kTaskTiles = 2;  // a GEMM1 task is 32 rows: 16 features, 32 without a gate

/// What launches leave in the workspace for the next.
struct LaunchState {
  uint32_t ended;      // blocks, modulo two launches
  uint32_t routes[2];  // that the last even and the last odd launch stored h of
};

/// What differs between layers of one shape.
struct Layer {
  const uint8_t *w13, *w2;
  const float *g1, *g2;  // [E][shards], [E]
  // [routes][even, odd launch][padded I], inside 64-blocks in the order of HiddenSlot(). What a launch
  // has not stored yet is zero.
  __nv_bfloat16* h;
  const float *a1, *a2;  // gscales [E][shards] and [E], with NVFP4 activations alone
};

struct Args {
  const __nv_bfloat16* x;
  const int32_t* ids;
  const float* route_weights;
  Layer layer;
  __nv_bfloat16* y;
  LaunchState* state;
  int tokens, top_k, routes, experts;
  int hidden, padded_intermediate;
  int steps1, steps2;  // of 64 k, in GEMM1 and GEMM2
  int tasks;           // GEMM1 tasks an item
  Divisor by_top_k, by_tasks, by_grid;
  float by_weight;           // 1 / the weight of all blocks: 2 each, 3 without rows of w2
  int row_blocks;            // of w2
  uint32_t tiles13, tiles2;  // 576-byte tiles an expert
  // What is not needed at once comes last: a block's first look at each line of arguments is slow.
  ActivationArgs activation;
  int a1_step;      // from one expert's a1 to the next: its shards, or 0 if all are equal
  int x_passes;     // configurations of any shape: 0: x comes quantized; 2: once for gate,
                    // once for up, whose gscales differ
  const float* b2;  // [E][H] or null
};

/// What is computed between the weights: a template parameter of all that differs by it.
template <Activate kActivate_, bool kFp4_, HopperFormat kFormat_ = HopperFormat::kNvfp4>
struct Numerics {
  static constexpr HopperFormat kFormat = kFormat_;                 // of the weights
  static constexpr bool kScaled = kFormat == HopperFormat::kNvfp4;  // by globals
  static constexpr Activate kActivate = kActivate_;
  static constexpr bool kFp4 = kFp4_;  // activations are NVFP4 in both GEMMs
  static constexpr bool kGated = IsGated(kActivate);
};

// An item: up to eight routes of one expert, as expert | routes << 12 | first position << 16.
struct Item {
  int expert, routes, first;
};
__device__ __forceinline__ uint32_t PackItem(int expert, int routes, int first) {
  return static_cast<uint32_t>(expert) | static_cast<uint32_t>(routes) << 12 |
         static_cast<uint32_t>(first) << 16;
}
__device__ __forceinline__ Item UnpackItem(uint32_t v) {
  return {static_cast<int>(v & 0xFFF), static_cast<int>(v >> 12 & 15), static_cast<int>(v >> 16)};
}

struct ListScratch {
  uint32_t count[kMaxExperts];
  uint16_t start[kMaxExperts];
  uint32_t warp_sum[kWarps];
};

struct Nothing {};

/// kRoutes: at most, or 32 a warp where warps list them. kX: numbers of x that are kept here, if any are,
/// and with them the layer.
template <int kRoutes_, int kPartialBuffers_, int kX>
struct SmemOf {
  static constexpr int kRoutes = kRoutes_, kPartialBuffers = kPartialBuffers_;
  static constexpr int kQuantized = kX / kGroupWarps;
  alignas(128) uint8_t ring[kWarps][kSlots][kSlotBytes];
  union {
    ListScratch lists;                                                      // setup
    float4 partial[kGroups][kPartialBuffers][kGroupWarps][kTaskTiles][32];  // GEMM1
    float out[kGroups * kPartialBuffers * kGroupWarps * kTaskTiles * 32 *
              4];  // GEMM2: [half][route][row]
  };
  alignas(16) __nv_bfloat16 x[kX > 0 ? kX : 8];
  alignas(16) __nv_bfloat16 quantized[kX > 0 ? kWarps : 1][kX > 0 ? kQuantized : 8];  // a warp's x
  [[no_unique_address]] std::conditional_t<(kX > 0), Layer, Nothing> layer;
  uint32_t touched[kX > 0 ? 1 : kWarps][2][32];  // what TouchX reads goes here and nowhere
  float scales[kWarps][8];  // of the item that a warp finishes next, see ItemScales
  uint64_t full[kWarps][kSlots];
  uint64_t partial_full[kGroups][kPartialBuffers];
  uint64_t partial_empty[kGroups][kPartialBuffers];
  uint64_t gemm1_left;  // the partial sums' memory may become `out`
  uint32_t item[kRoutes];
  float factor[kRoutes];             // router weight * global scale of down
  uint32_t valid[kRoutes / 32 + 1];  // bit set: the route has an expert
  uint16_t route[kRoutes];           // position in the items -> route
  int odd_launch, old_routes;        // the latter: of the launch before
};
using Smem = SmemOf<kMaxRoutes, 4, 0>;
static_assert(sizeof(Smem::out) == kOutFloats * sizeof(float));
static_assert(sizeof(Smem) <= 232448, "the shared memory of a Hopper block");

template <class S>
__device__ __forceinline__ const Layer& LayerOf(const Args& a, const S& s) {
  if constexpr (std::is_same_v<decltype(s.layer), Layer>) {
    return s.layer;
  } else {
    return a.layer;
  }
}

/// Where feature f of a 64-block of h lies in it.
__device__ __forceinline__ int HiddenSlot(int f) { return f / 16 * 8 + f / 8 % 2 * 32 + f % 8; }

/// This thread's place.
struct Place {
  int lane, warp, group, k_part, g, t;
  __device__ Place()
      : lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        group(warp / kGroupWarps),
        k_part(warp % kGroupWarps),
        g(lane / 4),
        t(lane % 4) {}
};

// --- the routes of a thread: threadIdx.x and threadIdx.x + kThreads ---

inline constexpr int kRoutesAThread = kMaxRoutes / kThreads;

struct ThreadRoutes {
  int id[kRoutesAThread];    // the expert, -1 without one
  int rank[kRoutesAThread];  // the order in which ListItems counted the route
  float weight[kRoutesAThread], global[kRoutesAThread], gscale[kRoutesAThread];
};

__device__ __forceinline__ ThreadRoutes LoadRoutes(const Args& a, const int32_t* ids,
                                                   const float* weights) {
  ThreadRoutes r;
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    const int route = threadIdx.x + i * kThreads;
    r.id[i] = route < a.routes ? ids[route] : -1;
    r.weight[i] = route < a.routes ? weights[route] : 0.0f;
  }
  return r;
}

/// Drops invalid ids and asks for the others' global scale of down.
template <class N>
__device__ __forceinline__ void LoadGlobals(const Args& a, ThreadRoutes& r) {
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    if (static_cast<unsigned>(r.id[i]) >= static_cast<unsigned>(a.experts)) r.id[i] = -1;
    if constexpr (N::kScaled) {
      r.global[i] = r.id[i] >= 0 ? __ldg(a.layer.g2 + r.id[i]) : 0.0f;
    }
    if constexpr (N::kFp4) r.gscale[i] = r.id[i] >= 0 ? __ldg(a.layer.a2 + r.id[i]) : 1.0f;
  }
}

/// For GEMM2; after everything that the first weights wait for.
template <class N, class S>
__device__ __forceinline__ void StoreFactors(const Args& a, S& s, const ThreadRoutes& r) {
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    const int route = threadIdx.x + i * kThreads;
    float global = N::kScaled ? r.global[i] * kHopperWeightScale : 1.0f;
    if constexpr (N::kFp4) global *= Reciprocal(r.gscale[i]);
    if (route < a.routes) s.factor[route] = r.weight[i] * global;
  }
}

// --- routing: the list of items, built by every block for itself ---

/// For at most 32 routes: every warp makes its own lists, from 32 * warp on, so that the first weights
/// are asked for without a block barrier. Returns the number of items, or -1 when an expert has more
/// routes than an item holds.
template <class S>
__device__ __forceinline__ int ListsByWarp(const Args& a, S& s, const Place& p, int id) {
  const int lane = p.lane, base = 32 * p.warp;
  const bool valid =
      lane < a.routes && static_cast<unsigned>(id) < static_cast<unsigned>(a.experts);
  const int key = valid ? id : -1 - lane;
  uint32_t same = 1u << lane;
  if (a.routes <= 16) {  // sooner than match_any
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      if (__shfl_sync(~0u, key, j) == key) same |= 1u << j;
    }
  } else {
    same = __match_any_sync(~0u, key);
  }
  const int rank = __popc(same & ((1u << lane) - 1)), count = valid ? __popc(same) : 0;
  if (__any_sync(~0u, count > kItemRoutes)) return -1;
  const bool leader = valid && rank == 0;
  const uint32_t leaders = __ballot_sync(~0u, leader);
  const int mine = leader ? count : 0;
  int start = __popc(leaders & ((1u << lane) - 1));
  if (__any_sync(~0u, count > 1)) {  // not for one token
    int sum = mine;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      const int n = __shfl_up_sync(~0u, sum, o);
      if (lane >= o) sum += n;
    }
    start = __shfl_sync(~0u, sum - mine, __ffs(same) - 1);
  }
  if (leader) {
    s.item[base + __popc(leaders & ((1u << lane) - 1))] = PackItem(id, count, base + start);
  }
  if (valid) s.route[base + start + rank] = static_cast<uint16_t>(lane);
  const uint32_t valid_mask = __ballot_sync(~0u, valid);
  if (threadIdx.x == 0) s.valid[0] = valid_mask;
  __syncwarp();
  return __popc(leaders);
}

/// Any number of routes: counts by expert and makes the items. Ends with a barrier.
template <class S>
__device__ __forceinline__ int ListItems(const Args& a, S& s, const Place& p,
                                         ThreadRoutes& routes) {
  ListScratch& c = s.lists;
  const int tid = threadIdx.x;
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    const uint32_t valid = __ballot_sync(~0u, routes.id[i] >= 0);
    if (p.lane == 0) s.valid[(tid + i * kThreads) / 32] = valid;
  }
  for (int i = tid; i < kMaxExperts; i += kThreads) c.count[i] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    if (routes.id[i] >= 0) routes.rank[i] = static_cast<int>(atomicAdd(&c.count[routes.id[i]], 1u));
  }
  __syncthreads();
  // Routes in the low half, items in the high half of one scanned word.
  const uint2 n = reinterpret_cast<const uint2*>(c.count)[tid];
  const uint32_t mine = (n.x + n.y) | ((n.x + 7) / 8 + (n.y + 7) / 8) << 16;
  uint32_t sum = mine;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const uint32_t v = __shfl_up_sync(~0u, sum, o);
    if (p.lane >= o) sum += v;
  }
  if (p.lane == 31) c.warp_sum[p.warp] = sum;
  __syncthreads();
  uint32_t before = sum - mine, total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const uint32_t v = c.warp_sum[i];
    if (i < p.warp) before += v;
    total += v;
  }
  int start = static_cast<int>(before & 0xFFFF), item = static_cast<int>(before >> 16);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int expert = 2 * tid + i, count = static_cast<int>(i == 0 ? n.x : n.y);
    c.start[expert] = static_cast<uint16_t>(start);
    for (int done = 0; done < count; done += kItemRoutes) {
      s.item[item++] = PackItem(expert, min(kItemRoutes, count - done), start + done);
    }
    start += count;
  }
  __syncthreads();
  return static_cast<int>(total >> 16);
}

/// Puts every route at its position and ends with a barrier. Within an item the order is free, so
/// the ranks that the atomics gave will do. An expert with several items needs the same membership
/// in every block: there the rank is the number of smaller routes.
template <class S>
__device__ __forceinline__ void ListRoutes(S& s, const ThreadRoutes& routes) {
  const ListScratch& c = s.lists;
  bool crowded = false;
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    const int id = routes.id[i];
    if (id < 0) continue;
    crowded |= c.count[id] > kItemRoutes;
    s.route[c.start[id] + routes.rank[i]] = static_cast<uint16_t>(threadIdx.x + i * kThreads);
  }
  if (!__syncthreads_or(crowded)) return;
  int rank[kRoutesAThread] = {};
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    const int id = routes.id[i], route = threadIdx.x + i * kThreads;
    if (id < 0) continue;
    const int count = static_cast<int>(c.count[id]);
    for (int r = 0; r < count; ++r) rank[i] += s.route[c.start[id] + r] < route;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRoutesAThread; ++i) {
    const int id = routes.id[i];
    if (id >= 0) s.route[c.start[id] + rank[i]] = static_cast<uint16_t>(threadIdx.x + i * kThreads);
  }
  __syncthreads();
}

// --- the weights of one warp, in the order in which it needs them ---

/// A configuration: kXSteps of 64 k a warp keeps in registers during GEMM1 (0: any K, reloaded for
/// every unit), kTiles2 tiles of a w2 row block, kSteps2 of 64 k a GEMM2 unit.
template <int kXSteps_, int kTiles2_, int kSteps2_, HopperFormat kFormat_ = HopperFormat::kNvfp4,
          class Smem_ = Smem>
struct Config {
  using Smem = Smem_;
  static constexpr bool kSharedX =
      !std::is_same_v<Smem, decode::Smem>;  // one token, whose x lies in it
  static constexpr int kXSteps = kXSteps_, kTiles2 = kTiles2_, kSteps2 = kSteps2_;
  static constexpr HopperFormat kFormat = kFormat_;
  static constexpr int kTileBytes = HopperTileBytes(kFormat);
  static constexpr int kUnitSteps1 = kSlotBytes / (kTaskTiles * kTileBytes);  // of 64 k
  static constexpr bool kAnyShape = kXSteps == 0;  // K of either GEMM need not be whole units
  static constexpr int kRows2 = kTiles2 * kHopperTileRows;
  static constexpr int kStepBytes2 = kTiles2 * kTileBytes;
  static_assert(kSteps2 * kStepBytes2 <= kSlotBytes);
};

/// The part of the work that falls to this warp.
struct Work {
  int items, first_listed;                  // this warp's list: s.item[first_listed ...]
  int first_task, first_task_item, tasks1;  // this group's tasks: first_task, first_task + 2, …
  int step1, steps1, units1;                // this warp's k steps of a task and the units they make
  bool split_k;                             // two warps share an item of GEMM2
  int half, first_item, item_stride, items2;
  int unit2, units2;  // this warp's units of an item of GEMM2
  int blocks2;        // w2 row blocks of this CTA
  uint32_t turn = 0;  // parity of gemm1_left
};

/// Where a block's share of `all` GEMM1 tasks begins. Blocks without rows of w2 have no GEMM2 and take
/// half as much again of GEMM1, unless there are so few tasks that one more would be a longer delay.
__device__ __forceinline__ int FirstTask(const Args& a, int all, int block) {
  const int grid = gridDim.x;
  if (all < kEvenTasks * grid) {
    const int share = all / a.by_grid, rest = all - share * grid;  // the first `rest` take one more
    return block * share + min(block, rest);
  }
  if (block == grid) return all;
  const int weight = 2 * block + max(block - a.row_blocks, 0);
  return static_cast<int>(static_cast<float>(all) * static_cast<float>(weight) * a.by_weight);
}

/// GEMM1 of the first `done` items has none.
template <class C>
__device__ __forceinline__ Work Divide(const Args& a, const Place& p, int items, int first_listed,
                                       int done = 0) {
  Work w;
  w.items = items;
  w.first_listed = first_listed;
  const int all = (items - done) * a.tasks;
  const int begin = FirstTask(a, all, blockIdx.x), end = FirstTask(a, all, blockIdx.x + 1);
  w.first_task = done * a.tasks + begin + p.group;
  w.first_task_item = w.first_task / a.by_tasks;
  w.tasks1 = (end - begin - p.group + 1) / 2;
  if constexpr (C::kAnyShape) {
    w.step1 = p.k_part * a.steps1 / kGroupWarps;
    w.steps1 = (p.k_part + 1) * a.steps1 / kGroupWarps - w.step1;
    w.units1 = (w.steps1 + C::kUnitSteps1 - 1) / C::kUnitSteps1;
  } else {
    w.step1 = p.k_part * C::kXSteps;
    w.steps1 = C::kXSteps;
    w.units1 = C::kXSteps / C::kUnitSteps1;
  }
  const int units = (a.steps2 + C::kSteps2 - 1) / C::kSteps2;
  w.split_k = units > 1 && 2 * a.routes * C::kRows2 <= static_cast<int>(sizeof(C::Smem::out) / 4) &&
              (units % 2 == 0 || items <= 16);
  w.half = w.split_k ? p.warp % 2 : 0;
  w.first_item = w.split_k ? p.warp / 2 : p.warp;
  w.item_stride = w.split_k ? kWarps / 2 : kWarps;
  w.unit2 = w.half ? units - units / 2 : 0;
  w.units2 = w.split_k ? (w.half ? units / 2 : units - units / 2) : units;
  w.items2 = (max(items - w.first_item, 0) + w.item_stride - 1) >> (w.split_k ? 3 : 4);
  w.blocks2 = 0;
  for (int block = blockIdx.x; block < a.row_blocks; block += gridDim.x) ++w.blocks2;
  return w;
}

/// A ring of kSlots units in shared memory over the warp's units: those of GEMM1, task by task, then
/// those of GEMM2, which depend on nothing and so are on their way before GEMM1 has ended.
template <class C>
class WeightStream {
 public:
  using S = typename C::Smem;
  /// `phases`: what the stream that used these barriers before has left.
  __device__ WeightStream(const Args& a, S& s, const Place& p, const Work& w, uint32_t phases = 0)
      : a_(a),
        s_(s),
        w_(w),
        lane_(p.lane),
        ring_(s.ring[p.warp][0]),
        ring_address_(SharedAddress(s.ring[p.warp][0])),
        full_(SharedAddress(s.full[p.warp])),
        end1_(w.tasks1 * w.units1),
        end_(end1_ + w.blocks2 * w.items2 * w.units2),
        task1_item_(w.first_task_item),
        task1_(w.first_task - task1_item_ * a.tasks),
        item2_(w.first_item),
        block2_(blockIdx.x),
        phases_(phases) {}

  /// Asks for units up to a full ring, or to `slots` of it. GEMM2's are left out at first: they would
  /// take bandwidth from the units that everyone is waiting for.
  __device__ __forceinline__ void Fill(bool gemm2, int slots = kSlots) {
    const int end = gemm2 ? end_ : end1_;
#pragma unroll 1
    while (issued_ < slots && issued_ < end) Issue();
  }

  /// The next unit, once it has arrived.
  __device__ __forceinline__ const uint8_t* Wait() {
    BarrierWait(full_ + 8 * slot_, phases_ >> slot_ & 1);
    return ring_ + slot_ * kSlotBytes;
  }

  /// The unit has been read by all lanes; asks for the one that takes its place.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    phases_ ^= 1u << slot_;
    if (++slot_ == kSlots) slot_ = 0;
    if (issued_ < end_) Issue();
  }
  /// Of the slots' barriers.
  __device__ __forceinline__ uint32_t phases() const { return phases_; }

  __device__ __forceinline__ bool has_gemm2() const { return end_ > end1_; }

 private:
  __device__ __forceinline__ void Issue() {
    const uint8_t* from;
    uint32_t bytes;
    if (issued_ < end1_) {
      const int expert = s_.item[w_.first_listed + task1_item_] & 0xFFF;
      const int step = unit1_ * C::kUnitSteps1;
      const uint32_t tile =
          expert * a_.tiles13 + (task1_ * a_.steps1 + w_.step1 + step) * kTaskTiles;
      from = LayerOf(a_, s_).w13 + static_cast<uint64_t>(tile) * C::kTileBytes;
      const int steps = C::kAnyShape ? min(C::kUnitSteps1, w_.steps1 - step) : C::kUnitSteps1;
      bytes = steps * kTaskTiles * C::kTileBytes;
      if (++unit1_ == w_.units1) {
        unit1_ = 0;
        task1_ += kGroups;
        if (task1_ >= a_.tasks) {
          task1_ -= a_.tasks;
          ++task1_item_;
        }
      }
    } else {
      const int expert = s_.item[w_.first_listed + item2_] & 0xFFF;
      const int step = (w_.unit2 + unit2_) * C::kSteps2;
      const uint32_t tile = expert * a_.tiles2 + (block2_ * a_.steps2 + step) * C::kTiles2;
      from = LayerOf(a_, s_).w2 + static_cast<uint64_t>(tile) * C::kTileBytes;
      const int steps = C::kAnyShape ? min(C::kSteps2, a_.steps2 - step) : C::kSteps2;
      bytes = steps * C::kStepBytes2;
      if (++unit2_ == w_.units2) {
        unit2_ = 0;
        item2_ += w_.item_stride;
        if (item2_ >= w_.items) {
          item2_ = w_.first_item;
          block2_ += gridDim.x;
        }
      }
    }
    if (lane_ == 0) {
      BarrierArriveExpect(full_ + 8 * issue_slot_, bytes);
      BulkCopyEvictFirst(ring_address_ + issue_slot_ * kSlotBytes, from, bytes,
                         full_ + 8 * issue_slot_);
    }
    ++issued_;
    if (++issue_slot_ == kSlots) issue_slot_ = 0;
  }

  const Args& a_;
  S& s_;
  const Work& w_;
  const int lane_;
  const uint8_t* ring_;
  const uint32_t ring_address_, full_;
  const int end1_, end_;
  int task1_item_, task1_, unit1_ = 0;
  int item2_, block2_, unit2_ = 0;
  int issued_ = 0, issue_slot_ = 0, slot_ = 0;
  uint32_t phases_;
};

/// Multiplies one tile, 64 k, with the activations b of eight routes. `rows`: of NVFP4's scales, for
/// the rows that b is meant for: the others add zero.
template <HopperFormat kFormat>
__device__ __forceinline__ void MultiplyTile(const uint8_t* tile, int lane, const uint32_t (&b)[8],
                                             float (&acc)[4], uint32_t rows = 0xFFFFu) {
  const uint4 w = reinterpret_cast<const uint4*>(tile)[lane];
  if constexpr (kFormat == HopperFormat::kBf16) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint4 v = j == 0 ? w : reinterpret_cast<const uint4*>(tile)[32 * j + lane];
      const uint32_t fragment[4] = {v.x, v.y, v.z, v.w};
      MmaBf16(acc, fragment, b[2 * j], b[2 * j + 1]);
    }
    return;
  }
  ScalePair scale =
      ExpandScales(reinterpret_cast<const uint16_t*>(tile + kHopperTileCodeBytes)[lane]);
  if (!(rows & 0xFFu)) scale.low = 0;
  if (!(rows & 0xFF00u)) scale.high = 0;
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t fragment[4];
    Dequantize(words[j], scale, fragment);
    MmaBf16(acc, fragment, b[2 * j], b[2 * j + 1]);
  }
}

__device__ __forceinline__ void Store8(uint32_t (&b)[8], uint4 low, uint4 high) {
  b[0] = low.x, b[1] = low.y, b[2] = low.z, b[3] = low.w;
  b[4] = high.x, b[5] = high.y, b[6] = high.z, b[7] = high.w;
}

}  // namespace nibble::cuda::decode
