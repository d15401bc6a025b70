// sm90_nvfp4_{bf16,nvfp4}_experts_decode, sm90_bf16_bf16_experts_decode: all routed experts of a layer
// for few tokens, one launch.
//
// One block a multiprocessor, all resident. Each of 16 warps runs its own ring of bulk copies over
// one sequence of weight units: its part of GEMM1 (gate and up), then its part of GEMM2 (down). No
// block-wide barrier stands in the stream, so memory stays busy across the edge of the GEMMs.
//
//   lists  every block groups the routes by expert into items of up to 8 (the n of the mma)
//   GEMM1  (sm90_moe_decode_gemm1.cuh) task = (item, 32 rows). A group of 8 warps splits K, so that a
//          warp's slice of x stays in registers while the item lasts. Partial sums meet in shared memory; the warps take
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
#include "kernels/cuda/sm90_moe_decode_gemm2.cuh"
#include "kernels/cuda/sm90_moe_inspect.h"

namespace nibble::cuda {
namespace decode {
namespace {

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
    mine = LoadRoutes(a, a.ids, a.route_weights);
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
    mine = LoadRoutes(a, a.ids, a.route_weights);
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
    SumBlock<C, N>(a, s, w, blockIdx.x + i * gridDim.x, GlobalOutput{a});
    if (i + 1 < w.blocks2) __syncthreads();
  }
  Leave(a);
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
  q.gscale = a.layer.a1;
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
  const bool odd = a.state->ended == 0;  // the last launch was: blocks are counted modulo two
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
  const Activate kind = ActivateOf(params);
  const bool fp4 = shape.precision != Sm90Precision::kBf16;
  const bool keeps_x = kind == Activate::kSilu && decode::KeepsX(shape) &&
                       shape.precision != Sm90Precision::kFp4Shard;
  decode::Args a = decode::MakeArgs(params);
  if (shape.weights == HopperFormat::kBf16) return decode::LaunchBf16(a, kind, stream);
  if (!fp4) return decode::LaunchFor<false>(a, kind, keeps_x, stream);
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
