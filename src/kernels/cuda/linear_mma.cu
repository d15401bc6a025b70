// sm80_{nvfp4,fp8,bf16}_..._linear: dense linears with mma.sync (mma_gemm.cuh), between the kernel that
// makes x what the shards want and, where k is split so that every multiprocessor has work, the one that
// adds up the parts (linear_arrange.h).

#include "kernels/cuda/linear_mma.h"

#include <algorithm>

#include "kernels/cuda/linear_arrange.h"
#include "kernels/cuda/linear_store.cuh"
#include "kernels/cuda/mma_gemm.cuh"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_linear_check.h"

namespace nibble::cuda::linear {
namespace {

struct MmaArgs {
  const uint8_t* x;  // what LaunchArrange made
  const float* group_scale;
  Output out;
  float4* parts;  // [splits][tiles of 16 rows][eights of tokens][32], or null
  int tokens, rows, steps;
  int row_tiles, splits, granules;  // granules of 128 k
  int64_t variant_bytes;
  Shard shard[kSm90LinearShards];
};

/// A block's part of the problem.
struct Part {
  int row_tile, token;  // within the shard; the first
  int step, end;        // of 64 k
};

/// Rows of the shard and tokens of the tile to where they go.
template <class C>
__device__ __forceinline__ void Store(const MmaArgs& a, const Shard& shard, const Part& part,
                                      int first, const MmaSums<C>& sums) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (a.parts != nullptr) {
    constexpr int kBlockTiles = C::kWarps * kMmaTiles;
    const int64_t tiles = static_cast<int64_t>(a.row_tiles) * kBlockTiles;
#pragma unroll
    for (int m = 0; m < kMmaTiles; ++m) {
      const int64_t tile = static_cast<int64_t>(shard.first_tile) * kBlockTiles + first + m;
      float4* const to =
          a.parts + ((blockIdx.z * tiles + tile) * (a.rows / 8) + part.token / 8) * 32 + lane;
#pragma unroll
      for (int n = 0; n < C::kTokens / 8; ++n) {
        const float* const d = sums[m][n];
        to[32 * n] = make_float4(d[0], d[1], d[2], d[3]);
      }
    }
    return;
  }
  const bool pairs = a.out.aligned && shard.rows % 2 == 0;
#pragma unroll
  for (int n = 0; n < C::kTokens / 8; ++n) {
    const int token = part.token + 8 * n + 2 * t;
    if (part.token + 8 * n >= a.tokens) break;
#pragma unroll
    for (int i = 0; i < 2 * kMmaTiles; ++i) {
      const int row = static_cast<int>(HopperOutputRow(first + i / 2, i % 2, g));
      const float* const d = sums[i / 2][n] + i % 2 * 2;
      const float scale = RowScale(shard, row);
      if (!pairs) {
        StoreOne(a.out, shard, row, token, a.tokens, d[0] * scale);
        StoreOne(a.out, shard, row, token + 1, a.tokens, d[1] * scale);
        continue;
      }
      float of[2] = {scale, scale};
      if (shard.format == Sm90Input::kFp8Token) {
#pragma unroll
        for (int e = 0; e < 2; ++e)
          of[e] *= __ldg(a.out.token_scale + min(token + e, a.tokens - 1));
      }
      const uint32_t pair = ExchangePair(d[0] * of[0], d[1] * of[1]);
      const int mine = token + g % 2, column = row & ~1;
      if (mine < a.tokens && column < shard.rows) {
        *reinterpret_cast<uint32_t*>(a.out.y + mine * a.out.ldy + shard.column + column) = pair;
      }
    }
  }
}

template <class C, Sm90Weight kWeight, bool kExact>
__device__ __forceinline__ void Run(const MmaArgs& a, const Shard& shard, const Part& part,
                                    uint32_t stages) {
  constexpr bool kBlocks = kWeight == Sm90Weight::kFp8Block128;
  constexpr HopperFormat kFormat = FormatOf(kWeight);
  constexpr int kBytes = HopperTileBytes(kFormat);
  const int first = (part.row_tile * C::kWarps + threadIdx.x / 32) * kMmaTiles;
  const int t = threadIdx.x % 4;
  MmaOperands o;
  o.weights = first < (shard.rows + 31) / 32 * 2
                  ? shard.weights + (static_cast<int64_t>(first) * a.steps + part.step) * kBytes
                  : nullptr;
  o.tile_stride = a.steps * kBytes;
  o.step_stride = kBytes;
  o.steps = o.weight_steps = part.end - part.step;
  o.x = a.x + shard.variant * a.variant_bytes +
        (static_cast<int64_t>(part.step) * a.rows + part.token) * 128;
  o.x_stride = static_cast<int64_t>(a.rows) * 128;

  MmaSums<C> sums{};
  float all[kBlocks ? kMmaTiles : 1][kBlocks ? C::kTokens / 8 : 1][4] = {};
  const int block = min(first / 8, (shard.rows + 127) / 128 - 1);
  const auto after = [&](int i) {
    if constexpr (kBlocks) {
      const int step = part.step + i;
      if (step % 2 == 0 && step + 1 < part.end) return;
      const float weight = __ldg(shard.scales + block * ((a.steps + 1) / 2) + step / 2);
      const float* const groups =
          a.group_scale + static_cast<int64_t>(step / 2) * a.rows + part.token + 2 * t;
#pragma unroll
      for (int n = 0; n < C::kTokens / 8; ++n) {
        float scale[2] = {weight, weight};
        if (shard.format == Sm90Input::kFp8Group) {
          scale[0] *= groups[8 * n], scale[1] *= groups[8 * n + 1];
        }
#pragma unroll
        for (int m = 0; m < kMmaTiles; ++m) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            all[m][n][e] = __fmaf_rn(sums[m][n][e], scale[e % 2], all[m][n][e]);
            sums[m][n][e] = 0;
          }
        }
      }
    }
  };
  MmaMultiply<C, MmaFragments<kFormat, kExact>, C::Ahead(kFormat)>(
      o, stages, sums, [](int, uint32_t(&)[4]) {}, after);
  if (o.weights == nullptr && a.parts == nullptr) return;
  if constexpr (kBlocks) {
    Store<C>(a, shard, part, first, all);
  } else {
    Store<C>(a, shard, part, first, sums);
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads) LinearMma(const __grid_constant__ MmaArgs a) {
  __shared__ __align__(1024) uint8_t stages[kMmaStages * C::kStageBytes];
  int index = 0;
  while (static_cast<int>(blockIdx.x) >= a.shard[index].end_tile) ++index;
  const Shard& shard = a.shard[index];
  Part part;
  part.row_tile = blockIdx.x - shard.first_tile;
  part.token = blockIdx.y * C::kTokens;
  part.step = static_cast<int>(blockIdx.z * a.granules / a.splits) * 2;
  part.end = min(static_cast<int>((blockIdx.z + 1) * a.granules / a.splits) * 2, a.steps);
  WithFormat<(C::kTokens <= 32)>(shard, [&]<Sm90Weight kWeight, bool kExact>() {
    Run<C, kWeight, kExact>(a, shard, part, SharedAddress(stages));
  });
}

/// How a launch is cut up, and what lies where in the workspace.
struct MmaPlan {
  MmaArgs gemm{};
  ArrangeArgs arrange{};
  int n = 0, token_tiles = 0;
  LinearSpace space;
};

constexpr int BlockTiles(int n) {
  return (n <= 16 ? MmaConfig<16>::kWarps : MmaConfig<64>::kWarps) * kMmaTiles;
}

MmaPlan MakeMmaPlan(const Sm90LinearParams& p, int multiprocessors) {
  MmaPlan plan;
  MmaArgs& g = plan.gemm;
  int largest = 64;
  for (int i = 0; i < p.shards; ++i) {
    if (p.shard[i].weight == Sm90Weight::kFp8Block128) largest = 32;
  }
  plan.n = p.tokens <= 8 ? 8 : p.tokens <= 16 ? 16 : p.tokens <= 32 ? 32 : largest;
  plan.token_tiles = (p.tokens + plan.n - 1) / plan.n;
  g.tokens = p.tokens;
  g.rows = plan.token_tiles * plan.n;
  g.steps = (p.k + 63) / 64;
  g.granules = (g.steps + 1) / 2;
  g.row_tiles = MakeShards(p, BlockTiles(plan.n) * kHopperTileRows, g.shard);
  MakeVariants(p.shards, g.shard, &plan.arrange);
  // Two blocks a multiprocessor, and no part of less than four k blocks.
  g.splits =
      std::max(1, std::min(2 * multiprocessors / (g.row_tiles * plan.token_tiles), g.granules / 2));
  plan.arrange.k = p.k, plan.arrange.steps = g.steps, plan.arrange.rows = g.rows;
  const size_t part = sizeof(float) * g.row_tiles * BlockTiles(plan.n) * kHopperTileRows *
                      static_cast<size_t>(g.rows);
  plan.space = SpaceOf(plan.arrange, g.splits > 1 ? g.splits * part : 0);
  g.variant_bytes = plan.space.variant_bytes;
  return plan;
}

template <int kTokens>
Result<void> LaunchMma(const MmaArgs& args, int token_tiles, cudaStream_t stream) {
  using C = MmaConfig<kTokens>;
  return LaunchDependent(LinearMma<C>, dim3(args.row_tiles, token_tiles, args.splits), C::kThreads,
                         args, stream);
}

}  // namespace
}  // namespace nibble::cuda::linear

namespace nibble::cuda {

size_t LinearMmaWorkspace(const Sm90LinearParams& params) {
  // More multiprocessors than any GPU has: more parts of k.
  constexpr int kMultiprocessors = 256;
  return linear::MakeMmaPlan(params, kMultiprocessors).space.bytes;
}

Result<void> LaunchLinearMma(const Sm90LinearParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Linear(params, 1 << 20));
  NIBBLE_TRY(const int multiprocessors, MultiprocessorCount());
  linear::MmaPlan plan = linear::MakeMmaPlan(params, multiprocessors);
  linear::MmaArgs& g = plan.gemm;
  if (!IsAligned(params.workspace, 256) || params.workspace_bytes < plan.space.bytes) {
    return Error{ErrorCode::kInvalidArgument,
                 "linear by mma: needs LinearMmaWorkspace bytes of 256-byte aligned workspace",
                 {},
                 {}};
  }
  NIBBLE_CHECK_OK(linear::LaunchArrange(params, plan.space, &plan.arrange, stream));
  g.x = plan.arrange.out;
  g.group_scale = plan.arrange.group_scale;
  g.out = linear::OutputOf(params, g.shard, plan.arrange.token_scale, 2);
  if (g.splits > 1) g.parts = reinterpret_cast<float4*>(params.workspace + plan.space.parts);
  const auto launch = plan.n == 8    ? linear::LaunchMma<8>
                      : plan.n == 16 ? linear::LaunchMma<16>
                      : plan.n == 32 ? linear::LaunchMma<32>
                                     : linear::LaunchMma<64>;
  NIBBLE_CHECK_OK(launch(g, plan.token_tiles, stream));
  if (g.splits == 1) return {};
  linear::ReduceArgs reduce{};
  reduce.parts = g.parts;
  reduce.out = g.out;
  reduce.tokens = g.tokens, reduce.eights = g.rows / 8, reduce.splits = g.splits;
  reduce.row_tiles = g.row_tiles, reduce.tiles_a_block = linear::BlockTiles(plan.n);
  std::copy(std::begin(g.shard), std::end(g.shard), reduce.shard);
  return linear::LaunchReduce(reduce, stream);
}

}  // namespace nibble::cuda
