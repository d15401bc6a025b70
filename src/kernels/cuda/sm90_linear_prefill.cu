// sm90_linear_prefill: dense linears of any number of tokens.
//
// As in the experts' prefill the problem is transposed: D[weight rows, tokens] = W x^T, W the register
// operand of wgmma, made bf16 on its way from shared memory, x the shared-memory operand. A block
// computes 256 rows for N tokens, N the launch's; where that gives fewer tiles than multiprocessors, k is
// split and the parts are added up in the order of k by a third launch.
//
//   Arrange   x as the shards want it (linear_arrange.h)
//   Gemm      one warp fills a ring of stages of 64 k, two warpgroups multiply 128 rows each
//   Reduce    adds up the parts of k, if there are any

#include <algorithm>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/linear_arrange.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_linear.cuh"
#include "kernels/cuda/sm90_linear_check.h"
#include "kernels/cuda/sm90_wgmma.cuh"

namespace nibble::cuda::linear {
namespace {

constexpr int kTileRows = 256;
constexpr int kTiles = kTileRows / kHopperTileRows;
constexpr int kGroups = 2;  // warpgroups that compute, each 128 rows as two m64
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kMaxStages = 8;
constexpr int kRingBytes = 220 * 1024;
constexpr int kLargestN = 128;

// --- Gemm ---

struct GemmArgs {
  const uint8_t* x;  // what Arrange made
  const float* group_scale;
  Output out;
  float4* parts;  // [splits][tiles of 16 rows][eights of tokens][32], or null
  int tokens, rows, steps;
  int row_tiles, token_tiles, splits, granules;  // granules of 128 k
  int stages, stage_bytes;
  int64_t variant_bytes;
  Shard shard[kSm90LinearShards];
};

struct Work {
  int shard, row_tile, token, split;  // row_tile within the shard, the first token
  int step, end;                      // of 64 k
};

__device__ __forceinline__ Work WorkAt(const GemmArgs& a, int n, int index) {
  Work w;
  int row_tile = index % a.row_tiles;
  const int rest = index / a.row_tiles;
  w.token = rest % a.token_tiles * n;
  w.split = rest / a.token_tiles;
  w.shard = 0;
  while (row_tile >= a.shard[w.shard].end_tile) ++w.shard;
  w.row_tile = row_tile - a.shard[w.shard].first_tile;
  w.step = static_cast<int>(static_cast<int64_t>(w.split) * a.granules / a.splits) * 2;
  w.end =
      min(static_cast<int>(static_cast<int64_t>(w.split + 1) * a.granules / a.splits) * 2, a.steps);
  return w;
}

struct Ring {
  int at = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance(int stages) {
    if (++at == stages) at = 0, parity ^= 1;
  }
};

struct Shared {
  uint8_t* stages;
  uint32_t full, empty;
  __device__ explicit Shared(uint8_t* raw)
      : stages(raw + 1024), full(SharedAddress(raw)), empty(full + 8 * kMaxStages) {}
};

template <int N>
__device__ __forceinline__ void Produce(const GemmArgs& a, const Shared& s, int lane) {
  const int all = a.row_tiles * a.token_tiles * a.splits;
  Ring ring;
  const auto weights = [&](const Work& w, int step, int stage) {
    const Shard& shard = a.shard[w.shard];
    const int tiles = min(kTiles, (shard.rows + 31) / 32 * 2 - w.row_tile * kTiles);
    const int bytes = HopperTileBytes(FormatOf(shard.weight));
    if (lane == 0) BarrierArriveExpect(s.full + 8 * stage, tiles * bytes + N * 128);
    __syncwarp();
    if (lane >= tiles) return;
    const int64_t tile = static_cast<int64_t>(w.row_tile) * kTiles + lane;
    BulkCopy(SharedAddress(s.stages) + stage * a.stage_bytes + N * 128 + lane * bytes,
             shard.weights + (tile * a.steps + step) * bytes, bytes, s.full + 8 * stage);
  };
  // Weights do not depend on the kernel ahead: the first stages get them while it runs.
  int filled = 0;
  if (static_cast<int>(blockIdx.x) < all) {
    const Work w = WorkAt(a, N, blockIdx.x);
    filled = min(a.stages, w.end - w.step);
    for (int i = 0; i < filled; ++i) weights(w, w.step + i, i);
  }
  WaitForPreviousKernel();
  for (int index = blockIdx.x; index < all; index += gridDim.x) {
    const Work w = WorkAt(a, N, index);
    const uint8_t* x = a.x + a.shard[w.shard].variant * a.variant_bytes;
#pragma unroll 1
    for (int step = w.step; step < w.end; ++step) {
      if (step - w.step >= filled) {
        BarrierWait(s.empty + 8 * ring.at, ring.parity ^ 1);
        weights(w, step, ring.at);
      }
      if (lane == 0) {
        BulkCopy(SharedAddress(s.stages) + ring.at * a.stage_bytes,
                 x + (static_cast<int64_t>(step) * a.rows + w.token) * 128, N * 128,
                 s.full + 8 * ring.at);
      }
      ring.Advance(a.stages);
    }
    filled = 0;
  }
}

/// A computing warp's place.
struct Consumer {
  int group, warp, lane, g, t;
  __device__ Consumer()
      : group(threadIdx.x / 128),
        warp(threadIdx.x / 32 % 4),
        lane(threadIdx.x % 32),
        g(lane / 4),
        t(lane % 4) {}
  /// The m-th tile of 256 rows that this warp multiplies: pairs, so that a quad stores whole runs.
  __device__ int tile(int m) const { return group * 8 + 2 * warp + m; }
};

struct Fragments {
  uint32_t a[4][4];
};

template <Sm90Weight kWeight, bool kExact>
__device__ __forceinline__ void Expand(const Tile<kWeight, kExact>& tile, Fragments& f) {
#pragma unroll
  for (int j = 0; j < 4; ++j) tile.Fragment(j, f.a[j]);
}

template <int N>
__device__ __forceinline__ void Issue(float (&acc)[N / 2], const Fragments& f, uint64_t x) {
  WgmmaFence();
#pragma unroll
  for (int j = 0; j < 4; ++j) Wgmma<N>::Issue(acc, f.a[j], x + 2 * j);
  WgmmaCommit();
}

/// acc += a tile's steps. One m64 is expanded while the other multiplies, and the other warpgroup
/// multiplies meanwhile; nothing is in flight at the loop's edge, else ptxas serialises every wgmma.
template <Sm90Weight kWeight, bool kExact, int N>
__device__ __forceinline__ void Accumulate(const GemmArgs& a, const Shared& s, const Consumer& c,
                                           const Work& w, Ring& ring, float (&acc)[2][N / 2]) {
  constexpr bool kBlocks = kWeight == Sm90Weight::kFp8Block128;
  constexpr int kBytes = Tile<kWeight, kExact>::kBytes;
  const Shard& shard = a.shard[w.shard];
  float part[kBlocks ? 2 : 1][kBlocks ? N / 2 : 1];
  if constexpr (kBlocks) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) part[0][i] = part[1][i] = 0.0f;
  }
  const float* scales = shard.scales;
  if constexpr (kBlocks) {
    const int block_rows = (shard.rows + 127) / 128;
    scales +=
        min(2 * w.row_tile + c.group, block_rows - 1) * static_cast<int64_t>((a.steps + 1) / 2);
  }
  const auto weights = [&](int stage, int m) {
    const uint8_t* from = s.stages + stage * a.stage_bytes + N * 128;
    return Tile<kWeight, kExact>(from + c.tile(m) * kBytes, c.lane);
  };
  const auto issue = [&](int m, const Fragments& f, uint64_t x) {
    if constexpr (kBlocks) {
      Issue<N>(part[m], f, x);
    } else {
      Issue<N>(acc[m], f, x);
    }
  };
#pragma unroll 1
  for (int step = w.step; step < w.end; ++step) {
    BarrierWait(s.full + 8 * ring.at, ring.parity);
    const uint64_t x = SwizzledTile(SharedAddress(s.stages) + ring.at * a.stage_bytes);
    Fragments f0, f1;
    Expand(weights(ring.at, 0), f0);
    issue(0, f0, x);
    Expand(weights(ring.at, 1), f1);
    issue(1, f1, x);
    WgmmaWait<0>();
    if (c.lane == 0) BarrierArrive(s.empty + 8 * ring.at);
    ring.Advance(a.stages);
    if constexpr (kBlocks) {
      if (step % 2 == 0 && step + 1 < w.end) continue;
      const float weight = __ldg(scales + step / 2);
      const float* groups = a.group_scale + static_cast<int64_t>(step / 2) * a.rows + w.token;
#pragma unroll
      for (int i = 0; i < N / 8; ++i) {
        float2 scale = make_float2(weight, weight);
        if (shard.format == Sm90Input::kFp8Group) {
          const float2 of = *reinterpret_cast<const float2*>(groups + 8 * i + 2 * c.t);
          scale.x *= of.x, scale.y *= of.y;
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            acc[m][4 * i + e] =
                __fmaf_rn(part[m][4 * i + e], e % 2 ? scale.y : scale.x, acc[m][4 * i + e]);
            part[m][4 * i + e] = 0.0f;
          }
        }
      }
    }
  }
}

/// Transposes an 8x8 matrix of bf16 held two a lane.
__device__ __forceinline__ uint32_t Transpose8x8(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

template <int N>
__device__ __forceinline__ void Store(const GemmArgs& a, const Consumer& c, const Work& w,
                                      float (&acc)[2][N / 2]) {
  const Shard& shard = a.shard[w.shard];
  if (a.parts != nullptr) {
    const int64_t tiles = static_cast<int64_t>(a.row_tiles) * kTiles;
    const int eights = a.token_tiles * N / 8;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int64_t tile = static_cast<int64_t>(shard.first_tile + w.row_tile) * kTiles + c.tile(m);
      float4* to = a.parts + (((w.split * tiles + tile) * eights) + w.token / 8) * 32 + c.lane;
#pragma unroll
      for (int i = 0; i < N / 8; ++i) {
        const float* d = acc[m] + 4 * i;
        to[32 * i] = make_float4(d[0], d[1], d[2], d[3]);
      }
    }
    return;
  }
  float scale[2][2];
  int row[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[m][half] = static_cast<int>(HopperOutputRow(w.row_tile * kTiles + c.tile(m), half, c.g));
      scale[m][half] = RowScale(shard, row[m][half]);
    }
  }
  // A quad's eight columns of token 8i + g, and whether all exist.
  const int column = w.row_tile * kTileRows + c.group * 128 + c.warp * 32 + 8 * c.t;
  const bool whole = a.out.aligned && shard.rows % 8 == 0;
#pragma unroll
  for (int i = 0; i < N / 8; ++i) {
    const int token = w.token + 8 * i;
    if (token >= a.tokens) break;
    if (!whole) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          StoreOne(a.out, shard, row[m][e / 2], token + 2 * c.t + e % 2, a.tokens,
                   acc[m][4 * i + e] * scale[m][e / 2]);
        }
      }
      continue;
    }
    float of[2] = {1, 1};
    if (shard.format == Sm90Input::kFp8Token) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        of[e] = __ldg(a.out.token_scale + min(token + 2 * c.t + e, a.tokens - 1));
      }
    }
    uint32_t v[4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* d = acc[m] + 4 * i + 2 * half;
        v[2 * m + half] =
            Transpose8x8(PackBf16(d[0] * scale[m][half] * of[0], d[1] * scale[m][half] * of[1]));
      }
    }
    if (token + c.g >= a.tokens || column >= shard.rows) continue;
    *reinterpret_cast<uint4*>(a.out.y + (token + c.g) * a.out.ldy + shard.column + column) =
        make_uint4(v[0], v[1], v[2], v[3]);
  }
}

template <Sm90Weight kWeight, bool kExact, int N>
__device__ __forceinline__ void RunTile(const GemmArgs& a, const Shared& s, const Consumer& c,
                                        const Work& w, Ring& ring) {
  float acc[2][N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) acc[0][i] = acc[1][i] = 0.0f;
  Accumulate<kWeight, kExact, N>(a, s, c, w, ring, acc);
  Store<N>(a, c, w, acc);
}

template <int N>
__device__ __forceinline__ void Consume(const GemmArgs& a, const Shared& s) {
  const Consumer c;
  Ring ring;
  WaitForPreviousKernel();
  const int all = a.row_tiles * a.token_tiles * a.splits;
#pragma unroll 1
  for (int index = blockIdx.x; index < all; index += gridDim.x) {
    const Work w = WorkAt(a, N, index);
    WithFormat<(N <= 64)>(a.shard[w.shard], [&]<Sm90Weight kWeight, bool kExact>() {
      RunTile<kWeight, kExact, N>(a, s, c, w, ring);
    });
  }
}

template <int N>
__global__ void __launch_bounds__(kThreads, 1) Gemm(const __grid_constant__ GemmArgs a) {
  extern __shared__ __align__(1024) uint8_t raw[];
  const Shared s(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < a.stages; ++i) {
      BarrierInit(s.full + 8 * i, 1);
      BarrierInit(s.empty + 8 * i, 4 * kGroups);
    }
    BarrierInitFence();
  }
  __syncthreads();
  LetNextKernelStart();
  if (threadIdx.x >= 128 * kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (threadIdx.x < 128 * kGroups + 32) Produce<N>(a, s, threadIdx.x % 32);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    Consume<N>(a, s);
  }
}

// --- workspace and launch ---

/// How a launch is cut up, and what lies where in the workspace.
struct Plan {
  GemmArgs gemm{};
  ArrangeArgs arrange{};
  int n = 0, tiles = 0;
  LinearSpace space;
};

Plan MakePlan(const Sm90LinearParams& p, int multiprocessors) {
  Plan plan;
  GemmArgs& g = plan.gemm;
  g.tokens = p.tokens;
  g.steps = (p.k + 63) / 64;
  g.granules = (g.steps + 1) / 2;
  g.row_tiles = MakeShards(p, kTileRows, g.shard);
  int weight_bytes = 0, largest_n = kLargestN;
  ArrangeArgs& arrange = plan.arrange;
  for (int i = 0; i < p.shards; ++i) {
    const Shard& s = g.shard[i];
    weight_bytes = std::max(weight_bytes, kTiles * HopperTileBytes(FormatOf(s.weight)));
    if (s.weight == Sm90Weight::kFp8Block128) largest_n = 64;
  }
  MakeVariants(p.shards, g.shard, &arrange);
  g.token_tiles = (p.tokens + largest_n - 1) / largest_n;
  const int even = (p.tokens + g.token_tiles - 1) / g.token_tiles;
  plan.n = even <= 32 ? 32 : even <= 64 ? 64 : even <= 96 ? 96 : 128;
  g.token_tiles = (p.tokens + plan.n - 1) / plan.n;
  plan.tiles = g.row_tiles * g.token_tiles;
  g.splits = std::max(1, std::min(multiprocessors / plan.tiles, g.granules / 2));
  g.rows = g.token_tiles * plan.n;
  g.stage_bytes = plan.n * 128 + weight_bytes;
  g.stage_bytes = static_cast<int>(RoundUpTo(g.stage_bytes, 1024));
  g.stages = std::min(kMaxStages, kRingBytes / g.stage_bytes);
  arrange.k = p.k, arrange.steps = g.steps, arrange.rows = g.rows;
  const size_t part = sizeof(float) * g.row_tiles * kTileRows * static_cast<size_t>(g.rows);
  plan.space = SpaceOf(arrange, g.splits > 1 ? g.splits * part : 0);
  g.variant_bytes = plan.space.variant_bytes;
  return plan;
}

template <int N>
Result<void> LaunchGemm(const GemmArgs& args, int blocks, cudaStream_t stream) {
  const size_t shared = 1024 + static_cast<size_t>(args.stages) * args.stage_bytes;
  NIBBLE_CUDA_TRY(cudaFuncSetAttribute(Gemm<N>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared)));
  return LaunchDependent(Gemm<N>, dim3(blocks), kThreads, args, stream, shared);
}

}  // namespace
}  // namespace nibble::cuda::linear

namespace nibble::cuda {

size_t Sm90LinearPrefillWorkspace(const Sm90LinearParams& params) {
  // More multiprocessors than any Hopper part has: more parts of k.
  constexpr int kMultiprocessors = 160;
  return linear::MakePlan(params, kMultiprocessors).space.bytes;
}

Result<void> LaunchSm90LinearPrefill(const Sm90LinearParams& params, cudaStream_t stream) {
  NIBBLE_CHECK_OK(CheckSm90Linear(params, 1 << 20));
  NIBBLE_TRY(const int multiprocessors, MultiprocessorCount());
  linear::Plan plan = linear::MakePlan(params, multiprocessors);
  linear::GemmArgs& g = plan.gemm;
  if (!IsAligned(params.workspace, 256) || params.workspace_bytes < plan.space.bytes) {
    return Error{
        ErrorCode::kInvalidArgument,
        "linear on sm_90: prefill needs Sm90LinearPrefillWorkspace bytes of 256-byte aligned "
        "workspace",
        {},
        {}};
  }
  NIBBLE_CHECK_OK(linear::LaunchArrange(params, plan.space, &plan.arrange, stream));
  g.x = plan.arrange.out;
  g.group_scale = plan.arrange.group_scale;
  g.out = linear::OutputOf(params, g.shard, plan.arrange.token_scale, 8);
  if (g.splits > 1) g.parts = reinterpret_cast<float4*>(params.workspace + plan.space.parts);
  const int blocks = std::min(multiprocessors, plan.tiles * g.splits);
  switch (plan.n) {
    case 32:
      NIBBLE_CHECK_OK(linear::LaunchGemm<32>(g, blocks, stream));
      break;
    case 64:
      NIBBLE_CHECK_OK(linear::LaunchGemm<64>(g, blocks, stream));
      break;
    case 96:
      NIBBLE_CHECK_OK(linear::LaunchGemm<96>(g, blocks, stream));
      break;
    default:
      NIBBLE_CHECK_OK(linear::LaunchGemm<128>(g, blocks, stream));
  }
  if (g.splits == 1) return {};
  linear::ReduceArgs reduce{};
  reduce.parts = g.parts;
  reduce.out = g.out;
  reduce.tokens = g.tokens, reduce.eights = g.rows / 8;
  reduce.row_tiles = g.row_tiles, reduce.splits = g.splits;
  reduce.tiles_a_block = linear::kTiles;
  std::copy(std::begin(g.shard), std::end(g.shard), reduce.shard);
  return linear::LaunchReduce(reduce, stream);
}

}  // namespace nibble::cuda
