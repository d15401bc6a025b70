// sm90_layer_decode: from a mixer's output to the next mixer's input, one token, one persistent launch.
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
//
// Blocks wait for numbers, not for each other: what passes between them (y, logits) is 0 until it has been
// stored, and is loaded until it is not. As with h, launches use two sets of such memory in turn, and each
// makes the other's zero again.

#include "kernels/cuda/sm90_layer_decode.h"

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

struct Smem {
  Experts experts;  // whose ring is the linears', too, and whose x is what norms leave
  uint64_t full[2][kWarps][Out::kSlots], shared_full[kWarps];
  alignas(16) float residual[kHidden];
  alignas(16) float sum[kWarps];
  float token_scale[1];
  int set;  // of Workspace that is this launch's
  // top-k
  int group_max[2 * kMaxTopK];
  int candidates;
  uint64_t candidate[kRouteExperts];
  int32_t ids[kMaxTopK];
  float logits[kMaxTopK + 1], weights[kMaxTopK];
  float global[2][kMaxTopK];  // of the routes' experts: g2, a2
};
static_assert(sizeof(Smem) <= 232448, "the shared memory of a Hopper block");

/// A linear's x and partial sums, where the experts have theirs.
template <class C>
constexpr size_t kPartialBytes = sizeof(float) * C::kPartialBuffers* kWarps * 128;
size_t XBytes(const linear::Args& a) {
  return static_cast<size_t>(a.steps) * 128 + sizeof(float) * linear::ScaleBlocks(a.k);
}

/// Numbers that blocks wait for: 0 until they are stored, and then never 0.
struct Awaited {
  float y[2][kHidden];  // of out, of the experts: bf16
  float logits[kRouteExperts + 4];
};
static_assert(sizeof(Awaited) % sizeof(uint4) == 0);
struct Workspace {
  uint32_t ended;  // blocks, modulo two launches, see decode::Arrive
  alignas(256) Awaited set[2];
};

struct Args {
  linear::Args out, in;  // in.tiles 0: there is none
  decode::Args experts;
  const __nv_bfloat16* router;
  float* residual;
  __nv_bfloat16* normed;
  const float *mid_weight, *next_weight;
  float eps;
  int routed, top_k, shared;  // experts that are routed to and of a token; 0 or 1
  int group_bits, groups;     // of routed experts, see TakeTopK
  Workspace* work;
};

__device__ __forceinline__ void StoreAwaited(float* to, float v) {
  StoreRelaxedFloat(to, v == 0 ? -0.0f : v);
}
__device__ __forceinline__ void StoreAwaitedBf16(float* to, float v) {
  StoreAwaited(to, __bfloat162float(__float2bfloat16(v)));
}
__device__ __forceinline__ float Await(const float* at) {
  float v;
  do {
    v = LoadRelaxedFloat(at);
  } while (__float_as_uint(v) == 0);
  return v;
}

template <class C>
__device__ __forceinline__ linear::Shared<C> SharedOf(Smem& s, const linear::Args& a, int which) {
  auto* const memory = reinterpret_cast<uint8_t*>(s.experts.out);
  auto* const x = reinterpret_cast<uint4*>(memory + kPartialBytes<C>);
  return {reinterpret_cast<uint8_t(*)[C::kSlots][linear::kSlotBytes]>(s.experts.ring),
          s.full[which],
          s.token_scale,
          reinterpret_cast<float(*)[kWarps][1][128]>(memory),
          x,
          reinterpret_cast<float*>(x + a.steps * 8)};
}

/// Which set is this launch's.
__device__ __forceinline__ void StoreSet(const Args& a, Smem& s) {
  if (threadIdx.x == kThreads - 33) s.set = __ldcg(&a.work->ended) >= gridDim.x;
}
__device__ __forceinline__ void Leave(const Args& a) {
  if (threadIdx.x == kThreads - 33) atomicInc(&a.work->ended, 2 * gridDim.x - 1);
  decode::Leave(a.experts);
}

/// The numbers that the launch before waited for become zero.
__device__ __forceinline__ void ZeroOld(Awaited& old) {
  auto* const to = reinterpret_cast<uint4*>(&old);
  constexpr int kAll = sizeof(Awaited) / sizeof(uint4);
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < kAll; i += gridDim.x * kThreads) {
    to[i] = make_uint4(0, 0, 0, 0);
  }
}

// --- norms ---

__device__ __forceinline__ float4 LoadColumns(const float* row) {
  return __ldg(reinterpret_cast<const float4*>(row) + threadIdx.x);
}

/// r + y, once that is there.
__device__ __forceinline__ float4 AddAwaited(const float4& r, const float* y) {
  uint4 v;
  do {
    v = LoadRelaxed(y + threadIdx.x * kColumns);
  } while (v.x == 0 || v.y == 0 || v.z == 0 || v.w == 0);
  return make_float4(r.x + __uint_as_float(v.x), r.y + __uint_as_float(v.y),
                     r.z + __uint_as_float(v.z), r.w + __uint_as_float(v.w));
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
__device__ __forceinline__ uint4 LoadRouter(const Args& a, int first) {
  const int row = first + threadIdx.x / (kThreads / kRouterRows);
  if (row >= a.routed + a.shared) return make_uint4(0, 0, 0, 0);
  return __ldg(reinterpret_cast<const uint4*>(a.router + static_cast<int64_t>(row) * kHidden) +
               threadIdx.x % (kThreads / kRouterRows));
}

/// The logits of a block's rows, the first two of which are in `router`.
__device__ __forceinline__ void StoreLogits(const Args& a, Smem& s, uint4 router, float* logits) {
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
    router = LoadRouter(a, first);
    __syncthreads();
  }
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
  if (is && key >= least) s.candidate[atomicAdd(&s.candidates, 1)] = candidate;
  __syncthreads();
  const int n = s.candidates;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const uint64_t me = s.candidate[i];
    int rank = 0;
#pragma unroll 4
    for (int j = 0; j < n; ++j) rank += s.candidate[j] > me;
    if (rank >= a.top_k) continue;
    const uint32_t ordered = static_cast<uint32_t>(me >> 32) ^ 0x80000000u;
    s.ids[rank] = static_cast<int32_t>(0xFFFFu - (me & 0xFFFFu));
    s.logits[rank] =
        __int_as_float(static_cast<int>(ordered ^ (static_cast<int>(ordered) >> 31 & 0x7FFFFFFF)));
  }
  if (a.shared && threadIdx.x == 0) s.ids[a.top_k] = a.routed;
  __syncthreads();
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
  if (threadIdx.x == 0) whole.experts.valid[0] = (2u << (a.experts.routes - 1)) - 1;
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
__device__ __forceinline__ void AskForShared(const Args& a, Smem& s, const decode::Place& p,
                                             int task) {
  static_assert(C::kXSteps == C::kUnitSteps1);
  if (p.lane != 0) return;
  const uint32_t full = SharedAddress(&s.shared_full[p.warp]);
  constexpr uint32_t kBytes = C::kXSteps * decode::kTaskTiles * C::kTileBytes;
  const decode::Args& e = a.experts;
  const int64_t tile = static_cast<int64_t>(a.routed) * e.tiles13 +
                       (task * e.steps1 + p.k_part * C::kXSteps) * decode::kTaskTiles;
  BarrierArriveExpect(full, kBytes);
  BulkCopyEvictFirst(SharedAddress(s.experts.ring[p.warp][1]), e.w13 + tile * C::kTileBytes, kBytes,
                     full);
}

/// The group's first task of decode::Gemm1 but for FinishTask.
template <class C, class N>
__device__ __forceinline__ void MultiplyShared(const decode::Args& a, Smem& whole,
                                               const decode::Place& p, const decode::Work& w) {
  Experts& s = whole.experts;
  if (p.k_part == 0) decode::ItemScales<N>::Ask(a, s, p, w, 0);
  const __nv_bfloat16* const row = s.x + w.step1 * 64 + 16 * p.t;
  Gscale gscale{1, 1};
  if constexpr (N::kFp4) {
    gscale = GscaleOf(__ldg(a.a1 + decode::UnpackItem(s.item[w.first_listed]).expert * a.a1_step));
  }
  BarrierWait(SharedAddress(&whole.shared_full[p.warp]), 0);
  float sum[decode::kTaskTiles][4] = {};
#pragma unroll 1  // short code, as it runs once and cold
  for (int k = 0; k < C::kXSteps; ++k) {
    uint32_t x[8];
    decode::LoadX<C>(x, row + 64 * k);
    if constexpr (N::kFp4) QuantizeBlock(x, gscale);
#pragma unroll
    for (int r = 0; r < decode::kTaskTiles; ++r) {
      decode::MultiplyTile<C::kFormat>(
          s.ring[p.warp][1] + (k * decode::kTaskTiles + r) * C::kTileBytes, p.lane, x, sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < decode::kTaskTiles; ++r) {
    s.partial[p.group][0][p.k_part][r][p.lane] =
        make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
  }
  BarrierArrive(SharedAddress(&s.partial_full[p.group][0]));
  __syncwarp();  // the slot is free
}

/// A first look at each line of the arguments takes long: the warps take them at once.
__device__ __forceinline__ void TouchArguments(const Args& a) {
  constexpr int kLine = 64 / sizeof(uint32_t), kLines = sizeof(Args) / 64;
  const auto* const words = reinterpret_cast<const uint32_t*>(&a);
#pragma unroll
  for (int i = 0; i < kLines; i += kWarps) {
    const uint32_t word = words[min(i + static_cast<int>(threadIdx.x) / 32, kLines - 1) * kLine];
    asm volatile("" ::"r"(word));
  }
}

template <class C, class N>
__global__ void __launch_bounds__(kThreads, 1) LayerDecode(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) uint8_t raw[];
  Smem& s = *reinterpret_cast<Smem*>(raw);
  const decode::Place p;
  TouchArguments(a);
  const linear::Shared<In> in_shared = SharedOf<In>(s, a.in, 1);
  const int shared_task = SharedTask(a, p);
  bool early;  // half of the ring is not out's
  {
    const linear::Shared<Out> m = SharedOf<Out>(s, a.out, 0);
    const linear::Place<Out> out_place(a.out);
    linear::InitStream(m, out_place);
    linear::InitStream(in_shared, linear::Place<In>(a.in));
    if (p.lane == 0) BarrierInit(SharedAddress(&s.shared_full[p.warp]), 1);
    decode::InitBarriers(s.experts, p);  // ends with the fence
    if (threadIdx.x == 0) s.candidates = 0;
    __syncwarp();
    linear::WeightStream<Out> stream(a.out, out_place, m);
    early = stream.Fill() <= Out::kSlots / 2;
    if (early && shared_task >= 0) AskForShared<C>(a, s, p, shared_task);
    LetNextKernelStart();
    WaitForPreviousKernel();
    decode::StoreArrival(a.experts, s.experts, decode::Arrive(a.experts));
    StoreSet(a, s);
    linear::MultiplyTiles(
        a.out, m, out_place, stream, linear::GlobalInput{a.out},
        [&](int, int column, float v) { StoreAwaitedBf16(a.work->set[s.set].y[0] + column, v); });
  }
  __syncwarp();
  if (!early && shared_task >= 0) AskForShared<C>(a, s, p, shared_task);
  const uint4 router = LoadRouter(a, blockIdx.x * kRouterRows);
  const float4 mid = LoadColumns(a.mid_weight);
  float4 r = __ldcg(reinterpret_cast<const float4*>(a.residual) + threadIdx.x);
  __syncthreads();  // for s.set, and out's partial sums
  Awaited& awaited = a.work->set[s.set];
  r = AddAwaited(r, awaited.y[0]);
  reinterpret_cast<float4*>(s.residual)[threadIdx.x] = r;
  Norm(a, s, r, mid);
  StoreLogits(a, s, router, awaited.logits);
  ZeroOld(a.work->set[s.set ^ 1]);
  decode::ZeroOldHidden(a.experts, s.experts);
  decode::Work w = decode::Divide<C>(a.experts, p, a.experts.routes, kMaxTopK * p.warp, a.shared);
  ShiftItems(w);
  if (a.shared) ListShared(a, s, p);
  TakeTopK(a, s, awaited.logits);
  ListRouted(a, s, p);
  const int before = shared_task >= 0;  // tasks of this group
  decode::WeightStream<C> stream(a.experts, s.experts, p, w);
  stream.Fill(false, shared_task >= 0 ? 1 : decode::kSlots);
  const int route = threadIdx.x;
  if (route < a.experts.routes) {
    decode::CopyWord(&s.global[0][route], a.experts.g2 + s.ids[route]);
    if constexpr (N::kFp4) decode::CopyWord(&s.global[1][route], a.experts.a2 + s.ids[route]);
  }
  if (p.warp == 0) StoreWeights(a, s);
  if (shared_task >= 0) {
    MultiplyShared<C, N>(a.experts, s, p, w);
    stream.Fill(false);
    if (p.k_part == 0) decode::FinishTask<N>(a.experts, s.experts, p, w, 0, 0, shared_task);
  }
  decode::Gemm1<C, N>(a.experts, s.experts, p, w, stream, before);
  stream.Fill(true);
  if (route < a.experts.routes) {
    asm volatile("cp.async.wait_all;" ::: "memory");
    float factor = s.weights[route] * (s.global[0][route] * kHopperWeightScale);
    if constexpr (N::kFp4) factor *= Reciprocal(s.global[1][route]);
    s.experts.factor[route] = factor;
  }
  BarrierArrive(SharedAddress(&s.experts.gemm1_left));
  const linear::Place<In> in_place(a.in);
  linear::WeightStream<In> in_stream(a.in, in_place, in_shared);
  for (int i = 0; i < w.blocks2; ++i) {
    decode::Gemm2Block<C>(a.experts, s.experts, p, w, stream);
    if (i + 1 == w.blocks2) {
      __syncwarp();
      in_stream.Fill();
    }
    __syncthreads();
    decode::SumBlock<C, N>(a.experts, s.experts, w, blockIdx.x + i * gridDim.x,
                           [&](int, int row, float v) { StoreAwaitedBf16(awaited.y[1] + row, v); });
    if (i + 1 < w.blocks2) __syncthreads();
  }
  if (w.blocks2 == 0) {
    __syncwarp();
    in_stream.Fill();
  }
  const float4 next = LoadColumns(a.next_weight);
  r = AddAwaited(reinterpret_cast<const float4*>(s.residual)[threadIdx.x], awaited.y[1]);
  const uint2 normed = Norm(a, s, r, next);
  if (blockIdx.x == 0) {
    reinterpret_cast<float4*>(a.residual)[threadIdx.x] = r;
    reinterpret_cast<uint2*>(a.normed)[threadIdx.x] = normed;
  }
  Leave(a);
  if (a.in.tiles == 0) return;
  linear::MultiplyTiles(
      a.in, in_shared, in_place, in_stream,
      [&](int, int eight) {
        return eight < kHidden / 8 ? reinterpret_cast<const uint4*>(s.experts.x)[eight]
                                   : make_uint4(0, 0, 0, 0);
      },
      linear::GlobalOutput{a.in});
}

// --- launch ---

template <class C, class N>
Result<void> Launch(const Args& args, int blocks, cudaStream_t stream) {
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(LayerDecode<C, N>,
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
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, LayerDecode<C, N>, args));
  return {};
}

template <bool kFp4>
Result<void> LaunchFor(const Args& args, int blocks, cudaStream_t stream) {
  using N = decode::Numerics<Activate::kSilu, kFp4>;
  return args.experts.steps2 % 6 == 0 ? Launch<Config<6>, N>(args, blocks, stream)
                                      : Launch<Config<4>, N>(args, blocks, stream);
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

size_t Sm90LayerWorkspace() { return sizeof(layer::Workspace); }

bool Sm90LayerFits(const Sm90LayerParams& p) {
  const Sm90MoeShape& s = p.experts.shape;
  const Result<int> multiprocessors = MultiprocessorCount();
  if (!multiprocessors || p.experts.tokens != 1 || s.hidden != layer::kHidden ||
      s.weights != HopperFormat::kNvfp4 || ActivateOf(p.experts) != Activate::kSilu ||
      s.precision == Sm90Precision::kFp4Shard || !decode::KeepsX(s)) {
    return false;
  }
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

Result<void> LaunchSm90LayerDecode(const Sm90LayerParams& params, cudaStream_t stream) {
  Sm90LayerParams p = params;
  // What the launch does not use must not be refused.
  p.experts.x = p.in.x = p.normed;
  p.experts.y = p.out.y;
  p.experts.ids = reinterpret_cast<const int32_t*>(p.workspace);
  p.experts.weights = reinterpret_cast<const float*>(p.workspace);
  NIBBLE_CHECK_OK(CheckSm90Moe(p.experts, 1));
  NIBBLE_CHECK_OK(CheckSm90Linear(p.out, 1));
  if (p.has_in) NIBBLE_CHECK_OK(CheckSm90Linear(p.in, 1));
  NIBBLE_TRY(const int multiprocessors, MultiprocessorCount());
  const int blocks = std::min(multiprocessors, linear::kMaxBlocks);
  if (!Sm90LayerFits(p) || !IsAligned(p.residual, 16) || !IsAligned(p.normed, 16) ||
      !IsAligned(p.mid_weight, 16) || !IsAligned(p.next_weight, 16) ||
      !IsAligned(p.route.weight, 16) || !IsAligned(p.workspace, 256)) {
    return Error{
        ErrorCode::kInvalidArgument,
        "a layer in one launch: shapes that it does not take, or pointers that are null or "
        "not aligned",
        {},
        {}};
  }
  layer::Args a{};
  a.out = linear::MakeArgs(p.out);
  linear::Divide(p.out, blocks, &a.out);
  if (p.has_in) {
    a.in = linear::MakeArgs(p.in);
    linear::Divide(p.in, blocks, &a.in);
  } else {
    a.in.granule = a.in.group_warps = 1;
  }
  a.experts = decode::MakeArgs(p.experts);
  a.experts.by_grid = Divisor(blocks);
  a.experts.by_weight =
      1.0f / static_cast<float>(2 * blocks + std::max(blocks - a.experts.row_blocks, 0));
  a.router = reinterpret_cast<const __nv_bfloat16*>(p.route.weight);
  a.residual = p.residual;
  a.normed = reinterpret_cast<__nv_bfloat16*>(p.normed);
  a.mid_weight = p.mid_weight;
  a.next_weight = p.next_weight;
  a.eps = p.eps;
  a.routed = p.route.experts;
  a.top_k = p.route.top_k;
  a.shared = p.route.shared;
  a.group_bits = layer::GroupBits(a.routed, a.top_k);
  a.groups = a.routed >> a.group_bits;
  a.work = reinterpret_cast<layer::Workspace*>(p.workspace);
  return p.experts.shape.precision == Sm90Precision::kBf16
             ? layer::LaunchFor<false>(a, blocks, stream)
             : layer::LaunchFor<true>(a, blocks, stream);
}

}  // namespace nibble::cuda
