#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_check.h"

namespace nibble::cuda {

Result<DeviceInfo> DescribeDevice() {
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess || count == 0) {
    cudaGetLastError();  // which would be the next call's
    Error error = Err(ErrorCode::kDevice, "no CUDA device: {}",
                      status != cudaSuccess ? cudaGetErrorString(status) : "the driver has none");
    error.hint = "nvidia-smi says what the driver sees; --device cpu runs here";
    return error;
  }
  cudaDeviceProp properties;
  NIBBLE_CUDA_TRY(cudaGetDeviceProperties(&properties, 0));
  DeviceInfo device;
  device.kind = DeviceKind::kCuda;
  device.compute_capability = 10 * properties.major + properties.minor;
  device.name = fmt::format("sm_{}", device.compute_capability);
  device.model = properties.name;
  device.cores = properties.multiProcessorCount;
  device.memory_bytes = properties.totalGlobalMem;
  device.present = true;
  return device;
}

}  // namespace nibble::cuda
