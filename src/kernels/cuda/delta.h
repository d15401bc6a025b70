#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/delta_shape.h"
#include "nibble/error.h"
#include "numerics/bf16.h"

// Gated DeltaNet on CUDA devices (operators.h has its equations), from the rows that the input
// projection leaves to those that the output projection takes. Compute capability 8.0 and newer.
//
// What a layer keeps of a sequence lies in its slot: the state in fp32, and a ring of the last rows
// of the input projection, row p of the sequence at index p mod its length. Taking rows back: a
// tentative row is written to the ring and never to the state, so the slot holds the state of
// position start - kept, and a launch begins by running the `kept` rows before `start` once more
// from the ring, in the pass over the state that it makes anyway. Bits are those of a run without
// the rows that were taken back (docs/adr/0006). A row of the ring takes 16.5 KB in
// Qwen3.6-35B-A3B, where a snapshot of the state is 2 MiB.
//
// Everything that changes from step to step is read from device memory (DeltaSequence), so a
// captured launch can be replayed with other slots, positions and counts. Nothing here allocates,
// synchronises or reads back. Same input, same bits: a row's do not depend on the other sequences
// of the batch, nor, in decode, on how its sequence was cut into launches.

namespace nibble::cuda {

/// The most new rows of a sequence in one decode launch.
inline constexpr int kDeltaDecodeRows = 8;

/// A sequence's rows of a batch, in device memory.
struct DeltaSequence {
  int32_t slot = 0;
  int32_t first_row = 0;  // of `in` and `out`
  int32_t n_rows = 0;     // 0: nothing to do
  int32_t start = 0;  // the first row's position; at 0 the slot's old contents are not looked at
  int32_t kept = 0;   // of the last launch's tentative rows; those before `start`. Else 0
  int32_t tentative = 0;  // decode: whether the rows may be taken back
};

/// What a layer keeps of all slots, in device memory, 16-byte aligned. Need not be initialised.
struct DeltaMemory {
  float* state = nullptr;  // [slots][v_heads][v_dim][k_dim]
  Bf16* ring = nullptr;    // [slots][DeltaRingRows()][DeltaRingWidth()]: q | k | v | b | a
  int slots = 0;
  int decode_rows = 0;  // of a sequence in one decode launch, 1 .. kDeltaDecodeRows
};

/// What is read of earlier rows (kept ones, and the convolution's before them) and what is written
/// meanwhile never share a row.
inline int64_t DeltaRingRows(const kernels::DeltaShape& shape, int decode_rows) {
  return shape.taps - 1 + 2 * decode_rows;
}
inline int64_t DeltaRingWidth(const kernels::DeltaShape& shape) {
  return shape.channels() + 2 * shape.v_heads;
}

struct DeltaParams {
  kernels::DeltaShape shape;  // k_dim and v_dim 64 or 128; taps 2..4; v_heads a multiple of 4 and
                              // 1 .. 8 times k_heads
  kernels::DeltaParameters parameters;  // in device memory; conv tap by tap: [taps, channels]
  DeltaMemory memory;
  const DeltaSequence* sequences = nullptr;  // device, [n_sequences], of distinct slots
  int n_sequences = 0;
  int64_t rows = 0;          // that all sequences together have at most; sizes prefill's grid
  const Bf16* in = nullptr;  // [rows, shape.in_width()]: q | k | v | z | b | a, 16-byte aligned
  Bf16* out = nullptr;       // [rows, shape.out_width()], 16-byte aligned
  std::byte* workspace = nullptr;  // 256-byte aligned; decode needs none
  size_t workspace_bytes = 0;
};

/// At most memory.decode_rows rows a sequence, by the recurrence in fp32; one launch.
/// errors   kInvalidArgument (shape, pointers), kDevice
Result<void> LaunchDeltaDecode(const DeltaParams& params, cudaStream_t stream);

/// Bytes of workspace for one prefill launch. Nothing is expected of its contents.
size_t DeltaPrefillWorkspace(const kernels::DeltaShape& shape, int64_t rows, int n_sequences);

/// Any number of rows a sequence, none of them tentative, 64 at a time on tensor cores (TF32
/// operands, fp32 sums and state). Rounds differently from decode.
/// errors   as above
Result<void> LaunchDeltaPrefill(const DeltaParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
