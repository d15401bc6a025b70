// sm90_linear_decode: dense linears of up to 16 tokens, bound by the bytes of the weights.
//
// The rows of all shards are tiles of 16; a block takes a run of them. Its eight warps share a tile's
// k: each keeps its part of x in registers as the small operand of mma.m16n8k16 (the weights are the
// large one), streams its part of the weights through a ring in shared memory, and the block adds up
// the eight partial sums in the order of k.
//
// Latency is what matters for most launches. The rings are filled before the kernel ahead has ended,
// which x alone waits for, and two launches' blocks fit a multiprocessor at once, so weights keep
// coming across launches.

#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_linear.cuh"
#include "kernels/cuda/sm90_linear_check.h"

namespace nibble::cuda::linear {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kSlots = 5;  // of a warp's ring
constexpr int kSlotBytes = 4 * kHopperTileBytes;
constexpr int kBlocksAMultiprocessor = 2;  // that fit at once: this launch's and the next one's
constexpr int kSharedLimit = 233472 / kBlocksAMultiprocessor - 1024;

struct Args {
  const __nv_bfloat16* x;
  __nv_bfloat16* y;
  float* y_f32;
  int64_t ldy;
  int tokens, k, steps;  // of 64 k
  int granule;           // steps that a warp's part of k is a multiple of
  int tiles;             // of all shards
  bool token_scales;     // some shard's x is kFp8Token
  Shard shard[kSm90LinearShards];
};

/// kX: steps of x a warp has in registers; with more, it loads them again for every tile. kN: eights
/// of tokens.
template <int kX_, int kN_>
struct Config {
  static constexpr int kX = kX_, kN = kN_;
};

template <class C>
struct Smem {
  alignas(128) uint8_t ring[kWarps][kSlots][kSlotBytes];
  float partial[2][kWarps][C::kN][128];
  uint4 stage[kWarps][C::kX * 8];  // one token's part of x
  float amax[kWarps][8 * C::kN];
  float token_scale[8 * C::kN];
  uint64_t full[kWarps][kSlots];
};

struct Place {
  int lane, warp, g, t;
  int step, steps;  // this warp's part of k
  __device__ explicit Place(const Args& a)
      : lane(threadIdx.x % 32), warp(threadIdx.x / 32), g(lane / 4), t(lane % 4) {
    const int granules = (a.steps + a.granule - 1) / a.granule;
    step = warp * granules / kWarps * a.granule;
    steps = min((warp + 1) * granules / kWarps * a.granule, a.steps) - step;
  }
};

constexpr int UnitSteps(Sm90Weight weight) {
  return weight == Sm90Weight::kNvfp4 ? 4 : weight == Sm90Weight::kBf16 ? 1 : 2;
}
constexpr int TileBytes(Sm90Weight weight) { return HopperTileBytes(FormatOf(weight)); }

/// A warp's weights, in the order in which it needs them: a ring of units of a few steps.
class WeightStream {
 public:
  __device__ WeightStream(const Args& a, const Place& p, const uint8_t* ring, const uint64_t* full,
                          int first_tile, int end_tile)
      : a_(a),
        p_(p),
        ring_(ring),
        ring_address_(SharedAddress(ring)),
        full_(SharedAddress(full)),
        tile_(p.steps > 0 ? first_tile : end_tile),
        end_(end_tile) {}

  __device__ __forceinline__ void Fill() {
#pragma unroll 1
    for (int i = 0; i < kSlots; ++i) Issue();
  }
  /// The next unit, once it has arrived.
  __device__ __forceinline__ const uint8_t* Wait() {
    BarrierWait(full_ + 8 * slot_, parity_);
    return ring_ + slot_ * kSlotBytes;
  }
  /// The unit has been read by all lanes; asks for the one that takes its place.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    if (++slot_ == kSlots) slot_ = 0, parity_ ^= 1;
    Issue();
  }

 private:
  __device__ __forceinline__ void Issue() {
    if (tile_ >= end_) return;
    while (tile_ >= a_.shard[shard_].end_tile) ++shard_;
    const Shard& s = a_.shard[shard_];
    const int steps = min(UnitSteps(s.weight), p_.steps - step_);
    const uint32_t bytes = TileBytes(s.weight);
    if (p_.lane == 0) {
      const int64_t at = static_cast<int64_t>(tile_ - s.first_tile) * a_.steps + p_.step + step_;
      BarrierArriveExpect(full_ + 8 * issue_slot_, steps * bytes);
      BulkCopyEvictFirst(ring_address_ + issue_slot_ * kSlotBytes, s.weights + at * bytes,
                         steps * bytes, full_ + 8 * issue_slot_);
    }
    if (++issue_slot_ == kSlots) issue_slot_ = 0;
    step_ += steps;
    if (step_ == p_.steps) step_ = 0, ++tile_;
  }

  const Args& a_;
  const Place& p_;
  const uint8_t* ring_;
  const uint32_t ring_address_, full_;
  int tile_, shard_ = 0, step_ = 0;
  const int end_;
  int issue_slot_ = 0, slot_ = 0;
  uint32_t parity_ = 0;
};

__device__ __forceinline__ void Store8(uint32_t (&b)[8], uint4 low, uint4 high) {
  b[0] = low.x, b[1] = low.y, b[2] = low.z, b[3] = low.w;
  b[4] = high.x, b[5] = high.y, b[6] = high.z, b[7] = high.w;
}
__device__ __forceinline__ uint4 LoadX(const Args& a, int token, int k) {
  const auto* from = a.x + static_cast<size_t>(token) * a.k + k;
  return k < a.k ? __ldg(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
}

/// The scales of every token as a whole; a block barrier each side.
template <class C>
__device__ __forceinline__ void ScaleTokens(const Args& a, Smem<C>& s, const Place& p) {
#pragma unroll 1
  for (int token = 0; token < a.tokens; ++token) {
    uint32_t amax = 0;
#pragma unroll 4
    for (int i = p.lane; i < p.steps * 8; i += 32) {
      const uint4 v = LoadX(a, token, p.step * 64 + i * 8);
      const uint32_t x[4] = {v.x, v.y, v.z, v.w};
      amax = MaxBf16x2(amax, MaxOfPairs(x));
    }
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, o));
    if (p.lane == 0) s.amax[p.warp][token] = MaxOfHalves(amax);
  }
  __syncthreads();
  if (threadIdx.x < a.tokens) {
    float amax = 0;
    for (int w = 0; w < kWarps; ++w) amax = fmaxf(amax, s.amax[w][threadIdx.x]);
    s.token_scale[threadIdx.x] = DynamicScale(amax);
  }
  __syncthreads();
}

/// A warp's part of x as the mma's operand, quantized as a shard wants it, and the scales of what is
/// quantized a token and 128 k.
template <class C>
struct Input {
  uint32_t x[C::kX][C::kN][8];
  float scale[(C::kX + 1) / 2][C::kN];  // of token g; kFp8Group alone

  __device__ __forceinline__ void Load(const Args& a, Smem<C>& s, const Place& p,
                                       const Shard& shard, int first_step) {
    if (C::kN == 1 && a.tokens == 1 && shard.format != Sm90Input::kBf16) {
      LoadOne(a, s, p, shard, first_step);
      return;
    }
#pragma unroll
    for (int i = 0; i < C::kX; ++i) {
#pragma unroll
      for (int n = 0; n < C::kN; ++n) {
        const int token = min(8 * n + p.g, a.tokens - 1);
        const int k = (p.step + first_step + i) * 64 + 16 * p.t;
        const bool inside = first_step + i < p.steps;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        Store8(x[i][n], inside ? LoadX(a, token, k) : zero, inside ? LoadX(a, token, k + 8) : zero);
      }
    }
    if (shard.format == Sm90Input::kBf16) return;
#pragma unroll
    for (int n = 0; n < C::kN; ++n) {
      const int token = min(8 * n + p.g, a.tokens - 1);
#pragma unroll
      for (int i = 0; i < C::kX; ++i) {
        if (shard.format == Sm90Input::kNvfp4) {
          QuantizeBlock(x[i][n], Gscale{shard.input, shard.input_inverse});
        } else {
          Fp8Scale scale{shard.input, shard.input_inverse};
          if (shard.format == Sm90Input::kFp8Token) {
            scale.value = s.token_scale[token];
            scale.inverse = Reciprocal(scale.value);
          } else if (shard.format == Sm90Input::kFp8Group) {
            if (i % 2 == 0) {
              uint32_t amax = MaxOfPairs(x[i][n]);
              if (i + 1 < C::kX) amax = MaxBf16x2(amax, MaxOfPairs(x[i + 1 < C::kX ? i + 1 : i][n]));
              amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 1));
              amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 2));
              this->scale[i / 2][n] = DynamicScale(MaxOfHalves(amax));
            }
            scale.value = this->scale[i / 2][n];
            scale.inverse = Reciprocal(scale.value);
          }
          QuantizeFp8Pairs(x[i][n], scale);
        }
      }
    }
  }

 private:
  /// One token: every lane quantizes another eight k's, and all read the results.
  __device__ __forceinline__ void LoadOne(const Args& a, Smem<C>& s, const Place& p,
                                          const Shard& shard, int first_step) {
    uint4* stage = s.stage[p.warp];
    float group[(C::kX + 3) / 4];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < C::kX / 4; ++i) {
      const int item = i * 32 + p.lane;
      const bool inside = first_step + item / 8 < p.steps;
      const uint4 v = inside ? LoadX(a, 0, (p.step + first_step) * 64 + item * 8)
                             : make_uint4(0, 0, 0, 0);
      uint32_t q[4] = {v.x, v.y, v.z, v.w};
      uint32_t amax = MaxOfPairs(q);
      amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 1));
      if (shard.format == Sm90Input::kNvfp4) {
        QuantizeBlock(q, amax, Gscale{shard.input, shard.input_inverse});
      } else {
        Fp8Scale scale{shard.input, shard.input_inverse};
        if (shard.format == Sm90Input::kFp8Token) {
          scale.value = s.token_scale[0];
          scale.inverse = Reciprocal(scale.value);
        } else if (shard.format == Sm90Input::kFp8Group) {
#pragma unroll
          for (int o = 2; o < 16; o <<= 1) amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, o));
          scale.value = DynamicScale(MaxOfHalves(amax));
          scale.inverse = Reciprocal(scale.value);
        }
        group[i] = scale.value;
        QuantizeFp8Pairs(q, scale);
      }
      stage[item] = make_uint4(q[0], q[1], q[2], q[3]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < C::kX; ++i) {
      Store8(x[i][0], stage[i * 8 + 2 * p.t], stage[i * 8 + 2 * p.t + 1]);
    }
    if (shard.format == Sm90Input::kFp8Group) {
#pragma unroll
      for (int i = 0; i < C::kX; i += 2) {
        scale[i / 2][0] = __shfl_sync(~0u, group[i / 4], i % 4 * 8);
      }
    }
  }
};

template <class C>
using Accumulators = float[C::kN][4];

/// acc += part under the scales of 128 rows and 128 k, and of every token and 128 k.
template <class C>
__device__ __forceinline__ void Promote(const Args& a, const Place& p, const Shard& shard, int tile,
                                        int step, const float (&scale)[C::kN],
                                        Accumulators<C>& part, Accumulators<C>& acc) {
  const int block_row = (tile - shard.first_tile) * kHopperTileRows / 128;
  const float weight = __ldg(shard.scales + block_row * ((a.k + 127) / 128) + step / 2);
  const bool grouped = shard.format == Sm90Input::kFp8Group;
#pragma unroll
  for (int n = 0; n < C::kN; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      // A column is token 2t or 2t + 1; scale[n] is token g's.
      const float other = __shfl_sync(~0u, scale[n], 4 * (2 * p.t + c % 2));
      acc[n][c] = __fmaf_rn(part[n][c], grouped ? weight * other : weight, acc[n][c]);
      part[n][c] = 0;
    }
  }
}

/// acc += a tile's steps of this warp, from first_step on, up to kX of them.
template <Sm90Weight kWeight, class C>
__device__ __forceinline__ void Multiply(const Args& a, const Place& p, const Shard& shard, int tile,
                                         int first_step, const Input<C>& in, WeightStream& stream,
                                         Accumulators<C>& acc) {
  constexpr bool kBlocks = kWeight == Sm90Weight::kFp8Block128;
  constexpr int kUnit = UnitSteps(kWeight);
  const int steps = min(C::kX, p.steps - first_step);
  Accumulators<C> part = {};
  const uint8_t* unit = nullptr;
#pragma unroll
  for (int i = 0; i < C::kX; ++i) {
    if (i < steps) {
      if (i % kUnit == 0) unit = stream.Wait();
      const Tile<kWeight> weights(unit + i % kUnit * Tile<kWeight>::kBytes, p.lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t fragment[4];
        weights.Fragment(j, fragment);
#pragma unroll
        for (int n = 0; n < C::kN; ++n) {
          MmaBf16(kBlocks ? part[n] : acc[n], fragment, in.x[i][n][2 * j], in.x[i][n][2 * j + 1]);
        }
      }
      if (i % kUnit == kUnit - 1 || i == steps - 1) stream.Release();
      if constexpr (kBlocks) {
        if (i % 2 == 1 || i == steps - 1) {
          Promote<C>(a, p, shard, tile, p.step + first_step + i, in.scale[i / 2], part, acc);
        }
      }
    }
  }
}

template <class C>
__device__ __forceinline__ void MultiplyAny(const Args& a, const Place& p, const Shard& shard,
                                            int tile, int first_step, const Input<C>& in,
                                            WeightStream& stream, Accumulators<C>& acc) {
  const auto run = [&]<Sm90Weight kWeight>() {
    Multiply<kWeight, C>(a, p, shard, tile, first_step, in, stream, acc);
  };
  switch (shard.weight) {
    case Sm90Weight::kNvfp4:
      return run.template operator()<Sm90Weight::kNvfp4>();
    case Sm90Weight::kBf16:
      return run.template operator()<Sm90Weight::kBf16>();
    case Sm90Weight::kFp8Block128:
      return run.template operator()<Sm90Weight::kFp8Block128>();
    default:
      return run.template operator()<Sm90Weight::kFp8>();
  }
}

/// Adds up the warps' partial sums of a tile and stores its columns of y.
template <class C>
__device__ __forceinline__ void Finish(const Args& a, const Smem<C>& s, const Shard& shard, int tile,
                                       int buffer) {
  const int local = tile - shard.first_tile;
#pragma unroll
  for (int i = threadIdx.x; i < 128 * C::kN; i += kThreads) {
    const int lane = i / 4 % 32, c = i % 4;
    const int token = i / 128 * 8 + lane % 4 * 2 + c % 2;
    const int row = static_cast<int>(HopperOutputRow(local, c / 2, lane / 4));
    if (token >= a.tokens || row >= shard.rows) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += s.partial[buffer][w][i / 128][i % 128];
    float scale = shard.scale;
    if (shard.weight == Sm90Weight::kFp8Channel) scale *= __ldg(shard.scales + row);
    if (shard.format == Sm90Input::kFp8Token) scale *= s.token_scale[token];
    const int64_t at = token * a.ldy + shard.column + row;
    if (a.y != nullptr) {
      a.y[at] = __float2bfloat16(sum * scale);
    } else {
      a.y_f32[at] = sum * scale;
    }
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads, kBlocksAMultiprocessor)
    LinearDecode(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) uint8_t raw[];
  Smem<C>& s = *reinterpret_cast<Smem<C>*>(raw);
  const Place p(a);
  LetNextKernelStart();
  if (p.lane == 0) {
    for (int i = 0; i < kSlots; ++i) BarrierInit(SharedAddress(&s.full[p.warp][i]), 1);
    BarrierInitFence();
  }
  __syncwarp();
  const int first = static_cast<int>(static_cast<int64_t>(a.tiles) * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(static_cast<int64_t>(a.tiles) * (blockIdx.x + 1) / gridDim.x);
  WeightStream stream(a, p, s.ring[p.warp][0], s.full[p.warp], first, end);
  stream.Fill();
  WaitForPreviousKernel();

  if (a.token_scales) ScaleTokens(a, s, p);
  const bool keeps_x = p.steps <= C::kX;
  Input<C> in;
  int shard = 0, loaded = -1;
#pragma unroll 1
  for (int tile = first; tile < end; ++tile) {
    while (tile >= a.shard[shard].end_tile) ++shard;
    const Shard& of = a.shard[shard];
    Accumulators<C> acc = {};
#pragma unroll 1
    for (int step = 0; step < p.steps; step += C::kX) {
      if (!keeps_x || loaded != of.variant) {
        in.Load(a, s, p, of, step);
        loaded = of.variant;
      }
      MultiplyAny<C>(a, p, of, tile, step, in, stream, acc);
    }
    const int buffer = (tile - first) % 2;
#pragma unroll
    for (int n = 0; n < C::kN; ++n) {
      reinterpret_cast<float4*>(s.partial[buffer][p.warp][n])[p.lane] =
          make_float4(acc[n][0], acc[n][1], acc[n][2], acc[n][3]);
    }
    __syncthreads();
    Finish<C>(a, s, of, tile, buffer);
  }
}

template <class C>
Result<void> Launch(const Args& args, cudaStream_t stream) {
  static_assert(sizeof(Smem<C>) <= kSharedLimit);
  NIBBLE_TRY(const int multiprocessors, MultiprocessorCount());
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(LinearDecode<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       sizeof(Smem<C>)));
  return LaunchDependent(LinearDecode<C>, dim3(std::min(args.tiles, multiprocessors)), kThreads,
                         args, stream, sizeof(Smem<C>));
}

}  // namespace
}  // namespace nibble::cuda::linear

namespace nibble::cuda {

Result<void> LaunchSm90LinearDecode(const Sm90LinearParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Linear(params, kSm90LinearDecodeTokens));
  linear::Args a{};
  a.x = reinterpret_cast<const __nv_bfloat16*>(params.x);
  a.y = reinterpret_cast<__nv_bfloat16*>(params.y);
  a.y_f32 = params.y_f32;
  a.ldy = params.ldy;
  a.tokens = params.tokens;
  a.k = params.k;
  a.steps = (params.k + 63) / 64;
  a.granule = 1;
  a.tiles = linear::MakeShards(params, kHopperTileRows, a.shard);
  for (int i = 0; i < params.shards; ++i) {
    const Sm90LinearShard& s = params.shard[i];
    if (s.weight == Sm90Weight::kFp8Block128 || s.input == Sm90Input::kFp8Group) a.granule = 2;
    a.token_scales |= s.input == Sm90Input::kFp8Token;
  }
  if (params.tokens > 8) return linear::Launch<linear::Config<4, 2>>(a, stream);
  const int steps = (a.steps / a.granule + linear::kWarps - 1) / linear::kWarps * a.granule;
  return steps <= 4 ? linear::Launch<linear::Config<4, 1>>(a, stream)
                    : linear::Launch<linear::Config<8, 1>>(a, stream);
}

}  // namespace nibble::cuda
