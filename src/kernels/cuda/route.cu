#include "kernels/cuda/route.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/operator_checks.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr size_t kTicketBytes = 256;

struct RouteArgs {
  RouteParams p;
  float* logits;     // [tokens, rows]
  unsigned* ticket;  // zero between launches
};

// --- top-k: a warp a token ---

/// Softmax over a row of logits and its top_k. Expert 32 i + lane is this lane's i-th of kEach.
template <int kEach>
__device__ __forceinline__ void TakeTopK(const RouteParams& p, const float* logits, int token) {
  const int lane = threadIdx.x % 32;
  float v[kEach], largest = -INFINITY, sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = 32 * i + lane;
    v[i] = e < p.experts ? __ldcg(logits + e) : -INFINITY;
    largest = fmaxf(largest, v[i]);
  }
  const float shared = p.shared ? __ldcg(logits + p.experts) : 0.0f;
  largest = WarpMax(largest);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    v[i] = 32 * i + lane < p.experts ? Exp2((v[i] - largest) * kLog2E) : 0;
    sum += v[i];
  }
  const float by = 1 / WarpSum(sum);
  // Numbers of one sign are ordered as their bits. Taken, or not an expert: below all.
  int key[kEach], best = -1;  // best: of the lane's
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    key[i] = 32 * i + lane < p.experts ? __float_as_int(v[i] * by) & 0x7FFFFFFF : -1;
    best = max(best, key[i]);
  }
  float weight = 0, total = 0;
  int id = 0;
  for (int k = 0; k < p.top_k; ++k) {
    const int most = __reduce_max_sync(~0u, best);
    unsigned first = kRouteExperts;
    if (best == most) {
#pragma unroll
      for (int i = kEach - 1; i >= 0; --i) first = key[i] == most ? 32 * i + lane : first;
    }
    first = __reduce_min_sync(~0u, first);
    if (first % 32 == lane) {
      best = -1;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (i == first / 32) key[i] = -1;
        best = max(best, key[i]);
      }
    }
    if (lane == k) weight = __int_as_float(most), id = static_cast<int>(first);
    total += __int_as_float(most);
  }
  if (lane >= p.routes()) return;
  const int64_t at = static_cast<int64_t>(token) * p.routes() + lane;
  if (lane == p.top_k) {
    p.ids[at] = p.experts;
    p.weights[at] = 1 / (1 + Exp2(-kLog2E * shared));
    return;
  }
  p.ids[at] = id;
  p.weights[at] = p.renormalize ? weight / total : weight;
}

__device__ __forceinline__ void TakeTopK(const RouteParams& p, const float* logits, int token) {
  if (p.experts <= 128) return TakeTopK<4>(p, logits, token);
  if (p.experts <= 256) return TakeTopK<8>(p, logits, token);
  TakeTopK<kRouteExperts / 32>(p, logits, token);
}

// --- few tokens: a block a few experts, the last block to end takes the top-k ---

/// Sums v[n] over a warp's lanes; lane l returns that of v[l % n]. Lanes that differ in one bit share the
/// values between them, until each has one value.
template <int n, int size>
__device__ __forceinline__ float SumEach(float (&v)[size]) {
  constexpr int half = n / 2;
  const bool upper = threadIdx.x & half;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float mine = upper ? v[half + i] : v[i], other = upper ? v[i] : v[half + i];
    v[i] = mine + __shfl_xor_sync(~0u, other, half);
  }
  if constexpr (half > 1) {
    return SumEach<half>(v);
  } else {
#pragma unroll
    for (int bit = size; bit < 32; bit *= 2) v[0] += __shfl_xor_sync(~0u, v[0], bit);
    return v[0];
  }
}

constexpr int kTokensAtOnce = 8;

/// kExperts experts a block; kSteps times kThreads * 8 columns.
template <int kExperts, int kSteps>
__global__ void __launch_bounds__(kThreads) RouteDecodeKernel(const RouteArgs a) {
  constexpr int kSums = kExperts * kTokensAtOnce;
  __shared__ float partial[kWarps][kSums];
  __shared__ bool last;
  const RouteParams& p = a.p;
  const int first = blockIdx.x * kExperts, warp = threadIdx.x / 32;
  uint4 w[kExperts][kSteps];
#pragma unroll
  for (int e = 0; e < kExperts; ++e) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = (s * kThreads + threadIdx.x) * 8;
      w[e][s] = make_uint4(0, 0, 0, 0);
      if (k < p.hidden && first + e < p.rows()) {
        w[e][s] = __ldg(reinterpret_cast<const uint4*>(
            p.weight + static_cast<int64_t>(first + e) * p.hidden + k));
      }
    }
  }
  LetNextKernelStart();
  WaitForPreviousKernel();
  for (int t0 = 0; t0 < p.tokens; t0 += kTokensAtOnce) {
    float sum[kSums] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int k = (s * kThreads + threadIdx.x) * 8;
      uint4 x[kTokensAtOnce];  // all asked for at once
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t) {
        x[t] = make_uint4(0, 0, 0, 0);
        if (t0 + t < p.tokens && k < p.hidden) {
          x[t] = *reinterpret_cast<const uint4*>(p.x + static_cast<int64_t>(t0 + t) * p.hidden + k);
        }
      }
#pragma unroll
      for (int t = 0; t < kTokensAtOnce; ++t) {
        if (t0 + t >= p.tokens) break;
#pragma unroll
        for (int e = 0; e < kExperts; ++e) {
          sum[t * kExperts + e] = Dot8(w[e][s], x[t], sum[t * kExperts + e]);
        }
      }
    }
    const int lane = threadIdx.x % 32;
    const float mine = SumEach<kSums>(sum);
    if (t0) __syncthreads();
    if (lane < kSums) partial[warp][lane] = mine;
    __syncthreads();
    if (threadIdx.x < kSums) {
      const int t = t0 + threadIdx.x / kExperts, e = first + threadIdx.x % kExperts;
      float logit = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) logit += partial[i][threadIdx.x];
      if (t < p.tokens && e < p.rows()) a.logits[t * p.rows() + e] = logit;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(a.ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int t = warp; t < p.tokens; t += kWarps) TakeTopK(p, a.logits + t * p.rows(), t);
}

template <int kExperts>
Result<void> LaunchDecode(const RouteArgs& a, cudaStream_t stream) {
  static_assert(kExperts * kTokensAtOnce <= 32);
  const dim3 grid(static_cast<unsigned>(CeilDiv(a.p.rows(), kExperts)));
  const auto kernel = a.p.hidden <= 2048   ? RouteDecodeKernel<kExperts, 1>
                      : a.p.hidden <= 4096 ? RouteDecodeKernel<kExperts, 2>
                                           : RouteDecodeKernel<kExperts, 4>;
  return LaunchDependent(kernel, grid, kThreads, a, stream);
}

// --- many tokens: a product on tensor cores, then a warp a token ---

constexpr int kDepth = 64;  // columns a stage

/// A tile of kRows tokens and kCols experts; warps of kWarpRows x kWarpCols. As many stages as every GPU's
/// shared memory holds.
template <int kRows, int kCols, int kWarpRows, int kWarpCols>
struct Tile {
  static constexpr int kStages = 768 / (kRows + kCols);
  static constexpr int kTileThreads = kRows / kWarpRows * (kCols / kWarpCols) * 32;
  static constexpr int kStageBytes = (kRows + kCols) * kDepth * 2;
  static constexpr int kBytes = kStages * kStageBytes;
  static_assert((kRows + kCols) * 8 % kTileThreads == 0);
};

/// Where 16-byte column `chunk` of a row of 128 bytes lies: no eight rows share a bank.
__device__ __forceinline__ uint32_t Place(int row, int chunk) {
  return row * 128 + ((chunk ^ row % 8) * 16);
}

template <int kRows, int kCols, int kWarpRows, int kWarpCols>
__global__ void __launch_bounds__(Tile<kRows, kCols, kWarpRows, kWarpCols>::kTileThreads)
    RouteLogitsKernel(const RouteArgs a) {
  using T = Tile<kRows, kCols, kWarpRows, kWarpCols>;
  constexpr int kStages = T::kStages, kM = kWarpRows / 16, kN = kWarpCols / 8;
  extern __shared__ __align__(128) std::byte shared[];
  const RouteParams& p = a.p;
  const uint32_t base = SharedAddress(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row0 = blockIdx.y * kRows, col0 = blockIdx.x * kCols;
  const int steps = (p.hidden + kDepth - 1) / kDepth;
  const auto load = [&](int step) {
    const uint32_t stage = base + step % kStages * T::kStageBytes;
    if (step < steps) {
#pragma unroll
      for (int n = 0; n < (kRows + kCols) * 8 / T::kTileThreads; ++n) {
        const int i = n * T::kTileThreads + threadIdx.x;
        const int row = i / 8, k = step * kDepth + i % 8 * 8;
        const bool is_x = row < kRows;
        const int global = is_x ? row0 + row : col0 + row - kRows;
        const bool real = k < p.hidden && global < (is_x ? p.tokens : p.rows());
        const Bf16* const from = is_x ? p.x : p.weight;
        CopyAsync(stage + Place(row, i % 8),
                  real ? from + static_cast<int64_t>(global) * p.hidden + k : from, real);
      }
    }
    CommitCopies();
  };
  LetNextKernelStart();
  WaitForPreviousKernel();
  for (int s = 0; s < kStages - 1; ++s) load(s);
  float sum[kM][kN][4] = {};
  const int wr = warp / (kCols / kWarpCols) * kWarpRows;
  const int wc = kRows + warp % (kCols / kWarpCols) * kWarpCols;
  for (int step = 0; step < steps; ++step) {
    WaitForCopies<kStages - 2>();
    __syncthreads();
    load(step + kStages - 1);
    const uint32_t stage = base + step % kStages * T::kStageBytes;
#pragma unroll
    for (int kk = 0; kk < kDepth / 16; ++kk) {
      uint32_t x[kM][4], w[kN / 2][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        LoadMatrices(x[m], stage + Place(wr + m * 16 + lane % 16, 2 * kk + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kN / 2; ++n) {
        LoadMatrices(w[n],
                     stage + Place(wc + n * 16 + lane % 8 + lane / 16 * 8, 2 * kk + lane / 8 % 2));
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          MmaBf16(sum[m][n], x[m], w[n / 2][n % 2 * 2], w[n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = row0 + wr + m * 16 + lane / 4 + i / 2 * 8;
        const int e = col0 + wc - kRows + n * 8 + lane % 4 * 2 + i % 2;
        if (t < p.tokens && e < p.rows()) {
          a.logits[static_cast<int64_t>(t) * p.rows() + e] = sum[m][n][i];
        }
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) TopKKernel(const RouteArgs a) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (t < a.p.tokens) TakeTopK(a.p, a.logits + t * a.p.rows(), static_cast<int>(t));
}

template <int kRows, int kCols, int kWarpRows, int kWarpCols>
Result<void> LaunchLogits(const RouteArgs& a, cudaStream_t stream) {
  using T = Tile<kRows, kCols, kWarpRows, kWarpCols>;
  const auto kernel = RouteLogitsKernel<kRows, kCols, kWarpRows, kWarpCols>;
  NIBBLE_CUDA_TRY(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kBytes));
  const dim3 grid(static_cast<unsigned>(CeilDiv(a.p.rows(), kCols)),
                  static_cast<unsigned>(CeilDiv(a.p.tokens, kRows)));
  return LaunchDependent(kernel, grid, T::kTileThreads, a, stream, T::kBytes);
}

}  // namespace

size_t RouteWorkspace(int tokens, int rows) {
  return kTicketBytes + sizeof(float) * static_cast<size_t>(tokens) * rows;
}

Result<void> LaunchRoute(const RouteParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckRoute(p));
  const RouteArgs a{p, reinterpret_cast<float*>(p.workspace + kTicketBytes),
                    reinterpret_cast<unsigned*>(p.workspace)};
  if (p.tokens <= kRouteDecodeTokens) {
    // About a block a multiprocessor of the largest GPUs.
    if (p.rows() <= 132) return LaunchDecode<1>(a, stream);
    return p.rows() <= 264 ? LaunchDecode<2>(a, stream) : LaunchDecode<4>(a, stream);
  }
  if (p.tokens <= 1024) {
    NIBBLE_CHECK_OK((LaunchLogits<32, 32, 16, 16>(a, stream)));
  } else if (p.tokens <= 4096) {
    NIBBLE_CHECK_OK((LaunchLogits<64, 64, 32, 32>(a, stream)));
  } else {
    NIBBLE_CHECK_OK((LaunchLogits<128, 128, 64, 32>(a, stream)));
  }
  return LaunchDependent(TopKKernel, dim3(static_cast<unsigned>(CeilDiv(p.tokens, kWarps))),
                         kThreads, a, stream);
}

}  // namespace nibble::cuda
