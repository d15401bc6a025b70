#pragma once

#include <cstddef>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sm90_moe.h"
#include "layout/hopper_tile.h"

// What the Hopper launch functions share. Plain C++, but for the launch itself.

namespace nibble::cuda {

constexpr size_t RoundUpTo(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/// Multiprocessors of the current device.
Result<int> MultiprocessorCount();

/// The arguments that every Hopper expert kernel needs to be right, tokens in 1 .. max_tokens.
Result<void> CheckSm90Moe(const Sm90MoeParams& params, int max_tokens);

/// Of the first matrix of an expert.
constexpr HopperLayout W13LayoutOf(const Sm90MoeShape& shape) {
  return shape.gated() ? HopperW13Layout(shape.hidden, shape.intermediate)
                       : HopperW1Layout(shape.hidden, shape.intermediate);
}

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

}  // namespace nibble::cuda
