#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/sm90_moe.h"
#include "nibble/error.h"

// Tokens sorted by expert, and the sum over their experts: what a grouped GEMM over many tokens has
// before and behind it. Plain C++.

namespace nibble::cuda::prefill {

/// A tile of the grouped GEMM: some sorted routes of one expert.
struct alignas(16) TokenTile {
  int expert, first_row, rows, n;  // n: rows rounded up to a wgmma N
};

inline constexpr int kMostTileRows = 160;

/// Where in the workspace what lies. Everything else is written before it is read.
struct Workspace {
  size_t counts, placed, next_tile, tile_count, tiles, row_of_route, h, rows, row_scales, bytes;
  int row_count;
};

/// Of launches whose tiles have at least `smallest_tile` routes, where an expert has as many.
Workspace Layout(const Sm90MoeShape& shape, int tokens, int smallest_tile);

/// Gate and up have an x each: the first and the second half of K.
constexpr bool SplitsX(const Sm90MoeShape& shape) {
  return (shape.precision == Sm90Precision::kFp4Shard ||
          shape.precision == Sm90Precision::kFp8Shard) &&
         shape.gated();
}

/// Makes the tiles, of at most max_n routes, and writes x, quantized if it is to be, to ws.rows:
/// [k / 64][rows][64] bf16 with rows sorted by expert, every 128-byte row in the 128-byte swizzle and its
/// k's in the order of the weights (layout/hopper_tile.h), so that what a tile reads for one k block is
/// one contiguous copy. GEMM1 leaves h in the same form, GEMM2 its output as [rows][H].
Result<void> SortRoutes(const Sm90MoeParams& params, const Workspace& ws, int max_n,
                        cudaStream_t stream);
/// y from GEMM2's output; the counters are zero again.
Result<void> SumRoutes(const Sm90MoeParams& params, const Workspace& ws, cudaStream_t stream);
/// For checks, see sm90_moe_inspect.h.
Result<void> CopyRoutedHidden(const Sm90MoeParams& params, const Workspace& ws, Bf16* h,
                              cudaStream_t stream);

}  // namespace nibble::cuda::prefill
