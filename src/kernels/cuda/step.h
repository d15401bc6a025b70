#pragma once

#include <cstdint>

namespace nibble::cuda {

// What changes from step to step lies in device memory, written before the step's graph is replayed;
// what a launch is given on the host (numbers of rows and sequences, the largest context) shapes the
// grid and is part of the graph.

/// Consecutive rows of a batch that belong to one sequence: its tokens at positions start …
/// start+n_rows-1. n_rows 0: nothing, wherever a graph has room for more sequences than a step has.
struct StepSequence {
  int32_t slot = 0, first_row = 0, n_rows = 0, start = 0;
};

/// Where a row belongs; slot -1: to no sequence (padding: its results are not said).
struct StepRow {
  int32_t position = 0, slot = -1;
};

/// Pointers to device memory.
struct Step {
  int rows = 0, sequences = 0;
  const StepRow* row = nullptr;            // [rows]
  const StepSequence* sequence = nullptr;  // [sequences]
};

}  // namespace nibble::cuda
