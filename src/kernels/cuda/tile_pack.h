#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "layout/hopper_tile.h"
#include "nibble/error.h"

// Canonical experts to Hopper tiles (layout/hopper_tile.h) on the GPU, at memory speed. The canonical
// bytes need be on the device only for the experts of one call: a loader copies a few experts at a time
// into a staging buffer, packs them to their place, and reuses the buffer.

namespace nibble::cuda {

/// Canonical matrices [n, k] of consecutive experts on the device, 16-byte aligned, NVFP4 8-byte.
struct TilePackSource {
  const uint8_t* codes = nullptr;   // NVFP4 [n, k/2], low nibble first; FP8 [n, k]; BF16 [n, k]
  const uint8_t* scales = nullptr;  // NVFP4 alone: [n, k/16] e4m3
  size_t codes_stride = 0;          // bytes from one expert to the next
  size_t scales_stride = 0;
  int row_step = 1;  // rows from one to the next: 2 where gate and up alternate (swigluoai), each
                     // then starts at its own first row
  HopperFormat format = HopperFormat::kNvfp4;
};

/// `out` receives `experts` matrices of HopperW13Layout(hidden, intermediate); gate and up are
/// [intermediate, hidden].
/// errors   kInvalidArgument (shapes not multiples of 16, formats that differ, alignment), kDevice
Result<void> LaunchTilePackW13(const TilePackSource& gate, const TilePackSource& up, int experts,
                               int hidden, int intermediate, uint8_t* out, cudaStream_t stream);

/// The same for up alone, in HopperW1Layout.
Result<void> LaunchTilePackW1(const TilePackSource& up, int experts, int hidden, int intermediate,
                              uint8_t* out, cudaStream_t stream);

/// The same for down, [hidden, intermediate], in HopperW2Layout.
Result<void> LaunchTilePackW2(const TilePackSource& down, int experts, int hidden, int intermediate,
                              uint8_t* out, cudaStream_t stream);

/// Canonical weights [n, k] on the device to HopperLinearLayout: k a multiple of 16. `codes` is NVFP4's
/// [n, k/2] with `block_scales` [n, k/16], or FP8's [n, k], or BF16's [n, k] (2 bytes each); 16-byte
/// aligned. `out` is 128-byte aligned.
/// errors   kInvalidArgument, kDevice
Result<void> LaunchTilePackLinear(HopperFormat format, const uint8_t* codes,
                                  const uint8_t* block_scales, int64_t n, int64_t k, uint8_t* out,
                                  cudaStream_t stream);

}  // namespace nibble::cuda
