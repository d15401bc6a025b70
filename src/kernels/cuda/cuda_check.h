#pragma once

#include <cuda_runtime_api.h>

#include "nibble/error.h"

// Every CUDA call of ours is checked: an Error of kind kDevice (kOutOfMemory for a failed
// allocation) that names the call and its place.

namespace nibble::cuda {

/// The Error for a call that returned `status` (not cudaSuccess).
Error DeviceError(cudaError_t status, const char* call, const char* file, int line);

}  // namespace nibble::cuda

/// Returns the Error of a failed CUDA call from the enclosing function.
#define NIBBLE_CUDA_TRY(call)                                                      \
  do {                                                                             \
    if (const cudaError_t nibble_cuda_ = (call); nibble_cuda_ != cudaSuccess) {    \
      return ::nibble::cuda::DeviceError(nibble_cuda_, #call, __FILE__, __LINE__); \
    }                                                                              \
  } while (false)
