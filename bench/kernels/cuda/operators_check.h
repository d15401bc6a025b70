#pragma once

#include <cuda_runtime_api.h>

namespace nibble::bench {

struct Tally {
  int done = 0, failed = 0;
  double worst = 0;  // largest |got - reference| / bound
};

/// Norms, sums, embedding, SiLU, concatenation, gathering; the router; the argmax: each against
/// double on poisoned outputs, twice for its bits.
Tally CheckNorms(cudaStream_t stream);
Tally CheckRoutes(cudaStream_t stream);
Tally CheckArgmaxes(cudaStream_t stream);
/// Rope tables against the host's double.
Tally CheckRopeTables(cudaStream_t stream);
/// That launches refuse what they cannot do right; failed: those that were not refused.
Tally CheckOperatorRefusals();

}  // namespace nibble::bench
