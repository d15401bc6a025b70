#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/cuda/sm90_linear.h"

// Dense linears on any GPU from compute capability 8.0 on (backend MARLIN): what sm90_linear.h describes,
// from the same packed weights, with mma.sync m16n8k16. Any number of tokens up to 2^20.

namespace nibble::cuda {

/// As Sm90LinearPrefillWorkspace.
size_t LinearMmaWorkspace(const Sm90LinearParams& params);

/// Two or three launches. Needs workspace.
/// errors   kInvalidArgument (shapes, pointers, scales), kDevice
Result<void> LaunchLinearMma(const Sm90LinearParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
