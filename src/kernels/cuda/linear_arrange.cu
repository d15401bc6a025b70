#include "kernels/cuda/linear_arrange.h"

#include "kernels/cuda/fp8_rows.cuh"
#include "kernels/cuda/linear_store.cuh"
#include "kernels/cuda/sm90_launch.h"
#include "layout/hopper_tile.h"

namespace nibble::cuda::linear {
namespace {

constexpr int kArrangeThreads = 256;

/// Of a chunk (fp8_rows.cuh): eight lanes have four NVFP4 blocks, a pair of each a lane.
__device__ __forceinline__ void QuantizeNvfp4Chunk(uint32_t (&x)[4], const Gscale& g) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t amax = x[i] & kMagnitudes;
#pragma unroll
    for (int o = 1; o < 8; o <<= 1) amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, o));
    const BlockScale scale = ScaleOfBlock(LargestOf(amax), g);
    x[i] = QuantizePair(x[i], scale, scale);
  }
}

/// A block a token.
__global__ void __launch_bounds__(kArrangeThreads) Arrange(const __grid_constant__ ArrangeArgs a) {
  __shared__ float largest[kArrangeThreads / 32];
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int64_t token = blockIdx.x;
  const int chunks = a.steps * 8, rounded = (chunks + 31) & ~31;
  const auto load = [&](int i, uint32_t(&x)[4]) {
    const uint32_t* from = a.x + (token * a.k + i / 8 * 64) / 2 + i % 8;
#pragma unroll
    for (int t = 0; t < 4; ++t) x[t] = i / 8 * 64 + 16 * t < a.k ? __ldg(from + 8 * t) : 0;
  };
#pragma unroll 1
  for (int v = 0; v < a.variants; ++v) {
    const Sm90Input format = a.variant[v].format;
    float token_scale = a.variant[v].input;
    if (format == Sm90Input::kFp8Token) {
      uint32_t amax = 0;
      for (int i = threadIdx.x; i < chunks; i += kArrangeThreads) {
        uint32_t x[4];
        load(i, x);
        amax = MaxBf16x2(amax, MaxOfPairs(x));
      }
      token_scale = TokenScale(amax, largest);
      if (threadIdx.x == 0) a.token_scale[token] = token_scale;
    }
    uint8_t* out = a.out + static_cast<int64_t>(v) * a.steps * a.rows * 128;
    for (int i = threadIdx.x; i < rounded; i += kArrangeThreads) {
      uint32_t x[4];
      load(i, x);
      if (format == Sm90Input::kNvfp4) {
        QuantizeNvfp4Chunk(x, {a.variant[v].input, a.variant[v].input_inverse});
      } else if (format != Sm90Input::kBf16) {
        float scale = token_scale;
        if (format == Sm90Input::kFp8Group) {
          scale = GroupScale(x);
          if (i % 16 == 0 && i < chunks) a.group_scale[i / 16 * a.rows + token] = scale;
        }
        const Fp8Scale fp8 = MakeFp8Scale(scale);
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = QuantizeFp8Pair(x[j], fp8);
      }
      if (i >= chunks) continue;
      const int64_t row = (static_cast<int64_t>(i / 8) * a.rows + token) * 128;
      *reinterpret_cast<uint4*>(out + row + ((i % 8 ^ token % 8) << 4)) =
          make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

/// A thread has rows g and g + 8 of a tile for two tokens.
__global__ void __launch_bounds__(256) Reduce(const __grid_constant__ ReduceArgs a) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int64_t all = static_cast<int64_t>(a.row_tiles) * a.tiles_a_block * a.eights * 32;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= all) return;
  const int lane = static_cast<int>(at % 32), token = static_cast<int>(at / 32 % a.eights) * 8;
  const int tile = static_cast<int>(at / 32 / a.eights);
  if (token >= a.tokens) return;
  int index = 0;
  while (tile / a.tiles_a_block >= a.shard[index].end_tile) ++index;
  const Shard& shard = a.shard[index];
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (int i = 0; i < a.splits; ++i) {
    const float4 v = __ldcg(a.parts + i * all + at);
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  const int local = tile - shard.first_tile * a.tiles_a_block;
  const float v[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int row = static_cast<int>(HopperOutputRow(local, e / 2, lane / 4));
    StoreOne(a.out, shard, row, token + lane % 4 * 2 + e % 2, a.tokens,
             v[e] * RowScale(shard, row));
  }
}

}  // namespace

LinearSpace SpaceOf(const ArrangeArgs& arrange, size_t part_bytes) {
  LinearSpace space;
  const auto rows = static_cast<size_t>(arrange.rows);
  space.variant_bytes = static_cast<int64_t>(arrange.steps) * arrange.rows * 128;
  space.token_scale = RoundUpTo(space.variant_bytes * arrange.variants, 256);
  space.group_scale = space.token_scale + RoundUpTo(sizeof(float) * rows, 256);
  const size_t groups = static_cast<size_t>((arrange.steps + 1) / 2);
  space.parts = space.group_scale + RoundUpTo(sizeof(float) * rows * groups, 256);
  space.bytes = space.parts + part_bytes;
  return space;
}

Output OutputOf(const Sm90LinearParams& params, const Shard* shards, const float* token_scale,
                int together) {
  Output out{};
  out.y = reinterpret_cast<__nv_bfloat16*>(params.y);
  out.y_f32 = params.y_f32;
  out.ldy = params.ldy;
  out.token_scale = token_scale;
  out.aligned = params.y != nullptr && params.ldy % together == 0;
  for (int i = 0; i < params.shards; ++i) out.aligned &= shards[i].column % together == 0;
  return out;
}

Result<void> LaunchArrange(const Sm90LinearParams& params, const LinearSpace& space,
                           ArrangeArgs* arrange, cudaStream_t stream) {
  arrange->x = reinterpret_cast<const uint32_t*>(params.x);
  arrange->out = reinterpret_cast<uint8_t*>(params.workspace);
  arrange->token_scale = reinterpret_cast<float*>(params.workspace + space.token_scale);
  arrange->group_scale = reinterpret_cast<float*>(params.workspace + space.group_scale);
  return LaunchDependent(Arrange, dim3(params.tokens), kArrangeThreads, *arrange, stream);
}

void MakeVariants(int shards, Shard* shard, ArrangeArgs* arrange) {
  for (int i = 0; i < shards; ++i) {
    Shard& s = shard[i];
    if (s.variant != i) {
      s.variant = shard[s.variant].variant;
      continue;
    }
    s.variant = arrange->variants;
    auto& v = arrange->variant[arrange->variants++];
    v.format = s.format, v.input = s.input, v.input_inverse = s.input_inverse;
  }
}

Result<void> LaunchReduce(const ReduceArgs& args, cudaStream_t stream) {
  const int64_t threads = int64_t{args.row_tiles} * args.tiles_a_block * args.eights * 32;
  return LaunchDependent(Reduce, dim3(static_cast<unsigned>((threads + 255) / 256)), 256, args,
                         stream);
}

}  // namespace nibble::cuda::linear
