#pragma once

#include "kernels/cuda/linear_shard.h"

namespace nibble::cuda {

/// The arguments that every kernel of linears needs to be right, tokens in 1 .. max_tokens.
Result<void> CheckSm90Linear(const Sm90LinearParams& params, int max_tokens);

namespace linear {
/// The shards as the kernels want them, their rows counted in tiles of `tile_rows`, each from a tile of
/// its own. Returns the number of tiles.
int MakeShards(const Sm90LinearParams& params, int tile_rows, Shard* shards);
}  // namespace linear

}  // namespace nibble::cuda
