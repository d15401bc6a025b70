#pragma once

#include <algorithm>

#include "kernels/cuda/sm90_divisor.cuh"
#include "kernels/cuda/sm90_linear.cuh"
#include "kernels/cuda/sm90_linear_check.h"

// A linear of few tokens: what its kernel and sm90_layer_decode.cu share. See sm90_linear_decode.cu for
// the whole.

namespace nibble::cuda::linear {

inline constexpr int kSlotBytes = 4 * kHopperTileBytes;
inline constexpr int kMaxBlocks = 160;  // more than a Hopper GPU has multiprocessors

/// kN: eights of tokens; kSlots of a warp's ring. A group adds up the partial sums of kBatch tiles at a
/// time; with as many buffers again the next ones do not wait for that.
template <int kN_, int kSlots_, int kPartialBuffers_, int kBatch_ = 1>
struct Config {
  static constexpr int kWarps = 16, kN = kN_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kSlots = kSlots_;
  static constexpr int kPartialBuffers = kPartialBuffers_, kBatch = kBatch_;
  static_assert(kPartialBuffers == kBatch || kPartialBuffers == 2 * kBatch);
};

struct Args {
  const __nv_bfloat16* x;
  __nv_bfloat16* y;
  float* y_f32;
  int64_t ldy;
  int tokens, k, steps;  // of 64 k
  int granule;           // steps that a warp's part of k is a multiple of
  int group_warps;       // that share a tile: a power of two
  int tiles;             // of all shards
  bool token_scales;     // some shard's x is kFp8Token
  int padded_eights;     // of k, in blocks of 16
  Divisor by_padded_eights;
  Shard shard[kSm90LinearShards];
};
struct Division {
  int first[kMaxBlocks + 1];  // tile of each block, and behind the last
};

/// Where things lie in shared memory.
template <class C>
struct Shared {
  uint8_t (*ring)[C::kSlots][kSlotBytes];   // [warps], 128-byte aligned
  uint64_t (*full)[C::kSlots];              // [warps]
  float* token_scale;                       // [tokens]
  float (*partial)[C::kWarps][C::kN][128];  // [kPartialBuffers], 16-byte aligned
  uint4* x;                                 // [steps][2][tokens][4], see XPlace
  float* group_scale;                       // [tokens][blocks of 128 k], kFp8Group's
};

constexpr int UnitSteps(Sm90Weight weight) {
  return weight == Sm90Weight::kNvfp4 ? 4 : weight == Sm90Weight::kBf16 ? 1 : 2;
}
constexpr int ScaleBlocks(int k) { return (k + 127) / 128; }

/// This thread's place, its block's tiles and its warp's part of k.
template <class C>
struct Place {
  int lane, warp, group, groups, part;
  int first, end;  // tiles
  int step, steps;
  /// `tiles`: the block's first, and that behind its last.
  __device__ Place(const Args& a, const int* tiles)
      : lane(threadIdx.x % 32),
        // The shuffle tells the compiler that it is the warp's.
        warp(__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0)),
        group(warp / a.group_warps),
        groups(C::kWarps / a.group_warps),
        part(warp % a.group_warps),
        first(tiles[0]),
        end(tiles[1]) {
    const int granules = (a.steps + a.granule - 1) / a.granule;
    step = part * granules / a.group_warps * a.granule;
    steps = min((part + 1) * granules / a.group_warps * a.granule, a.steps) - step;
  }
};

/// A warp's weights, in the order in which it needs them: a ring of units of a few steps.
template <class C>
class WeightStream {
 public:
  /// `phases`: what the stream that used these barriers before has left.
  __device__ WeightStream(const Args& a, const Place<C>& p, const Shared<C>& m, uint32_t phases = 0)
      : a_(a),
        p_(p),
        ring_(m.ring[p.warp][0]),
        full_(SharedAddress(m.full[p.warp])),
        tile_(p.steps > 0 ? p.first + p.group : p.end),
        end_(p.end),
        phases_(phases) {}

  /// Returns how many slots it has taken.
  __device__ __forceinline__ int Fill() {
    if (tile_ < end_) StartTile();
    int taken = 0;
#pragma unroll 1
    for (; taken < C::kSlots && tile_ < end_; ++taken) Issue(taken);
    return taken;
  }
  /// The next unit, once it has arrived.
  __device__ __forceinline__ const uint8_t* Wait() {
    BarrierWait(full_ + 8 * slot_, phases_ >> slot_ & 1);
    return ring_ + slot_ * kSlotBytes;
  }
  /// The unit has been read by all lanes; asks for the one that takes its place.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    Issue(slot_);
    phases_ ^= 1u << slot_;
    if (++slot_ == C::kSlots) slot_ = 0;
  }
  /// Of the slots' barriers.
  __device__ __forceinline__ uint32_t phases() const { return phases_; }

 private:
  __device__ __forceinline__ void StartTile() {
    while (tile_ >= a_.shard[shard_].end_tile) ++shard_;
    const Shard& s = a_.shard[shard_];
    unit_steps_ = UnitSteps(s.weight);
    step_bytes_ = HopperTileBytes(FormatOf(s.weight));
    left_ = p_.steps;
    const int64_t at = static_cast<int64_t>(tile_ - s.first_tile) * a_.steps + p_.step;
    from_ = s.weights + at * step_bytes_;
  }
  __device__ __forceinline__ void Issue(int slot) {
    if (tile_ >= end_) return;
    const int steps = min(unit_steps_, left_);
    const uint32_t bytes = steps * step_bytes_;
    if (p_.lane == 0) {
      BarrierArriveExpect(full_ + 8 * slot, bytes);
      BulkCopyEvictFirst(SharedAddress(ring_) + slot * kSlotBytes, from_, bytes, full_ + 8 * slot);
    }
    from_ += bytes;
    left_ -= steps;
    if (left_ > 0) return;
    tile_ += p_.groups;
    if (tile_ < end_) StartTile();
  }

  const Args& a_;
  const Place<C>& p_;
  const uint8_t* ring_;
  const uint32_t full_;
  int tile_, shard_ = 0, left_ = 0, unit_steps_ = 0, step_bytes_ = 0;
  const int end_;
  const uint8_t* from_ = nullptr;
  int slot_ = 0;
  uint32_t phases_;
};

// --- x ---

/// Where eight k's of a token lie: half h of lane (g, t)'s 16 k's of a step is read as one run of the
/// lanes, so banks never collide.
__device__ __forceinline__ int XPlace(int tokens, int step, int half, int token, int t) {
  return ((step * 2 + half) * tokens + token) * 4 + t;
}

/// Where x comes from: eight k's of a token, zeros behind the last.
struct GlobalInput {
  const Args& a;
  __device__ __forceinline__ uint4 operator()(int token, int eight) const {
    const auto* from = a.x + static_cast<size_t>(token) * a.k;
    return eight * 8 < a.k ? __ldg(reinterpret_cast<const uint4*>(from) + eight)
                           : make_uint4(0, 0, 0, 0);
  }
};

/// The largest magnitude among `lanes` neighbours.
__device__ __forceinline__ float MaxOfLanes(uint32_t amax, int lanes) {
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    if (o < lanes) amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, o));
  }
  return fmaxf(fmaxf(LowBf16(amax), HighBf16(amax)), 0.0f);
}

/// The scales of whole tokens. Ends with a barrier.
template <class C, class X>
__device__ __forceinline__ void ScaleTokens(const Args& a, const Shared<C>& m, const Place<C>& p,
                                            const X& x_at) {
  for (int token = p.warp; token < a.tokens; token += C::kWarps) {
    uint32_t amax = 0;
#pragma unroll 4
    for (int i = p.lane; i < a.steps * 8; i += 32) {
      const uint4 v = x_at(token, i);
      const uint32_t x[4] = {v.x, v.y, v.z, v.w};
      amax = MaxBf16x2(amax, MaxOfPairs(x));
    }
    const float largest = MaxOfLanes(amax, 32);
    if (p.lane == 0) m.token_scale[token] = DynamicScale(largest);
  }
  __syncthreads();
}

/// Eight k's as a shard wants them. Neighbouring lanes have neighbouring eights of a token: a block of
/// 16 is two lanes', one of 128 sixteen lanes'.
template <class C>
__device__ __forceinline__ void Quantize(const Args& a, const Shared<C>& m, const Shard& shard,
                                         int token, int eight, uint32_t (&q)[4]) {
  if (shard.format == Sm90Input::kNvfp4) {
    const uint32_t amax = MaxOfPairs(q);
    QuantizeBlock(q, MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 1)),
                  Gscale{shard.input, shard.input_inverse});
    return;
  }
  float scale = shard.input;
  if (shard.format == Sm90Input::kFp8Token) scale = m.token_scale[token];
  if (shard.format == Sm90Input::kFp8Group) {
    scale = DynamicScale(MaxOfLanes(MaxOfPairs(q), 16));
    if (eight % 16 == 0 && token < a.tokens) {
      m.group_scale[token * ScaleBlocks(a.k) + eight / 16] = scale;
    }
  }
  QuantizeFp8Pairs(q, MakeFp8Scale(scale));
}

/// All of x, kBatch loads in flight.
template <int kBatch, bool kQuantize, class C, class X>
__device__ __forceinline__ void LoadInput(const Args& a, const Shared<C>& m, const Shard& shard,
                                          const X& x_at) {
  const int all = a.tokens * a.padded_eights;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x & ~31u); first < all;
       first += kBatch * C::kThreads) {
    uint4 v[kBatch];
    int token[kBatch], eight[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = first + i * C::kThreads + static_cast<int>(threadIdx.x % 32);
      token[i] = at / a.by_padded_eights;
      eight[i] = at - token[i] * a.padded_eights;
      v[i] = token[i] < a.tokens ? x_at(token[i], eight[i]) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      uint32_t q[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
      if constexpr (kQuantize) Quantize(a, m, shard, token[i], eight[i], q);
      if (token[i] < a.tokens && eight[i] < a.steps * 8) {
        m.x[XPlace(a.tokens, eight[i] / 8, eight[i] % 2, token[i], eight[i] % 8 / 2)] =
            make_uint4(q[0], q[1], q[2], q[3]);
      }
    }
  }
}

// --- multiplication ---

/// acc += a tile's part of k.
template <Sm90Weight kWeight, bool kExact, class C>
__device__ __forceinline__ void Multiply(const Args& a, const Shared<C>& m, const Place<C>& p,
                                         const Shard& shard, int tile, WeightStream<C>& stream,
                                         float (&acc)[C::kN][4]) {
  constexpr int kN = C::kN;
  constexpr bool kBlocks = kWeight == Sm90Weight::kFp8Block128;
  constexpr int kUnit = UnitSteps(kWeight);
  const int g = p.lane / 4, t = p.lane % 4;
  const uint4* x[kN];
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    x[n] = m.x + XPlace(a.tokens, p.step, 0, min(8 * n + g, a.tokens - 1), t);
  }
  const float* scales = shard.scales;
  if constexpr (kBlocks) {
    scales += (tile - shard.first_tile) * kHopperTileRows / 128 * ScaleBlocks(a.k) + p.step / 2;
  }
  float chain[2][kN][4] = {};  // two, as an mma waits for the one before it
#pragma unroll 1
  for (int first = 0; first < p.steps; first += kUnit) {
    float block_scale = 1;
    if constexpr (kBlocks) block_scale = __ldg(scales++);
    const uint8_t* unit = stream.Wait();
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      if (i > 0 && first + i >= p.steps) break;
      const Tile<kWeight, kExact> weights(unit + i * Tile<kWeight, kExact>::kBytes, p.lane);
      uint4 b[kN][2];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        b[n][0] = x[n][0], b[n][1] = x[n][4 * a.tokens];
        x[n] += 8 * a.tokens;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t fragment[4];
        weights.Fragment(j, fragment);
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const uint4& v = b[n][j / 2];
          MmaBf16(chain[j % 2][n], fragment, j % 2 ? v.z : v.x, j % 2 ? v.w : v.y);
        }
      }
    }
    stream.Release();
    if constexpr (kBlocks) {  // a unit is 128 k
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float scale = block_scale;
          if (shard.format == Sm90Input::kFp8Group) {
            const int token = min(8 * n + 2 * t + c % 2, a.tokens - 1);
            scale *= m.group_scale[token * ScaleBlocks(a.k) + (p.step + first) / 2];
          }
          acc[n][c] = __fmaf_rn(chain[0][n][c] + chain[1][n][c], scale, acc[n][c]);
          chain[0][n][c] = chain[1][n][c] = 0;
        }
      }
    }
  }
  if constexpr (!kBlocks) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[n][c] = chain[0][n][c] + chain[1][n][c];
    }
  }
}

template <class C>
__device__ __forceinline__ void MultiplyAny(const Args& a, const Shared<C>& m, const Place<C>& p,
                                            const Shard& shard, int tile, WeightStream<C>& stream,
                                            float (&acc)[C::kN][4]) {
  WithFormat<true>(shard, [&]<Sm90Weight kWeight, bool kExact>() {
    Multiply<kWeight, kExact, C>(a, m, p, shard, tile, stream, acc);
  });
}

/// Where y goes.
struct GlobalOutput {
  const Args& a;
  __device__ __forceinline__ void operator()(int token, int column, float value) const {
    const int64_t at = token * a.ldy + column;
    if (a.y != nullptr) {
      a.y[at] = __float2bfloat16(value);
    } else {
      a.y_f32[at] = value;
    }
  }
};

/// Adds up the group's partial sums of a tile and stores its columns of y.
template <class C, class Y>
__device__ __forceinline__ void Finish(const Args& a, const Shared<C>& m, const Place<C>& p,
                                       const Shard& shard, int tile, int buffer, const Y& store) {
  const auto* partial = m.partial[buffer] + p.group * a.group_warps;
  const unsigned local = tile - shard.first_tile;
  // Another warp begins with every tile.
  const int part = (p.part + local) & (a.group_warps - 1);
  for (unsigned i = part * 32 + p.lane; i < 16u * a.tokens; i += a.group_warps * 32) {
    const unsigned token = i / 16, half = i / 8 % 2, g = i % 8;
    // HopperOutputRow in fewer instructions
    const int row = local / 2 * 32 + g / 2 * 8 + local % 2 * 4 + half * 2 + g % 2;
    if (row >= shard.rows) continue;
    const float* from = &partial[0][token / 8][16 * g + token % 8 / 2 * 4 + 2 * half + token % 2];
    float scale = shard.scale;
    if (shard.weight == Sm90Weight::kFp8Channel) scale *= __ldg(shard.scales + row);
    if (shard.format == Sm90Input::kFp8Token) scale *= m.token_scale[token];
    float sum = 0;
    for (int w = 0; w < a.group_warps; w += 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += from[(w + j) * (128 * C::kN)];
    }
    store(static_cast<int>(token), shard.column + row, sum * scale);
  }
}

/// A group's own barrier.
template <class C>
__device__ __forceinline__ void GroupBarrier(const Args& a, const Place<C>& p) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + p.group), "r"(32 * a.group_warps) : "memory");
}

template <class C>
__device__ __forceinline__ void InitStream(const Shared<C>& m, const Place<C>& p) {
  if (p.lane < C::kSlots) BarrierInit(SharedAddress(&m.full[p.warp][p.lane]), 1);
}

/// A block's tiles of y, once x is there; the stream has been filled.
template <class C, class X, class Y>
__device__ __forceinline__ void MultiplyTiles(const Args& a, const Shared<C>& m, const Place<C>& p,
                                              WeightStream<C>& stream, const X& x_at,
                                              const Y& store) {
  if (a.token_scales) ScaleTokens(a, m, p, x_at);
  int shard = 0, variant = -1, tile = p.first + p.group, buffer = 0;
  for (int begin = p.first; begin < p.end;) {
    // A run of tiles whose x is quantized alike.
    while (begin >= a.shard[shard].end_tile) ++shard;
    const Shard& of = a.shard[shard];
    if (of.variant != variant) {
      if (variant >= 0) __syncthreads();
      variant = of.variant;
      if (of.format != Sm90Input::kBf16) {
        LoadInput<1, true>(a, m, of, x_at);
      } else if (a.tokens * a.padded_eights <= C::kThreads) {
        LoadInput<1, false>(a, m, of, x_at);
      } else {
        LoadInput<4, false>(a, m, of, x_at);
      }
      __syncthreads();
    }
    const int run_end = min(p.end, of.end_tile);
#pragma unroll 1
    while (tile < run_end) {
      const int batch = tile;
#pragma unroll 1
      for (int i = 0; i < C::kBatch && tile < run_end; ++i, tile += p.groups) {
        float acc[C::kN][4] = {};
        MultiplyAny<C>(a, m, p, of, tile, stream, acc);
#pragma unroll
        for (int n = 0; n < C::kN; ++n) {
          reinterpret_cast<float4*>(m.partial[buffer + i][p.warp][n])[p.lane] =
              make_float4(acc[n][0], acc[n][1], acc[n][2], acc[n][3]);
        }
      }
      GroupBarrier(a, p);
#pragma unroll 1
      for (int t = batch, i = 0; t < tile; t += p.groups, ++i) {
        Finish<C>(a, m, p, of, t, buffer + i, store);
      }
      if constexpr (C::kPartialBuffers > C::kBatch) {
        buffer ^= C::kBatch;
      } else if (tile < p.end) {
        GroupBarrier(a, p);
      }
    }
    begin = run_end;
  }
}

// --- launches ---

/// Warps that share a tile. More groups of them mean fewer meetings of warps, but a last round that keeps few
/// of them busy. Measured: a round of g groups takes about 2 g + 3.
inline int GroupWarps(int tiles, int blocks) {
  const int each = (tiles + blocks - 1) / blocks;
  int best = 1;
  for (int g : {2, 4}) {
    const auto cost = [&](int groups) { return (each + groups - 1) / groups * (2 * groups + 3); };
    if (cost(g) <= cost(best)) best = g;
  }
  return 16 / best;
}

/// Gives the blocks runs of tiles of about the same number of bytes, and a tile some warps.
inline Division Divide(const Sm90LinearParams& params, int blocks, Args* a) {
  Division d{};
  const auto bytes = [&](int i) -> int64_t {
    return HopperTileBytes(FormatOf(params.shard[i].weight));
  };
  int64_t all = 0;
  for (int i = 0; i < params.shards; ++i) {
    all += (a->shard[i].end_tile - a->shard[i].first_tile) * bytes(i);
  }
  int shard = 0;
  int64_t before = 0;  // bytes of the shards before
  for (int block = 0; block < blocks; ++block) {
    const int64_t from = all * block / blocks;
    const auto tiles = [&](int i) { return a->shard[i].end_tile - a->shard[i].first_tile; };
    while (shard < params.shards && from >= before + tiles(shard) * bytes(shard)) {
      before += tiles(shard) * bytes(shard);
      ++shard;
    }
    d.first[block] = shard == params.shards
                         ? a->tiles
                         : a->shard[shard].first_tile +
                               static_cast<int>((from - before + bytes(shard) / 2) / bytes(shard));
  }
  d.first[blocks] = a->tiles;
  a->group_warps = GroupWarps(a->tiles, blocks);
  return d;
}

/// All that Divide does not set.
inline Args MakeArgs(const Sm90LinearParams& params) {
  Args a{};
  a.x = reinterpret_cast<const __nv_bfloat16*>(params.x);
  a.y = reinterpret_cast<__nv_bfloat16*>(params.y);
  a.y_f32 = params.y_f32;
  a.ldy = params.ldy;
  a.tokens = params.tokens;
  a.k = params.k;
  a.steps = (params.k + 63) / 64;
  a.padded_eights = ScaleBlocks(params.k) * 16;
  a.by_padded_eights = Divisor(a.padded_eights);
  a.granule = 1;
  a.tiles = MakeShards(params, kHopperTileRows, a.shard);
  for (int i = 0; i < params.shards; ++i) {
    const Sm90LinearShard& s = params.shard[i];
    if (s.weight == Sm90Weight::kFp8Block128) a.granule = 2;
    a.token_scales |= s.input == Sm90Input::kFp8Token;
  }
  return a;
}

}  // namespace nibble::cuda::linear
