#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/delta_prefill.cuh"

// The parallel parts of delta_prefill.cuh: rows before the recurrence, what of a chunk needs no
// state, and the output norm.

namespace nibble::cuda::delta {
namespace {

constexpr int kSegmentRows = 2048;    // of all sequences together, if they are alike
constexpr int kMinSegmentRows = 256;  // of each
constexpr int kRunRows = 16;          // of a chunk that a warp prepares
constexpr int kRowThreads = 256;      // of the kernels that go row by row

// --- rows before the recurrence ---

/// 16 rows of one head, convolved; q and k brought to unit length and to TF32. Rows behind the
/// sequence's end become zeros.
template <int kDim, bool kUnit>
__device__ __forceinline__ void PrepareRun(const Args& a, const Chunk& c, int first, int channel,
                                           float scale, float* to) {
  constexpr int kN = kDim / 32;
  const int lane = threadIdx.x % 32;
  channel += lane * kN;
  const Taps<kN> taps(a, channel);
  Raw<kN> x[kRunRows + kMaxTaps - 1];
  const int start = c.s.start + c.row + first;
  const int reach = min(a.taps - 1, start);  // rows before the first that a tap reads
  const Bf16* in = InputRow(a, c.s, start) + channel;
#pragma unroll
  for (int i = 0; i < kRunRows + kMaxTaps - 1; ++i) {
    const int row = i - (kMaxTaps - 1);
    x[i] = Raw<kN>{};
    if (row < 0) {
      if (row >= -reach && first + row < c.n) {
        x[i] = LoadRaw<kN>(InputRow(a, c.s, start + row) + channel);
      }
    } else if (first + row < c.n) {
      x[i] = LoadRaw<kN>(in + static_cast<int64_t>(row) * a.in_width);
    }
  }
#pragma unroll
  for (int i = 0; i < kRunRows; ++i) {
    float y[kN];
    const Raw<kN> window[kMaxTaps] = {x[i], x[i + 1], x[i + 2], x[i + 3]};
    ConvSilu(taps, window, y);
    if constexpr (kUnit) UnitLength(y, scale);
    float* at = to + (first + i) * kDim + lane * kN;
    const bool there = first + i < c.n;
#pragma unroll
    for (float& v : y) v = !there ? 0.0f : kUnit ? ToTf32(v) : v;
    if constexpr (kN == 4) {
      *reinterpret_cast<float4*>(at) = make_float4(y[0], y[1], y[2], y[3]);
    } else {
      *reinterpret_cast<float2*>(at) = make_float2(y[0], y[1]);
    }
  }
}

/// A warp: 16 rows of a head of q, k or v. Grid: (heads by a block's, chunks).
template <int kKeys, int kValues, int kChunk>
__global__ void __launch_bounds__(kRowThreads, 3)
    DeltaPrepare(const __grid_constant__ PrefillArgs f) {
  constexpr int kRuns = kChunk / kRunRows, kHeads = kRowThreads / 32 / kRuns;
  const Args& a = f.a;
  const Chunk c = FindChunk<kChunk>(f, blockIdx.y);
  const int warp = threadIdx.x / 32, first = warp % kRuns * kRunRows;
  const int head = blockIdx.x * kHeads + warp / kRuns;
  if (c.n == 0 || head >= 2 * a.k_heads + a.v_heads) return;
  const int64_t chunk = blockIdx.y;
  if (head < a.k_heads) {
    PrepareRun<kKeys, true>(a, c, first, head * kKeys, rsqrtf(static_cast<float>(kKeys)),
                            f.q + (chunk * a.k_heads + head) * kChunk * kKeys);
  } else if (head < 2 * a.k_heads) {
    PrepareRun<kKeys, true>(a, c, first, head * kKeys, 1,
                            f.k + (chunk * a.k_heads + head - a.k_heads) * kChunk * kKeys);
  } else {
    const int value = head - 2 * a.k_heads;
    PrepareRun<kValues, false>(a, c, first, 2 * a.k_heads * kKeys + value * kValues, 1,
                               f.v + (chunk * a.v_heads + value) * kChunk * kValues);
  }
}

// --- T and P ---

template <int kKeys, int kChunk>
struct Shared {
  union {
    struct {
      float k[kChunk][kKeys + 8], q[kChunk][kKeys + 8];
    };
    struct {  // of two heads: strict_lower(diag(beta) (K K^T * D)), and I plus that, inverted
      float lower[2][kChunk][kChunk + 4];
      float solved[2][kChunk][kChunk];
    };
  };
  // G in two pieces: after a strong decay, weak ones would be lost in one.
  float beta[kMaxGroup][kChunk], high[kMaxGroup][kChunk], low[kMaxGroup][kChunk];
};

/// A warp: the gates of a value head's rows; their running sum in double.
template <int kChunk, class S>
__device__ __forceinline__ void ChunkGates(const PrefillArgs& f, const Chunk& c, int head,
                                           int member, S& shared) {
  constexpr int kEach = kChunk / 32;
  const Args& a = f.a;
  const int lane = threadIdx.x % 32;
  double sums[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = lane * kEach + i;
    float beta = 0;
    if (row < c.n) {
      const Bf16* gates = a.in + (c.s.first_row + static_cast<int64_t>(c.row + row)) * a.in_width +
                          a.channels + a.v_heads * a.v_dim + head;
      beta = Beta(Float(LoadOne(gates)));
      sum += LogDecay(Float(LoadOne(gates + a.v_heads)), a.a_log[head], a.dt_bias[head]);
    }
    shared.beta[member][row] = beta;
    sums[i] = sum;
  }
  double before = sum;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const double other = __shfl_up_sync(~0u, before, d);
    if (lane >= d) before += other;
  }
  const double all = __shfl_sync(~0u, before, 31);
  before -= sum;
  const int64_t to = (static_cast<int64_t>(blockIdx.y) * a.v_heads + head) * kChunk;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = lane * kEach + i;
    const double total = before + sums[i];
    const float high = static_cast<float>(total);
    shared.high[member][row] = high;
    shared.low[member][row] = static_cast<float>(total - high);
    f.growth[to + row] = expf(high);
    f.fade[to + row] = expf(static_cast<float>(all - total));
  }
}

/// A column of (I + L)^-1 by forward substitution, 16 rows at a time in registers; `solved` holds
/// those above. No loop over all rows is unrolled: its code would not fit the instruction cache.
template <int kChunk>
__device__ __forceinline__ void SolveColumn(const float (&lower)[kChunk][kChunk + 4], int column,
                                            float beta, float (&solved)[kChunk][kChunk],
                                            float* to) {
  constexpr int kRows = 16;
  const int start = column / 32 * 32;  // a warp's first column: above that row are zeros
#pragma unroll 4
  for (int i = 0; i < start; ++i) to[i * kChunk] = 0;
#pragma unroll 1
  for (int base = start; base < kChunk; base += kRows) {
    float t[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) t[i] = base + i == column ? 1.0f : 0.0f;
#pragma unroll 1
    for (int j = start; j < base; j += 4) {
      const float x[4] = {solved[j][column], solved[j + 1][column], solved[j + 2][column],
                          solved[j + 3][column]};
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 l = *reinterpret_cast<const float4*>(&lower[base + i][j]);
        t[i] = __fmaf_rn(-l.x, x[0], t[i]);
        t[i] = __fmaf_rn(-l.y, x[1], t[i]);
        t[i] = __fmaf_rn(-l.z, x[2], t[i]);
        t[i] = __fmaf_rn(-l.w, x[3], t[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < i; j += 4) {
        const float4 l = *reinterpret_cast<const float4*>(&lower[base + i][base + j]);
        t[i] = __fmaf_rn(-l.x, t[j], t[i]);
        if (j + 1 < i) t[i] = __fmaf_rn(-l.y, t[j + 1], t[i]);
        if (j + 2 < i) t[i] = __fmaf_rn(-l.z, t[j + 2], t[i]);
        if (j + 3 < i) t[i] = __fmaf_rn(-l.w, t[j + 3], t[i]);
      }
      solved[base + i][column] = t[i];
      to[(base + i) * kChunk] = ToTf32(t[i] * beta);
    }
  }
}

/// A block: a key head of a chunk, all value heads that read it; a warp has 16 rows of the
/// products. Grid: (key heads, chunks).
template <int kKeys, int kChunk>
__global__ void __launch_bounds__(2 * kChunk) DeltaChunk(const __grid_constant__ PrefillArgs f) {
  constexpr int kThreads = 2 * kChunk, kTiles = kChunk / 8, kPieces = kKeys / 4;
  extern __shared__ __align__(16) uint8_t raw[];
  auto& m = *reinterpret_cast<Shared<kKeys, kChunk>*>(raw);
  const Args& a = f.a;
  const Chunk c = FindChunk<kChunk>(f, blockIdx.y);
  if (c.n == 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int group = a.v_heads / a.k_heads, first_head = blockIdx.x * group;

  const int64_t keys = (static_cast<int64_t>(blockIdx.y) * a.k_heads + blockIdx.x) * kChunk * kKeys;
#pragma unroll 8
  for (int i = threadIdx.x; i < kChunk * kPieces; i += kThreads) {
    CopyAsync16(SharedAddress(&m.k[i / kPieces][i % kPieces * 4]), f.k + keys + 4 * i);
    CopyAsync16(SharedAddress(&m.q[i / kPieces][i % kPieces * 4]), f.q + keys + 4 * i);
  }
  for (int h = warp; h < group; h += kThreads / 32) ChunkGates<kChunk>(f, c, first_head + h, h, m);
  WaitForCopies();
  __syncthreads();

  float kk[kTiles][4] = {}, qk[kTiles][4] = {};
  const int row = 16 * warp + g;
#pragma unroll 4
  for (int l = 0; l < kKeys; l += 8) {
    const auto operand = [&](const float(&from)[kChunk][kKeys + 8], float(&to)[4]) {
      const float2 low = *reinterpret_cast<const float2*>(&from[row][l + 2 * t]);
      const float2 high = *reinterpret_cast<const float2*>(&from[row + 8][l + 2 * t]);
      to[0] = low.x, to[1] = high.x, to[2] = low.y, to[3] = high.y;
    };
    float k[4], q[4];
    operand(m.k, k);
    operand(m.q, q);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (j > 2 * warp + 1) continue;
      const float2 b = *reinterpret_cast<const float2*>(&m.k[8 * j + g][l + 2 * t]);
      MmaTf32(kk[j], k, b);
      MmaTf32(qk[j], q, b);
    }
  }
  for (int base = 0; base < group; base += 2) {
    __syncthreads();
    for (int e = 0; e < min(2, group - base); ++e) {
      const int h = base + e;
      float* p =
          f.p + (static_cast<int64_t>(blockIdx.y) * a.v_heads + first_head + h) * kChunk * kChunk;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = row + i / 2 * 8, col = 8 * j + 2 * t + i % 2;
          float decay = 0;
          if (col <= at) {
            decay = __expf((m.high[h][at] - m.high[h][col]) + (m.low[h][at] - m.low[h][col]));
          }
          m.lower[e][at][col] = col < at ? m.beta[h][at] * (kk[j][i] * decay) : 0.0f;
          p[at * kChunk + 8 * j + SlotOf(2 * t + i % 2)] = ToTf32(qk[j][i] * decay);
        }
      }
    }
    __syncthreads();
    const int member = threadIdx.x / kChunk, col = threadIdx.x % kChunk, h = base + member;
    if (h < group) {
      const int64_t head = static_cast<int64_t>(blockIdx.y) * a.v_heads + first_head + h;
      SolveColumn<kChunk>(m.lower[member], col, m.beta[h][col], m.solved[member],
                          f.t + head * kChunk * kChunk + col / 8 * 8 + SlotOf(col % 8));
    }
  }
}

// --- rows after the recurrence ---

/// The last inputs of a sequence into its ring: this block's share.
__device__ __forceinline__ void KeepLastInputs(const Args& a, const DeltaSequence& s) {
  const int rows = min(s.n_rows, a.taps - 1), pieces = a.ring_width / 8;
  for (int i = blockIdx.x * kRowThreads + threadIdx.x; i < rows * pieces;
       i += gridDim.x * kRowThreads) {
    const int row = s.n_rows - rows + i / pieces, channel = i % pieces * 8;
    const Bf16* from = a.in + (s.first_row + static_cast<int64_t>(row)) * a.in_width + channel +
                       (channel < a.channels ? 0 : a.v_heads * a.v_dim);
    *reinterpret_cast<uint4*>(RingRow(a, s.slot, s.start + row) + channel) =
        __ldcg(reinterpret_cast<const uint4*>(from));
  }
}

/// A block: a value head of a chunk, a warp a row. Grid: (value heads, chunks).
template <int kValues, int kChunk>
__global__ void __launch_bounds__(kRowThreads) DeltaNorm(const __grid_constant__ PrefillArgs f) {
  constexpr int kN = kValues / 32, kWarps = kRowThreads / 32;
  const Args& a = f.a;
  const Chunk c = FindChunk<kChunk>(f, blockIdx.y);
  if (c.n == 0) return;
  if (c.row + c.n == c.s.n_rows) KeepLastInputs(a, c.s);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x;
  const float* o = f.v + (static_cast<int64_t>(blockIdx.y) * a.v_heads + head) * kChunk * kValues;
  float norm[kN];
#pragma unroll
  for (int i = 0; i < kN; ++i) norm[i] = a.norm[lane * kN + i];
#pragma unroll 4
  for (int row = warp; row < c.n; row += kWarps) {
    const int64_t batch_row = c.s.first_row + static_cast<int64_t>(c.row + row);
    const Raw<kN> z =
        LoadRaw<kN>(a.in + batch_row * a.in_width + a.channels + head * kValues + lane * kN);
    float x[kN], sum = 0;
#pragma unroll
    for (int i = 0; i < kN; i += 2) {
      const float2 v = __ldcg(reinterpret_cast<const float2*>(o + row * kValues + lane * kN + i));
      x[i] = v.x, x[i + 1] = v.y;
      sum = __fmaf_rn(v.y, v.y, __fmaf_rn(v.x, v.x, sum));
    }
    const float inverse = rsqrtf(SumOfWarp(sum) / kValues + a.norm_eps);
    uint32_t pairs[kN / 2];
#pragma unroll
    for (int i = 0; i < kN; i += 2) {
      const float low = x[i] * inverse * norm[i] * Silu(z[i]);
      const float high = x[i + 1] * inverse * norm[i + 1] * Silu(z[i + 1]);
      pairs[i / 2] = Round(low).bits | static_cast<uint32_t>(Round(high).bits) << 16;
    }
    uint32_t* to =
        reinterpret_cast<uint32_t*>(a.out + (batch_row * a.v_heads + head) * kValues + lane * kN);
    if constexpr (kN == 4) {
      *reinterpret_cast<uint2*>(to) = make_uint2(pairs[0], pairs[1]);
    } else {
      *to = pairs[0];
    }
  }
}

// --- launches ---

/// Rows of each sequence in a segment: whole chunks, so that where segments end changes no bit.
int SegmentLength(int n_sequences) {
  const int share = (kSegmentRows + n_sequences - 1) / n_sequences;
  return std::max(kMinSegmentRows, (share + 63) / 64 * 64);
}

int64_t ChunksOf(int64_t rows, int n_sequences, int chunk) {
  const int64_t most = static_cast<int64_t>(SegmentLength(n_sequences)) * n_sequences;
  return std::min(rows, most) / chunk + n_sequences;
}

/// Hands out the parts of the workspace.
struct Carver {
  std::byte* base;
  size_t used = 0;
  float* Take(int64_t floats) {
    std::byte* p = base == nullptr ? nullptr : base + used;
    used += (static_cast<size_t>(floats) * sizeof(float) + 255) / 256 * 256;
    return reinterpret_cast<float*>(p);
  }
};

size_t Carve(const kernels::DeltaShape& s, int64_t chunks, int chunk, std::byte* base,
             PrefillArgs& f) {
  Carver carver{base};
  f.q = carver.Take(chunks * s.k_heads * chunk * s.k_dim);
  f.k = carver.Take(chunks * s.k_heads * chunk * s.k_dim);
  f.v = carver.Take(chunks * s.v_heads * chunk * s.v_dim);
  f.t = carver.Take(chunks * s.v_heads * chunk * chunk);
  f.p = carver.Take(chunks * s.v_heads * chunk * chunk);
  f.growth = carver.Take(chunks * s.v_heads * chunk);
  f.fade = carver.Take(chunks * s.v_heads * chunk);
  return carver.used;
}

template <int kKeys, int kValues, int kChunk>
Result<void> LaunchSegment(const PrefillArgs& f, cudaStream_t stream) {
  const Args& a = f.a;
  constexpr int kHeads = kRowThreads / 32 / (kChunk / kRunRows);
  const int heads = 2 * a.k_heads + a.v_heads;
  DeltaPrepare<kKeys, kValues, kChunk>
      <<<dim3((heads + kHeads - 1) / kHeads, f.chunks), kRowThreads, 0, stream>>>(f);
  const auto chunk_kernel = DeltaChunk<kKeys, kChunk>;
  constexpr size_t kShared = sizeof(Shared<kKeys, kChunk>);
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(chunk_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(kShared)));
  chunk_kernel<<<dim3(a.k_heads, f.chunks), 2 * kChunk, kShared, stream>>>(f);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  NIBBLE_CHECK_OK(LaunchScan(f, kChunk, stream));
  DeltaNorm<kValues, kChunk><<<dim3(a.v_heads, f.chunks), kRowThreads, 0, stream>>>(f);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <int kChunk>
Result<void> LaunchSegmentOf(const PrefillArgs& f, cudaStream_t stream) {
  if (f.a.k_dim == 64) {
    return f.a.v_dim == 64 ? LaunchSegment<64, 64, kChunk>(f, stream)
                           : LaunchSegment<64, 128, kChunk>(f, stream);
  }
  return f.a.v_dim == 64 ? LaunchSegment<128, 64, kChunk>(f, stream)
                         : LaunchSegment<128, 128, kChunk>(f, stream);
}

}  // namespace

Result<void> LaunchPrefill(const DeltaParams& params, int chunk, cudaStream_t stream) {
  PrefillArgs f{};
  NIBBLE_TRY(f.a, CheckedArgs(params));
  const int64_t chunks = ChunksOf(params.rows, params.n_sequences, chunk);
  if (chunks > 65535 || params.workspace == nullptr ||
      reinterpret_cast<uintptr_t>(params.workspace) % 256 != 0 ||
      params.workspace_bytes < Carve(params.shape, chunks, chunk, params.workspace, f)) {
    return RefuseWorkspace(params, chunks);
  }
  Args fold = f.a;
  fold.fold_only = true;
  NIBBLE_TRY(const DecodeForm form, DecodeFormFor(fold));
  NIBBLE_CHECK_OK(LaunchDecode(fold, form, stream));
  f.chunks = static_cast<int>(chunks);
  f.length = SegmentLength(params.n_sequences);
  for (f.first = 0; f.first < params.rows; f.first += f.length) {
    NIBBLE_CHECK_OK(chunk == 64 ? LaunchSegmentOf<64>(f, stream) : LaunchSegmentOf<32>(f, stream));
  }
  return {};
}

}  // namespace nibble::cuda::delta

namespace nibble::cuda {

size_t DeltaPrefillWorkspace(const kernels::DeltaShape& shape, int64_t rows, int n_sequences) {
  delta::PrefillArgs f{};
  size_t bytes = 0;
  for (int chunk : {32, 64}) {
    bytes = std::max(
        bytes, delta::Carve(shape, delta::ChunksOf(rows, n_sequences, chunk), chunk, nullptr, f));
  }
  return bytes;
}

Result<void> LaunchDeltaPrefill(const DeltaParams& params, cudaStream_t stream) {
  int device = 0, shared = 0;
  NIBBLE_CUDA_TRY(cudaGetDevice(&device));
  NIBBLE_CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return delta::LaunchPrefill(params, delta::ChunkFor(params.shape, shared), stream);
}

}  // namespace nibble::cuda
