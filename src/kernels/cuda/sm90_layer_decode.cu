// sm90_layer_decode: from a mixer's output to the next mixer's input, through a few layers whose mixer is
// DeltaNet, one token, one persistent launch.
//
// One block a multiprocessor, all resident, 16 warps each. The steps are those of the kernels of their own
// (sm90_linear_decode.cuh, route.cu, sm90_moe_decode*.cuh). A warp's ring of weights is one piece of memory
// for all of them: it is filled with the next step's weights as soon as the last of this one's have been
// multiplied, so the copies are under way while blocks wait for each other.
//
//   out     y = W attended
//   norm    every block for itself: residual + y, its norm into shared memory
//   router  two rows a block; then every block takes the top-k for itself
//   experts as in sm90_moe_decode.cu; gate and up of a shared one while logits are awaited
//   norm    as above
//   in      y = W normed
//   mix     DeltaNet, a head a block, and on to the next layer's out
//
// Blocks wait for numbers, not for each other: what passes between them (y, logits) is 0 until it has been
// stored, and is loaded until it is not. As with h, every layer of a launch has memory of its own for them,
// launches use two sets of it in turn, and each makes the other's zero again.

#include "kernels/cuda/sm90_layer_decode.h"

#include "kernels/cuda/sm90_layer_delta.cuh"
#include "kernels/cuda/sm90_linear_decode.cuh"
#include "kernels/cuda/sm90_moe_decode_gemm2.cuh"

namespace nibble::cuda {
namespace layer {
namespace {

using decode::kThreads;
using decode::kWarps;
constexpr int kHidden = kSm90LayerHidden;
constexpr int kColumns = kHidden / kThreads;  // that a thread has of the residual
constexpr int kRouterRows = 2;                // of a block
constexpr int kRouterWarps = kWarps / kRouterRows, kRouterColumns = 8;
static_assert(kColumns == 4 && kRouterWarps * 32 * kRouterColumns == kHidden);
constexpr int kMaxTopK = 32;
constexpr int kMaxIn = 16384, kMaxAttended = 8192;  // of a DeltaNet inside a launch
static_assert(kRouteExperts <= kThreads);

/// Of a linear with kBatch tiles a group at a time.
template <int kBatch>
using Linear =
    linear::Config<1, decode::kSlots * decode::kSlotBytes / linear::kSlotBytes, kBatch, kBatch>;
using Out = Linear<1>;  // a tile or two a block
using In = Linear<3>;
static_assert(In::kThreads == kThreads);

using Experts = decode::SmemOf<kMaxTopK * kWarps, 3, kHidden>;
template <int kSteps2>
using Config =
    decode::Config<kHidden / 64 / decode::kGroupWarps, 1, kSteps2, HopperFormat::kNvfp4, Experts>;

struct LayerArgs {
  linear::Args out, in;  // in.tiles 0: there is none
  decode::Layer experts;
  const __nv_bfloat16* router;
  const float *mid_weight, *next_weight;
  delta::Args delta;  // what comes before out, but in the first layer
};

struct Smem {
  Experts experts;  // whose ring is the linears', too, and whose x is what norms leave
  uint64_t full[kWarps][Out::kSlots], shared_full[kWarps];
  alignas(16) float residual[kHidden];
  alignas(16) float sum[kWarps];
  float token_scale[1];
  int set;  // of Workspace that is this launch's
  // top-k
  int group_max[2 * kMaxTopK];
  int candidates;  // of them: Candidates()
  int32_t ids[kMaxTopK];
  float logits[kMaxTopK + 1], weights[kMaxTopK];
  float global[2][kMaxTopK];  // of the routes' experts: g2, a2
  DeltaSequence sequence;
  DeltaShared delta;
};
static_assert(sizeof(Smem) <= 232448, "the shared memory of a Hopper block");

/// A linear's x and partial sums, where the experts have theirs.
template <class C>
constexpr size_t kPartialBytes = sizeof(float) * C::kPartialBuffers* kWarps * 128;
size_t XBytes(const linear::Args& a) {
  return static_cast<size_t>(a.steps) * 128 + sizeof(float) * linear::ScaleBlocks(a.k);
}

/// What blocks wait for in a layer (sm90_layer_awaited.cuh).
struct Awaited {
  float y[2][kHidden];  // of out, of the experts: bf16
  float logits[kRouteExperts + 4];
  float in[kMaxIn], attended[kMaxAttended];  // of DeltaNet: bf16
};
/// Behind it lies h: [kSm90LayersAtOnce][routes][2][padded I].
struct Workspace {
  uint32_t ended;  // blocks, modulo two launches, see decode::Arrive
  alignas(256) Awaited set[2][kSm90LayersAtOnce];
};

struct Args {
  float* residual;
  __nv_bfloat16* normed;
  float eps;
  int routed, top_k, shared;  // experts that are routed to and of a token; 0 or 1
  int group_bits, groups;     // of routed experts, see TakeTopK
  Workspace* work;
  decode::Args experts;
  int layers;
  LayerArgs layer[kSm90LayersAtOnce];
  linear::Division out[kSm90LayersAtOnce], in[kSm90LayersAtOnce];  // of linear
};
static_assert(sizeof(Args) <= 32764, "the arguments of a kernel");

template <class C>
__device__ __forceinline__ linear::Shared<C> SharedOf(Smem& s, const linear::Args& a) {
  auto* const memory = reinterpret_cast<uint8_t*>(s.experts.out);
  auto* const x = reinterpret_cast<uint4*>(memory + kPartialBytes<C>);
  return {reinterpret_cast<uint8_t(*)[C::kSlots][linear::kSlotBytes]>(s.experts.ring),
          s.full,
          s.token_scale,
          reinterpret_cast<float(*)[kWarps][1][128]>(memory),
          x,
          reinterpret_cast<float*>(x + a.steps * 8)};
}

/// Which set is this launch's: the same for all blocks, see decode::Arrive.
__device__ __forceinline__ void StoreSet(const Args& a, Smem& s) {
  if (threadIdx.x == kThreads - 33) {
    const bool odd = __ldcg(&a.work->ended) >= gridDim.x;
    s.set = odd, s.experts.odd_launch = odd;
    s.experts.old_routes = kSm90LayersAtOnce * a.experts.routes;
  }
}
__device__ __forceinline__ void Leave(const Args& a) {
  if (threadIdx.x == 0) atomicInc(&a.work->ended, 2 * gridDim.x - 1);
}

/// What the launch before waited for becomes zero.
__device__ __forceinline__ void ZeroOld(const Args& a, const Smem& s) {
  auto* const to = reinterpret_cast<uint4*>(a.work->set[s.set ^ 1]);
  constexpr int kAll = sizeof(a.work->set[0]) / sizeof(uint4);
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < kAll; i += gridDim.x * kThreads) {
    to[i] = make_uint4(0, 0, 0, 0);
  }
  decode::ZeroOldHidden(a.experts, s.experts);  // h of all layers
}

/// Eight k's of what the mixer has put out: of a DeltaNet in this launch, or from memory.
struct MixerOutput {
  const LayerArgs& a;
  const Awaited* awaited;
  __device__ __forceinline__ uint4 operator()(int token, int eight) const {
    if (awaited == nullptr) return linear::GlobalInput{a.out}(token, eight);
    if (eight * 8 >= a.out.k) return make_uint4(0, 0, 0, 0);
    return AwaitMixed(a.delta, awaited->in, awaited->attended, eight);
  }
};

// --- norms ---

__device__ __forceinline__ float4 LoadColumns(const float* row) {
  return __ldg(reinterpret_cast<const float4*>(row) + threadIdx.x);
}

/// r + y, once that is there.
__device__ __forceinline__ float4 AddAwaited(const float4& r, const float* y) {
  const float4 v = Await4(y + threadIdx.x * kColumns);
  return make_float4(r.x + v.x, r.y + v.y, r.z + v.z, r.w + v.w);
}

/// The norm of r into shared memory. Ends with a barrier. Returns this thread's columns of it.
__device__ __forceinline__ uint2 Norm(const Args& a, Smem& s, const float4& r,
                                      const float4& weight) {
  const float sum = WarpSum(fmaf(r.w, r.w, fmaf(r.z, r.z, fmaf(r.y, r.y, r.x * r.x))));
  if (threadIdx.x % 32 == 0) s.sum[threadIdx.x / 32] = sum;
  __syncthreads();
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kWarps; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(s.sum + i);
    squares += (v.x + v.y) + (v.z + v.w);
  }
  const float scale = rsqrtf(squares / kHidden + a.eps);
  const uint2 out = make_uint2(ToPair(r.x * (scale * weight.x), r.y * (scale * weight.y)),
                               ToPair(r.z * (scale * weight.z), r.w * (scale * weight.w)));
  reinterpret_cast<uint2*>(s.experts.x)[threadIdx.x] = out;
  __syncthreads();
  return out;
}

// --- the router ---

/// This thread's share of two rows of the router, from `first` on.
__device__ __forceinline__ uint4 LoadRouter(const Args& a, const __nv_bfloat16* router, int first) {
  const int row = first + threadIdx.x / (kThreads / kRouterRows);
  if (row >= a.routed + a.shared) return make_uint4(0, 0, 0, 0);
  return __ldg(reinterpret_cast<const uint4*>(router + static_cast<int64_t>(row) * kHidden) +
               threadIdx.x % (kThreads / kRouterRows));
}

/// The logits of a block's rows, the first two of which are in `router`.
__device__ __forceinline__ void StoreLogits(const Args& a, Smem& s, const __nv_bfloat16* weight,
                                            uint4 router, float* logits) {
  const int rows = a.routed + a.shared;
  const uint4 x =
      reinterpret_cast<const uint4*>(s.experts.x)[threadIdx.x % (kThreads / kRouterRows)];
  for (int first = blockIdx.x * kRouterRows; first < rows;) {
    const float sum = WarpSum(Dot8(router, x, 0));
    if (threadIdx.x % 32 == 0) s.sum[threadIdx.x / 32] = sum;
    __syncthreads();
    const int i = threadIdx.x;
    if (i < kRouterRows && first + i < rows) {
      float logit = 0;
#pragma unroll
      for (int w = 0; w < kRouterWarps; ++w) logit += s.sum[i * kRouterWarps + w];
      StoreAwaited(logits + first + i, logit);
    }
    first += gridDim.x * kRouterRows;
    if (first >= rows) return;
    router = LoadRouter(a, weight, first);
    __syncthreads();
  }
}

/// Where the experts later have what they quantize.
__device__ __forceinline__ uint64_t* Candidates(Smem& s) {
  static_assert(sizeof(Experts::quantized) >= sizeof(uint64_t) * kRouteExperts);
  return reinterpret_cast<uint64_t*>(s.experts.quantized);
}

/// The experts of the token by falling logit, equal ones by lower index, and their logits; a logit a
/// thread. Of `groups` groups of experts each has one that is no less than the least of the groups'
/// largest, and there are as many groups as experts are wanted: only those are compared that are no less
/// than it. Ends with a barrier.
__device__ __forceinline__ void TakeTopK(const Args& a, Smem& s, const float* logits) {
  const int expert = threadIdx.x, lane = threadIdx.x % 32;
  const bool is = expert < a.routed;
  const float logit = is ? Await(logits + expert) : 0.0f;
  if (a.shared && threadIdx.x == kThreads - 1) s.logits[kMaxTopK] = Await(logits + a.routed);
  const int bits = __float_as_int(logit);
  const int key = is ? bits ^ (bits >> 31 & 0x7FFFFFFF) : INT_MIN;  // ordered as the numbers
  int most = key;
  for (int o = (1 << a.group_bits) / 2; o > 0; o /= 2)
    most = max(most, __shfl_xor_sync(~0u, most, o));
  const int group = expert >> a.group_bits;
  if (expert == group << a.group_bits && group < a.groups) s.group_max[group] = most;
  __syncthreads();
  int least = lane < a.groups ? s.group_max[lane] : INT_MAX;
  if (lane + 32 < a.groups) least = min(least, s.group_max[lane + 32]);
  least = __reduce_min_sync(~0u, least);
  const uint32_t mine = static_cast<uint32_t>(key) ^ 0x80000000u;
  const uint64_t candidate = static_cast<uint64_t>(mine) << 32 | (0xFFFFu - expert);
  if (is && key >= least) Candidates(s)[atomicAdd(&s.candidates, 1)] = candidate;
  __syncthreads();
  const int n = s.candidates;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const uint64_t me = Candidates(s)[i];
    int rank = 0;
#pragma unroll 4
    for (int j = 0; j < n; ++j) rank += Candidates(s)[j] > me;
    if (rank >= a.top_k) continue;
    const uint32_t ordered = static_cast<uint32_t>(me >> 32) ^ 0x80000000u;
    s.ids[rank] = static_cast<int32_t>(0xFFFFu - (me & 0xFFFFu));
    s.logits[rank] =
        __int_as_float(static_cast<int>(ordered ^ (static_cast<int>(ordered) >> 31 & 0x7FFFFFFF)));
  }
  if (a.shared && threadIdx.x == 0) s.ids[a.top_k] = a.routed;
  __syncthreads();
  if (threadIdx.x == 0) s.candidates = 0;  // for the next layer
}

/// softmax over the experts that were taken, the sigmoid of a shared one. By a warp.
__device__ __forceinline__ void StoreWeights(const Args& a, Smem& s) {
  const int lane = threadIdx.x % 32;
  const float e = lane < a.top_k ? Exp2((s.logits[lane] - s.logits[0]) * kLog2E) : 0.0f;
  const float sum = WarpSum(e);
  if (lane < a.top_k) s.weights[lane] = e / sum;
  if (a.shared && lane == a.top_k) {
    s.weights[lane] = 1 / (1 + Exp2(-kLog2E * s.logits[kMaxTopK]));
  }
}

// --- experts ---

/// The warp's list of experts, each of one route: a shared one first. Its routes are in the order of
/// SumBlock, where that is the last.
__device__ __forceinline__ void ListShared(const Args& a, Smem& whole, const decode::Place& p) {
  const int at = kMaxTopK * p.warp;
  if (p.lane == 0) {
    whole.experts.item[at] = decode::PackItem(a.routed, 1, at);
    whole.experts.route[at] = static_cast<uint16_t>(a.top_k);
  }
  __syncwarp();
}
__device__ __forceinline__ void ListRouted(const Args& a, Smem& whole, const decode::Place& p) {
  const int at = kMaxTopK * p.warp + a.shared + p.lane;
  if (p.lane < a.top_k) {
    whole.experts.item[at] = decode::PackItem(whole.ids[p.lane], 1, at);
    whole.experts.route[at] = static_cast<uint16_t>(p.lane);
  }
  if (threadIdx.x == 0) whole.experts.valid[0] = (2u << (a.top_k + a.shared - 1)) - 1;
  __syncwarp();
}

/// Which task of the shared expert's GEMM1 is this warp's group's, -1 without one.
__device__ __forceinline__ int SharedTask(const Args& a, const decode::Place& p) {
  const int task = (p.group + 1) * gridDim.x - 1 - blockIdx.x;
  return a.shared && task < a.experts.tasks ? task : -1;
}

/// Pairs of warps that finish tasks of GEMM1, the first and the fifth, are late: an item more than there
/// are pairs is the third's.
__device__ __forceinline__ void ShiftItems(decode::Work& w) {
  if (!w.split_k) return;
  constexpr int kPairs = kWarps / 2;
  w.first_item = (w.first_item + kPairs - 2) % kPairs;
  w.items2 = (max(w.items - w.first_item, 0) + kPairs - 1) / kPairs;
}

/// Into the second slot of the ring: out may be in the first.
template <class C>
__device__ __forceinline__ void AskForShared(const decode::Args& e, const uint8_t* w13, Smem& s,
                                             const decode::Place& p, int shared, int task) {
  static_assert(C::kXSteps == C::kUnitSteps1);
  if (p.lane != 0) return;
  const uint32_t full = SharedAddress(&s.shared_full[p.warp]);
  constexpr uint32_t kBytes = C::kXSteps * decode::kTaskTiles * C::kTileBytes;
  const int64_t tile = static_cast<int64_t>(shared) * e.tiles13 +
                       (task * e.steps1 + p.k_part * C::kXSteps) * decode::kTaskTiles;
  BarrierArriveExpect(full, kBytes);
  BulkCopyEvictFirst(SharedAddress(s.experts.ring[p.warp][1]), w13 + tile * C::kTileBytes, kBytes,
                     full);
}

/// The group's first task of decode::Gemm1 but for FinishTask; `i`: see there.
template <class C, class N>
__device__ __forceinline__ void MultiplyShared(const decode::Args& a, Smem& whole,
                                               const decode::Place& p, const decode::Work& w, int i,
                                               uint32_t parity) {
  Experts& s = whole.experts;
  const int buffer = i % Experts::kPartialBuffers;
  if (p.k_part == 0) decode::ItemScales<N>::Ask(a, s, p, w, 0);
  const __nv_bfloat16* row = s.x + w.step1 * 64;
  if constexpr (N::kFp4) {
    row = decode::QuantizeForItem<C>(a, s, p, w, decode::UnpackItem(s.item[w.first_listed]));
  }
  row += 16 * p.t;
  BarrierWait(SharedAddress(&whole.shared_full[p.warp]), parity);
  float sum[decode::kTaskTiles][4] = {};
#pragma unroll 1  // short code, as it runs once and cold
  for (int k = 0; k < C::kXSteps; ++k) {
    uint32_t x[8];
    decode::LoadSharedX(x, row + 64 * k);
#pragma unroll
    for (int r = 0; r < decode::kTaskTiles; ++r) {
      decode::MultiplyTile<C::kFormat>(
          s.ring[p.warp][1] + (k * decode::kTaskTiles + r) * C::kTileBytes, p.lane, x, sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < decode::kTaskTiles; ++r) {
    s.partial[p.group][buffer][p.k_part][r][p.lane] =
        make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
  }
  BarrierArrive(SharedAddress(&s.partial_full[p.group][buffer]));
  __syncwarp();  // the slot is free
}

/// decode::SumBlock of a row block of this one's, between barriers.
template <class C, class N>
__device__ __forceinline__ void SumBlock(const Args& args, Smem& s, const decode::Work& w, int l,
                                         int i) {
  float* const y = args.work->set[s.set][l].y[1];
  __syncthreads();
  decode::SumBlock<C, N>(args.experts, s.experts, w, blockIdx.x + i * gridDim.x,
                         [&](int, int row, float v) { StoreAwaitedBf16(y + row, v); });
  __syncthreads();
}

/// kOne: a single layer, whose arguments then lie where the compiler knows.
template <class C, class N, bool kOne>
__global__ void __launch_bounds__(kThreads, 1) LayerDecode(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) uint8_t raw[];
  Smem& s = *reinterpret_cast<Smem*>(raw);
  const decode::Args& e = args.experts;
  const int layers = kOne ? 1 : args.layers;
  const decode::Place p;
  const int shared_task = SharedTask(args, p);
  uint32_t linear_phases = 0, expert_phases = 0;
  int counted = 0;  // tasks of this group
  if (p.lane < Out::kSlots) BarrierInit(SharedAddress(&s.full[p.warp][p.lane]), 1);
  if (p.lane == 0) BarrierInit(SharedAddress(&s.shared_full[p.warp]), 1);
  decode::InitBarriers(s.experts, p);  // ends with the fence
  if (threadIdx.x == 0) s.candidates = 0;
  __syncthreads();
#pragma unroll 1
  for (int l = 0; l < layers; ++l) {
    bool early;  // half of the ring is not out's
    {
      const LayerArgs& a = args.layer[l];
      const linear::Shared<Out> m = SharedOf<Out>(s, a.out);
      const linear::Place<Out> place(a.out, args.out[l].first + blockIdx.x);
      linear::WeightStream<Out> stream(a.out, place, m, linear_phases);
      early = stream.Fill() <= Out::kSlots / 2;
      if (early && shared_task >= 0) {
        AskForShared<C>(e, a.experts.w13, s, p, args.routed, shared_task);
      }
      if (threadIdx.x == kThreads - 1) s.experts.layer = a.experts;
      Awaited* awaited = nullptr;
      if (l == 0) {
        LetNextKernelStart();
        WaitForPreviousKernel();
        StoreSet(args, s);
        if (layers > 1 && threadIdx.x == 0) {
          s.sequence = delta::LoadSequence(args.layer[1].delta, 0);
        }
      } else {
        awaited = &args.work->set[s.set][l];
        if (blockIdx.x < kDeltaParts * a.delta.v_heads) {
          MixDelta(a.delta, s.sequence, s.delta, awaited->in, awaited->attended);
        }
        __syncthreads();  // for the memory of in's partial sums
      }
      linear::MultiplyTiles(a.out, m, place, stream, MixerOutput{a, awaited},
                            [&](int, int column, float v) {
                              StoreAwaitedBf16(args.work->set[s.set][l].y[0] + column, v);
                            });
      linear_phases = stream.phases();
    }
    __syncwarp();
    decode::Work w = decode::Divide<C>(e, p, e.routes, kMaxTopK * p.warp, args.shared);
    w.turn = l & 1;
    ShiftItems(w);
    if (args.shared) ListShared(args, s, p);
    {
      const LayerArgs& a = args.layer[l];
      if (!early && shared_task >= 0) {
        AskForShared<C>(e, a.experts.w13, s, p, args.routed, shared_task);
      }
      const uint4 router = LoadRouter(args, a.router, blockIdx.x * kRouterRows);
      const float4 mid = LoadColumns(a.mid_weight);
      float4* const residual = reinterpret_cast<float4*>(s.residual) + threadIdx.x;
      float4 r =
          l == 0 ? __ldcg(reinterpret_cast<const float4*>(args.residual) + threadIdx.x) : *residual;
      __syncthreads();  // for s.set, s.experts.layer and out's partial sums
      Awaited& awaited = args.work->set[s.set][l];
      r = AddAwaited(r, awaited.y[0]);
      *residual = r;
      Norm(args, s, r, mid);
      StoreLogits(args, s, a.router, router, awaited.logits);
    }
    if (l == 0) ZeroOld(args, s);
    TakeTopK(args, s, args.work->set[s.set][l].logits);
    ListRouted(args, s, p);
    {
      decode::WeightStream<C> stream(e, s.experts, p, w, expert_phases);
      stream.Fill(false, shared_task >= 0 ? 1 : decode::kSlots);
      const int route = threadIdx.x;
      if (route < e.routes) {
        decode::CopyWord(&s.global[0][route], s.experts.layer.g2 + s.ids[route]);
        if constexpr (N::kFp4) {
          decode::CopyWord(&s.global[1][route], s.experts.layer.a2 + s.ids[route]);
        }
      }
      if (p.warp == 0) StoreWeights(args, s);
      if (shared_task >= 0) {
        MultiplyShared<C, N>(e, s, p, w, counted, l & 1);
        stream.Fill(false);
        if (p.k_part == 0) {
          decode::FinishTask<N>(e, s.experts, p, w, counted, 0, shared_task);
        }
        ++counted;
      }
      decode::Gemm1<C, N>(e, s.experts, p, w, stream, counted);
      counted += w.tasks1;
      stream.Fill(true);
      asm volatile("cp.async.wait_all;" ::: "memory");  // also for scales that nobody has used
      if (route < e.routes) {
        float factor = s.weights[route] * (s.global[0][route] * kHopperWeightScale);
        if constexpr (N::kFp4) factor *= Reciprocal(s.global[1][route]);
        s.experts.factor[route] = factor;
      }
      BarrierArrive(SharedAddress(&s.experts.gemm1_left));
      for (int i = 0; i < w.blocks2; ++i) {
        if (i > 0) SumBlock<C, N>(args, s, w, l, i - 1);
        decode::Gemm2Block<C>(e, s.experts, p, w, stream);
      }
      expert_phases = stream.phases();
    }
    __syncwarp();
    {
      const LayerArgs& a = args.layer[l];
      const linear::Place<In> place(a.in, args.in[l].first + blockIdx.x);
      const linear::Shared<In> m = SharedOf<In>(s, a.in);
      linear::WeightStream<In> stream(a.in, place, m, linear_phases);
      stream.Fill();
      if (w.blocks2 > 0) SumBlock<C, N>(args, s, w, l, w.blocks2 - 1);
      const bool last = l + 1 == layers;
      const float4 next = LoadColumns(a.next_weight);
      float4* const residual = reinterpret_cast<float4*>(s.residual) + threadIdx.x;
      const float4 r = AddAwaited(*residual, args.work->set[s.set][l].y[1]);
      *residual = r;
      const uint2 normed = Norm(args, s, r, next);
      if (last) {
        if (blockIdx.x == 0) {
          reinterpret_cast<float4*>(args.residual)[threadIdx.x] = r;
          reinterpret_cast<uint2*>(args.normed)[threadIdx.x] = normed;
        }
        Leave(args);
        if (a.in.tiles == 0) return;
      }
      linear::MultiplyTiles(
          a.in, m, place, stream,
          [&](int, int eight) {
            return eight < kHidden / 8 ? reinterpret_cast<const uint4*>(s.experts.x)[eight]
                                       : make_uint4(0, 0, 0, 0);
          },
          [&](int token, int column, float v) {
            if (last) {
              linear::GlobalOutput{a.in}(token, column, v);
            } else {
              StoreAwaitedBf16(args.work->set[s.set][l + 1].in + column, v);
            }
          });
      linear_phases = stream.phases();
    }
  }
}

// --- launch ---

template <class C, class N, bool kOne>
Result<void> Launch(const Args& args, int blocks, cudaStream_t stream) {
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(LayerDecode<C, N, kOne>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Smem)));
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
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, LayerDecode<C, N, kOne>, args));
  return {};
}

template <class C, bool kFp4>
Result<void> LaunchFor(const Args& args, int blocks, cudaStream_t stream) {
  using N = decode::Numerics<Activate::kSilu, kFp4>;
  return args.layers == 1 ? Launch<C, N, true>(args, blocks, stream)
                          : Launch<C, N, false>(args, blocks, stream);
}
template <class C>
Result<void> LaunchFor(Sm90Precision precision, const Args& args, int blocks, cudaStream_t stream) {
  return precision == Sm90Precision::kBf16 ? LaunchFor<C, false>(args, blocks, stream)
                                           : LaunchFor<C, true>(args, blocks, stream);
}

template <class C>
bool LinearFits(const Sm90LinearParams& p) {
  return p.tokens == 1 && p.shards <= kSm90LinearShards &&
         kPartialBytes<C> + XBytes(linear::MakeArgs(p)) <= sizeof(Experts::out);
}

/// The largest power of two of experts, to 32, that leaves top_k groups or more.
int GroupBits(int experts, int top_k) {
  int bits = 5;
  while (experts >> bits < top_k) --bits;
  return bits;
}

}  // namespace
}  // namespace layer

size_t Sm90LayerWorkspace(const Sm90MoeShape& shape) {
  return RoundUpTo(sizeof(layer::Workspace), 256) + sizeof(Bf16) * kSm90LayersAtOnce * 2 *
                                                        static_cast<size_t>(shape.top_k) *
                                                        RoundUpTo(shape.intermediate, 64);
}

bool Sm90LayerFits(const Sm90LayerParams& p) {
  const Result<int> multiprocessors = MultiprocessorCount();
  if (!multiprocessors || p.experts.tokens != 1 || p.experts.shape.hidden != layer::kHidden ||
      p.experts.shape.weights != HopperFormat::kNvfp4 || ActivateOf(p.experts) != Activate::kSilu ||
      p.experts.shape.precision == Sm90Precision::kFp4Shard || !decode::KeepsX(p.experts.shape)) {
    return false;
  }
  const Sm90MoeShape& s = p.experts.shape;
  const RouteParams& r = p.route;
  if (r.hidden != s.hidden || r.routes() != s.top_k || r.routes() > layer::kMaxTopK ||
      r.experts > kRouteExperts || !r.renormalize ||
      (r.shared && s.intermediate / 16 > decode::kGroups * *multiprocessors)) {
    return false;
  }
  if (p.out.y == nullptr || p.out.shards != 1 || p.out.shard[0].n != s.hidden) return false;
  if (!layer::LinearFits<layer::Out>(p.out)) return false;
  return !p.has_in || (p.in.k == s.hidden && layer::LinearFits<layer::In>(p.in));
}

bool Sm90LayerFollows(const Sm90LayerParams& p, const Sm90LayerParams& before) {
  if (!p.delta || !before.has_in) return false;
  const DeltaParams& d = *p.delta;
  const kernels::DeltaShape& s = d.shape;
  const Result<int> multiprocessors = MultiprocessorCount();
  int64_t width = 0;
  for (int i = 0; i < before.in.shards; ++i) width += before.in.shard[i].n;
  return multiprocessors && d.in == before.in.y && before.in.y != nullptr && d.out == p.out.x &&
         (!before.delta || d.sequences == before.delta->sequences) && d.n_sequences == 1 &&
         d.rows == 1 && s.k_dim == layer::kHeadDim && s.v_dim == layer::kHeadDim &&
         layer::kDeltaParts * s.v_heads <= *multiprocessors && width == s.in_width() &&
         width <= layer::kMaxIn && s.out_width() == p.out.k && p.out.k <= layer::kMaxAttended &&
         p.experts.shape == before.experts.shape && p.residual == before.residual &&
         p.normed == before.normed && p.eps == before.eps &&
         p.route.experts == before.route.experts && p.route.shared == before.route.shared;
}

Result<void> LaunchSm90LayerDecode(std::span<const Sm90LayerParams> layers, std::byte* workspace,
                                   cudaStream_t stream) {
  const auto refuse = [](const char* what) {
    return Error{ErrorCode::kInvalidArgument, what, {}, {}};
  };
  if (layers.empty() || layers.size() > kSm90LayersAtOnce || !IsAligned(workspace, 256)) {
    return refuse("layers in one launch: 1 .. 4 of them, and a workspace at 256 bytes, are taken");
  }
  NIBBLE_TRY(const int multiprocessors, MultiprocessorCount());
  const int blocks = std::min(multiprocessors, linear::kMaxBlocks);
  layer::Args args{};
  args.work = reinterpret_cast<layer::Workspace*>(workspace);
  args.layers = static_cast<int>(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    Sm90LayerParams p = layers[i];
    // What the launch does not use must not be refused.
    p.experts.x = p.in.x = p.normed;
    p.experts.y = p.out.y;
    p.experts.ids = reinterpret_cast<const int32_t*>(workspace);
    p.experts.weights = reinterpret_cast<const float*>(workspace);
    p.experts.workspace = workspace;
    NIBBLE_CHECK_OK(CheckSm90Moe(p.experts, 1));
    NIBBLE_CHECK_OK(CheckSm90Linear(p.out, 1));
    if (p.has_in) NIBBLE_CHECK_OK(CheckSm90Linear(p.in, 1));
    if (!Sm90LayerFits(p) || !IsAligned(p.residual, 16) || !IsAligned(p.normed, 16) ||
        !IsAligned(p.mid_weight, 16) || !IsAligned(p.next_weight, 16) ||
        !IsAligned(p.route.weight, 16)) {
      return refuse(
          "a layer in one launch: shapes that it does not take, or pointers that are null or "
          "not aligned");
    }
    layer::LayerArgs& a = args.layer[i];
    if (i > 0) {
      if (!Sm90LayerFollows(p, layers[i - 1])) {
        return refuse("layers in one launch: one does not follow the one before by DeltaNet");
      }
      NIBBLE_TRY(a.delta, delta::CheckedArgs(*p.delta));
    }
    a.out = linear::MakeArgs(p.out);
    args.out[i] = linear::Divide(p.out, blocks, &a.out);
    if (p.has_in) {
      a.in = linear::MakeArgs(p.in);
      args.in[i] = linear::Divide(p.in, blocks, &a.in);
    } else {
      a.in.granule = a.in.group_warps = 1;
    }
    const decode::Args experts = decode::MakeArgs(p.experts);
    a.experts = experts.layer;
    a.experts.h =
        reinterpret_cast<__nv_bfloat16*>(workspace + RoundUpTo(sizeof(layer::Workspace), 256)) +
        i * 2 * static_cast<size_t>(experts.routes) * experts.padded_intermediate;
    if (i == 0) {
      args.experts = experts;
      args.experts.layer = a.experts;
    }
    a.router = reinterpret_cast<const __nv_bfloat16*>(p.route.weight);
    a.mid_weight = p.mid_weight;
    a.next_weight = p.next_weight;
  }
  args.experts.by_grid = Divisor(blocks);
  args.experts.by_weight =
      1.0f / static_cast<float>(2 * blocks + std::max(blocks - args.experts.row_blocks, 0));
  args.experts.state = nullptr;
  const Sm90LayerParams& p = layers[0];
  args.residual = p.residual;
  args.normed = reinterpret_cast<__nv_bfloat16*>(p.normed);
  args.eps = p.eps;
  args.routed = p.route.experts;
  args.top_k = p.route.top_k;
  args.shared = p.route.shared;
  args.group_bits = layer::GroupBits(args.routed, args.top_k);
  args.groups = args.routed >> args.group_bits;
  const Sm90Precision precision = p.experts.shape.precision;
  return args.experts.steps2 % 6 == 0
             ? layer::LaunchFor<layer::Config<6>>(precision, args, blocks, stream)
             : layer::LaunchFor<layer::Config<4>>(precision, args, blocks, stream);
}

}  // namespace nibble::cuda
