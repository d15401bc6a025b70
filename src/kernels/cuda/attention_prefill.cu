#include <algorithm>

#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/launch.h"

// Attention of many rows with mma.sync, for GPUs from 8.0 on: every warp has 16 rows, and its softmax runs
// over the sequence's positions from 0 on in tiles of kKeys, whatever else is in the batch.

namespace nibble::cuda {
namespace {

constexpr float kNoScore = -1e30f;  // below every score, and no infinity: differences stay numbers

template <int kDimension, bool kIsFp8, int kWarpCount, int kKeyCount>
struct Config {
  static constexpr int kDim = kDimension, kWarps = kWarpCount, kKeys = kKeyCount;
  static constexpr bool kFp8 = kIsFp8;
  static constexpr int kThreads = kWarps * 32, kRows = kWarps * 16;
  static constexpr int kElement = kFp8 ? 1 : 2;
  static constexpr int kTileBytes = kKeys * kDim * 2;             // keys or values, as bf16
  static constexpr int kCopyBytes = 2 * kKeys * kDim * kElement;  // keys and values, as cached
  static constexpr int kQBytes = kRows * kDim * 2;
  // Two copies under way or in use; FP8 is turned into bf16 aside.
  static_assert(kKeys * kDim / 16 % kThreads == 0);
  static constexpr int kBytes = kQBytes + 2 * kCopyBytes + (kFp8 ? 2 * kTileBytes : 0);
};

/// Starts the copies of the kKeys positions from `position` on, of those before `end`: keys, then values.
template <class C>
__device__ __forceinline__ void CopyKeys(const AttentionParams& p, const int32_t* pages,
                                         int kv_head, int position, int end, uint32_t to) {
  constexpr int kChunks = C::kDim * C::kElement / 16;
  if (position < end) {
    const int64_t at =
        CacheAt<C::kDim>(pages[position / kKvPage], p.shape.n_kv_heads, kv_head, position) *
        C::kElement;
#pragma unroll
    for (int n = 0; n < C::kKeys * kChunks / C::kThreads; ++n) {
      const int i = n * C::kThreads + threadIdx.x;
      const int row = i / kChunks;
      const bool real = position + row < end;
      const int64_t from = real ? at + i * 16 : 0;
      const uint32_t place = C::kFp8 ? i * 16 : TilePlace<kChunks>(row, i % kChunks);
      CopyAsync(to + place, static_cast<const char*>(p.cache.k) + from, real);
      CopyAsync(to + C::kCopyBytes / 2 + place, static_cast<const char*>(p.cache.v) + from, real);
    }
  }
  CommitCopies();
}

/// FP8 keys or values as bf16: 16 codes a thread at a time.
template <class C>
__device__ __forceinline__ void Widen(const char* codes, char* to) {
  constexpr int kWords = C::kDim / 16;  // of codes a row
#pragma unroll
  for (int n = 0; n < C::kKeys * kWords / C::kThreads; ++n) {
    const int i = n * C::kThreads + threadIdx.x;
    const uint4 word = *reinterpret_cast<const uint4*>(codes + i * 16);
    const int row = i / kWords, chunk = i % kWords * 2;
    const auto widen = [&](uint32_t a, uint32_t b, int c) {
      uint32_t even[2], odd[2];
      DecodeE4m3(a, even[0], odd[0]);
      DecodeE4m3(b, even[1], odd[1]);
      *reinterpret_cast<uint4*>(to + TilePlace<C::kDim / 8>(row, c)) =
          make_uint4(__byte_perm(even[0], odd[0], 0x5410), __byte_perm(even[0], odd[0], 0x7632),
                     __byte_perm(even[1], odd[1], 0x5410), __byte_perm(even[1], odd[1], 0x7632));
    };
    widen(word.x, word.y, chunk);
    widen(word.z, word.w, chunk + 1);
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads)
    PrefillKernel(const __grid_constant__ AttentionParams p) {
  constexpr int kChunks = C::kDim / 8, kN = C::kKeys / 8;
  extern __shared__ __align__(128) char memory[];
  const AttentionShape& s = p.shape;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x;
  const int kv_head = head / (s.n_heads / s.n_kv_heads);
  WaitForPreviousKernel();
  LetNextKernelStart();
  // The last tiles, which see most positions, go first.
  const RowTile tile = FindRowTile(p.step, gridDim.y - 1 - blockIdx.y, C::kRows);
  if (!tile.real) return;
  const int32_t* const pages =
      p.cache.page_table + static_cast<int64_t>(tile.sequence.slot) * p.cache.max_pages;
  const int rows = min(C::kRows, tile.sequence.n_rows - tile.first);
  const int start = tile.sequence.start + tile.first;  // the first row's position
  const int end = start + rows;
  const int64_t row0 = tile.sequence.first_row + tile.first;
  const uint32_t q = SharedAddress(memory), copies = q + C::kQBytes;

#pragma unroll
  for (int n = 0; n < C::kRows * kChunks / C::kThreads; ++n) {
    const int i = n * C::kThreads + threadIdx.x;
    const int row = i / kChunks, chunk = i % kChunks;
    const bool real = row < rows;
    const Bf16* const from =
        p.qkv + (row0 + (real ? row : 0)) * s.qkv_width() + head * s.q_stride() + chunk * 8;
    CopyAsync(q + TilePlace<kChunks>(row, chunk), from, real);
  }
  CopyKeys<C>(p, pages, kv_head, 0, end, copies);

  const float scale = kLog2E / sqrtf(static_cast<float>(C::kDim)) * p.cache.k_scale;
  const int mine = warp * 16 + lane / 4;  // of the tile's rows; mine + 8 is the other
  float o[C::kDim / 8][4] = {}, largest[2] = {kNoScore, kNoScore}, total[2] = {};
  for (int step = 0, position = 0; position < end; ++step, position += C::kKeys) {
    WaitForCopies<0>();
    __syncthreads();
    const int now = step % 2 * C::kCopyBytes;
    CopyKeys<C>(p, pages, kv_head, position + C::kKeys, end,
                copies + (step + 1) % 2 * C::kCopyBytes);
    uint32_t keys = copies + now, values = keys + C::kTileBytes;
    if constexpr (C::kFp8) {
      char* const codes = memory + C::kQBytes + now;
      char* const wide = memory + C::kQBytes + 2 * C::kCopyBytes;
      Widen<C>(codes, wide);
      Widen<C>(codes + C::kCopyBytes / 2, wide + C::kTileBytes);
      __syncthreads();
      keys = SharedAddress(wide), values = keys + C::kTileBytes;
    }
    if (position > start + warp * 16 + 15) continue;  // none of the warp's rows sees these
    float score[kN][4] = {};
#pragma unroll
    for (int kk = 0; kk < C::kDim / 16; ++kk) {
      uint32_t a[4];
      LoadMatrices(a, q + TilePlace<kChunks>(warp * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t b[4];
        LoadMatrices(
            b, keys + TilePlace<kChunks>(n * 8 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
        MmaBf16(score[n], a, b[0], b[1]);
        MmaBf16(score[n + 1], a, b[2], b[3]);
      }
    }
    if (position + C::kKeys - 1 > start + warp * 16) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = position + n * 8 + lane % 4 * 2 + i % 2;
          if (key > start + mine + i / 2 * 8) score[n][i] = -INFINITY;
        }
      }
    }
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = -INFINITY;
#pragma unroll
      for (int n = 0; n < kN; ++n) most = fmaxf(most, fmaxf(score[n][2 * h], score[n][2 * h + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float next = fmaxf(largest[h], most * scale);
      factor[h] = Exp2(largest[h] - next);
      largest[h] = next;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          score[n][i] = Exp2(fmaf(score[n][i], scale, -next));
          sum += score[n][i];
        }
      }
      total[h] = fmaf(total[h], factor[h], sum);
    }
    if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int n = 0; n < C::kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= factor[i / 2];
      }
    }
#pragma unroll
    for (int k = 0; k < C::kKeys / 16; ++k) {
      const float(&s0)[4] = score[2 * k];
      const float(&s1)[4] = score[2 * k + 1];
      const uint32_t weight[4] = {ToPair(s0[0], s0[1]), ToPair(s0[2], s0[3]), ToPair(s1[0], s1[1]),
                                  ToPair(s1[2], s1[3])};
#pragma unroll
      for (int n = 0; n < C::kDim / 8; n += 2) {
        uint32_t b[4];
        LoadMatricesTransposed(b, values + TilePlace<kChunks>(k * 16 + lane % 16, n + lane / 16));
        MmaBf16(o[n], weight, b[0], b[1]);
        MmaBf16(o[n + 1], weight, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(~0u, total[h], 1);
    total[h] += __shfl_xor_sync(~0u, total[h], 2);
    const int r = mine + 8 * h;
    if (r >= rows) continue;
    const float by = p.cache.v_scale / total[h];
    const Bf16* const gate =
        p.qkv + (row0 + r) * s.qkv_width() + head * s.q_stride() + C::kDim + lane % 4 * 2;
    Bf16* const out = p.out + (row0 + r) * s.out_width() + head * C::kDim + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < C::kDim / 8; ++n) {
      float x = o[n][2 * h] * by, y = o[n][2 * h + 1] * by;
      if (s.gated) {
        const uint32_t g = *reinterpret_cast<const uint32_t*>(gate + n * 8);
        x *= SigmoidOf(LowBf16(g)), y *= SigmoidOf(HighBf16(g));
      }
      *reinterpret_cast<uint32_t*>(out + n * 8) = ToPair(x, y);
    }
  }
}

template <class C>
Result<void> Launch(const AttentionParams& p, cudaStream_t stream) {
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(PrefillKernel<C>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, C::kBytes));
  return LaunchDependent(PrefillKernel<C>, dim3(p.shape.n_heads, MaxRowTiles(p.step, C::kRows)),
                         C::kThreads, p, stream, C::kBytes);
}

template <int kDim, bool kFp8>
Result<void> LaunchOfSize(const AttentionParams& p, cudaStream_t stream) {
  using Large = Config<kDim, kFp8, 8, 64>;
  using Small = Config<kDim, kFp8, 4, kDim == 256 ? 32 : 64>;
  int device = 0, shared = 0;
  NIBBLE_CUDA_TRY(cudaGetDevice(&device));
  NIBBLE_CUDA_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return shared >= Large::kBytes ? Launch<Large>(p, stream) : Launch<Small>(p, stream);
}

}  // namespace

Result<void> LaunchAttentionRows(const AttentionParams& p, cudaStream_t stream) {
  const bool fp8 = p.cache.dtype == KvDtype::kFp8;
  switch (p.shape.head_dim) {
    case 64:
      return fp8 ? LaunchOfSize<64, true>(p, stream) : LaunchOfSize<64, false>(p, stream);
    case 128:
      return fp8 ? LaunchOfSize<128, true>(p, stream) : LaunchOfSize<128, false>(p, stream);
    default:
      return fp8 ? LaunchOfSize<256, true>(p, stream) : LaunchOfSize<256, false>(p, stream);
  }
}

}  // namespace nibble::cuda
