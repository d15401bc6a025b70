#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/moe_routes.h"
#include "kernels/cuda/sm90_moe.h"

namespace nibble::cuda::moe_mma {

/// What of LaunchMoeMma lies between SortRoutes and SumRoutes, for FP8 weights: two GEMMs of tiles of up
/// to `tokens` routes (8, 16, 32, or, but for weights in blocks of 128, 64) and, where h gets scales of
/// its own, what quantizes it.
Result<void> LaunchFp8Gemms(const Sm90MoeParams& params, const prefill::Workspace& ws, int tokens,
                            cudaStream_t stream);

}  // namespace nibble::cuda::moe_mma
