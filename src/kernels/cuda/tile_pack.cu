#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/tile_pack.h"
#include "layout/hopper_tile.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStepsAWarp = 4;  // k blocks of one tile: 128 bytes of a row, a whole line

struct Args {
  TilePackSource low, high;  // where rows g and g + 8 of a tile come from
  HopperLayout layout;
  int rows, k;
  uint8_t* out;
};

enum class Matrix { kW13, kW1, kW2 };

template <Matrix kMatrix>
__device__ __forceinline__ int64_t RowOf(int64_t tile, int half, int g) {
  if constexpr (kMatrix == Matrix::kW13) return HopperFeature(tile, g);
  if constexpr (kMatrix == Matrix::kW1) return HopperUngatedFeature(tile, half, g);
  return HopperOutputRow(tile, half, g);
}

struct Group {
  uint2 codes;
  uint8_t scale;
};

__device__ __forceinline__ Group LoadGroup(const TilePackSource& m, int expert, int64_t row, int k,
                                           int rows, int columns) {
  if (row >= rows || k >= columns) return {make_uint2(0, 0), 0};
  const int64_t at = row * m.row_step * columns + k;
  return {__ldg(reinterpret_cast<const uint2*>(m.codes + expert * m.codes_stride + at / 2)),
          __ldg(m.scales + expert * m.scales_stride + at / 16)};
}

// A warp packs kStepsAWarp k blocks of one tile; all loads are in flight before the first store.
template <Matrix kMatrix>
__global__ void __launch_bounds__(kThreads) Pack(const __grid_constant__ Args a) {
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32, g = lane / 4, expert = blockIdx.y;
  const int64_t strips = (a.layout.k_blocks + kStepsAWarp - 1) / kStepsAWarp;
  const int64_t tile = warp / strips, first = warp % strips * kStepsAWarp;
  if (tile >= a.layout.tiles) return;
  const int64_t low_row = RowOf<kMatrix>(tile, 0, g), high_row = RowOf<kMatrix>(tile, 1, g);
  Group low[kStepsAWarp], high[kStepsAWarp];
#pragma unroll
  for (int i = 0; i < kStepsAWarp; ++i) {
    const int k = static_cast<int>(first + i) * kHopperTileK + lane % 4 * 16;
    low[i] = LoadGroup(a.low, expert, low_row, k, a.rows, a.k);
    high[i] = LoadGroup(a.high, expert, high_row, k, a.rows, a.k);
  }
#pragma unroll
  for (int i = 0; i < kStepsAWarp; ++i) {
    if (first + i >= a.layout.k_blocks) break;
    const auto join = [](uint2 v) { return static_cast<uint64_t>(v.y) << 32 | v.x; };
    const HopperLane packed =
        PackHopperLane(join(low[i].codes), join(high[i].codes), low[i].scale, high[i].scale);
    uint8_t* to = a.out + expert * a.layout.bytes() + a.layout.OffsetOf(tile, first + i);
    reinterpret_cast<uint4*>(to)[lane] =
        make_uint4(packed.words[0], packed.words[1], packed.words[2], packed.words[3]);
    reinterpret_cast<uint16_t*>(to + kHopperTileCodeBytes)[lane] = packed.scales;
  }
}

// --- FP8 and BF16: a warp packs one tile ---

/// 16 bytes of row `row`; zeros outside.
template <HopperFormat kFormat>
__device__ __forceinline__ uint4 LoadRow(const TilePackSource& m, int expert, int64_t row, int k,
                                         const Args& a) {
  if (row >= a.rows || k >= a.k) return make_uint4(0, 0, 0, 0);
  constexpr int kBytes = kFormat == HopperFormat::kFp8 ? 1 : 2;
  const int64_t at = (row * m.row_step * a.k + k) * kBytes;
  return __ldg(reinterpret_cast<const uint4*>(m.codes + expert * m.codes_stride + at));
}

template <Matrix kMatrix, HopperFormat kFormat>
__global__ void __launch_bounds__(kThreads) PackTile(const __grid_constant__ Args a) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int64_t tile = at / a.layout.k_blocks, k_block = at % a.layout.k_blocks;
  const int lane = threadIdx.x % 32, expert = blockIdx.y;
  if (tile >= a.layout.tiles) return;
  const int64_t low_row = RowOf<kMatrix>(tile, 0, lane / 4);
  const int64_t high_row = RowOf<kMatrix>(tile, 1, lane / 4);
  const int k = static_cast<int>(k_block) * kHopperTileK + lane % 4 * 16;
  uint8_t* to = a.out + expert * a.layout.bytes(kFormat) +
                a.layout.OffsetOf(tile, k_block, kFormat) + 16 * lane;
  if constexpr (kFormat == HopperFormat::kFp8) {
    const uint4 low = LoadRow<kFormat>(a.low, expert, low_row, k, a);
    const uint4 high = LoadRow<kFormat>(a.high, expert, high_row, k, a);
    const auto order = [](uint32_t codes) { return HopperFp8Word(codes); };
    *reinterpret_cast<uint4*>(to) =
        make_uint4(order(low.x), order(high.x), order(low.y), order(high.y));
    *reinterpret_cast<uint4*>(to + 512) =
        make_uint4(order(low.z), order(high.z), order(low.w), order(high.w));
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 low = LoadRow<kFormat>(a.low, expert, low_row, k + 8 * half, a);
      const uint4 high = LoadRow<kFormat>(a.high, expert, high_row, k + 8 * half, a);
      uint8_t* two = to + 1024 * half;
      *reinterpret_cast<uint4*>(two) = make_uint4(low.x, high.x, low.y, high.y);
      *reinterpret_cast<uint4*>(two + 512) = make_uint4(low.z, high.z, low.w, high.w);
    }
  }
}

// --- launches ---

/// Of arguments that have been checked.
template <Matrix kMatrix>
Result<void> LaunchPack(const Args& a, HopperFormat format, int experts, cudaStream_t stream) {
  const bool nvfp4 = format == HopperFormat::kNvfp4;
  const int64_t strips =
      nvfp4 ? (a.layout.k_blocks + kStepsAWarp - 1) / kStepsAWarp : a.layout.k_blocks;
  const int64_t blocks = (a.layout.tiles * strips * 32 + kThreads - 1) / kThreads;
  const auto kernel = nvfp4                          ? Pack<kMatrix>
                      : format == HopperFormat::kFp8 ? PackTile<kMatrix, HopperFormat::kFp8>
                                                     : PackTile<kMatrix, HopperFormat::kBf16>;
  kernel<<<dim3(static_cast<unsigned>(blocks), experts), kThreads, 0, stream>>>(a);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

template <Matrix kMatrix>
Result<void> Launch(const Args& a, int experts, cudaStream_t stream) {
  const HopperFormat format = a.low.format;
  const bool nvfp4 = format == HopperFormat::kNvfp4;
  const auto right = [&](const TilePackSource& m) {
    return m.format == format && m.codes != nullptr && (m.scales != nullptr) == nvfp4 &&
           (reinterpret_cast<uintptr_t>(m.codes) | m.codes_stride) % (nvfp4 ? 8 : 16) == 0 &&
           m.row_step >= 1;
  };
  if (experts < 1 || experts > 65535 || a.rows < 16 || a.k < 16 || a.rows % 16 != 0 ||
      a.k % 16 != 0 || !right(a.low) || !right(a.high) ||
      reinterpret_cast<uintptr_t>(a.out) % 128 != 0) {
    return Error{
        ErrorCode::kInvalidArgument,
        "packing experts: expected H and I multiples of 16, one format with block scales for "
        "NVFP4 alone, NVFP4 codes 8-byte, others 16-byte and the output 128-byte aligned",
        {},
        {}};
  }
  return LaunchPack<kMatrix>(a, format, experts, stream);
}

}  // namespace

Result<void> LaunchTilePackLinear(HopperFormat format, const uint8_t* codes,
                                  const uint8_t* block_scales, int64_t n, int64_t k, uint8_t* out,
                                  cudaStream_t stream) {
  const HopperLayout layout = HopperLinearLayout(n, k);
  const auto misaligned = [](const void* p, uintptr_t unit) {
    return p == nullptr || reinterpret_cast<uintptr_t>(p) % unit != 0;
  };
  const int64_t blocks = (layout.tiles * layout.k_blocks * 32 + kThreads - 1) / kThreads;
  if (n < 1 || k < 16 || k % 16 != 0 || blocks > INT32_MAX || misaligned(codes, 16) ||
      misaligned(out, 128) || (format == HopperFormat::kNvfp4) != (block_scales != nullptr)) {
    return Error{
        ErrorCode::kInvalidArgument,
        "packing a linear for sm_90: expected rows, k a multiple of 16, codes 16-byte and the "
        "output 128-byte aligned, block scales for NVFP4 alone",
        {},
        {}};
  }
  const TilePackSource source{codes, block_scales, 0, 0, 1, format};
  const Args a{source, source, layout, static_cast<int>(n), static_cast<int>(k), out};
  return LaunchPack<Matrix::kW2>(a, format, 1, stream);
}

Result<void> LaunchTilePackW13(const TilePackSource& gate, const TilePackSource& up, int experts,
                               int hidden, int intermediate, uint8_t* out, cudaStream_t stream) {
  return Launch<Matrix::kW13>(
      {gate, up, HopperW13Layout(hidden, intermediate), intermediate, hidden, out}, experts,
      stream);
}

Result<void> LaunchTilePackW1(const TilePackSource& up, int experts, int hidden, int intermediate,
                              uint8_t* out, cudaStream_t stream) {
  return Launch<Matrix::kW1>(
      {up, up, HopperW1Layout(hidden, intermediate), intermediate, hidden, out}, experts, stream);
}

Result<void> LaunchTilePackW2(const TilePackSource& down, int experts, int hidden, int intermediate,
                              uint8_t* out, cudaStream_t stream) {
  return Launch<Matrix::kW2>(
      {down, down, HopperW2Layout(hidden, intermediate), hidden, intermediate, out}, experts,
      stream);
}

}  // namespace nibble::cuda
