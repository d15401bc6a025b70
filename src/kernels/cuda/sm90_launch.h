#pragma once

#include <cstddef>

#include "kernels/cuda/sm90_moe.h"

// What the Hopper launch functions share. Plain C++.

namespace nibble::cuda {

constexpr size_t RoundUpTo(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/// Multiprocessors of the current device.
Result<int> MultiprocessorCount();

/// The arguments that every Hopper expert kernel needs to be right, tokens in 1 .. max_tokens.
Result<void> CheckSm90Moe(const Sm90MoeParams& params, int max_tokens);

}  // namespace nibble::cuda
