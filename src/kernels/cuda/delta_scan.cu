#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/delta_prefill.cuh"

// The sequential part of delta_prefill.cuh. A block carries a slice of a head, 32 rows of S, and
// its warps share each product of a chunk by its columns, so that a tile of K, Q, T or P meets both
// halves of the rows; what one product leaves, all of them read in the next, through shared memory:
//   X^T = V^T - S0 K^T;  V'^T = X^T T^T;  O^T = S0 Q^T + V'^T P^T;  S1 = S0 + V'^T K
// Other warps copy: K and Q a chunk ahead, T as soon as its last reader is done, P while X is made.

namespace nibble::cuda::delta {
namespace {

constexpr int kCopyThreads = 128;
constexpr int kHalves = kSliceRows / 16;  // a mma has 16 rows

/// Warps that compute: each has eight tokens of a chunk. Two a scheduler hide each other's waits.
template <int kChunk>
constexpr int kWarps = kChunk / 8;
template <int kChunk>
constexpr int kThreads = 32 * kWarps<kChunk> + kCopyThreads;

/// Rows of 8 banks more than a multiple of 32: a mma's eight rows lie in different ones.
template <int kRows, int kCols>
using Tile = float[kRows][kCols + 8];

template <int kKeys, int kChunk>
struct Keys {
  Tile<kChunk, kKeys> k, q;
  float growth[kChunk], fade[kChunk];
};

template <int kKeys, int kChunk, int kStages>
struct Shared {
  Keys<kKeys, kChunk> keys[kStages];
  Tile<kChunk, kChunk> t, p;
  Tile<kSliceRows, kKeys> s;  // TF32, as the next three
  Tile<kSliceRows, kChunk> x, v, faded;
};

template <int kRows, int kCols>
__device__ __forceinline__ void CopyTile(Tile<kRows, kCols>& to, const float* from, int thread) {
  constexpr int kPieces = kCols / 4;
#pragma unroll 8
  for (int i = thread; i < kRows * kPieces; i += kCopyThreads) {
    CopyAsync16(SharedAddress(&to[i / kPieces][i % kPieces * 4]), from + i * 4);
  }
}

__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// All but the last kGroups.
template <int kGroups>
__device__ __forceinline__ void WaitForGroups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// What the copying warps do, against the barriers of RunChunk().
template <int kKeys, int kChunk, int kStages>
struct Copier {
  const PrefillArgs& f;
  Shared<kKeys, kChunk, kStages>& m;
  const int head, key_head, first, thread;

  __device__ __forceinline__ int64_t Head(int c) const {
    return static_cast<int64_t>(first + c) * f.a.v_heads + head;
  }
  __device__ __forceinline__ void CopyKeys(int c) const {
    Keys<kKeys, kChunk>& to = m.keys[c % kStages];
    const int64_t at = (static_cast<int64_t>(first + c) * f.a.k_heads + key_head) * kChunk * kKeys;
    CopyTile<kChunk, kKeys>(to.k, f.k + at, thread);
    CopyTile<kChunk, kKeys>(to.q, f.q + at, thread);
    if (thread < kChunk / 4) {
      CopyAsync16(SharedAddress(to.growth + 4 * thread), f.growth + Head(c) * kChunk + 4 * thread);
      CopyAsync16(SharedAddress(to.fade + 4 * thread), f.fade + Head(c) * kChunk + 4 * thread);
    }
    CommitCopies();
  }
  __device__ __forceinline__ void CopyT(int c) const {
    CopyTile<kChunk, kChunk>(m.t, f.t + Head(c) * kChunk * kChunk, thread);
    CommitCopies();
  }
  __device__ __forceinline__ void CopyP(int c) const {
    CopyTile<kChunk, kChunk>(m.p, f.p + Head(c) * kChunk * kChunk, thread);
    CommitCopies();
  }

  __device__ __forceinline__ void Run(int chunks) const {
    CopyKeys(0);
    CopyT(0);
    WaitForGroups<0>();
    __syncthreads();
    for (int c = 0; c < chunks; ++c) {
      const bool more = c + 1 < chunks;
      CopyP(c);
      if (kStages > 1 && more) CopyKeys(c + 1);
      if (kStages > 1 && more) {
        WaitForGroups<2>();  // T
      } else {
        WaitForGroups<1>();
      }
      __syncthreads();  // X
      if (kStages > 1 && more) {
        WaitForGroups<1>();  // P
      } else {
        WaitForGroups<0>();
      }
      __syncthreads();  // V'
      if (more) CopyT(c + 1);
      if (kStages > 1 && more) WaitForGroups<1>();  // the next keys
      __syncthreads();                              // S
      if (kStages == 1 && more) {
        CopyKeys(c + 1);
        WaitForGroups<0>();
        __syncthreads();
      }
    }
  }
};

__device__ __forceinline__ float2 LoadPair(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}

/// 16 rows and 8 columns of a tile as a mma's left operand.
template <int kPitch>
__device__ __forceinline__ void LoadOperand(const float (*tile)[kPitch], int row, int column,
                                            float (&a)[4]) {
  const float2 low = LoadPair(&tile[row][column]), high = LoadPair(&tile[row + 8][column]);
  a[0] = low.x, a[1] = high.x, a[2] = low.y, a[3] = high.y;
}

/// What a mma left, into a tile of TF32.
template <int kPitch>
__device__ __forceinline__ void StoreResult(const float (&c)[4], float (*tile)[kPitch], int row,
                                            int column) {
  *reinterpret_cast<float2*>(&tile[row][column]) = make_float2(ToTf32(c[0]), ToTf32(c[1]));
  *reinterpret_cast<float2*>(&tile[row + 8][column]) = make_float2(ToTf32(c[2]), ToTf32(c[3]));
}

/// A warp's share of the slice: eight of a chunk's tokens, and some columns of S.
template <int kKeys, int kChunk, int kStages>
struct Worker {
  static constexpr int kColumns = kKeys / 8 / kWarps<kChunk>;  // tiles
  Shared<kKeys, kChunk, kStages>& m;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int row = Token(g), low = Token(2 * t), high = Token(2 * t + 1);
  float s[kHalves][kColumns][4];

  const int token = 8 * warp;  // the first
  __device__ __forceinline__ int column(int n) const { return 8 * (warp * kColumns + n); }

  /// state: of the slice's first row.
  __device__ __forceinline__ void Load(const float* state, bool fresh) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        float2 a = make_float2(0, 0), b = a;
        if (!fresh) {
          const float* at = state + (16 * h + g) * kKeys + column(n) + 2 * t;
          a = __ldcg(reinterpret_cast<const float2*>(at));
          b = __ldcg(reinterpret_cast<const float2*>(at + 8 * kKeys));
        }
        s[h][n][0] = a.x, s[h][n][1] = a.y, s[h][n][2] = b.x, s[h][n][3] = b.y;
      }
    }
    Publish();
  }
  __device__ __forceinline__ void Store(float* state) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        float* at = state + (16 * h + g) * kKeys + column(n) + 2 * t;
        *reinterpret_cast<float2*>(at) = make_float2(s[h][n][0], s[h][n][1]);
        *reinterpret_cast<float2*>(at + 8 * kKeys) = make_float2(s[h][n][2], s[h][n][3]);
      }
    }
  }
  __device__ __forceinline__ void Publish() {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        StoreResult(s[h][n], m.s, 16 * h + g, column(n) + 2 * t);
      }
    }
  }

  /// The slice through chunk c. v: of its first row, [chunk][v_dim], replaced by o.
  __device__ __forceinline__ void RunChunk(int c, float* v, int v_dim) {
    const Keys<kKeys, kChunk>& keys = m.keys[c % kStages];
    float x[kHalves][4], y[kHalves][4] = {}, o[kHalves][4] = {};
    float* const first = v + (token + low) * v_dim + g;
    float* const second = v + (token + high) * v_dim + g;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      x[h][0] = __ldcg(first + 16 * h), x[h][1] = __ldcg(second + 16 * h);
      x[h][2] = __ldcg(first + 16 * h + 8), x[h][3] = __ldcg(second + 16 * h + 8);
    }
#pragma unroll
    for (int l = 0; l < kKeys; l += 8) {
      const float2 k = LoadPair(&keys.k[token + row][l + 2 * t]);
      const float2 q = LoadPair(&keys.q[token + row][l + 2 * t]);
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        float a[4];
        LoadOperand(m.s, 16 * h + g, l + 2 * t, a);
        MmaTf32(y[h], a, k);
        MmaTf32(o[h], a, q);
      }
    }
    const float grown[2] = {keys.growth[token + low], keys.growth[token + high]};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[h][i] = __fmaf_rn(-grown[i % 2], y[h][i], x[h][i]);
        o[h][i] *= grown[i % 2];
        y[h][i] = 0;
      }
      StoreResult(x[h], m.x, 16 * h + g, token + 2 * t);
    }
    __syncthreads();  // X
    MultiplyLower(m.x, m.t, y);
    const float fade[2] = {keys.fade[token + low], keys.fade[token + high]};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      StoreResult(y[h], m.v, 16 * h + g, token + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) y[h][i] *= fade[i % 2];
      StoreResult(y[h], m.faded, 16 * h + g, token + 2 * t);
    }
    __syncthreads();  // V'
    UpdateState(keys);
    MultiplyLower(m.v, m.p, o);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      first[16 * h] = o[h][0], second[16 * h] = o[h][1];
      first[16 * h + 8] = o[h][2], second[16 * h + 8] = o[h][3];
    }
    __syncthreads();  // S
  }

  /// out += a lower^T, of a lower triangle's rows: the warp's tokens.
  __device__ __forceinline__ void MultiplyLower(const Tile<kSliceRows, kChunk>& a,
                                                const Tile<kChunk, kChunk>& lower,
                                                float (&out)[kHalves][4]) const {
#pragma unroll
    for (int l = 0; l < kChunk; l += 8) {
      if (l > token) break;
      const float2 right = LoadPair(&lower[token + row][l + 2 * t]);
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        float left[4];
        LoadOperand(a, 16 * h + g, l + 2 * t, left);
        MmaTf32(out[h], left, right);
      }
    }
  }

  __device__ __forceinline__ void UpdateState(const Keys<kKeys, kChunk>& keys) {
    const float total = keys.growth[kChunk - 1];
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[h][n][i] *= total;
      }
    }
#pragma unroll
    for (int l = 0; l < kChunk; l += 8) {
      float a[kHalves][4];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) LoadOperand(m.faded, 16 * h + g, l + 2 * t, a[h]);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const float2 k =
            make_float2(keys.k[l + low][column(n) + g], keys.k[l + high][column(n) + g]);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) MmaTf32(s[h][n], a[h], k);
      }
    }
    Publish();
  }
};

/// A block: a slice of a head of a sequence. Grid: (slices of all heads, sequences).
template <int kKeys, int kChunk, int kStages>
__global__ void __launch_bounds__(kThreads<kChunk>, 1)
    DeltaScan(const __grid_constant__ PrefillArgs f) {
  extern __shared__ __align__(16) uint8_t raw[];
  auto& m = *reinterpret_cast<Shared<kKeys, kChunk, kStages>*>(raw);
  const Args& a = f.a;
  const DeltaSequence sequence = LoadSequence(a, blockIdx.y);
  const int chunks = (SegmentRows(f, sequence.n_rows) + kChunk - 1) / kChunk;
  if (chunks == 0) return;
  const int first = FirstChunk<kChunk>(f, blockIdx.y);
  const int slices = a.v_dim / kSliceRows;
  const int head = blockIdx.x / slices, value = blockIdx.x % slices * kSliceRows;

  if (threadIdx.x >= 32 * kWarps<kChunk>) {
    const int key_head = head / (a.v_heads / a.k_heads);
    const int thread = threadIdx.x - 32 * kWarps<kChunk>;
    Copier<kKeys, kChunk, kStages>{f, m, head, key_head, first, thread}.Run(chunks);
    return;
  }
  float* state =
      a.state +
      ((static_cast<int64_t>(sequence.slot) * a.v_heads + head) * a.v_dim + value) * kKeys;
  Worker<kKeys, kChunk, kStages> worker{m};
  worker.Load(state, sequence.start == 0 && f.first == 0);
  __syncthreads();
  for (int c = 0; c < chunks; ++c) {
    float* v =
        f.v + (static_cast<int64_t>(first + c) * a.v_heads + head) * kChunk * a.v_dim + value;
    worker.RunChunk(c, v, a.v_dim);
    if (kStages == 1 && c + 1 < chunks) __syncthreads();
  }
  worker.Store(state);
}

template <int kKeys, int kChunk, int kStages>
constexpr size_t kSharedBytes = sizeof(Shared<kKeys, kChunk, kStages>);

template <int kKeys, int kChunk, int kStages>
Result<void> Launch(const PrefillArgs& f, cudaStream_t stream) {
  const auto kernel = DeltaScan<kKeys, kChunk, kStages>;
  constexpr size_t kBytes = kSharedBytes<kKeys, kChunk, kStages>;
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(kBytes)));
  const dim3 grid(f.a.v_heads * (f.a.v_dim / kSliceRows), f.a.n_sequences);
  kernel<<<grid, kThreads<kChunk>, kBytes, stream>>>(f);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <int kKeys>
Result<void> LaunchFor(const PrefillArgs& f, int chunk, cudaStream_t stream) {
  if (chunk == 32) return Launch<kKeys, 32, 1>(f, stream);
  int device = 0, shared = 0;
  NIBBLE_CUDA_TRY(cudaGetDevice(&device));
  NIBBLE_CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return kSharedBytes<kKeys, 64, 2> <= static_cast<size_t>(shared)
             ? Launch<kKeys, 64, 2>(f, stream)
             : Launch<kKeys, 64, 1>(f, stream);
}

}  // namespace

int ChunkFor(const kernels::DeltaShape& shape, int shared_bytes) {
  const size_t bytes = shape.k_dim == 64 ? kSharedBytes<64, 64, 1> : kSharedBytes<128, 64, 1>;
  return bytes <= static_cast<size_t>(shared_bytes) ? 64 : 32;
}

Result<void> LaunchScan(const PrefillArgs& f, int chunk, cudaStream_t stream) {
  return f.a.k_dim == 64 ? LaunchFor<64>(f, chunk, stream) : LaunchFor<128>(f, chunk, stream);
}

}  // namespace nibble::cuda::delta
