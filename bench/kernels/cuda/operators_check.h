#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace nibble::bench {

struct Tally {
  int done = 0, failed = 0;
  double worst = 0;  // largest |got - reference| / bound
};

/// Norms, sums, embedding, SiLU, concatenation, gathering; the router; the argmax: each against
/// double on poisoned outputs, twice for its bits. Cases of more than `most` products (routes) or
/// elements are left out: an emulator takes long over them.
Tally CheckNorms(int64_t most, cudaStream_t stream);
Tally CheckRoutes(int64_t most, cudaStream_t stream);
Tally CheckArgmaxes(int64_t most, cudaStream_t stream);
/// Rope tables against the host's double.
Tally CheckRopeTables(cudaStream_t stream);
/// That launches refuse what they cannot do right; failed: those that were not refused.
Tally CheckOperatorRefusals();

}  // namespace nibble::bench
