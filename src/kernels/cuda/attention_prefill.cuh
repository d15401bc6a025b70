#pragma once

#include "kernels/cuda/attention.cuh"

// What attention of many rows shares between GPUs: a block takes some consecutive rows of one sequence
// and one query head.

namespace nibble::cuda {

/// A block's rows: of a sequence, from `first` of its rows on.
struct RowTile {
  StepSequence sequence;
  int first = 0;
  bool real = false;
};

/// At most so many tiles of `size` rows has a step.
constexpr int MaxRowTiles(const Step& step, int size) { return step.rows / size + step.sequences; }

/// Tile number `index` of the step's sequences; all lanes of a warp ask together.
__device__ __forceinline__ RowTile FindRowTile(const Step& step, int index, int size) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0; base < step.sequences; base += 32) {
    const int i = base + lane;
    const int mine = i < step.sequences ? (step.sequence[i].n_rows + size - 1) / size : 0;
    int sum = mine;  // up to and with this lane's
#pragma unroll
    for (int o = 1; o < 32; o *= 2) {
      const int other = __shfl_up_sync(~0u, sum, o);
      if (lane >= o) sum += other;
    }
    const unsigned holders = __ballot_sync(~0u, before + sum > index);
    if (holders) {
      const int holder = __ffs(holders) - 1;
      const int ahead = before + __shfl_sync(~0u, sum - mine, holder);
      return {step.sequence[base + holder], (index - ahead) * size, true};
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return {};
}

}  // namespace nibble::cuda
