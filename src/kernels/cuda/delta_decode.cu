#include <cooperative_groups.h>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/delta.cuh"

// Decode of gated DeltaNet: a few new rows of every sequence, and before them the kept ones of its
// last tentative batch. A row of a head's state meets no other one, so eight lanes hold one in
// registers through all rows; a block holds 32 of them (a slice) where slices of a head can meet
// in a cluster for the output norm, else the whole head.
//
// The pass over the state is the floor: 4 MB a sequence in Qwen3.6-35B-A3B. Rows are prepared while
// the state is on its way.

namespace nibble::cuda::delta {
namespace {

namespace cg = cooperative_groups;

constexpr int kLanes = 8;                      // that share a row of the state
constexpr int kMaxRows = 2 * kDeltaDecodeRows;  // kept and new
constexpr int kMaxSlices = 4;
constexpr int kWarpsPerSlice = kSliceRows * kLanes / 32;
static_assert(kWarpsPerSlice == kDeltaDecodeRows);  // a warp norms one row's slice

template <int kKeys, int kBlockSlices>
struct Shared {
  float q[kMaxRows][kKeys], k[kMaxRows][kKeys];
  float v[kMaxRows][kBlockSlices * kSliceRows];
  float beta[kMaxRows], decay[kMaxRows];
  float o[kDeltaDecodeRows][kBlockSlices * kSliceRows];
  float squares[kDeltaDecodeRows][kMaxSlices];
};

/// Where a block works: slices first_slice … of value head `head`.
struct Place {
  int head, key_head, first_slice;
  bool writes_keys;  // the one block that keeps its key head's inputs

  __device__ Place(const Args& a, int block_slices) {
    const int blocks = a.v_dim / (kSliceRows * block_slices), group = a.v_heads / a.k_heads;
    head = blockIdx.x / blocks;
    first_slice = blockIdx.x % blocks * block_slices;
    key_head = head / group;
    writes_keys = head % group == 0 && first_slice == 0;
  }
};

/// Rows of a sequence in this launch: `kept` of them are run again.
struct Rows {
  DeltaSequence s;
  int kept, n;

  __device__ int position(int row) const { return s.start - kept + row; }
};

template <int N>
__device__ __forceinline__ void LoadTaps(const Args& a, const Rows& r, int row, int channel,
                                         Raw<N> (&x)[kMaxTaps]) {
#pragma unroll
  for (int j = 0; j < kMaxTaps; ++j) {
    x[j] = LoadInput<N>(a, r.s, r.position(row), kMaxTaps - 1 - j, channel);
  }
}

/// A row's own input into the ring, unless it comes from there.
template <int N>
__device__ __forceinline__ void KeepInput(const Args& a, const Rows& r, int row, int channel,
                                          const Raw<N>& x) {
  if (row < r.kept) return;
  Bf16* to = RingRow(a, r.s.slot, r.position(row)) + channel;
  if constexpr (N == 4) {
    *reinterpret_cast<uint2*>(to) = make_uint2(x.pair[0], x.pair[1]);
  } else {
    *reinterpret_cast<uint32_t*>(to) = x.pair[0];
  }
}

/// Rows first, first + step, … of a key head's q or k, a warp each; the next row's inputs are asked
/// for before this one's are used.
template <int kKeys>
__device__ void PrepareKeys(const Args& a, const Rows& r, const Taps<kKeys / 32>& taps, int channel,
                            float scale, bool keep, int first, int step, float (*to)[kKeys]) {
  constexpr int kN = kKeys / 32;
  const int lane = threadIdx.x % 32;
  Raw<kN> x[kMaxTaps], next[kMaxTaps];
  if (first < r.n) LoadTaps(a, r, first, channel, x);
  for (int row = first; row < r.n; row += step) {
    if (row + step < r.n) LoadTaps(a, r, row + step, channel, next);
    if (keep) KeepInput(a, r, row, channel, x[kMaxTaps - 1]);
    float y[kN];
    ConvSilu(taps, x, y);
    UnitLength(y, scale);
#pragma unroll
    for (int i = 0; i < kN; ++i) to[row][lane * kN + i] = y[i];
#pragma unroll
    for (int j = 0; j < kMaxTaps; ++j) x[j] = next[j];
  }
}

/// Slices of v: four rows' at a time in a warp. `first` and `step` count slices of rows.
template <int kBlockSlices>
__device__ void PrepareValues(const Args& a, const Rows& r, const Taps<4>& taps, int channel,
                              int first, int step, float (*to)[kBlockSlices * kSliceRows]) {
  const int lane = threadIdx.x % 32, slice = first % kBlockSlices;
  for (int u = first; u < r.n * kBlockSlices; u += step) {
    const int row = u / kBlockSlices;
    Raw<4> x[kMaxTaps];
    LoadTaps(a, r, row, channel, x);
    KeepInput(a, r, row, channel, x[kMaxTaps - 1]);
    float y[4];
    ConvSilu(taps, x, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[row][slice * kSliceRows + lane % 8 * 4 + i] = y[i];
  }
}

/// A lane a row: beta and e^g.
template <class S>
__device__ void PrepareGates(const Args& a, const Rows& r, const Place& p, float a_log, float dt_bias,
                             S& shared) {
  const int row = threadIdx.x % 32;
  if (row >= r.n) return;
  const int position = r.position(row);
  const bool is_new = row >= r.kept;
  Bf16* ring = RingRow(a, r.s.slot, position) + a.channels + p.head;
  const Bf16* from = ring;
  if (is_new) {
    from = a.in + (r.s.first_row + static_cast<int64_t>(row - r.kept)) * a.in_width + a.channels +
           a.v_heads * a.v_dim + p.head;
  }
  const Bf16 b = LoadOne(from), alpha = LoadOne(from + a.v_heads);
  if (is_new && p.first_slice == 0) {
    ring[0] = b;
    ring[a.v_heads] = alpha;
  }
  shared.beta[row] = Beta(Float(b));
  shared.decay[row] = expf(LogDecay(Float(alpha), a_log, dt_bias));
}

/// A lane's part of a row of the state: pieces of four numbers, 32 apart.
template <int kKeys>
struct StateRow {
  float s[kKeys / kLanes];

  __device__ __forceinline__ void Zero() {
#pragma unroll
    for (float& x : s) x = 0;
  }
  __device__ __forceinline__ void Load(const float* row, int lane) {
#pragma unroll
    for (int j = 0; j < kKeys / 32; ++j) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(row + j * 32 + lane * 4));
      s[4 * j] = v.x, s[4 * j + 1] = v.y, s[4 * j + 2] = v.z, s[4 * j + 3] = v.w;
    }
  }
  __device__ __forceinline__ void Store(float* row, int lane) const {
#pragma unroll
    for (int j = 0; j < kKeys / 32; ++j) {
      __stcg(reinterpret_cast<float4*>(row + j * 32 + lane * 4),
             make_float4(s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3]));
    }
  }
  /// The dot product with a vector in shared memory; every lane has it.
  __device__ __forceinline__ float Dot(const float* x, int lane) const {
    float sum[4] = {};
#pragma unroll
    for (int j = 0; j < kKeys / 32; ++j) {
      const float4 v = *reinterpret_cast<const float4*>(x + j * 32 + lane * 4);
      sum[0] = __fmaf_rn(s[4 * j], v.x, sum[0]);
      sum[1] = __fmaf_rn(s[4 * j + 1], v.y, sum[1]);
      sum[2] = __fmaf_rn(s[4 * j + 2], v.z, sum[2]);
      sum[3] = __fmaf_rn(s[4 * j + 3], v.w, sum[3]);
    }
    float total = __fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3]));
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) {
      total = __fadd_rn(total, __shfl_xor_sync(~0u, total, mask));
    }
    return total;
  }
  /// S <- e^g S;  S <- S + beta (v - S k) k^T
  __device__ __forceinline__ void Update(const float* k, float v, float beta, float decay, int lane) {
    const float delta = __fmul_rn(beta, __fmaf_rn(-decay, Dot(k, lane), v));
#pragma unroll
    for (int j = 0; j < kKeys / 32; ++j) {
      const float4 x = *reinterpret_cast<const float4*>(k + j * 32 + lane * 4);
      s[4 * j] = __fmaf_rn(decay, s[4 * j], __fmul_rn(delta, x.x));
      s[4 * j + 1] = __fmaf_rn(decay, s[4 * j + 1], __fmul_rn(delta, x.y));
      s[4 * j + 2] = __fmaf_rn(decay, s[4 * j + 2], __fmul_rn(delta, x.z));
      s[4 * j + 3] = __fmaf_rn(decay, s[4 * j + 3], __fmul_rn(delta, x.w));
    }
  }
};

/// The squares of a slice of a row's outputs, to every block that holds a slice of this head.
template <bool kCluster, class S>
__device__ __forceinline__ void ShareSquares(float sum, int row, int slice, S& shared) {
  if constexpr (kCluster) {
#if __CUDA_ARCH__ >= 900
    const cg::cluster_group cluster = cg::this_cluster();
    const int lane = threadIdx.x % 32;
    if (lane < static_cast<int>(cluster.num_blocks())) {
      *cluster.map_shared_rank(&shared.squares[row][slice], lane) = sum;
    }
#endif
  } else {
    if (threadIdx.x % 32 == 0) shared.squares[row][slice] = sum;
  }
}

template <bool kCluster>
__device__ __forceinline__ void Arrive() {
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  }
#endif
}
template <bool kCluster>
__device__ __forceinline__ void Wait() {
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster) {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

/// kBlockSlices: a cluster's blocks have one each; else a block has them all.
template <int kKeys, int kBlockSlices, bool kCluster>
__global__ void __launch_bounds__(kBlockSlices* kSliceRows* kLanes)
    DeltaDecode(const __grid_constant__ Args a) {
  constexpr int kN = kKeys / 32;
  __shared__ __align__(16) Shared<kKeys, kBlockSlices> shared;
  LetNextStart();
  Arrive<kCluster>();  // a block's shared memory is there once it has arrived
  const Place p(a, kBlockSlices);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row_lane = threadIdx.x % kLanes;
  const int64_t state_at =
      (static_cast<int64_t>(p.head) * a.v_dim + p.first_slice * kSliceRows) * kKeys;
  const int64_t slot_size = static_cast<int64_t>(a.v_heads) * a.v_dim * kKeys;

  // Constants, and a hint: what the descriptor says now need not be what it will say.
  const int part = warp % 8, part_of = warp / 8;  // 0-2: q, 3-5: k, 6-7: v and the gates
  const int keys = a.k_heads * kKeys;
  const int key_channel = (part < 3 ? 0 : keys) + p.key_head * kKeys + lane * kN;
  const int value_unit = (part_of * 2 + part - 6) * 4 + lane / 8;
  const int value_channel = 2 * keys + p.head * a.v_dim +
                            (p.first_slice + value_unit % kBlockSlices) * kSliceRows + lane % 8 * 4;
  const Taps<kN> key_taps(a, part < 6 ? key_channel : 0);
  const Taps<4> value_taps(a, part < 6 ? 0 : value_channel);
  const float a_log = a.a_log[p.head], dt_bias = a.dt_bias[p.head];
  const int norm_row = warp / kBlockSlices, norm_slice = warp % kBlockSlices;
  const int norm_at = (p.first_slice + norm_slice) * kSliceRows + lane;
  const float norm = a.norm[norm_at];
  {
    const int slot = __ldcg(&a.sequences[blockIdx.y].slot);
    if (slot >= 0 && slot < a.slots && threadIdx.x % 2 == 0) {
      const char* at = reinterpret_cast<const char*>(a.state + slot * slot_size + state_at);
      if (threadIdx.x * 64 < kBlockSlices * kSliceRows * kKeys * 4) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(at + threadIdx.x * 64));
      }
    }
  }
  WaitForPrevious();

  Rows r{LoadSequence(a, blockIdx.y), 0, 0};
  r.kept = min(r.s.kept, a.decode_rows);
  r.n = a.fold_only ? r.kept : r.kept + min(r.s.n_rows, a.decode_rows);
  if (a.fold_only ? r.kept == 0 : r.s.n_rows == 0) {
    Wait<kCluster>();
    return;
  }
  float* const state =
      a.state + r.s.slot * slot_size + state_at + static_cast<int64_t>(threadIdx.x / kLanes) * kKeys;
  StateRow<kKeys> row;
  if (r.s.start == 0) {
    row.Zero();
  } else {
    row.Load(state, row_lane);
  }
  const bool norms = norm_row < r.n - r.kept;
  const int64_t batch_row = r.s.first_row + static_cast<int64_t>(norm_row);
  float z = 0;
  if (norms) {
    z = Float(LoadOne(a.in + batch_row * a.in_width + a.channels + p.head * a.v_dim + norm_at));
  }

  if (part < 6) {
    const float scale = part < 3 ? rsqrtf(static_cast<float>(kKeys)) : 1.0f;
    PrepareKeys<kKeys>(a, r, key_taps, key_channel, scale, p.writes_keys, part_of * 3 + part % 3,
                       3 * kBlockSlices, part < 3 ? shared.q : shared.k);
  } else {
    if (warp == 7) PrepareGates(a, r, p, a_log, dt_bias, shared);
    PrepareValues<kBlockSlices>(a, r, value_taps, value_channel, value_unit, 8 * kBlockSlices,
                                shared.v);
  }
  __syncthreads();

  const int block_row = threadIdx.x / kLanes;
  for (int i = 0; i < r.kept; ++i) {
    row.Update(shared.k[i], shared.v[i][block_row], shared.beta[i], shared.decay[i], row_lane);
  }
  const bool tentative = r.s.tentative != 0 && !a.fold_only;
  if (tentative && (r.kept > 0 || r.s.start == 0)) row.Store(state, row_lane);
  for (int i = r.kept; i < r.n; ++i) {
    row.Update(shared.k[i], shared.v[i][block_row], shared.beta[i], shared.decay[i], row_lane);
    const float o = row.Dot(shared.q[i], row_lane);
    if (row_lane == 0) shared.o[i - r.kept][block_row] = o;
  }
  if (!tentative) row.Store(state, row_lane);
  __syncthreads();

  Wait<kCluster>();
  float o = 0;
  if (norms) {
    o = shared.o[norm_row][norm_slice * kSliceRows + lane];
    ShareSquares<kCluster>(SumOfWarp(o * o), norm_row, p.first_slice + norm_slice, shared);
  }
  Arrive<kCluster>();
  Wait<kCluster>();
  if (norms) {
    float sum = 0;
    for (int i = 0; i < a.v_dim / kSliceRows; ++i) sum += shared.squares[norm_row][i];
    const float inverse = rsqrtf(sum / static_cast<float>(a.v_dim) + a.norm_eps);
    a.out[batch_row * (a.v_heads * a.v_dim) + p.head * a.v_dim + norm_at] =
        Round(o * inverse * norm * Silu(z));
  }
}

template <int kKeys, int kBlockSlices, bool kCluster>
Result<void> Launch(const Args& args, cudaStream_t stream) {
  const auto kernel = DeltaDecode<kKeys, kBlockSlices, kCluster>;
  const int blocks = args.v_dim / (kSliceRows * kBlockSlices);
  // Launches share a multiprocessor only if they want it divided alike (sm90_linear_decode.cu).
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(args.v_heads * blocks, args.n_sequences);
  config.blockDim = dim3(kBlockSlices * kSliceRows * kLanes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = kCluster ? 2 : 0;
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, args));
  return {};
}

template <int kKeys>
Result<void> LaunchFor(const Args& args, bool clusters, cudaStream_t stream) {
  if (clusters) return Launch<kKeys, 1, true>(args, stream);
  return args.v_dim == 64 ? Launch<kKeys, 2, false>(args, stream)
                          : Launch<kKeys, 4, false>(args, stream);
}

}  // namespace

Result<bool> HasClusters() {
  cudaFuncAttributes attributes{};
  NIBBLE_CUDA_TRY(cudaFuncGetAttributes(&attributes, DeltaDecode<128, 1, true>));
  return attributes.ptxVersion >= 90;  // of the code that was chosen for this device
}

Result<void> LaunchDecode(const Args& args, bool clusters, cudaStream_t stream) {
  return args.k_dim == 64 ? LaunchFor<64>(args, clusters, stream)
                          : LaunchFor<128>(args, clusters, stream);
}

}  // namespace nibble::cuda::delta

namespace nibble::cuda {

Result<void> LaunchDeltaDecode(const DeltaParams& params, cudaStream_t stream) {
  NIBBLE_TRY(const delta::Args args, delta::CheckedArgs(params));
  NIBBLE_TRY(const bool clusters, delta::HasClusters());
  return delta::LaunchDecode(args, clusters, stream);
}

}  // namespace nibble::cuda
