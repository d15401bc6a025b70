#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_launch.h"
#include "kernels/cuda/sm90_pack.h"
#include "layout/hopper_tile.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStepsAWarp = 4;  // k blocks of one tile: 128 bytes of a row, a whole line

struct Args {
  Sm90PackSource low, high;  // where rows g and g + 8 of a tile come from
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

__device__ __forceinline__ Group LoadGroup(const Sm90PackSource& m, int expert, int64_t row, int k,
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

template <Matrix kMatrix>
Result<void> Launch(const Args& a, int experts, cudaStream_t stream) {
  const auto aligned = [](const Sm90PackSource& m) {
    return m.codes != nullptr && m.scales != nullptr &&
           (reinterpret_cast<uintptr_t>(m.codes) | m.codes_stride) % 8 == 0 && m.row_step >= 1;
  };
  if (experts < 1 || experts > 65535 || a.rows < 16 || a.k < 16 || a.rows % 16 != 0 ||
      a.k % 16 != 0 || !aligned(a.low) || !aligned(a.high) ||
      reinterpret_cast<uintptr_t>(a.out) % 128 != 0) {
    return Error{ErrorCode::kInvalidArgument,
                 "packing for sm_90: expected H and I multiples of 16, canonical codes 8-byte and "
                 "the output 128-byte aligned",
                 {},
                 {}};
  }
  const int64_t strips = (a.layout.k_blocks + kStepsAWarp - 1) / kStepsAWarp;
  const int64_t threads = a.layout.tiles * strips * 32;
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads), experts);
  Pack<kMatrix><<<grid, kThreads, 0, stream>>>(a);
  NIBBLE_CUDA_TRY(cudaGetLastError());
  return {};
}

}  // namespace

Result<void> LaunchSm90PackW13(const Sm90PackSource& gate, const Sm90PackSource& up, int experts,
                               int hidden, int intermediate, uint8_t* out, cudaStream_t stream) {
  return Launch<Matrix::kW13>(
      {gate, up, HopperW13Layout(hidden, intermediate), intermediate, hidden, out}, experts,
      stream);
}

Result<void> LaunchSm90PackW1(const Sm90PackSource& up, int experts, int hidden, int intermediate,
                              uint8_t* out, cudaStream_t stream) {
  return Launch<Matrix::kW1>(
      {up, up, HopperW1Layout(hidden, intermediate), intermediate, hidden, out}, experts, stream);
}

Result<void> LaunchSm90PackW2(const Sm90PackSource& down, int experts, int hidden, int intermediate,
                              uint8_t* out, cudaStream_t stream) {
  return Launch<Matrix::kW2>(
      {down, down, HopperW2Layout(hidden, intermediate), hidden, intermediate, out}, experts,
      stream);
}

}  // namespace nibble::cuda
