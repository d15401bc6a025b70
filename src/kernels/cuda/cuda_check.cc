#include "kernels/cuda/cuda_check.h"

#include "base/error.h"

namespace nibble::cuda {

Error DeviceError(cudaError_t status, const char* call, const char* file, int line) {
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDevice;
  Error error = Err(code, "CUDA: {} ({}) from {}", cudaGetErrorString(status),
                    cudaGetErrorName(status), call);
  error.where = fmt::format("{}:{}", file, line);
  return error;
}

}  // namespace nibble::cuda
