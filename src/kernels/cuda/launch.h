#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_check.h"

namespace nibble::cuda {

/// Launches a kernel that may start before the one ahead of it has ended (programmatic dependent
/// launch): it waits for that end itself.
template <class Args>
Result<void> LaunchDependent(void (*kernel)(Args), dim3 grid, int threads, const Args& args,
                             cudaStream_t stream, size_t shared_bytes = 0) {
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<Args*>(&args)};
  NIBBLE_CUDA_TRY(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments));
  return {};
}

/// Whether p is a pointer to a multiple of `unit` bytes, not null.
inline bool IsAligned(const void* p, uintptr_t unit) {
  return p != nullptr && reinterpret_cast<uintptr_t>(p) % unit == 0;
}

constexpr int64_t CeilDiv(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace nibble::cuda
