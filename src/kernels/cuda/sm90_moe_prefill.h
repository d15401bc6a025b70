#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "nibble/error.h"

// What the parts of sm90_nvfp4_bf16_experts_prefill share: plain data and the launch of its GEMMs.

namespace nibble::cuda::prefill {

/// A tile of the grouped GEMM: up to kMaxN sorted routes of one expert.
struct alignas(16) TokenTile {
  int expert, first_row, rows, n;  // n: rows rounded up to a wgmma N
};

/// The two tile shapes. Both compute 256 rows of weights; kWide takes more tokens a tile, kNarrow has
/// more warps to hide the dequantization when the tokens of an expert are few.
enum class TileShape : uint8_t { kNarrow, kWide };
constexpr int MaxN(TileShape shape) { return shape == TileShape::kWide ? 160 : 80; }

struct GemmArgs {
  CUtensorMap weights;   // [expert][row block][bytes of a row block's k's]
  int bytes_a_step;      // of a row block's k block, in 8-byte elements
  int blocks_a_tile;     // row blocks in 256 rows
  const float* globals;  // GEMM1: [E][2], GEMM2: [E]
  const uint8_t* x;      // [steps][rows][64] bf16, see below
  const TokenTile* tiles;
  const int32_t* tile_count;
  int32_t* next_tile;  // 0 between launches
  uint8_t* out;        // GEMM1: h, GEMM2: [rows][out_columns] bf16
  int steps;           // of 64 k
  int row_tiles;       // of 256 weight rows
  int row_blocks;      // of 128 weight rows
  int rows;            // sorted routes, every expert padded to 8
  int out_columns;     // GEMM2: H
};
// x and h, the operands of the GEMMs, are [k / 64][rows][64] bf16 with rows sorted by expert: every
// 128-byte row in the 128-byte swizzle and its k's in the order of the weights, so that what a tile
// reads for one k block is one contiguous copy.

Result<void> LaunchGemm1(TileShape shape, const GemmArgs& args, int blocks, cudaStream_t stream);
Result<void> LaunchGemm2(TileShape shape, const GemmArgs& args, int blocks, cudaStream_t stream);

}  // namespace nibble::cuda::prefill
