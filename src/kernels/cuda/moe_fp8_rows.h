#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/moe_routes.h"

// FP8 activations of experts whose routes are sorted (moe_routes.h): codes' values * 2^112 as bf16, which
// is what the mma wants of them (fp8.cuh), and the scales that they were made with where those are the
// row's own.

namespace nibble::cuda::prefill {

/// SortRoutes' x, quantized; of dynamic precisions its scales, ws.row_scales: [rows], or, of groups,
/// [k / 128][rows].
Result<void> ScatterFp8(const Sm90MoeParams& params, const Workspace& ws, cudaStream_t stream);

/// GEMM1's h likewise, in its place, its scales in x's. Of dynamic precisions alone.
Result<void> QuantizeHiddenFp8(const Sm90MoeParams& params, const Workspace& ws,
                               cudaStream_t stream);

/// For checks: the scales of h, [T * K][groups], which a token has one of and k 128 each. Rows of routes
/// without an expert are unspecified.
Result<void> CopyRowScales(const Sm90MoeParams& params, const Workspace& ws, float* scales,
                           cudaStream_t stream);

}  // namespace nibble::cuda::prefill
