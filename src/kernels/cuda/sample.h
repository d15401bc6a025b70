#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "nibble/error.h"

namespace nibble::cuda {

/// ids[r] = the index of the largest of logits[r, 0 … drawable-1], the lowest of equal ones. NaN is not
/// a number to be largest: flags[r] = 1 where a drawable logit is NaN, else 0; where all are, the id is
/// 0. Ids lie in device memory: the next step's LaunchEmbed may read them there.
struct ArgmaxParams {
  int rows = 0;                   // 1 .. 1024
  int64_t drawable = 0;           // 1 .. 2^31-1
  int64_t stride = 0;             // floats from row to row, at least drawable, a multiple of 4
  const float* logits = nullptr;  // 16-byte aligned
  int32_t* ids = nullptr;         // [rows]
  int32_t* flags = nullptr;       // [rows]
  // Zeroed once before its first launch; every launch leaves it so. 256-byte aligned.
  std::byte* workspace = nullptr;
  size_t workspace_bytes = 0;
};

size_t ArgmaxWorkspace(int rows);

/// errors   kInvalidArgument (shapes, pointers, workspace), kDevice
Result<void> LaunchArgmax(const ArgmaxParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
