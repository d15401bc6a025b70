#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/linear_shard.h"
#include "nibble/error.h"

// What comes before and after the matrix product of a dense linear of many tokens, for every GPU from
// compute capability 8.0 on: x in the form that the product reads, and the sum over parts of k.

namespace nibble::cuda::linear {

/// Where the columns of y go, and what they are multiplied with.
struct Output {
  __nv_bfloat16* y;
  float* y_f32;
  int64_t ldy;
  const float* token_scale;  // [tokens], of kFp8Token
  bool aligned;  // as many neighbouring columns of y as OutputOf was told may be stored at once
};

struct ArrangeArgs {
  const uint32_t* x;                 // [tokens][k / 2] pairs
  uint8_t* out;                      // [variants][steps][rows][128 bytes]
  float *token_scale, *group_scale;  // [tokens]; [steps / 2][rows]
  int k, steps, rows, variants;
  struct {
    Sm90Input format;
    float input, input_inverse;
  } variant[kSm90LinearShards];
};

/// What lies where in the workspace of a linear of many tokens: x, the scales that it was quantized
/// under, the parts of k.
struct LinearSpace {
  int64_t variant_bytes = 0;  // of x
  size_t token_scale = 0, group_scale = 0, parts = 0, bytes = 0;
};
/// Of x as `arrange` says; part_bytes: of all parts.
LinearSpace SpaceOf(const ArrangeArgs& arrange, size_t part_bytes);

/// Where the sums go, and whether `together` neighbouring columns of a shard begin at a multiple of as many.
Output OutputOf(const Sm90LinearParams& params, const Shard* shards, const float* token_scale,
                int together);

/// x, quantized as each shard wants it, to [variant][k / 64][rows][64]: rows in the 128-byte swizzle, k's
/// in the order of the weights (layout/hopper_tile.h), so that what a tile reads for one step is one copy.
/// Gives `arrange` its pointers.
Result<void> LaunchArrange(const Sm90LinearParams& params, const LinearSpace& space,
                           ArrangeArgs* arrange, cudaStream_t stream);

/// Numbers the ways in which the shards want x, in the order of each one's first shard.
void MakeVariants(int shards, Shard* shard, ArrangeArgs* arrange);

struct ReduceArgs {
  const float4* parts;
  Output out;
  int tokens, eights, splits;
  int row_tiles, tiles_a_block;  // of 16 rows, in a row tile
  Shard shard[kSm90LinearShards];
};

/// Adds up the parts of k, in their order.
Result<void> LaunchReduce(const ReduceArgs& args, cudaStream_t stream);

}  // namespace nibble::cuda::linear
