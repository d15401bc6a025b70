#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sm90_ptx.cuh"
#include "kernels/cuda/sm90_wgmma.cuh"

// Attention of many rows with wgmma. A block has 128 rows: two warpgroups multiply, 64 rows each, a third
// brings keys and values from the cache's pages, a tile ahead. The scores of a tile are under way while the
// values of the tile before are, and its softmax runs beside these. As in attention_prefill.cu a row's
// softmax runs over the sequence's positions from 0 on in tiles of a fixed size.

namespace nibble::cuda {
namespace {

constexpr float kNoScore = -1e30f;  // below every score, and no infinity: differences stay numbers
constexpr int kGroupRows = 64, kGroups = 2, kRows = kGroups * kGroupRows;
constexpr int kProducers = 128, kThreads = kGroups * 128 + kProducers;
constexpr int kStages = 2;

template <int kDimension, bool kIsFp8>
struct Config {
  static constexpr int kDim = kDimension, kKeys = kDim == 256 ? 64 : 128;
  static constexpr bool kFp8 = kIsFp8;
  static constexpr int kTileBytes = kKeys * kDim * 2;  // keys or values
  static constexpr int kQBytes = kRows * kDim * 2;
  static constexpr int kBarriers = 4 * kStages;
  // Tiles begin at 1024-byte boundaries.
  static constexpr int kCodeBytes = kFp8 ? kTileBytes / 2 : 0;  // FP8 as cached
  static constexpr int kBytes =
      1024 + kQBytes + 2 * kStages * kTileBytes + 2 * kCodeBytes + kBarriers * 8;
};

/// Where 16-byte word `chunk` of row `row` lies in a tile of `rows` rows: blocks of 64 dimensions with the
/// 128-byte swizzle.
__device__ __forceinline__ uint32_t Place(int rows, int row, int chunk) {
  return (chunk / 8 * rows + row) * 128 + ((chunk ^ row) % 8) * 16;
}

__device__ __forceinline__ void FenceForTensorCores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// A block's addresses in shared memory.
template <class C>
struct Shared {
  uint32_t q, tiles, codes, barriers;
  // What holds: keys 0, values 1.
  __device__ uint32_t Tile(int what, int stage) const {
    return tiles + (what * kStages + stage) * C::kTileBytes;
  }
  __device__ uint32_t Codes(int item) const { return codes + item % 2 * C::kCodeBytes; }
  __device__ uint32_t Full(int what, int stage) const {
    return barriers + (what * kStages + stage) * 8;
  }
  __device__ uint32_t Empty(int what, int stage) const {
    return barriers + ((2 + what) * kStages + stage) * 8;
  }
};

/// The block's work.
struct Work {
  RowTile tile;
  const int32_t* pages;  // of the sequence
  int head, kv_head;
  int rows, start, end;  // rows; the first one's position, one behind the last one's
  int64_t row0;
};

// --- the producers ---

/// One tile of keys or values on its way from the cache: thread by thread, words of 16 bytes that this thread
/// alone handles.
template <class C>
struct Transfer {
  static constexpr int kElement = C::kFp8 ? 1 : 2;
  static constexpr int kWords = C::kDim * kElement / 16;  // a row
  static constexpr int kEach = C::kKeys * kWords / kProducers;

  static __device__ __forceinline__ int Word(int n) {
    return n * kProducers + threadIdx.x % kProducers;
  }

  /// Starts the copies of tile number `step`, of positions before the end; others are zero. bf16 into its
  /// place; FP8, as cached, into `to` in the order of the words.
  static __device__ __forceinline__ void Start(const AttentionParams& p, const Work& w,
                                               const void* cache, int step, uint32_t to) {
    const char* page[C::kKeys / kKvPage];
#pragma unroll
    for (int i = 0; i < C::kKeys / kKvPage; ++i) {
      const int position = step * C::kKeys + i * kKvPage;
      const int number = position < w.end ? w.pages[position / kKvPage] : 0;
      page[i] = static_cast<const char*>(cache) +
                CacheAt<C::kDim>(number, p.shape.n_kv_heads, w.kv_head, 0) * kElement;
    }
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int row = Word(n) / kWords, chunk = Word(n) % kWords;
      const char* const from =
          page[n * kProducers / kWords / kKvPage] + (row % kKvPage * kWords + chunk) * 16;
      CopyAsync(to + (C::kFp8 ? Word(n) * 16 : Place(C::kKeys, row, chunk)), from,
                step * C::kKeys + row < w.end);
    }
    CommitCopies();
  }

  /// FP8 codes that have come, as bf16 into their place.
  static __device__ __forceinline__ void Widen(uint32_t codes, uint32_t to) {
#pragma unroll 4
    for (int n = 0; n < kEach; ++n) {
      const int row = Word(n) / kWords, chunk = Word(n) % kWords * 2;
      uint32_t word[4];
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                   : "r"(codes + Word(n) * 16)
                   : "memory");
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t even[2], odd[2];
        DecodeE4m3(word[2 * h], even[0], odd[0]);
        DecodeE4m3(word[2 * h + 1], even[1], odd[1]);
        asm volatile(
            "st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to + Place(C::kKeys, row, chunk + h)),
            "r"(__byte_perm(even[0], odd[0], 0x5410)), "r"(__byte_perm(even[0], odd[0], 0x7632)),
            "r"(__byte_perm(even[1], odd[1], 0x5410)), "r"(__byte_perm(even[1], odd[1], 0x7632))
            : "memory");
      }
    }
  }
};

/// Keys, values, keys, … Item 2 i is tile number i of keys, item 2 i + 1 of values.
template <class C>
__device__ __forceinline__ void Produce(const AttentionParams& p, const Work& w,
                                        const Shared<C>& shared) {
  const int items = (w.end + C::kKeys - 1) / C::kKeys * 2;
  const auto stage_of = [](int item) { return item / 2 % kStages; };
  const auto parity_of = [](int item) { return item / 2 / kStages % 2; };
  const auto cache_of = [&](int item) { return item % 2 ? p.cache.v : p.cache.k; };
  const auto tell = [&](int item) {
    FenceForTensorCores();
    BarrierArrive(shared.Full(item % 2, stage_of(item)));
  };
  if constexpr (C::kFp8) {
    Transfer<C>::Start(p, w, cache_of(0), 0, shared.Codes(0));
    for (int item = 0; item < items; ++item) {
      if (item + 1 < items) {
        Transfer<C>::Start(p, w, cache_of(item + 1), (item + 1) / 2, shared.Codes(item + 1));
        WaitForCopies<1>();
      } else {
        WaitForCopies<0>();
      }
      BarrierWait(shared.Empty(item % 2, stage_of(item)), parity_of(item) ^ 1);
      Transfer<C>::Widen(shared.Codes(item), shared.Tile(item % 2, stage_of(item)));
      tell(item);
    }
  } else {
    int told = 0;  // items whose arrival has been told
    for (int item = 0; item < items; ++item) {
      const uint32_t empty = shared.Empty(item % 2, stage_of(item));
      if (!BarrierTryWait(empty, parity_of(item) ^ 1)) {
        WaitForCopies<0>();
        if (told < item) tell(told++);
        BarrierWait(empty, parity_of(item) ^ 1);
      }
      Transfer<C>::Start(p, w, cache_of(item), item / 2, shared.Tile(item % 2, stage_of(item)));
      WaitForCopies<1>();
      if (told < item) tell(told++);
    }
    WaitForCopies<0>();
    tell(told);
  }
}

// --- the consumers ---

/// A warp's softmax over 16 rows: lane/4 and lane/4 + 8 are this lane's.
struct Softmax {
  float largest[2] = {kNoScore, kNoScore}, total[2] = {};

  /// Scores of a tile become weights; the factor of what was summed before. first_key: of the lane's columns; last[h]: the last position that row sees, unless all do.
  template <int n>
  __device__ __forceinline__ void Take(float (&score)[n], float scale, bool masked, int first_key,
                                       const int (&last)[2], float (&factor)[2]) {
    if (masked) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (first_key + i / 4 * 8 + i % 2 > last[i / 2 % 2]) score[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = -INFINITY;
#pragma unroll
      for (int i = 2 * h; i < n; i += 4) most = fmaxf(most, fmaxf(score[i], score[i + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float next = fmaxf(largest[h], most * scale);
      factor[h] = Exp2(largest[h] - next);
      largest[h] = next;
      float sum = 0;
#pragma unroll
      for (int i = 2 * h; i < n; i += 4) {
        score[i] = Exp2(fmaf(score[i], scale, -next));
        score[i + 1] = Exp2(fmaf(score[i + 1], scale, -next));
        sum += score[i] + score[i + 1];
      }
      total[h] = fmaf(total[h], factor[h], sum);
    }
  }
};

/// Weights in bf16, in the layout of a wgmma's a.
template <int n>
__device__ __forceinline__ void Pack(const float (&score)[n], uint32_t (&weight)[n / 2]) {
#pragma unroll
  for (int i = 0; i < n / 2; ++i) weight[i] = ToPair(score[2 * i], score[2 * i + 1]);
}

/// score = q k^T of a tile, under way.
template <class C>
__device__ __forceinline__ void IssueScores(float (&score)[C::kKeys / 2], uint32_t q,
                                            uint32_t keys) {
  WgmmaFence();
#pragma unroll
  for (int kk = 0; kk < C::kDim / 16; ++kk) {
    const uint64_t a = SwizzledTile(q + kk / 4 * kRows * 128) + kk % 4 * 2;
    const uint64_t b = SwizzledTile(keys + kk / 4 * C::kKeys * 128) + kk % 4 * 2;
    WgmmaShared<C::kKeys>::Issue(score, a, b, kk > 0);
  }
  WgmmaCommit();
}

/// o += weights * values of a tile, under way.
template <class C>
__device__ __forceinline__ void IssueValues(float (&o)[C::kDim / 2],
                                            const uint32_t (&weight)[C::kKeys / 4],
                                            uint32_t values) {
  WgmmaFence();
#pragma unroll
  for (int kk = 0; kk < C::kKeys / 16; ++kk) {
    const uint32_t a[4] = {weight[4 * kk], weight[4 * kk + 1], weight[4 * kk + 2],
                           weight[4 * kk + 3]};
    WgmmaAcross<C::kDim>::Issue(o, a, SwizzledTileAcross(values, C::kKeys * 128) + kk * 128);
  }
  WgmmaCommit();
}

template <class C>
__device__ __forceinline__ void StoreRows(const AttentionParams& p, const Work& w, int first,
                                          Softmax& softmax, const float (&o)[C::kDim / 2]) {
  const AttentionShape& s = p.shape;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float total = softmax.total[h];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int r = first + lane / 4 + 8 * h;
    if (r >= w.rows) continue;
    const float by = p.cache.v_scale / total;
    const Bf16* const gate =
        p.qkv + (w.row0 + r) * s.qkv_width() + w.head * s.q_stride() + C::kDim + lane % 4 * 2;
    Bf16* const out = p.out + (w.row0 + r) * s.out_width() + w.head * C::kDim + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < C::kDim / 8; ++n) {
      float x = o[4 * n + 2 * h] * by, y = o[4 * n + 2 * h + 1] * by;
      if (s.gated) {
        const uint32_t g = *reinterpret_cast<const uint32_t*>(gate + n * 8);
        x *= SigmoidOf(LowBf16(g)), y *= SigmoidOf(HighBf16(g));
      }
      *reinterpret_cast<uint32_t*>(out + n * 8) = ToPair(x, y);
    }
  }
}

template <class C>
__device__ __forceinline__ void Consume(const AttentionParams& p, const Work& w,
                                        const Shared<C>& shared) {
  const int lane = threadIdx.x % 32, group = threadIdx.x / 128;
  const int first = group * kGroupRows + threadIdx.x % 128 / 32 * 16;  // the warp's first row
#pragma unroll
  for (int n = 0; n < kGroupRows * C::kDim / 8 / 128; ++n) {
    const int i = n * 128 + threadIdx.x % 128;
    const int row = group * kGroupRows + i / (C::kDim / 8), chunk = i % (C::kDim / 8);
    const bool real = row < w.rows;
    const Bf16* const from = p.qkv + (w.row0 + (real ? row : 0)) * p.shape.qkv_width() +
                             w.head * p.shape.q_stride() + chunk * 8;
    CopyAsync(shared.q + Place(kRows, row, chunk), from, real);
  }
  CommitCopies();
  WaitForCopies<0>();
  FenceForTensorCores();
  if (group == 0) {
    asm volatile("bar.sync 1, 128;" ::: "memory");
  } else {
    asm volatile("bar.sync 2, 128;" ::: "memory");
  }

  const float scale = kLog2E / sqrtf(static_cast<float>(C::kDim)) * p.cache.k_scale;
  const uint32_t q = shared.q + group * kGroupRows * 128;
  const int last[2] = {w.start + first + lane / 4, w.start + first + lane / 4 + 8};
  const int steps = (w.end + C::kKeys - 1) / C::kKeys;
  const auto masked = [&](int step) { return (step + 1) * C::kKeys - 1 > w.start + first; };
  const auto release = [&](int what, int stage) {
    __syncwarp();
    if (lane == 0) BarrierArrive(shared.Empty(what, stage));
  };
  Softmax softmax;
  float o[C::kDim / 2] = {}, score[C::kKeys / 2], factor[2];
  uint32_t weight[C::kKeys / 4];
  BarrierWait(shared.Full(0, 0), 0);
  IssueScores<C>(score, q, shared.Tile(0, 0));
  WgmmaWait<0>();
  release(0, 0);
  softmax.Take(score, scale, masked(0), lane % 4 * 2, last, factor);
  Pack(score, weight);
  for (int step = 0; step + 1 < steps; ++step) {
    const int stage = step % kStages, parity = step / kStages % 2;
    const int after = (step + 1) % kStages, after_parity = (step + 1) / kStages % 2;
    BarrierWait(shared.Full(0, after), after_parity);
    IssueScores<C>(score, q, shared.Tile(0, after));
    BarrierWait(shared.Full(1, stage), parity);
    IssueValues<C>(o, weight, shared.Tile(1, stage));
    WgmmaWait<1>();
    release(0, after);
    softmax.Take(score, scale, masked(step + 1), (step + 1) * C::kKeys + lane % 4 * 2, last,
                 factor);
    WgmmaWait<0>();
    release(1, stage);
#pragma unroll
    for (int i = 0; i < C::kDim / 2; ++i) o[i] *= factor[i / 2 % 2];
    Pack(score, weight);
  }
  const int step = steps - 1;
  BarrierWait(shared.Full(1, step % kStages), step / kStages % 2);
  IssueValues<C>(o, weight, shared.Tile(1, step % kStages));
  WgmmaWait<0>();
  StoreRows<C>(p, w, first, softmax, o);
}

template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    Sm90PrefillKernel(const __grid_constant__ AttentionParams p) {
  extern __shared__ char memory[];
  Shared<C> shared;
  shared.q = (SharedAddress(memory) + 1023) / 1024 * 1024;
  shared.tiles = shared.q + C::kQBytes;
  shared.codes = shared.tiles + 2 * kStages * C::kTileBytes;
  shared.barriers = shared.codes + 2 * C::kCodeBytes;
  if (threadIdx.x == 0) {
    for (int what = 0; what < 2; ++what) {
      for (int stage = 0; stage < kStages; ++stage) {
        BarrierInit(shared.Full(what, stage), kProducers);
        BarrierInit(shared.Empty(what, stage), kGroups * 4);
      }
    }
    BarrierInitFence();
  }
  __syncthreads();
  WaitForPreviousKernel();
  LetNextKernelStart();
  Work w;
  // The last tiles, which see most positions, go first.
  w.tile = FindRowTile(p.step, gridDim.y - 1 - blockIdx.y, kRows);
  if (!w.tile.real) return;
  w.head = blockIdx.x, w.kv_head = w.head / (p.shape.n_heads / p.shape.n_kv_heads);
  w.pages = p.cache.page_table + static_cast<int64_t>(w.tile.sequence.slot) * p.cache.max_pages;
  w.rows = min(kRows, w.tile.sequence.n_rows - w.tile.first);
  w.start = w.tile.sequence.start + w.tile.first;
  w.end = w.start + w.rows;
  w.row0 = w.tile.sequence.first_row + w.tile.first;
  if (threadIdx.x >= kGroups * 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
    Produce<C>(p, w, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
    Consume<C>(p, w, shared);
  }
}

template <int kDim, bool kFp8>
Result<void> Launch(const AttentionParams& p, cudaStream_t stream) {
  using C = Config<kDim, kFp8>;
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(Sm90PrefillKernel<C>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, C::kBytes));
  return LaunchDependent(Sm90PrefillKernel<C>, dim3(p.shape.n_heads, MaxRowTiles(p.step, kRows)),
                         kThreads, p, stream, C::kBytes);
}

}  // namespace

Result<void> LaunchSm90AttentionRows(const AttentionParams& p, cudaStream_t stream) {
  const bool fp8 = p.cache.dtype == KvDtype::kFp8;
  if (p.shape.head_dim == 128) {
    return fp8 ? Launch<128, true>(p, stream) : Launch<128, false>(p, stream);
  }
  return fp8 ? Launch<256, true>(p, stream) : Launch<256, false>(p, stream);
}

}  // namespace nibble::cuda
