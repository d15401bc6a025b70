#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/cuda/sm90_moe.h"

// The routed experts of one layer on any GPU from compute capability 8.0 on (backend MARLIN): what
// sm90_moe.h describes, from the same packed weights, with mma.sync m16n8k16. Any number of tokens. FP8
// weights have no other kernel: on Hopper (backend HOPPER) they come here, too.

namespace nibble::cuda {

/// As Sm90MoeDecodeWorkspace.
size_t MoeMmaWorkspace(const Sm90MoeShape& shape, int tokens);

/// Six launches: count and sort the routes by expert, scatter x, two GEMMs, sum over top-k; a seventh
/// between the GEMMs where h gets FP8 scales of its own. Results do not depend on the order in which
/// blocks run.
/// errors   kInvalidArgument (shape, pointers, tokens), kDevice
Result<void> LaunchMoeMma(const Sm90MoeParams& params, cudaStream_t stream);

/// For checks, as CopySm90MoePrefillHidden (sm90_moe_inspect.h); in W8A8 every value is that of its code,
/// times 2^112.
Result<void> CopyMoeMmaHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream);
/// W8A8 under dynamic scales: those of h, [T * K], by groups [T * K, ceil(I / 128)].
Result<void> CopyMoeMmaHiddenScales(const Sm90MoeParams& params, float* scales,
                                    cudaStream_t stream);

}  // namespace nibble::cuda
