#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/moe_routes.cuh"
#include "kernels/cuda/moe_routes.h"
#include "layout/hopper_tile.h"
#include "nibble/error.h"

// What the parts of sm90_nvfp4_{bf16,nvfp4}_experts_prefill share: plain data and the launch of its
// GEMMs. For nvcc.

namespace nibble::cuda::prefill {

/// The two tile shapes. Both compute 256 rows of weights; kWide takes more tokens a tile, kNarrow has
/// more warps to hide the dequantization when the tokens of an expert are few.
enum class TileShape : uint8_t { kNarrow, kWide };
constexpr int MaxN(TileShape shape) { return shape == TileShape::kWide ? 160 : 80; }

struct GemmArgs {
  CUtensorMap weights;        // [expert][row block][bytes of a row block's k's]
  int bytes_a_step;           // of a row block's k block, in 8-byte elements
  int blocks_a_tile;          // row blocks in 256 rows
  const float* globals;       // GEMM1: [E][shards], GEMM2: [E]
  const float* gscales;       // of the GEMM's x, as globals; W4A4 alone
  const float* h_gscales;     // [E]: of what GEMM1 stores; W4A4 alone
  ActivationArgs activation;  // GEMM1
  const uint8_t* x;           // [steps][rows][64] bf16, see below
  const TokenTile* tiles;
  const int32_t* tile_count;
  int32_t* next_tile;  // 0 between launches
  uint8_t* out;        // GEMM1: h, GEMM2: [rows][out_columns] bf16
  int steps;           // of 64 k; all twice where gate and up have an x each
  int weight_steps;    // of 64 k
  int row_tiles;       // of 256 weight rows
  int h_blocks;        // GEMM1: of 64 features
  int rows;            // sorted routes, every expert padded to 8
  int out_columns;     // GEMM2: H
};
// x and h, the operands of the GEMMs, are [k / 64][rows][64] bf16 with rows sorted by expert: every
// 128-byte row in the 128-byte swizzle and its k's in the order of the weights, so that what a tile
// reads for one k block is one contiguous copy.

/// What a GEMM does about precision and the activation function.
struct GemmKind {
  TileShape shape;
  Activate activate;  // GEMM1
  bool fp4;           // x is NVFP4, and GEMM1's h is to be
  bool split;         // gate and up have an x each: the first and the second half of the steps
  HopperFormat weights;
};

Result<void> LaunchGemm1(GemmKind kind, const GemmArgs& args, int blocks, cudaStream_t stream);
Result<void> LaunchGemm2(GemmKind kind, const GemmArgs& args, int blocks, cudaStream_t stream);

}  // namespace nibble::cuda::prefill
