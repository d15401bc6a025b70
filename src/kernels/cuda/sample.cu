#include "kernels/cuda/launch.h"
#include "kernels/cuda/operator_checks.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocks = 128;  // a row; each leaves one candidate
constexpr int kUnroll = 4;    // words of four floats that a thread has under way

/// The best of some numbers, ordered by number, then by falling index: [63:32] the float's bits made to
/// ascend, 0 for none; [31:1] the index's complement; [0] whether a NaN was among them.
using Candidate = unsigned long long;

__device__ __forceinline__ Candidate CandidateOf(float v, int64_t index) {
  const uint32_t bits = __float_as_uint(v + 0.0f);  // -0 is 0
  const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<Candidate>(order) << 32 | (0x7FFFFFFFu - static_cast<uint32_t>(index)) << 1;
}
__device__ __forceinline__ Candidate Better(Candidate a, Candidate b) {
  return max(a & ~1ull, b & ~1ull) | ((a | b) & 1);
}

/// Over a block, in thread 0.
__device__ Candidate BlockBest(Candidate best) {
  __shared__ Candidate of_warp[kThreads / 32];
#pragma unroll
  for (int o = 16; o; o /= 2) best = Better(best, __shfl_xor_sync(~0u, best, o));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  best = threadIdx.x < kThreads / 32 ? of_warp[threadIdx.x] : 0;
#pragma unroll
  for (int o = 16; o; o /= 2) best = Better(best, __shfl_xor_sync(~0u, best, o));
  return best;
}

struct ArgmaxArgs {
  ArgmaxParams p;
  Candidate* candidates;  // [rows, kBlocks]
  unsigned* tickets;      // [rows], zero between launches
};

__global__ void __launch_bounds__(kThreads) ArgmaxKernel(const ArgmaxArgs a) {
  __shared__ bool last;
  const ArgmaxParams& p = a.p;
  const int row = blockIdx.y;
  LetNextKernelStart();
  WaitForPreviousKernel();
  const float4* const logits = reinterpret_cast<const float4*>(p.logits + row * p.stride);
  const int64_t words = (p.drawable + 3) / 4, step = static_cast<int64_t>(kBlocks) * kThreads;
  // A thread's indices ascend: of equal numbers the first stays.
  float largest = -INFINITY;
  int64_t at = -1;
  bool nan = false;
  for (int64_t w = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; w < words;
       w += kUnroll * step) {
    float4 v[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      v[i] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      if (w + i * step < words) v[i] = logits[w + i * step];
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const float four[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t index = (w + i * step) * 4 + j;
        if (index >= p.drawable) continue;
        nan = nan || four[j] != four[j];
        if (four[j] > largest || (at < 0 && four[j] == largest)) largest = four[j], at = index;
      }
    }
  }
  Candidate best = (at < 0 ? 0 : CandidateOf(largest, at)) | nan;
  best = BlockBest(best);
  if (threadIdx.x == 0) {
    a.candidates[row * kBlocks + blockIdx.x] = best;
    __threadfence();
    last = atomicInc(a.tickets + row, kBlocks - 1) == kBlocks - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  best = BlockBest(threadIdx.x < kBlocks ? __ldcg(a.candidates + row * kBlocks + threadIdx.x) : 0);
  if (threadIdx.x == 0) {
    p.ids[row] = best >> 1 ? static_cast<int32_t>(0x7FFFFFFFu - ((best >> 1) & 0x7FFFFFFFu)) : 0;
    p.flags[row] = static_cast<int32_t>(best & 1);
  }
}

constexpr size_t TicketBytes(int rows) { return (rows * sizeof(unsigned) + 255) / 256 * 256; }

}  // namespace

size_t ArgmaxWorkspace(int rows) {
  return TicketBytes(rows) + static_cast<size_t>(rows) * kBlocks * sizeof(Candidate);
}

Result<void> LaunchArgmax(const ArgmaxParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckArgmax(p));
  const ArgmaxArgs a{p, reinterpret_cast<Candidate*>(p.workspace + TicketBytes(p.rows)),
                     reinterpret_cast<unsigned*>(p.workspace)};
  return LaunchDependent(ArgmaxKernel, dim3(kBlocks, p.rows), kThreads, a, stream);
}

}  // namespace nibble::cuda
