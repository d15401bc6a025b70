#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/delta_decode.cuh"

// Decode of gated DeltaNet: a few new rows of every sequence, and before them the kept ones of its
// last tentative batch. A row of a head's state meets no other one, so eight lanes hold one in
// registers through all rows. A block holds a slice of a head, 32 rows, where the slices can meet
// in a cluster for the output norm and there are few sequences; else the whole head, which prepares
// q and k fewer times over. Bits are the same.
//
// The pass over the state is the floor: 4 MB a sequence in Qwen3.6-35B-A3B. Rows are prepared while
// the state is on its way.

namespace nibble::cuda::delta {
namespace {

constexpr int kThreads = kSliceRows * kLanes;  // a thread has a part of one row of every slice
constexpr int kWarps = kThreads / 32;
constexpr int kMaxRows = 2 * kDeltaDecodeRows;  // kept and new
constexpr int kBefore = kMaxTaps - 1;           // rows before them that the convolution reads
constexpr int kMaxSlices = 4;
constexpr int kWorthWholeHeads = 64;  // heads of all sequences together
constexpr int kGateWarp = 4;          // which has no row to prepare when there is one

template <int kKeys, int kSlices>
struct Shared {
  static constexpr int kValues = kSlices * kSliceRows, kWidth = 2 * kKeys + kValues;
  Bf16 in[kBefore + kMaxRows][kWidth];  // q | k | v before the convolution
  Bf16 z[kDeltaDecodeRows][kValues];
  float q[kMaxRows][kKeys], k[kMaxRows][kKeys], v[kMaxRows][kValues];
  float beta[kMaxRows], decay[kMaxRows];
  float o[kDeltaDecodeRows][kValues];
  float squares[kDeltaDecodeRows][kMaxSlices];
  uint64_t arrived;  // a mbarrier: all squares of the cluster
};

/// Where a block works: slices first_slice ... of value head `head`.
template <int kKeys, int kSlices>
struct Place {
  int head, key_head, first_slice;
  bool writes_keys;  // the one block that keeps its key head's inputs

  __device__ explicit Place(const Args& a) {
    const int group = a.v_heads / a.k_heads;
    head = blockIdx.y;
    first_slice = blockIdx.x * kSlices;
    key_head = head / group;
    writes_keys = head % group == 0 && first_slice == 0;
  }
  /// The first value dimension.
  __device__ int value(const Args& a) const { return head * a.v_dim + first_slice * kSliceRows; }
  /// The channel behind column `at` of Shared::in.
  __device__ int Channel(const Args& a, int at) const {
    const int keys = a.k_heads * kKeys;
    if (at < kKeys) return key_head * kKeys + at;
    if (at < 2 * kKeys) return keys + key_head * kKeys + at - kKeys;
    return 2 * keys + value(a) + at - 2 * kKeys;
  }
};

/// Calls f(row, column) for every 16 bytes of rows [first, last) of Shared::in.
template <int kWidth, class F>
__device__ __forceinline__ void EachPiece(int first, int last, F f) {
  constexpr int kPieces = kWidth / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < (last - first) * kPieces; i += kThreads) {
    f(first + i / kPieces, i % kPieces * 8);
  }
}

/// Asks for all inputs at once. Zeros stand before a sequence's beginning, and where no tap
/// reaches.
template <int kKeys, int kSlices>
__device__ __forceinline__ void LoadInputs(const Args& a, const Rows& r,
                                           const Place<kKeys, kSlices>& p,
                                           Shared<kKeys, kSlices>& shared) {
  using S = Shared<kKeys, kSlices>;
  EachPiece<S::kWidth>(-kBefore, r.n, [&](int row, int column) {
    Bf16* to = &shared.in[kBefore + row][column];
    if (r.position(row) < 0 || row <= -a.taps) {
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    } else {
      CopyAsync16(SharedAddress(to), r.Input(a, row) + p.Channel(a, column));
    }
  });
  EachPiece<S::kValues>(0, r.n - r.kept, [&](int row, int column) {
    const int64_t batch_row = r.s.first_row + static_cast<int64_t>(row);
    CopyAsync16(SharedAddress(&shared.z[row][column]),
                a.in + batch_row * a.in_width + a.channels + p.value(a) + column);
  });
}

/// The new rows' inputs into the ring.
template <int kKeys, int kSlices>
__device__ __forceinline__ void KeepInputs(const Args& a, const Rows& r,
                                           const Place<kKeys, kSlices>& p,
                                           const Shared<kKeys, kSlices>& shared) {
  EachPiece<Shared<kKeys, kSlices>::kWidth>(r.kept, r.n, [&](int row, int column) {
    if (column < 2 * kKeys && !p.writes_keys) return;
    *reinterpret_cast<uint4*>(r.Ring(a, row) + p.Channel(a, column)) =
        *reinterpret_cast<const uint4*>(&shared.in[kBefore + row][column]);
  });
}

/// N columns of a row, convolved.
template <int N, int kWidth>
__device__ __forceinline__ void ConvolveAt(const Bf16 (*in)[kWidth], int row, int column,
                                           const Taps<N>& taps, float (&y)[N]) {
  Raw<N> x[kMaxTaps];
#pragma unroll
  for (int j = 0; j < kMaxTaps; ++j) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      x[j].pair[i] = reinterpret_cast<const uint32_t*>(&in[row + j][column])[i];
    }
  }
  ConvSilu(taps, x, y);
}

/// What a warp and a lane of it prepare: even warps q, odd ones k, a row at a time; slices of v,
/// four at a time, begin at the other end.
template <int kKeys, int kSlices>
struct Preparer {
  static constexpr int kN = kKeys / 32;
  using S = Shared<kKeys, kSlices>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int key_column = warp % 2 * kKeys + lane * kN;
  const int value_column = 2 * kKeys + lane / 8 % kSlices * kSliceRows + lane % 8 * 4;
  const Taps<kN> key_taps;
  const Taps<4> value_taps;

  __device__ Preparer(const Args& a, const Place<kKeys, kSlices>& p)
      : key_taps(a, p.Channel(a, key_column)), value_taps(a, p.Channel(a, value_column)) {}

  __device__ __forceinline__ void Run(int n, S& shared) const {
    const float scale = warp % 2 == 0 ? rsqrtf(static_cast<float>(kKeys)) : 1.0f;
    float(*keys)[kKeys] = warp % 2 == 0 ? shared.q : shared.k;
#pragma unroll 1
    for (int row = warp / 2; row < n; row += kWarps / 2) {
      float y[kN];
      ConvolveAt(shared.in, row, key_column, key_taps, y);
      UnitLength(y, scale);
#pragma unroll
      for (int i = 0; i < kN; i += 2) {
        *reinterpret_cast<float2*>(&keys[row][lane * kN + i]) = make_float2(y[i], y[i + 1]);
      }
    }
#pragma unroll 1
    for (int u = (kWarps - 1 - warp) * 4 + lane / 8; u < n * kSlices; u += kWarps * 4) {
      const int row = u / kSlices;
      float y[4];
      ConvolveAt(shared.in, row, value_column, value_taps, y);
      *reinterpret_cast<float4*>(&shared.v[row][value_column - 2 * kKeys]) =
          make_float4(y[0], y[1], y[2], y[3]);
    }
  }
};

/// A lane a row: beta and e^g; and the new rows' b and a into the ring.
template <class S>
__device__ __forceinline__ void PrepareGates(const Args& a, const Rows& r, int head, bool keep,
                                             float a_log, float dt_bias, S& shared) {
  const int row = threadIdx.x % 32;
  if (row >= r.n) return;
  const bool is_new = row >= r.kept;
  Bf16* ring = r.Ring(a, row) + a.channels + head;
  const Bf16* from = ring;
  if (is_new) {
    from = a.in + (r.s.first_row + static_cast<int64_t>(row - r.kept)) * a.in_width + a.channels +
           a.v_heads * a.v_dim + head;
  }
  const Bf16 b = LoadOne(from), alpha = LoadOne(from + a.v_heads);
  if (is_new && keep) {
    ring[0] = b;
    ring[a.v_heads] = alpha;
  }
  shared.beta[row] = Beta(Float(b));
  shared.decay[row] = expf(LogDecay(Float(alpha), a_log, dt_bias));
}

// The slices of a head in a cluster tell each other their squares by stores that count as arrivals
// at the reader's barrier: a cluster's own barrier with release would wait for the stores of the
// state.

template <bool kCluster, class S>
__device__ __forceinline__ void OpenExchange(S& shared) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster) {
    if (threadIdx.x == 0) {
      BarrierInit(SharedAddress(&shared.arrived), 1);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  }
#endif
}

/// `squares` numbers will come from all blocks of the cluster, which have begun from here on.
template <bool kCluster, class S>
__device__ __forceinline__ void ExpectSquares(int squares, S& shared) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster) {
    if (threadIdx.x == 0) BarrierArriveExpect(SharedAddress(&shared.arrived), squares * 4);
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
#endif
}

/// The squares of a slice of a row's outputs, to every block that holds a slice of this head.
template <bool kCluster, class S>
__device__ __forceinline__ void ShareSquares(float sum, int row, int slice, S& shared) {
  const int lane = threadIdx.x % 32;
  if constexpr (kCluster) {
#if __CUDA_ARCH__ >= 900
    if (lane < static_cast<int>(gridDim.x)) {
      asm volatile(
          "{ .reg .b32 to, barrier;"
          " mapa.shared::cluster.u32 to, %0, %3;"
          " mapa.shared::cluster.u32 barrier, %1, %3;"
          " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %2, [barrier]; "
          "}" ::"r"(SharedAddress(&shared.squares[row][slice])),
          "r"(SharedAddress(&shared.arrived)), "r"(__float_as_uint(sum)), "r"(lane)
          : "memory");
    }
#endif
  } else {
    if (lane == 0) shared.squares[row][slice] = sum;
  }
}

template <bool kCluster, class S>
__device__ __forceinline__ void WaitForSquares(S& shared) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kCluster) {
    uint32_t done = 0;
    while (!done) {
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;"
          " selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(SharedAddress(&shared.arrived))
          : "memory");
    }
    return;
  }
#endif
  __syncthreads();
}

/// A hint, taken before the kernel ahead has ended: what the descriptor says now need not be what
/// it will say.
template <int kKeys, int kSlices>
__device__ __forceinline__ void Prefetch(const Args& a, const Place<kKeys, kSlices>& p,
                                         const float* states, int64_t slot_size) {
  const DeltaSequence s = LoadSequence(a, blockIdx.z);
  if (s.slot < 0 || s.slot >= a.slots || s.start <= 0 || s.kept < 0) return;
  const auto prefetch = [](const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); };
  constexpr int kFloats = kSlices * kSliceRows * kKeys;
  for (int i = threadIdx.x * 32; i < kFloats; i += kThreads * 32) {
    prefetch(states + s.slot * slot_size + i);
  }
  const Rows r(a, s);
  EachPiece<Shared<kKeys, kSlices>::kWidth>(1 - a.taps, r.kept, [&](int row, int column) {
    if (column % 32 == 0 && r.position(row) >= 0) prefetch(r.Ring(a, row) + p.Channel(a, column));
  });
}

/// kCluster: the blocks of a cluster have a head's slices, one each; else kSlices are all of them.
template <int kKeys, int kSlices, bool kCluster>
__global__ void __launch_bounds__(kThreads, kSlices == 1 ? 3 : 2)
    DeltaDecode(const __grid_constant__ Args a) {
  __shared__ __align__(16) Shared<kKeys, kSlices> shared;
  if constexpr (!kCluster) LetNextStart();
  OpenExchange<kCluster>(shared);
  const Place<kKeys, kSlices> p(a);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t slot_size = static_cast<int64_t>(a.v_heads) * a.v_dim * kKeys;
  float* const states = a.state + static_cast<int64_t>(p.value(a)) * kKeys;

  Prefetch(a, p, states, slot_size);
  const Preparer<kKeys, kSlices> preparer(a, p);
  const float a_log = a.a_log[p.head], dt_bias = a.dt_bias[p.head];
  const int norm_column = warp % kSlices * kSliceRows + lane;
  const float norm = a.norm[p.first_slice * kSliceRows + norm_column];
  WaitForPrevious();

  const Rows r(a, LoadSequence(a, blockIdx.z));
  const int n_new = r.n - r.kept;
  if (a.fold_only ? r.kept == 0 : n_new == 0) return;
  LoadInputs(a, r, p, shared);
  float* const state =
      states + r.s.slot * slot_size + threadIdx.x / kLanes * kKeys + threadIdx.x % kLanes * 4;
  StateRows<kKeys, kSlices, kSliceRows> rows;
  const auto update = [&](int i) {
    rows.Update(shared.k[i], shared.v[i], shared.beta[i], shared.decay[i]);
  };
  if (r.s.start == 0) {
    rows.Zero();
  } else {
    rows.Load(state);
  }
  if (warp == kGateWarp) {
    PrepareGates(a, r, p.head, p.first_slice == 0, a_log, dt_bias, shared);
  }
  WaitForCopies();
  __syncthreads();
  preparer.Run(r.n, shared);
  __syncthreads();

#pragma unroll 1
  for (int i = 0; i < r.kept; ++i) update(i);
  const bool tentative = r.s.tentative != 0 && !a.fold_only;
  if (tentative && (r.kept > 0 || r.s.start == 0)) rows.Store(state);
#pragma unroll 1
  for (int i = r.kept; i < r.n; ++i) {
    update(i);
    rows.Output(shared.q[i], shared.o[i - r.kept]);
  }
  if (!tentative) rows.Store(state);
  // Blocks of the next launch that wait here cost a cluster's row a third of its time; where there
  // is much state to move, the next one's hints are worth more (H200, launches one behind the
  // other).
  if constexpr (kCluster) LetNextStart();
  ExpectSquares<kCluster>(n_new * (a.v_dim / kSliceRows), shared);
  __syncthreads();

  const int units = n_new * kSlices;
#pragma unroll 1
  for (int u = warp; u < units; u += kWarps) {
    const float o = shared.o[u / kSlices][norm_column];
    ShareSquares<kCluster>(SumOfWarp(o * o), u / kSlices, p.first_slice + u % kSlices, shared);
  }
  KeepInputs(a, r, p, shared);
  WaitForSquares<kCluster>(shared);
#pragma unroll 1
  for (int u = warp; u < units; u += kWarps) {
    const int row = u / kSlices;
    float sum = 0;
    for (int i = 0; i < a.v_dim / kSliceRows; ++i) sum += shared.squares[row][i];
    const float inverse = rsqrtf(__fdividef(sum, static_cast<float>(a.v_dim)) + a.norm_eps);
    const int64_t batch_row = r.s.first_row + static_cast<int64_t>(row);
    a.out[batch_row * (a.v_heads * a.v_dim) + p.value(a) + norm_column] = Round(
        shared.o[row][norm_column] * inverse * norm * Silu(Float(shared.z[row][norm_column])));
  }
}

template <int kKeys, int kSlices, bool kCluster>
Result<void> Launch(const Args& args, bool dependent, cudaStream_t stream) {
  const auto kernel = DeltaDecode<kKeys, kSlices, kCluster>;
  const int blocks = args.v_dim / (kSliceRows * kSlices);
  // Launches share a multiprocessor only if they want it divided alike (sm90_linear_decode.cu).
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(blocks);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks, args.v_heads, args.n_sequences);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = kCluster ? 2 : dependent ? 1 : 0;
  NIBBLE_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, args));
  return {};
}

template <int kKeys>
Result<void> LaunchFor(const Args& args, DecodeForm form, cudaStream_t stream) {
  if (form.clusters) return Launch<kKeys, 1, true>(args, true, stream);
  return args.v_dim == 64 ? Launch<kKeys, 2, false>(args, form.dependent, stream)
                          : Launch<kKeys, 4, false>(args, form.dependent, stream);
}

}  // namespace

Result<DecodeForm> DecodeFormFor(const Args& args) {
  cudaFuncAttributes attributes{};
  NIBBLE_CUDA_TRY(cudaFuncGetAttributes(&attributes, DeltaDecode<128, 1, true>));
  const bool hopper = attributes.ptxVersion >= 90;  // of the code that was chosen for this device
  return DecodeForm{hopper && args.n_sequences * args.v_heads < kWorthWholeHeads, hopper};
}

Result<void> LaunchDecode(const Args& args, DecodeForm form, cudaStream_t stream) {
  return args.k_dim == 64 ? LaunchFor<64>(args, form, stream) : LaunchFor<128>(args, form, stream);
}

}  // namespace nibble::cuda::delta

namespace nibble::cuda {

Result<void> LaunchDeltaDecode(const DeltaParams& params, cudaStream_t stream) {
  NIBBLE_TRY(const delta::Args args, delta::CheckedArgs(params));
  NIBBLE_TRY(const delta::DecodeForm form, delta::DecodeFormFor(args));
  return delta::LaunchDecode(args, form, stream);
}

}  // namespace nibble::cuda
