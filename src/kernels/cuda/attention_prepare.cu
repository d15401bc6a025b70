#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/operator_checks.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) RopeTableKernel(const RopeTableParams p) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = i / p.frequencies, f = i % p.frequencies;
  if (row >= p.step.rows) return;
  double sine, cosine;
  sincos(static_cast<double>(p.step.row[row].position) * p.frequency[f], &sine, &cosine);
  float* const to = p.table + row * 2 * p.frequencies + f;
  to[0] = static_cast<float>(cosine);
  to[p.frequencies] = static_cast<float>(sine);
}

/// A block a row, a warp a head.
template <int kDim, bool kFp8>
__global__ void __launch_bounds__(kThreads)
    PrepareKernel(const __grid_constant__ AttentionParams p) {
  constexpr int kEach = kDim / 32;
  const AttentionShape& s = p.shape;
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  const HeadShare<kDim> q_norm = LoadShare<kDim>(p.q_norm + lane * kEach);
  const HeadShare<kDim> k_norm = LoadShare<kDim>(p.k_norm + lane * kEach);
  WaitForPreviousKernel();
  LetNextKernelStart();
  const StepRow at = p.step.row[row];
  if (at.slot < 0) return;
  const int page =
      p.cache.page_table[static_cast<int64_t>(at.slot) * p.cache.max_pages + at.position / kKvPage];
  Bf16* const qkv = p.qkv + row * s.qkv_width();
  const float* const rope = p.rope + row * s.rotary_dim;
  for (int head = threadIdx.x / 32; head < s.n_heads + s.n_kv_heads; head += kThreads / 32) {
    if (head < s.n_heads) {
      Bf16* const q = qkv + head * s.q_stride();
      HeadShare<kDim> share = LoadShare<kDim>(q);
      NormAndRotate<kDim>(share, q_norm, rope, s.rotary_dim, s.norm_eps);
      ToCache<kDim, false>(share, 1).Store(q + lane * kEach);
      continue;
    }
    const int kv_head = head - s.n_heads;
    const Bf16* const from = qkv + s.q_width() + kv_head * kDim;
    HeadShare<kDim> k = LoadShare<kDim>(from);
    const HeadShare<kDim> v = LoadShare<kDim>(from + s.kv_width());
    NormAndRotate<kDim>(k, k_norm, rope, s.rotary_dim, s.norm_eps);
    const int64_t to =
        (CacheAt<kDim>(page, s.n_kv_heads, kv_head, at.position) + lane * kEach) * (kFp8 ? 1 : 2);
    ToCache<kDim, kFp8>(k, p.cache.k_scale).Store(static_cast<char*>(p.cache.k) + to);
    ToCache<kDim, kFp8>(v, p.cache.v_scale).Store(static_cast<char*>(p.cache.v) + to);
  }
}

template <int kDim>
Result<void> Prepare(const AttentionParams& p, cudaStream_t stream) {
  const auto kernel =
      p.cache.dtype == KvDtype::kFp8 ? PrepareKernel<kDim, true> : PrepareKernel<kDim, false>;
  return LaunchDependent(kernel, dim3(p.step.rows), kThreads, p, stream);
}

}  // namespace

Result<void> LaunchRopeTable(const RopeTableParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckRopeTable(p));
  const int64_t blocks = CeilDiv(static_cast<int64_t>(p.step.rows) * p.frequencies, kThreads);
  return LaunchDependent(RopeTableKernel, dim3(static_cast<unsigned>(blocks)), kThreads, p, stream);
}

Result<void> LaunchPrepareAttention(const AttentionParams& p, cudaStream_t stream) {
  switch (p.shape.head_dim) {
    case 64:
      return Prepare<64>(p, stream);
    case 128:
      return Prepare<128>(p, stream);
    default:
      return Prepare<256>(p, stream);
  }
}

Result<void> LaunchAttentionPrefill(const AttentionParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckAttention(p));
  NIBBLE_CHECK_OK(LaunchPrepareAttention(p, stream));
  int device = 0, major = 0;
  NIBBLE_CUDA_TRY(cudaGetDevice(&device));
  NIBBLE_CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9 && p.shape.head_dim >= 128 ? LaunchSm90AttentionRows(p, stream)
                                               : LaunchAttentionRows(p, stream);
}

}  // namespace nibble::cuda
