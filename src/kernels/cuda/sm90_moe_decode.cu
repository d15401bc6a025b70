// sm90_nvfp4_{bf16,nvfp4}_experts_decode, sm90_bf16_bf16_experts_decode: all routed experts of a layer
// for few tokens, one launch.
//
// One block a multiprocessor, all resident. Each of 16 warps runs its own ring of bulk copies over
// one sequence of weight units: its part of GEMM1 (gate and up), then its part of GEMM2 (down). No
// block-wide barrier stands in the stream, so memory stays busy across the edge of the GEMMs.
//
//   lists  every block groups the routes by expert into items of up to 8 (the n of the mma)
//   GEMM1  (sm90_moe_decode_gemm1.cuh) task = (item, 32 rows). A group of 8 warps splits K, so that a warp's slice of x stays
//          in registers while the item lasts. Partial sums meet in shared memory; the warps take
//          turns in adding them up, applying the activation and storing h.
//   GEMM2  a block owns 16 or 32 rows of y for all routes. A warp, or a pair that splits K, takes
//          an item and loads that item's h until none of it is zero: what has not been stored yet
//          is zero, so there is neither grid barrier, nor fence, nor counter. Launches use two
//          halves of h in turn, and each makes the other's half zero again.
//   sum    over top-k in shared memory in the order of k; y is stored once.
//
// NVFP4 activations: what a lane loads of x for 64 k is one block of 16, so it is quantized in place
// when an item begins; a task of GEMM1 makes whole blocks of h, which are quantized before they are
// stored. The multiplications are the same (quantize.cuh).
//
// Measurements and what was tried: docs/performance.md.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/sm90_moe_decode.cuh"
#include "kernels/cuda/sm90_moe_decode_gemm1.cuh"
#include "kernels/cuda/sm90_moe_inspect.h"

namespace nibble::cuda {
namespace decode {
namespace {

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
            MultiplyTile<C::kFormat>(weights + (k * C::kTiles2 + r) * C::kTileBytes, p.lane, b[k],
                                     acc[r]);
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

/// A route's share of the bias of y.
__device__ __forceinline__ float BiasOf(const Args& a, int route, int row) {
  const int id = __ldg(a.ids + route);
  if (a.b2 == nullptr || row >= a.hidden ||
      static_cast<unsigned>(id) >= static_cast<unsigned>(a.experts)) {
    return 0.0f;
  }
  return __ldg(a.route_weights + route) * __ldg(a.b2 + static_cast<int64_t>(id) * a.hidden + row);
}

/// y for one row block: the sum over top-k in the order of k.
template <class C, class N>
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
      if constexpr (N::kActivate != Activate::kSilu) v += BiasOf(a, route, row);
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

template <class C, class N>
__global__ void __launch_bounds__(kThreads, 1) MoeDecode(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) uint8_t raw[];
  Smem& s = *reinterpret_cast<Smem*>(raw);
  const Place p;
  InitBarriers(s, p);
  LetNextKernelStart();
  WaitForPreviousKernel();

  TouchX<C, N>(a, s, p);
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
    LoadGlobals<N>(a, mine);
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
    LoadGlobals<N>(a, mine);
    __syncthreads();
  }

  StoreFactors<N>(a, s, mine);
  ZeroOldHidden(a, s);
  Gemm1<C, N>(a, s, p, w, stream);
  stream.Fill(true);
  BarrierArrive(SharedAddress(&s.gemm1_left));

  for (int i = 0; i < w.blocks2; ++i) {
    Gemm2Block<C>(a, s, p, w, stream);
    __syncthreads();
    SumBlock<C, N>(a, s, w, blockIdx.x + i * gridDim.x);
    if (i + 1 < w.blocks2) __syncthreads();
  }
}

// --- x in NVFP4 before the launch, for configurations that load it again for every task ---

struct QuantizeArgs {
  const uint4* x;
  uint4* out;
  const float* gscale;
  int blocks;  // of 16
};

__global__ void __launch_bounds__(256) QuantizeX(const __grid_constant__ QuantizeArgs a) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= a.blocks) return;
  uint32_t x[8];
  Store8(x, __ldg(a.x + 2 * i), __ldg(a.x + 2 * i + 1));
  QuantizeBlock(x, GscaleOf(__ldg(a.gscale)));
  a.out[2 * i] = make_uint4(x[0], x[1], x[2], x[3]);
  a.out[2 * i + 1] = make_uint4(x[4], x[5], x[6], x[7]);
}

// --- launch ---

// The workspace: LaunchState, x in NVFP4 where it comes so, then h. No place depends on the number
// of tokens.
constexpr size_t kXOffset = 256;
static_assert(sizeof(LaunchState) <= kXOffset);

/// Whether a configuration keeps x in registers; the others load it for every task.
bool KeepsX(const Sm90MoeShape& shape) {
  const bool k2_in_units = (shape.intermediate + 63) / 64 % 4 == 0;
  return (shape.hidden == 2048 && (k2_in_units || (shape.intermediate + 63) / 64 % 6 == 0)) ||
         (shape.hidden == 4096 && k2_in_units);
}

size_t HiddenOffset(const Sm90MoeShape& shape) {
  if (shape.precision != Sm90Precision::kFp4Layer) return kXOffset;
  return RoundUpTo(
      kXOffset + sizeof(Bf16) * Sm90MoeDecodeMaxTokens(shape) * static_cast<size_t>(shape.hidden),
      256);
}

template <class C, class N>
Result<void> Launch(Args args, cudaStream_t stream) {
  NIBBLE_TRY(const int blocks, MultiprocessorCount());
  args.by_grid = Divisor(blocks);
  args.by_weight = 1.0f / static_cast<float>(2 * blocks + std::max(blocks - args.row_blocks, 0));
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(MoeDecode<C, N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
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
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, MoeDecode<C, N>, args));
  return {};
}

/// The configurations that keep x in registers.
template <class N>
Result<void> LaunchKept(const Args& args, cudaStream_t stream) {
  if (args.hidden == 4096) return Launch<Config<8, 2, 4>, N>(args, stream);
  if (args.steps2 % 8 == 0 && args.tokens >= 4) return Launch<Config<4, 1, 8>, N>(args, stream);
  if (args.steps2 % 6 == 0) return Launch<Config<4, 1, 6>, N>(args, stream);
  return Launch<Config<4, 1, 4>, N>(args, stream);
}

template <Activate kActivate, bool kFp4>
Result<void> LaunchAny(const Args& args, cudaStream_t stream) {
  using N = Numerics<kActivate, kFp4>;
  // HopperW2Layout: two tiles a row block
  return args.hidden > 2048 ? Launch<Config<0, 2, 4>, N>(args, stream)
                            : Launch<Config<0, 1, 4>, N>(args, stream);
}

template <bool kFp4>
Result<void> LaunchFor(const Args& args, Activate kind, bool keeps_x, cudaStream_t stream) {
  switch (kind) {
    case Activate::kSilu:
      return keeps_x ? LaunchKept<Numerics<Activate::kSilu, kFp4>>(args, stream)
                     : LaunchAny<Activate::kSilu, kFp4>(args, stream);
    case Activate::kSwiglu:
      return LaunchAny<Activate::kSwiglu, kFp4>(args, stream);
    case Activate::kRelu2:
      break;
  }
  return LaunchAny<Activate::kRelu2, kFp4>(args, stream);
}

/// BF16 weights, in configurations of any shape: a slot holds two tiles.
Result<void> LaunchBf16(const Args& args, Activate kind, cudaStream_t stream) {
  constexpr auto kBf16 = HopperFormat::kBf16;
  using Wide = Config<0, 2, 1, kBf16>;
  using Narrow = Config<0, 1, 2, kBf16>;
  if (kind == Activate::kRelu2) {
    using N = Numerics<Activate::kRelu2, false, kBf16>;
    return args.hidden > 2048 ? Launch<Wide, N>(args, stream) : Launch<Narrow, N>(args, stream);
  }
  using N = Numerics<Activate::kSwiglu, false, kBf16>;  // with alpha 1 and beta 0 silu
  return args.hidden > 2048 ? Launch<Wide, N>(args, stream) : Launch<Narrow, N>(args, stream);
}

/// x of this launch under the layer's one gscale, into the workspace.
Result<void> QuantizeAhead(Args& a, std::byte* out, cudaStream_t stream) {
  QuantizeArgs q{};
  q.x = reinterpret_cast<const uint4*>(a.x);
  q.out = reinterpret_cast<uint4*>(out);
  q.gscale = a.a1;
  q.blocks = a.tokens * (a.hidden / 16);
  NIBBLE_CHECK_OK(LaunchDependent(QuantizeX, dim3((q.blocks + 255) / 256), 256, q, stream));
  a.x = reinterpret_cast<const __nv_bfloat16*>(out);
  a.x_passes = 0;
  return {};
}

// --- inspection ---

struct HiddenArgs {
  const uint16_t* h;
  const LaunchState* state;
  uint16_t* out;
  int routes, features, padded;
};

__global__ void __launch_bounds__(256) CopyHidden(const __grid_constant__ HiddenArgs a) {
  const bool odd = a.state->arrivals == 0;  // the last launch was: arrivals count modulo two
  for (int i = blockIdx.x * 256 + threadIdx.x; i < a.routes * a.features; i += gridDim.x * 256) {
    const int route = i / a.features, f = i % a.features;
    a.out[i] =
        a.h[static_cast<size_t>(2 * route + odd) * a.padded + f / 64 * 64 + HiddenSlot(f % 64)];
  }
}

}  // namespace
}  // namespace decode

int Sm90MoeDecodeMaxTokens(const Sm90MoeShape& shape) {
  const int rows = HopperW2Layout(shape.hidden, shape.intermediate).tiles_per_block * 16;
  const int routes = std::min(decode::kMaxRoutes, decode::kOutFloats / rows);
  return routes / shape.top_k;
}

size_t Sm90MoeDecodeWorkspace(const Sm90MoeShape& shape, int tokens) {
  return decode::HiddenOffset(shape) + static_cast<size_t>(tokens) * shape.top_k * 2 *
                                           RoundUpTo(shape.intermediate, 64) * sizeof(Bf16);
}

Result<void> LaunchSm90MoeDecode(const Sm90MoeParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Moe(params, Sm90MoeDecodeMaxTokens(params.shape)));
  const Sm90MoeShape& shape = params.shape;
  const HopperLayout l13 = W13LayoutOf(shape);
  const HopperLayout l2 = HopperW2Layout(shape.hidden, shape.intermediate);
  const Activate kind = ActivateOf(params);
  const bool fp4 = shape.precision != Sm90Precision::kBf16;
  const bool keeps_x = kind == Activate::kSilu && decode::KeepsX(shape) &&
                       shape.precision != Sm90Precision::kFp4Shard;
  decode::Args a{};
  a.x = reinterpret_cast<const __nv_bfloat16*>(params.x);
  a.ids = params.ids;
  a.route_weights = params.weights;
  a.w13 = params.w13;
  a.w2 = params.w2;
  a.g1 = params.g1;
  a.g2 = params.g2;
  a.y = reinterpret_cast<__nv_bfloat16*>(params.y);
  a.state = reinterpret_cast<decode::LaunchState*>(params.workspace);
  a.h = reinterpret_cast<__nv_bfloat16*>(params.workspace + decode::HiddenOffset(shape));
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
  a.by_top_k = Divisor(shape.top_k);
  a.by_tasks = Divisor(a.tasks);
  a.tiles13 = static_cast<uint32_t>(l13.tiles * l13.k_blocks);
  a.tiles2 = static_cast<uint32_t>(l2.tiles * l2.k_blocks);
  a.activation = ActivationOf(params);
  a.b2 = params.b2;
  if (shape.weights == HopperFormat::kBf16) return decode::LaunchBf16(a, kind, stream);
  if (!fp4) return decode::LaunchFor<false>(a, kind, keeps_x, stream);
  a.a1 = params.a1_gscale;
  a.a2 = params.a2_gscale;
  a.a1_step = shape.precision == Sm90Precision::kFp4Layer ? 0 : shape.shards();
  a.x_passes = shape.precision == Sm90Precision::kFp4Shard ? 2 : 1;
  if (!keeps_x && shape.precision == Sm90Precision::kFp4Layer) {
    NIBBLE_CHECK_OK(decode::QuantizeAhead(a, params.workspace + decode::kXOffset, stream));
  }
  return decode::LaunchFor<true>(a, kind, keeps_x, stream);
}

Result<void> LaunchSm90QuantizeBlocks(const Bf16* x, int blocks, const float* gscale, Bf16* out,
                                      cudaStream_t stream) {
  decode::QuantizeArgs q{};
  q.x = reinterpret_cast<const uint4*>(x);
  q.out = reinterpret_cast<uint4*>(out);
  q.gscale = gscale;
  q.blocks = blocks;
  return LaunchDependent(decode::QuantizeX, dim3((blocks + 255) / 256), 256, q, stream);
}

Result<void> CopySm90MoeDecodeHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream) {
  decode::HiddenArgs a{};
  a.h = reinterpret_cast<const uint16_t*>(params.workspace + decode::HiddenOffset(params.shape));
  a.state = reinterpret_cast<const decode::LaunchState*>(params.workspace);
  a.out = reinterpret_cast<uint16_t*>(h);
  a.routes = params.tokens * params.shape.top_k;
  a.features = params.shape.intermediate;
  a.padded = static_cast<int>(RoundUpTo(params.shape.intermediate, 64));
  decode::CopyHidden<<<1024, 256, 0, stream>>>(a);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

}  // namespace nibble::cuda
