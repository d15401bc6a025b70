#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/operator_checks.h"

// Attention of few new rows a sequence: its positions are split into runs, a block a run and kv head;
// rows times query heads of the group are the rows of the mma. Within a block teams of one or two warps
// have their own positions, their own copies under way and their own softmax; they meet at the end. A
// second kernel adds up the runs.

namespace nibble::cuda {
namespace {

constexpr int kTeamPositions = 16, kMmaRows = 16;
constexpr float kNoScore = -1e30f;  // below every score, and no infinity: differences stay numbers

/// Runs a sequence is split into at most: about a block a multiprocessor for one sequence.
constexpr int MaxSplits(int n_kv_heads) { return std::clamp(128 / n_kv_heads, 8, 128); }
constexpr int kMostSplits = 128;

/// Positions of a run of a sequence of `length` positions.
__host__ __device__ __forceinline__ int SplitLength(int length, int max_splits) {
  const int pages = (length + kKvPage - 1) / kKvPage;
  return (pages + max_splits - 1) / max_splits * kKvPage;
}

struct DecodeArgs {
  AttentionParams p;
  int max_rows, max_splits;
  int splits;     // of the grid
  float* sums;    // [sequences, max_rows, n_heads, splits, head_dim]
  float2* scale;  // [sequences, max_rows, n_heads, splits]: largest score, sum of weights
};

/// kTeamCount teams, each with its own 16 positions of a tile: one warp, or two that share the dimensions of
/// the values between them (both compute the scores, in the same bits).
template <int kDimension, bool kIsFp8, int kTeamCount, int kStageCount>
struct Config {
  static constexpr int kDim = kDimension, kTeams = kTeamCount, kStages = kStageCount;
  static constexpr int kTeamWarps = kDim >= 128 ? 2 : 1, kWarps = kTeams * kTeamWarps;
  static constexpr bool kFp8 = kIsFp8;
  static constexpr int kThreads = kWarps * 32, kPositions = kTeams * kTeamPositions;
  static constexpr int kElement = kFp8 ? 1 : 2, kRowBytes = kDim * kElement;
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kTileBytes = kTeamPositions * kRowBytes;  // keys or values of a team
  static constexpr int kStageBytes = kTeams * 2 * kTileBytes;
  static constexpr int kMergeStride = kDim + 8;  // floats; 8 spread rows over banks
  static constexpr int kMergeBytes = kTeams * kMmaRows * kMergeStride * 4;
  static constexpr int kQBytes = kMmaRows * kDim * 2;
  static constexpr int kAsideBytes = 2 * kAttentionDecodeRows * kRowBytes;
  static constexpr int kBytes =
      kQBytes + kAsideBytes + std::max(kStages * kStageBytes, kMergeBytes);
};

/// The column of dimension d in the q tile: with FP8 keys, where their codes land in the mma.
template <bool kFp8>
__device__ __forceinline__ int QColumn(int d) {
  if constexpr (!kFp8) return d;
  const int r = d % 4;
  return (d / 64 * 4 + d / 4 % 4) * 16 + 2 * (d / 16 % 4) + (r >> 1) + 8 * (r & 1);
}

/// What a block works on.
struct Run {
  StepSequence sequence;
  int kv_head, m0, rows;  // rows of the mma: m0 … of `rows`, the sequence's times the group
  int group;
  int begin, end;        // positions
  const int32_t* pages;  // of the sequence
};

/// A warp's sums: of its share of the dimensions.
template <class C>
struct Warp {
  static constexpr int kTiles = C::kDim / 8 / C::kTeamWarps;
  float o[kTiles][4];
  float largest[2], total[2];  // of rows lane/4 and lane/4 + 8
};

template <class C>
__device__ __forceinline__ int TeamOf() {
  return threadIdx.x / 32 % C::kTeams;
}
/// Of a team's warps, which this is.
template <class C>
__device__ __forceinline__ int MemberOf() {
  return threadIdx.x / 32 / C::kTeams;
}
template <class C>
__device__ __forceinline__ void SyncTeam() {
  if constexpr (C::kTeamWarps == 1) {
    __syncwarp();
  } else {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + TeamOf<C>()), "n"(32 * C::kTeamWarps) : "memory");
  }
}

/// Starts the copies of a team's 16 positions from `position` on, of those before `start`.
template <class C>
__device__ __forceinline__ void CopyTile(const PagedKv& cache, int n_kv_heads, const Run& run,
                                         int page, int position, uint32_t to) {
  const int lane = threadIdx.x % 32;
  const int64_t at = CacheAt<C::kDim>(page, n_kv_heads, run.kv_head, position) * C::kElement;
  const char* const k = static_cast<const char*>(cache.k) + at;
  const char* const v = static_cast<const char*>(cache.v) + at;
#pragma unroll
  for (int n = 0; n < kTeamPositions * C::kChunks / 32 / C::kTeamWarps; ++n) {
    const int i = (n * C::kTeamWarps + MemberOf<C>()) * 32 + lane;
    const int row = i / C::kChunks, chunk = i % C::kChunks;
    const bool real = position + row < run.sequence.start;
    const uint32_t place = TilePlace<C::kChunks>(row, chunk);
    CopyAsync(to + place, real ? k + i * 16 : cache.k, real);
    CopyAsync(to + C::kTileBytes + place, real ? v + i * 16 : cache.v, real);
  }
}

/// The run's new positions: into the cache, where `store`, and aside as they lie there, keys [new], values
/// [new]; warp by warp.
template <class C>
struct NewPositions {
  static constexpr int kEach = C::kDim / 32, kShareBytes = kEach * C::kElement;
  int first, n;  // positions

  __device__ __forceinline__ explicit NewPositions(const Run& run)
      : first(max(run.begin, run.sequence.start)), n(run.end - first) {}

  struct Share {
    HeadShare<C::kDim> k, v;
  };
  __device__ __forceinline__ Share Load(const AttentionParams& p, const Run& run, int i) const {
    const AttentionShape& s = p.shape;
    const int64_t row = run.sequence.first_row + first + i - run.sequence.start;
    const Bf16* const from = p.qkv + row * s.qkv_width() + s.q_width() + run.kv_head * C::kDim;
    return {LoadShare<C::kDim>(from), LoadShare<C::kDim>(from + s.kv_width())};
  }
  __device__ __forceinline__ void Store(const AttentionParams& p, const Run& run, int i,
                                        Share share, const HeadShare<C::kDim>& weight, bool store,
                                        char* aside) const {
    const AttentionShape& s = p.shape;
    const int64_t row = run.sequence.first_row + first + i - run.sequence.start;
    NormAndRotate<C::kDim>(share.k, weight, p.rope + row * s.rotary_dim, s.rotary_dim, s.norm_eps);
    const auto k = ToCache<C::kDim, C::kFp8>(share.k, p.cache.k_scale);
    const auto v = ToCache<C::kDim, C::kFp8>(share.v, p.cache.v_scale);
    const int byte = threadIdx.x % 32 * kShareBytes;
    k.Store(aside + i * C::kRowBytes + byte);
    v.Store(aside + (kAttentionDecodeRows + i) * C::kRowBytes + byte);
    if (!store) return;
    const int position = first + i;
    const int64_t global =
        CacheAt<C::kDim>(run.pages[position / kKvPage], s.n_kv_heads, run.kv_head, position) *
            C::kElement +
        byte;
    k.Store(static_cast<char*>(p.cache.k) + global);
    v.Store(static_cast<char*>(p.cache.v) + global);
  }
  /// Those among a team's 16 from `position` on, into its tile.
  __device__ __forceinline__ void CopyTo(int position, const char* aside, char* tile) const {
    const int begin = MemberOf<C>() * 32 + threadIdx.x % 32;
    const int end = min(first + n, position + kTeamPositions);
    for (int at = max(first, position); at < end; ++at) {
      for (int chunk = begin; chunk < 2 * C::kChunks; chunk += 32 * C::kTeamWarps) {
        const bool value = chunk >= C::kChunks;
        const int c = value ? chunk - C::kChunks : chunk;
        *reinterpret_cast<uint4*>(tile + (value ? C::kTileBytes : 0) +
                                  TilePlace<C::kChunks>(at - position, c)) =
            *reinterpret_cast<const uint4*>(
                aside + ((value ? kAttentionDecodeRows : 0) + at - first) * C::kRowBytes + c * 16);
      }
    }
    SyncTeam<C>();
  }
};

/// The block's 16 rows of queries, normalised and rotated; and its new positions, aside.
template <class C>
__device__ __forceinline__ void LoadRows(const AttentionParams& p, const Run& run,
                                         const NewPositions<C>& fresh,
                                         const HeadShare<C::kDim>& q_norm,
                                         const HeadShare<C::kDim>& k_norm, char* q, char* aside) {
  const AttentionShape& s = p.shape;
  constexpr int kEach = C::kDim / 32, kMine = kMmaRows / C::kWarps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  HeadShare<C::kDim> head[kMine];
  typename NewPositions<C>::Share share{};
  if (warp < fresh.n) share = fresh.Load(p, run, warp);
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int m = run.m0 + warp + i * C::kWarps;
    head[i] = {};
    if (m >= run.rows) continue;
    const int64_t row = run.sequence.first_row + m / run.group;
    head[i] = LoadShare<C::kDim>(p.qkv + row * s.qkv_width() +
                                 (run.kv_head * run.group + m % run.group) * s.q_stride());
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int r = warp + i * C::kWarps, m = run.m0 + r;
    if (m < run.rows) {
      const int64_t row = run.sequence.first_row + m / run.group;
      NormAndRotate<C::kDim>(head[i], q_norm, p.rope + row * s.rotary_dim, s.rotary_dim,
                             s.norm_eps);
    }
#pragma unroll
    for (int e = 0; e < kEach; e += C::kFp8 ? 1 : 2) {
      const int column = QColumn<C::kFp8>(lane * kEach + e);
      char* const to = q + TilePlace<C::kDim / 8>(r, column / 8) + column % 8 * 2;
      if constexpr (C::kFp8) {
        *reinterpret_cast<__nv_bfloat16*>(to) = __float2bfloat16_rn(head[i].v[e]);
      } else {
        *reinterpret_cast<uint32_t*>(to) = ToPair(head[i].v[e], head[i].v[e + 1]);
      }
    }
  }
  for (int i = warp; i < fresh.n; i += C::kWarps) {
    if (i != warp) share = fresh.Load(p, run, i);
    fresh.Store(p, run, i, share, k_norm, run.m0 == 0, aside);
  }
}

/// score[n] of 8 positions each: q k^T.
template <class C>
__device__ __forceinline__ void Scores(uint32_t q, uint32_t keys, float (&score)[2][4]) {
  const int lane = threadIdx.x % 32;
  float sum[2][2][4] = {};  // two sums each, as a chain of sums is slow
#pragma unroll
  for (int j = 0; j < C::kDim / 64; ++j) {
    uint4 code[2];
    if constexpr (C::kFp8) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t at = keys + TilePlace<C::kChunks>(n * 8 + lane / 4, j * 4 + lane % 4);
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(code[n].x), "=r"(code[n].y), "=r"(code[n].z), "=r"(code[n].w)
                     : "r"(at)
                     : "memory");
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int kk = j * 4 + i;
      uint32_t a[4], b[4];
      LoadMatrices(a, q + TilePlace<C::kDim / 8>(lane % 16, kk * 2 + lane / 16));
      if constexpr (C::kFp8) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const uint32_t word[4] = {code[n].x, code[n].y, code[n].z, code[n].w};
          DecodeE4m3(word[i], b[2 * n], b[2 * n + 1]);
        }
      } else {
        LoadMatrices(b,
                     keys + TilePlace<C::kChunks>(lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
      }
      MmaBf16(sum[kk % 2][0], a, b[0], b[1]);
      MmaBf16(sum[kk % 2][1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) score[n][i] = sum[0][n][i] + sum[1][n][i];
  }
}

/// o += weights * values. With FP8 values, of every 16 dimensions the even ones come first.
template <class C>
__device__ __forceinline__ void AddValues(const uint32_t (&weight)[4], uint32_t values,
                                          float (&o)[Warp<C>::kTiles][4]) {
  constexpr int kMine = C::kChunks / C::kTeamWarps;
  const int lane = threadIdx.x % 32, row = lane % 16, first = MemberOf<C>() * kMine;
#pragma unroll
  for (int c = 0; c < kMine; c += 2) {
    uint32_t v[4];
    LoadMatricesTransposed(v, values + TilePlace<C::kChunks>(row, first + c + lane / 16));
    if constexpr (C::kFp8) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t even[2], odd[2];
        DecodeE4m3(v[2 * h], even[0], odd[0]);
        DecodeE4m3(v[2 * h + 1], even[1], odd[1]);
        MmaBf16(o[2 * (c + h)], weight, even[0], even[1]);
        MmaBf16(o[2 * (c + h) + 1], weight, odd[0], odd[1]);
      }
    } else {
      MmaBf16(o[c], weight, v[0], v[1]);
      MmaBf16(o[c + 1], weight, v[2], v[3]);
    }
  }
}

/// The dimension of o[n][i], i even, of a warp's; i + 1 is the next, with FP8 values the next but one.
template <bool kFp8>
__device__ __forceinline__ int DimensionOf(int n) {
  const int t = threadIdx.x % 4;
  return kFp8 ? n / 2 * 16 + 4 * t + n % 2 : n * 8 + 2 * t;
}

/// One tile of 16 positions into a warp's softmax.
template <class C>
__device__ __forceinline__ void Attend(const Run& run, int position, float scale, uint32_t q,
                                       uint32_t tile, Warp<C>& w) {
  const int lane = threadIdx.x % 32;
  float s[2][4];
  Scores<C>(q, tile, s);
  if (position + kTeamPositions - 1 > run.sequence.start) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = run.m0 + lane / 4 + i / 2 * 8, last = run.sequence.start + m / run.group;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (position + n * 8 + lane % 4 * 2 + i % 2 > last) s[n][i] = -INFINITY;
      }
    }
  }
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float most = fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    const float now = fmaxf(w.largest[h], most * scale);
    factor[h] = Exp2(w.largest[h] - now);
    w.largest[h] = now;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        s[n][i] = Exp2(fmaf(s[n][i], scale, -now));
        sum += s[n][i];
      }
    }
    w.total[h] = fmaf(w.total[h], factor[h], sum);
  }
  if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
    for (int n = 0; n < Warp<C>::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) w.o[n][i] *= factor[i / 2];
    }
  }
  const uint32_t weight[4] = {ToPair(s[0][0], s[0][1]), ToPair(s[0][2], s[0][3]),
                              ToPair(s[1][0], s[1][1]), ToPair(s[1][2], s[1][3])};
  AddValues<C>(weight, tile + C::kTileBytes, w.o);
}

/// The teams' sums as one, to global memory. `memory` is nobody's any more.
template <class C>
__device__ __forceinline__ void Merge(const DecodeArgs& a, const Run& run, Warp<C>& w,
                                      float* memory) {
  __shared__ float largest[C::kTeams][kMmaRows], total[C::kTeams][kMmaRows];
  const int lane = threadIdx.x % 32, team = TeamOf<C>();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    w.total[h] += __shfl_xor_sync(~0u, w.total[h], 1);
    w.total[h] += __shfl_xor_sync(~0u, w.total[h], 2);
    if (lane % 4 == 0 && MemberOf<C>() == 0) {
      largest[team][lane / 4 + 8 * h] = w.largest[h], total[team][lane / 4 + 8 * h] = w.total[h];
    }
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = lane / 4 + 8 * h;
    float most = kNoScore;
#pragma unroll
    for (int i = 0; i < C::kTeams; ++i) most = fmaxf(most, largest[i][r]);
    const float factor = Exp2(w.largest[h] - most);
    float* const to = memory + (team * kMmaRows + r) * C::kMergeStride +
                      MemberOf<C>() * (C::kDim / C::kTeamWarps);
#pragma unroll
    for (int n = 0; n < Warp<C>::kTiles; ++n) {
      const int d = DimensionOf<C::kFp8>(n);
      const float x = w.o[n][2 * h] * factor, y = w.o[n][2 * h + 1] * factor;
      if constexpr (C::kFp8) {
        to[d] = x, to[d + 2] = y;
      } else {
        *reinterpret_cast<float2*>(to + d) = make_float2(x, y);
      }
    }
  }
  __syncthreads();
  const auto place = [&](int r) {
    const int m = run.m0 + r;
    const int64_t row = static_cast<int64_t>(blockIdx.z) * a.max_rows + m / run.group;
    const int head = run.kv_head * run.group + m % run.group;
    return (row * a.p.shape.n_heads + head) * a.splits + blockIdx.x;
  };
  for (int i = threadIdx.x; i < kMmaRows * C::kDim / 4; i += C::kThreads) {
    const int r = i / (C::kDim / 4), d = i % (C::kDim / 4) * 4;
    if (run.m0 + r >= run.rows) break;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < C::kTeams; ++j) {
      const float4 v =
          *reinterpret_cast<const float4*>(memory + (j * kMmaRows + r) * C::kMergeStride + d);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    *reinterpret_cast<float4*>(a.sums + place(r) * C::kDim + d) = sum;
  }
  const int r = threadIdx.x;
  if (r >= kMmaRows || run.m0 + r >= run.rows) return;
  float most = kNoScore, sum = 0;
#pragma unroll
  for (int i = 0; i < C::kTeams; ++i) most = fmaxf(most, largest[i][r]);
#pragma unroll
  for (int i = 0; i < C::kTeams; ++i) sum = fmaf(total[i][r], Exp2(largest[i][r] - most), sum);
  a.scale[place(r)] = make_float2(most, sum);
}

/// Grid: runs, kv heads times tiles of rows, sequences.
template <class C>
__global__ void __launch_bounds__(C::kThreads) AttendKernel(const __grid_constant__ DecodeArgs a) {
  extern __shared__ __align__(128) char memory[];
  const AttentionParams& p = a.p;
  Run run;
  run.sequence = p.step.sequence[blockIdx.z];
  run.group = p.shape.n_heads / p.shape.n_kv_heads;
  run.kv_head = blockIdx.y % p.shape.n_kv_heads;
  run.m0 = blockIdx.y / p.shape.n_kv_heads * kMmaRows;
  run.rows = run.sequence.n_rows * run.group;
  const int length = run.sequence.start + run.sequence.n_rows;
  const int run_length = SplitLength(length, a.max_splits);
  run.begin = blockIdx.x * run_length;
  run.end = min(run.begin + run_length, length);
  if (run.m0 >= run.rows || run.begin >= length) return;
  run.pages = p.cache.page_table + static_cast<int64_t>(run.sequence.slot) * p.cache.max_pages;

  const int team = TeamOf<C>();
  const int first = run.begin + team * kTeamPositions;  // the team's first position
  const int tiles = (run.end - run.begin + C::kPositions - 1) / C::kPositions;
  char* const aside = memory + C::kQBytes;
  char* const stages = aside + C::kAsideBytes;
  const NewPositions<C> fresh(run);
  const int share = threadIdx.x % 32 * (C::kDim / 32);
  const auto q_norm = LoadShare<C::kDim>(p.q_norm + share);
  const auto k_norm = LoadShare<C::kDim>(p.k_norm + share);
  const auto tile_at = [&](int tile) {
    return tile % C::kStages * C::kStageBytes + team * 2 * C::kTileBytes;
  };
  const auto page_of = [&](int tile) {
    const int position = first + tile * C::kPositions;
    return tile < tiles && position < run.end ? run.pages[position / kKvPage] : 0;
  };
  int next_page = page_of(0);
  const auto copy = [&](int tile) {
    const int position = first + tile * C::kPositions, page = next_page;
    next_page = page_of(tile + 1);
    if (tile < tiles) {
      CopyTile<C>(p.cache, p.shape.n_kv_heads, run, page, position,
                  SharedAddress(stages) + tile_at(tile));
    }
    CommitCopies();
  };
  constexpr int kAhead = C::kStages > 1 ? C::kStages - 1 : 1;  // tiles under way
#pragma unroll
  for (int t = 0; t < kAhead; ++t) copy(t);
  WaitForPreviousKernel();
  LetNextKernelStart();
  LoadRows<C>(p, run, fresh, q_norm, k_norm, memory, aside);
  __syncthreads();

  const float scale = kLog2E / sqrtf(static_cast<float>(C::kDim)) * p.cache.k_scale;
  Warp<C> w{};
  w.largest[0] = w.largest[1] = kNoScore;
  for (int tile = 0; tile < tiles; ++tile) {
    WaitForCopies<kAhead - 1>();
    SyncTeam<C>();
    if constexpr (C::kStages > 1) copy(tile + kAhead);
    const int position = first + tile * C::kPositions;
    if (position >= run.end) continue;
    if (position + kTeamPositions > run.sequence.start) {
      fresh.CopyTo(position, aside, stages + tile_at(tile));
    }
    Attend<C>(run, position, scale, SharedAddress(memory), SharedAddress(stages) + tile_at(tile),
              w);
    if constexpr (C::kStages == 1) {
      SyncTeam<C>();
      copy(tile + 1);
    }
  }
  WaitForCopies<0>();
  __syncthreads();
  Merge<C>(a, run, w, reinterpret_cast<float*>(stages));
}

constexpr int kSumThreads = 256;
constexpr int kRunsAhead = 8;  // that a thread has under way

/// Grid: rows times heads, sequences.
template <int kDim>
__global__ void __launch_bounds__(kSumThreads) SumRunsKernel(const DecodeArgs a) {
  constexpr int kLanes = kDim / 4, kAtOnce = kSumThreads / kLanes;
  __shared__ float weight[kMostSplits], total;
  __shared__ float4 partial[kAtOnce][kLanes];
  const AttentionShape& s = a.p.shape;
  const StepSequence sequence = a.p.step.sequence[blockIdx.y];
  const int i = blockIdx.x / s.n_heads, head = blockIdx.x % s.n_heads;
  if (i >= sequence.n_rows) return;
  const int length = sequence.start + sequence.n_rows;
  const int run_length = SplitLength(length, a.max_splits);
  const int runs = (length + run_length - 1) / run_length;
  const int64_t row = sequence.first_row + i;
  const int64_t at =
      ((static_cast<int64_t>(blockIdx.y) * a.max_rows + i) * s.n_heads + head) * a.splits;
  const int lane = threadIdx.x % kLanes, first = threadIdx.x / kLanes;
  // The kernel ahead began only after qkv was there.
  uint2 gate{};
  if (s.gated && first == 0) {
    gate = *reinterpret_cast<const uint2*>(a.p.qkv + row * s.qkv_width() + head * s.q_stride() +
                                           kDim + lane * 4);
  }
  LetNextKernelStart();
  WaitForPreviousKernel();
  const float4* const sums = reinterpret_cast<const float4*>(a.sums + at * kDim) + lane;
  float4 ahead[kRunsAhead];
#pragma unroll
  for (int j = 0; j < kRunsAhead; ++j) {
    const int r = first + j * kAtOnce;
    if (r < runs) ahead[j] = sums[static_cast<int64_t>(r) * kLanes];
  }
  if (threadIdx.x < 32) {
    float2 of[kMostSplits / 32];
    float most = kNoScore, sum = 0;
#pragma unroll
    for (int j = 0; j < kMostSplits / 32; ++j) {
      const int r = j * 32 + static_cast<int>(threadIdx.x);
      of[j] = r < runs ? a.scale[at + r] : make_float2(kNoScore, 0);
      most = fmaxf(most, of[j].x);
    }
    most = WarpMax(most);
#pragma unroll
    for (int j = 0; j < kMostSplits / 32; ++j) {
      const float factor = Exp2(of[j].x - most);
      weight[j * 32 + threadIdx.x] = factor;
      sum = fmaf(factor, of[j].y, sum);
    }
    sum = WarpSum(sum);
    if (threadIdx.x == 0) total = sum;
  }
  __syncthreads();
  float4 sum = make_float4(0, 0, 0, 0);
  const auto add = [&](const float4& v, float by) {
    sum.x = fmaf(v.x, by, sum.x), sum.y = fmaf(v.y, by, sum.y);
    sum.z = fmaf(v.z, by, sum.z), sum.w = fmaf(v.w, by, sum.w);
  };
#pragma unroll
  for (int j = 0; j < kRunsAhead; ++j) {
    const int r = first + j * kAtOnce;
    if (r < runs) add(ahead[j], weight[r]);
  }
  for (int r = first + kRunsAhead * kAtOnce; r < runs; r += kAtOnce) {
    add(sums[static_cast<int64_t>(r) * kLanes], weight[r]);
  }
  partial[first][lane] = sum;
  __syncthreads();
  if (first > 0) return;
#pragma unroll
  for (int j = 1; j < kAtOnce; ++j) add(partial[j][lane], 1);
  const float by = a.p.cache.v_scale / total;
  float out[4] = {sum.x * by, sum.y * by, sum.z * by, sum.w * by};
  if (s.gated) {
    out[0] *= SigmoidOf(LowBf16(gate.x)), out[1] *= SigmoidOf(HighBf16(gate.x));
    out[2] *= SigmoidOf(LowBf16(gate.y)), out[3] *= SigmoidOf(HighBf16(gate.y));
  }
  *reinterpret_cast<uint2*>(a.p.out + row * s.out_width() + head * kDim + lane * 4) =
      make_uint2(ToPair(out[0], out[1]), ToPair(out[2], out[3]));
}

int SplitsOf(const AttentionShape& shape, int capacity) {
  return static_cast<int>(
      std::min<int64_t>(MaxSplits(shape.n_kv_heads), CeilDiv(capacity, kKvPage)));
}

template <class C>
Result<void> Launch(const DecodeArgs& a, cudaStream_t stream) {
  const AttentionShape& s = a.p.shape;
  const int tiles = static_cast<int>(CeilDiv(a.max_rows * (s.n_heads / s.n_kv_heads), kMmaRows));
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(AttendKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       C::kBytes));
  NIBBLE_CHECK_OK(LaunchDependent(AttendKernel<C>,
                                  dim3(a.splits, s.n_kv_heads * tiles, a.p.step.sequences),
                                  C::kThreads, a, stream, C::kBytes));
  return LaunchDependent(SumRunsKernel<C::kDim>, dim3(a.max_rows * s.n_heads, a.p.step.sequences),
                         kSumThreads, a, stream);
}

template <int kDim, bool kFp8>
Result<void> LaunchOfSize(const DecodeArgs& a, cudaStream_t stream) {
  using Large = Config<kDim, kFp8, 4, 3>;
  using Small = Config<kDim, kFp8, 4, 1>;
  // One tile a run needs no second stage, and then more blocks fit a multiprocessor.
  if (SplitLength(a.p.capacity, a.max_splits) <= Small::kPositions) return Launch<Small>(a, stream);
  int device = 0, shared = 0;
  NIBBLE_CUDA_TRY(cudaGetDevice(&device));
  NIBBLE_CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return shared >= Large::kBytes ? Launch<Large>(a, stream) : Launch<Small>(a, stream);
}

}  // namespace

size_t AttentionDecodeWorkspace(const AttentionShape& shape, int sequences, int max_rows,
                                int capacity) {
  return static_cast<size_t>(sequences) * max_rows * shape.n_heads * SplitsOf(shape, capacity) *
         (shape.head_dim * sizeof(float) + sizeof(float2));
}

Result<void> LaunchAttentionDecode(const AttentionParams& p, int max_rows, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckAttentionDecode(p, max_rows));
  DecodeArgs a{p,       max_rows, MaxSplits(p.shape.n_kv_heads), SplitsOf(p.shape, p.capacity),
               nullptr, nullptr};
  a.sums = reinterpret_cast<float*>(p.workspace);
  a.scale = reinterpret_cast<float2*>(a.sums + static_cast<size_t>(p.step.sequences) * max_rows *
                                                   p.shape.n_heads * a.splits * p.shape.head_dim);
  const bool fp8 = p.cache.dtype == KvDtype::kFp8;
  switch (p.shape.head_dim) {
    case 64:
      return fp8 ? LaunchOfSize<64, true>(a, stream) : LaunchOfSize<64, false>(a, stream);
    case 128:
      return fp8 ? LaunchOfSize<128, true>(a, stream) : LaunchOfSize<128, false>(a, stream);
    default:
      return fp8 ? LaunchOfSize<256, true>(a, stream) : LaunchOfSize<256, false>(a, stream);
  }
}

}  // namespace nibble::cuda
