#pragma once

#include <cstddef>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sm90_moe.h"
#include "layout/hopper_tile.h"

// What the Hopper launch functions share. Plain C++.

namespace nibble::cuda {

constexpr size_t RoundUpTo(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/// Multiprocessors of the current device.
Result<int> MultiprocessorCount();

/// The arguments that every expert kernel needs to be right, tokens in 1 .. max_tokens.
Result<void> CheckMoe(const Sm90MoeParams& params, int max_tokens);
/// The same of kernels that do not know FP8 weights.
Result<void> CheckSm90Moe(const Sm90MoeParams& params, int max_tokens);

/// Of the first matrix of an expert.
constexpr HopperLayout W13LayoutOf(const Sm90MoeShape& shape) {
  return shape.gated() ? HopperW13Layout(shape.hidden, shape.intermediate)
                       : HopperW1Layout(shape.hidden, shape.intermediate);
}

}  // namespace nibble::cuda
