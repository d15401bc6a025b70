#include "kernels/cuda/norm.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/operator_checks.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {
namespace {

constexpr int kVector = 8;  // columns a thread takes at once
constexpr int kMaxThreads = 1024;

struct Vec8 {
  float v[kVector];
};

__device__ __forceinline__ Vec8 Load8(const Bf16* p) {
  const uint4 u = *reinterpret_cast<const uint4*>(p);
  return {LowBf16(u.x), HighBf16(u.x), LowBf16(u.y), HighBf16(u.y),
          LowBf16(u.z), HighBf16(u.z), LowBf16(u.w), HighBf16(u.w)};
}
__device__ __forceinline__ Vec8 Load8(const float* p) {
  const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}
__device__ __forceinline__ void Store8(Bf16* p, const Vec8& x) {
  *reinterpret_cast<uint4*>(p) = make_uint4(ToPair(x.v[0], x.v[1]), ToPair(x.v[2], x.v[3]),
                                            ToPair(x.v[4], x.v[5]), ToPair(x.v[6], x.v[7]));
}
__device__ __forceinline__ void Store8(float* p, const Vec8& x) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

/// The sum over a block, in every thread; `scratch` (a float a warp) is this sum's own.
__device__ __forceinline__ float BlockSum(float v, float* scratch) {
  v = WarpSum(v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  return WarpSum(lane < blockDim.x / 32 ? scratch[lane] : 0.0f);
}

__device__ __forceinline__ float SumOfSquares(const Vec8& x) {
  float sum = 0;
#pragma unroll
  for (float v : x.v) sum = fmaf(v, v, sum);
  return sum;
}

__device__ __forceinline__ float Sigmoid(float x) { return 1 / (1 + __expf(-x)); }

/// A block a row, a vector a thread.
template <class In, class Out>
__global__ void __launch_bounds__(kMaxThreads) RmsNormKernel(const RmsNormParams p) {
  __shared__ float scratch[32];
  const int c = threadIdx.x * kVector;
  const bool mine = c < p.cols;
  Vec8 w{}, x{};
  if (mine) w = Load8(p.weight + c);
  LetNextKernelStart();
  WaitForPreviousKernel();
  if (mine) x = Load8(static_cast<const In*>(p.x) + static_cast<int64_t>(blockIdx.x) * p.cols + c);
  const float scale = rsqrtf(BlockSum(SumOfSquares(x), scratch) / p.cols + p.eps);
#pragma unroll
  for (int j = 0; j < kVector; ++j) x.v[j] *= scale * w.v[j];
  if (mine) Store8(static_cast<Out*>(p.out) + blockIdx.x * p.out_stride + c, x);
}

/// A block a row, a vector a thread.
__global__ void __launch_bounds__(kMaxThreads) AddRmsNormKernel(const AddRmsNormParams p) {
  __shared__ float scratch[2][32];
  const int c = threadIdx.x * kVector;
  const bool mine = c < p.cols;
  Vec8 w{}, gate{}, x{}, shared{}, sum{};
  if (mine && p.weight) w = Load8(p.weight + c);
  if (mine && p.gate) gate = Load8(p.gate + c);
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * p.cols + c;
  Vec8 residual{};
  if (mine) residual = Load8(p.residual + at), sum = Load8(p.y + at);
  if (p.gate) {
    if (mine) x = Load8(p.x + at), shared = Load8(p.shared + at);
    float dot = 0;
#pragma unroll
    for (int j = 0; j < kVector; ++j) dot = fmaf(gate.v[j], x.v[j], dot);
    const float weight = Sigmoid(BlockSum(dot, scratch[0]));
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum.v[j] = fmaf(weight, shared.v[j], sum.v[j]);
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) sum.v[j] += residual.v[j];
  if (mine) Store8(p.residual + at, sum);
  if (!p.weight) return;
  const float scale = rsqrtf(BlockSum(SumOfSquares(sum), scratch[1]) / p.cols + p.eps);
#pragma unroll
  for (int j = 0; j < kVector; ++j) sum.v[j] *= scale * w.v[j];
  if (mine) Store8(p.out + at, sum);
}

/// A block a row.
__global__ void __launch_bounds__(kMaxThreads)
    AddSharedExpertKernel(const AddSharedExpertParams p) {
  __shared__ float scratch[32];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * p.cols;
  float dot = 0;
  for (int c = threadIdx.x * kVector; c < p.cols; c += blockDim.x * kVector) {
    const Vec8 gate = Load8(p.gate + c), x = Load8(p.x + row + c);
#pragma unroll
    for (int j = 0; j < kVector; ++j) dot = fmaf(gate.v[j], x.v[j], dot);
  }
  const float weight = Sigmoid(BlockSum(dot, scratch));
  for (int c = threadIdx.x * kVector; c < p.cols; c += blockDim.x * kVector) {
    Vec8 y = Load8(p.y + row + c);
    const Vec8 shared = Load8(p.shared + row + c);
#pragma unroll
    for (int j = 0; j < kVector; ++j) y.v[j] = fmaf(weight, shared.v[j], y.v[j]);
    Store8(p.y + row + c, y);
  }
}

template <class Out>
__global__ void EmbedKernel(const EmbedParams p) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * kVector;
  if (c >= p.cols) return;
  const int64_t id = p.ids[blockIdx.x];
  Vec8 v{};
  if (id >= 0 && id < p.table_rows) v = Load8(p.table + id * p.cols + c);
  Store8(static_cast<Out*>(p.out) + static_cast<int64_t>(blockIdx.x) * p.cols + c, v);
}

__global__ void SiluMulKernel(const SiluMulParams p) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * kVector;
  if (c >= p.cols) return;
  const Bf16* const row = p.gate_up + 2 * static_cast<int64_t>(blockIdx.x) * p.cols;
  Vec8 gate = Load8(row + c);
  const Vec8 up = Load8(row + p.cols + c);
#pragma unroll
  for (int j = 0; j < kVector; ++j) gate.v[j] *= Sigmoid(gate.v[j]) * up.v[j];
  Store8(p.out + static_cast<int64_t>(blockIdx.x) * p.cols + c, gate);
}

/// Rows of 16-byte words: first of one block, then of another.
struct JoinArgs {
  const uint4 *a, *b;
  int64_t a_words, b_words;
  const int32_t* a_row;  // null: row t of the result has row t of a
  uint4* out;
};
__global__ void JoinKernel(const JoinArgs p) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x, t = blockIdx.x;
  if (c >= p.a_words + p.b_words) return;
  const int64_t from = p.a_row ? p.a_row[t] : t;
  p.out[t * (p.a_words + p.b_words) + c] =
      c < p.a_words ? p.a[from * p.a_words + c] : p.b[t * p.b_words + c - p.a_words];
}

// --- launches ---

/// Threads of a block that takes a whole row.
int RowThreads(int cols) {
  const int64_t warps = CeilDiv(CeilDiv(cols, kVector), 32);
  return static_cast<int>(warps * 32 <= kMaxThreads ? warps * 32 : kMaxThreads);
}

/// A grid of rows by pieces of rows of `words` words, a thread a word.
constexpr int kPiece = 256;
dim3 PieceGrid(int rows, int64_t words) {
  return dim3(rows, static_cast<unsigned>(CeilDiv(words, kPiece)));
}

static_assert(kMaxThreads * kVector >= kNormMaxCols);

template <class In, class Out>
Result<void> LaunchNorm(const RmsNormParams& p, cudaStream_t stream) {
  return LaunchDependent(RmsNormKernel<In, Out>, dim3(p.rows), RowThreads(p.cols), p, stream);
}

}  // namespace

Result<void> LaunchEmbed(const EmbedParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckEmbed(p));
  const auto kernel = p.out_element == Element::kF32 ? EmbedKernel<float> : EmbedKernel<Bf16>;
  return LaunchDependent(kernel, PieceGrid(p.rows, CeilDiv(p.cols, kVector)), kPiece, p, stream);
}

Result<void> LaunchRmsNorm(const RmsNormParams& params, cudaStream_t stream) {
  RmsNormParams p = params;
  if (p.out_stride == 0) p.out_stride = p.cols;
  NIBBLE_CHECK_OK(CheckRmsNorm(p));
  const bool f32_out = p.out_element == Element::kF32;
  if (p.x_element == Element::kF32) {
    return f32_out ? LaunchNorm<float, float>(p, stream) : LaunchNorm<float, Bf16>(p, stream);
  }
  return f32_out ? LaunchNorm<Bf16, float>(p, stream) : LaunchNorm<Bf16, Bf16>(p, stream);
}

Result<void> LaunchAddRmsNorm(const AddRmsNormParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckAddRmsNorm(p));
  return LaunchDependent(AddRmsNormKernel, dim3(p.rows), RowThreads(p.cols), p, stream);
}

Result<void> LaunchAddSharedExpert(const AddSharedExpertParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckAddSharedExpert(p));
  return LaunchDependent(AddSharedExpertKernel, dim3(p.rows), RowThreads(p.cols), p, stream);
}

Result<void> LaunchSiluMul(const SiluMulParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSiluMul(p));
  return LaunchDependent(SiluMulKernel, PieceGrid(p.rows, CeilDiv(p.cols, kVector)), kPiece, p,
                         stream);
}

Result<void> LaunchConcat(const ConcatParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckConcat(p));
  const JoinArgs args{reinterpret_cast<const uint4*>(p.a),
                      reinterpret_cast<const uint4*>(p.b),
                      p.a_cols / kVector,
                      p.b_cols / kVector,
                      nullptr,
                      reinterpret_cast<uint4*>(p.out)};
  return LaunchDependent(JoinKernel, PieceGrid(p.rows, args.a_words + args.b_words), kPiece, args,
                         stream);
}

Result<void> LaunchGatherRows(const GatherRowsParams& p, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckGatherRows(p));
  const JoinArgs args{static_cast<const uint4*>(p.x), nullptr, p.row_bytes / 16, 0, p.index,
                      static_cast<uint4*>(p.out)};
  return LaunchDependent(JoinKernel, PieceGrid(p.rows, args.a_words), kPiece, args, stream);
}

}  // namespace nibble::cuda
