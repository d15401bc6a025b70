#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/delta_prefill.cuh"

// The sequential part of delta_prefill.cuh. A warp carries 16 rows of S in the layout in which a mma
// leaves them; transposed, each product of a chunk takes what the one before it left in registers:
//   X^T = V^T - S0 K^T;  V'^T = X^T T^T;  O^T = S0 Q^T + V'^T P^T;  S1 = S0 + V'^T K
// K, Q, T and P come through shared memory, chunk after chunk, copied by two other warps.

namespace nibble::cuda::delta {
namespace {

constexpr int kWarps = 2;  // that compute: a slice of a head
constexpr int kCopyThreads = 64;
constexpr int kThreads = 32 * kWarps + kCopyThreads;
static_assert(16 * kWarps == kSliceRows);

template <int kKeys, int kChunk>
struct Stage {
  // Rows of 8 banks more: a mma's eight rows lie in different ones.
  float k[kChunk][kKeys + 8], q[kChunk][kKeys + 8];
  float t[kChunk][kChunk + 8], p[kChunk][kChunk + 8];
  float growth[kChunk], fade[kChunk];
};

template <int kRows, int kCols, int kPitch>
__device__ __forceinline__ void CopyTile(float (&to)[kRows][kPitch], const float* from, int thread) {
  constexpr int kPieces = kCols / 4;
#pragma unroll 8
  for (int i = thread; i < kRows * kPieces; i += kCopyThreads) {
    CopyAsync16(SharedAddress(&to[i / kPieces][i % kPieces * 4]), from + i * 4);
  }
}

template <int kKeys, int kChunk>
__device__ __forceinline__ void CopyStage(const PrefillArgs& f, int chunk, int head, int thread,
                                          Stage<kKeys, kChunk>& stage) {
  const int key_head = head / (f.a.v_heads / f.a.k_heads);
  const int64_t keys = (static_cast<int64_t>(chunk) * f.a.k_heads + key_head) * kChunk * kKeys;
  const int64_t values = static_cast<int64_t>(chunk) * f.a.v_heads + head;
  CopyTile<kChunk, kKeys>(stage.k, f.k + keys, thread);
  CopyTile<kChunk, kKeys>(stage.q, f.q + keys, thread);
  CopyTile<kChunk, kChunk>(stage.t, f.t + values * kChunk * kChunk, thread);
  CopyTile<kChunk, kChunk>(stage.p, f.p + values * kChunk * kChunk, thread);
  if (thread < kChunk / 4) {
    CopyAsync16(SharedAddress(stage.growth + 4 * thread), f.growth + values * kChunk + 4 * thread);
    CopyAsync16(SharedAddress(stage.fade + 4 * thread), f.fade + values * kChunk + 4 * thread);
  }
}

/// What a mma left, as the next one takes it.
__device__ __forceinline__ void AsOperand(const float (&c)[4], float (&a)[4]) {
  a[0] = ToTf32(c[0]), a[1] = ToTf32(c[2]), a[2] = ToTf32(c[1]), a[3] = ToTf32(c[3]);
}

__device__ __forceinline__ float2 LoadPair(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}

/// 16 rows of S through one chunk. v: of these rows, [chunk][v_dim], replaced by o.
template <int kKeys, int kChunk>
__device__ __forceinline__ void RunChunk(const Stage<kKeys, kChunk>& m, float* v, int v_dim,
                                         float (&s)[kKeys / 8][4]) {
  constexpr int kTiles = kChunk / 8, kKeyTiles = kKeys / 8;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row = Token(g), low = Token(2 * t), high = Token(2 * t + 1);
  float x[kTiles][4], y[kTiles][4], o[kTiles][4];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const float* at = v + (8 * j + low) * v_dim + g;
    const float* next = v + (8 * j + high) * v_dim + g;
    x[j][0] = __ldcg(at), x[j][1] = __ldcg(next);
    x[j][2] = __ldcg(at + 8), x[j][3] = __ldcg(next + 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) y[j][i] = o[j][i] = 0;
  }
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
    float a[4];
    AsOperand(s[n], a);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      MmaTf32(y[j], a, LoadPair(&m.k[8 * j + row][8 * n + 2 * t]));
      MmaTf32(o[j], a, LoadPair(&m.q[8 * j + row][8 * n + 2 * t]));
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const float grown[2] = {m.growth[8 * j + low], m.growth[8 * j + high]};
    float z[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      z[i] = __fmaf_rn(-grown[i % 2], y[j][i], x[j][i]);
      o[j][i] *= grown[i % 2];
      y[j][i] = 0;
    }
    AsOperand(z, x[j]);
  }
#pragma unroll
  for (int l = 0; l < kTiles; ++l) {
#pragma unroll
    for (int j = l; j < kTiles; ++j) {
      MmaTf32(y[j], x[l], LoadPair(&m.t[8 * j + row][8 * l + 2 * t]));
    }
  }
#pragma unroll
  for (int l = 0; l < kTiles; ++l) {
    float a[4];
    AsOperand(y[l], a);
#pragma unroll
    for (int j = l; j < kTiles; ++j) {
      MmaTf32(o[j], a, LoadPair(&m.p[8 * j + row][8 * l + 2 * t]));
    }
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    float* at = v + (8 * j + low) * v_dim + g;
    float* next = v + (8 * j + high) * v_dim + g;
    at[0] = o[j][0], next[0] = o[j][1], at[8] = o[j][2], next[8] = o[j][3];
  }
  const float total = m.growth[kChunk - 1];
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] *= total;
  }
#pragma unroll
  for (int l = 0; l < kTiles; ++l) {
    const float fade[2] = {m.fade[8 * l + low], m.fade[8 * l + high]};
    float z[4], a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) z[i] = y[l][i] * fade[i % 2];
    AsOperand(z, a);
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      MmaTf32(s[n], a, make_float2(m.k[8 * l + low][8 * n + g], m.k[8 * l + high][8 * n + g]));
    }
  }
}

/// A block: a slice of a head of a sequence. Grid: (slices of all heads, sequences).
template <int kKeys, int kChunk, int kStages>
__global__ void __launch_bounds__(kThreads, 1) DeltaScan(const __grid_constant__ PrefillArgs f) {
  extern __shared__ __align__(16) uint8_t raw[];
  auto* const stages = reinterpret_cast<Stage<kKeys, kChunk>*>(raw);
  const Args& a = f.a;
  const DeltaSequence sequence = LoadSequence(a, blockIdx.y);
  const int chunks = (SegmentRows(f, sequence.n_rows) + kChunk - 1) / kChunk;
  if (chunks == 0) return;
  const int first = FirstChunk<kChunk>(f, blockIdx.y);
  const int slices = a.v_dim / kSliceRows;
  const int head = blockIdx.x / slices, slice = blockIdx.x % slices;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (warp >= kWarps) {
    const int thread = threadIdx.x - 32 * kWarps;
    CopyStage(f, first, head, thread, stages[0]);
    WaitForCopies();
    __syncthreads();
    for (int c = 1; c < chunks; ++c) {
      if constexpr (kStages == 1) __syncthreads();
      CopyStage(f, first + c, head, thread, stages[c % kStages]);
      WaitForCopies();
      __syncthreads();
    }
    return;
  }
  const int value = slice * kSliceRows + 16 * warp;  // the first of the warp's rows
  float* state = a.state +
                 ((static_cast<int64_t>(sequence.slot) * a.v_heads + head) * a.v_dim + value +
                  lane / 4) * kKeys + 2 * (lane % 4);
  float s[kKeys / 8][4];
  const bool fresh = sequence.start == 0 && f.first == 0;
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
    float2 low = make_float2(0, 0), high = low;
    if (!fresh) {
      low = __ldcg(reinterpret_cast<const float2*>(state + 8 * n));
      high = __ldcg(reinterpret_cast<const float2*>(state + 8 * kKeys + 8 * n));
    }
    s[n][0] = low.x, s[n][1] = low.y, s[n][2] = high.x, s[n][3] = high.y;
  }
  __syncthreads();
  for (int c = 0; c < chunks; ++c) {
    float* v = f.v + (static_cast<int64_t>(first + c) * a.v_heads + head) * kChunk * a.v_dim + value;
    RunChunk<kKeys, kChunk>(stages[c % kStages], v, a.v_dim, s);
    if (c + 1 == chunks) break;
    if constexpr (kStages == 1) __syncthreads();
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
    *reinterpret_cast<float2*>(state + 8 * n) = make_float2(s[n][0], s[n][1]);
    *reinterpret_cast<float2*>(state + 8 * kKeys + 8 * n) = make_float2(s[n][2], s[n][3]);
  }
}

template <int kKeys, int kChunk, int kStages>
Result<void> Launch(const PrefillArgs& f, cudaStream_t stream) {
  const auto kernel = DeltaScan<kKeys, kChunk, kStages>;
  const size_t shared = kStages * sizeof(Stage<kKeys, kChunk>);
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared)));
  const dim3 grid(f.a.v_heads * (f.a.v_dim / kSliceRows), f.a.n_sequences);
  kernel<<<grid, kThreads, shared, stream>>>(f);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <int kKeys>
Result<void> LaunchFor(const PrefillArgs& f, int chunk, cudaStream_t stream) {
  if (chunk == 32) return Launch<kKeys, 32, 2>(f, stream);
  int device = 0, shared = 0;
  NIBBLE_CUDA_TRY(cudaGetDevice(&device));
  NIBBLE_CUDA_TRY(
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return 2 * sizeof(Stage<kKeys, 64>) <= static_cast<size_t>(shared)
             ? Launch<kKeys, 64, 2>(f, stream)
             : Launch<kKeys, 64, 1>(f, stream);
}

}  // namespace

int ChunkFor(const kernels::DeltaShape& shape, int shared_bytes) {
  const size_t bytes = shape.k_dim == 64 ? sizeof(Stage<64, 64>) : sizeof(Stage<128, 64>);
  return bytes <= static_cast<size_t>(shared_bytes) ? 64 : 32;
}

Result<void> LaunchScan(const PrefillArgs& f, int chunk, cudaStream_t stream) {
  return f.a.k_dim == 64 ? LaunchFor<64>(f, chunk, stream) : LaunchFor<128>(f, chunk, stream);
}

}  // namespace nibble::cuda::delta
