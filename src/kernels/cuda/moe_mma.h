#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/cuda/sm90_moe.h"

// The routed experts of one layer on any GPU from compute capability 8.0 on (backend MARLIN): what
// sm90_moe.h describes, from the same packed weights, with mma.sync m16n8k16. Any number of tokens.

namespace nibble::cuda {

/// As Sm90MoeDecodeWorkspace.
size_t MoeMmaWorkspace(const Sm90MoeShape& shape, int tokens);

/// Six launches: count and sort the routes by expert, scatter x, two GEMMs, sum over top-k. Results do
/// not depend on the order in which blocks run.
/// errors   kInvalidArgument (shape, pointers, tokens), kDevice
Result<void> LaunchMoeMma(const Sm90MoeParams& params, cudaStream_t stream);

/// For checks, as CopySm90MoePrefillHidden (sm90_moe_inspect.h).
Result<void> CopyMoeMmaHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream);

}  // namespace nibble::cuda
