#pragma once

#include "kernels/cuda/sm90_linear.h"

namespace nibble::cuda::linear {

/// A shard as the kernels of linears want it.
struct Shard {
  const uint8_t* weights;
  const float* scales;         // of rows or of blocks, or null
  float scale;                 // what the accumulator is multiplied with at last
  float input, input_inverse;  // gscale of kNvfp4, scale of kFp8, and 1 / either
  int first_tile, end_tile;    // among the tiles of all shards
  int rows, column;
  int variant;  // shards of one variant quantize x alike
  Sm90Weight weight;
  Sm90Input format;  // of x
};

}  // namespace nibble::cuda::linear
