// sm90_linear_decode: dense linears of few tokens, bound by the bytes of the weights.
//
// The rows of all shards are tiles of 16; a block takes a run of them. Its warps form groups that take
// tiles in turn and share a tile's k: each warp streams its part of the weights, the large operand of
// mma.m16n8k16, through a ring in shared memory; x, the small operand, is quantized once into shared
// memory, in the order of the fragments. The group adds up its partial sums in the order of k.
//
// Latency is what matters for most launches. The rings are filled before the kernel ahead has ended,
// which x alone waits for, and two launches' blocks fit a multiprocessor at once, so weights keep
// coming across launches. The code is short on purpose: a launch runs most of it once, cold.

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_linear_decode.cuh"

namespace nibble::cuda::linear {
namespace {

using Narrow = Config<1, 2, 2>;
using Wide = Config<2, 2, 1>;

/// In dynamic shared memory; then x and the scales of kFp8Group.
template <class C>
struct Smem {
  alignas(128) uint8_t ring[C::kWarps][C::kSlots][kSlotBytes];
  uint64_t full[C::kWarps][C::kSlots];
  float token_scale[kSm90LinearDecodeTokens];
  alignas(16) float partial[C::kPartialBuffers][C::kWarps][C::kN][128];
};
struct LaunchArgs {
  Args linear;
  Division division;
};

template <class C>
size_t SharedBytes(const Args& a) {
  return sizeof(Smem<C>) + static_cast<size_t>(a.steps) * a.tokens * 128 +
         sizeof(float) * a.tokens * ScaleBlocks(a.k);
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kN == 1 ? 2 : 1)
    LinearDecode(const __grid_constant__ LaunchArgs args) {
  const Args& a = args.linear;
  extern __shared__ __align__(128) uint8_t raw[];
  Smem<C>& s = *reinterpret_cast<Smem<C>*>(raw);
  uint4* const x = reinterpret_cast<uint4*>(raw + sizeof(Smem<C>));
  const Shared<C> m{s.ring,    s.full, s.token_scale,
                    s.partial, x,      reinterpret_cast<float*>(x + a.steps * a.tokens * 8)};
  const Place<C> p(a, args.division.first + blockIdx.x);
  LetNextKernelStart();
  InitStream(m, p);
  BarrierInitFence();
  __syncwarp();
  WeightStream<C> stream(a, p, m);
  stream.Fill();
  WaitForPreviousKernel();
  MultiplyTiles(a, m, p, stream, GlobalInput{a}, GlobalOutput{a});
}

template <class C>
Result<void> Launch(const LaunchArgs& args, int blocks, cudaStream_t stream) {
  const size_t shared = SharedBytes<C>(args.linear);
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(LinearDecode<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared)));
  // Launches of different sizes share a multiprocessor only if they want it divided alike.
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(LinearDecode<C>,
                                       cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
  return LaunchDependent(LinearDecode<C>, dim3(blocks), C::kThreads, args, stream, shared);
}

}  // namespace
}  // namespace nibble::cuda::linear

namespace nibble::cuda {

Result<void> LaunchSm90LinearDecode(const Sm90LinearParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Linear(params, kSm90LinearDecodeTokens));
  linear::LaunchArgs args{linear::MakeArgs(params), {}};
  linear::Args& a = args.linear;
  // What does not fit in shared memory at once goes in several launches.
  constexpr size_t kMost = 232448;
  while (linear::SharedBytes<linear::Wide>(a) > kMost && a.tokens > 1) --a.tokens;
  if (linear::SharedBytes<linear::Wide>(a) > kMost) {
    return Error{ErrorCode::kInvalidArgument,
                 "linear on sm_90: a token's k does not fit in shared memory",
                 {},
                 {}};
  }
  // Always one a multiprocessor, if need be with nothing to do: with fewer, the next launch, which comes
  // while this one runs, would put two of its blocks where this one has none.
  NIBBLE_TRY(const int multiprocessors, MultiprocessorCount());
  const int blocks = std::min(multiprocessors, linear::kMaxBlocks);
  args.division = linear::Divide(params, blocks, &a);
  const int launches = (params.tokens + a.tokens - 1) / a.tokens;
  const int most = (params.tokens + launches - 1) / launches;
  for (int done = 0; done < params.tokens; done += most) {
    a.tokens = std::min(most, params.tokens - done);
    NIBBLE_CHECK_OK(a.tokens > 8 ? linear::Launch<linear::Wide>(args, blocks, stream)
                                 : linear::Launch<linear::Narrow>(args, blocks, stream));
    a.x += static_cast<int64_t>(a.tokens) * a.k;
    if (a.y != nullptr) a.y += a.tokens * a.ldy;
    if (a.y_f32 != nullptr) a.y_f32 += a.tokens * a.ldy;
  }
  return {};
}

}  // namespace nibble::cuda
