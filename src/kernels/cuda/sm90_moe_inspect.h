#pragma once

#include "kernels/cuda/sm90_moe.h"

// What the last launch left in its workspace, for checks: h, the activation between the two
// multiplications, as it went into the second; in W4A4 every value is code * block scale. Rows of
// routes without an expert are unspecified.

namespace nibble::cuda {

/// shapes   h [T * K, I]
Result<void> CopySm90MoeDecodeHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream);
Result<void> CopySm90MoePrefillHidden(const Sm90MoeParams& params, Bf16* h, cudaStream_t stream);

/// x [blocks, 16] to its NVFP4 form under one gscale (in device memory), as the kernels' prologues
/// make it.
Result<void> LaunchSm90QuantizeBlocks(const Bf16* x, int blocks, const float* gscale, Bf16* out,
                                      cudaStream_t stream);

}  // namespace nibble::cuda
