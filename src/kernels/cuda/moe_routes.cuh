#pragma once

namespace nibble::cuda::prefill {

/// Where in a 128-byte row of h and x, before the swizzle, the pair of features f, f + 1 lies; f is
/// even and of a 64-block.
__device__ __forceinline__ int PairPlace(int f) { return f % 16 / 2 * 16 + f / 16 * 4; }

}  // namespace nibble::cuda::prefill
