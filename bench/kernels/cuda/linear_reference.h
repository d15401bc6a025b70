#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/sm90_linear.h"

// What the kernels of linears are checked against: the sums in double on the GPU, straight from the
// canonical weights, sharing no code with the kernels; and random weights.

namespace nibble::bench {

/// A canonical weight [n, k] on the device, as LaunchTilePackLinear takes it, and its fp32 scales.
struct CanonicalLinear {
  cuda::Sm90Weight weight;
  int n = 0, k = 0;
  uint8_t* codes = nullptr;
  uint8_t* block_scales = nullptr;  // NVFP4
  const float* scales = nullptr;    // FP8 by channel or block
  bool subnormal = false;           // FP8 codes are to be subnormal
};

/// Random codes (no NaN), block scales of which one in 64 is zero or tiny; BF16 within +-2.
void FillRandom(const CanonicalLinear& linear, uint64_t seed, cudaStream_t stream);
/// Ones on the diagonal, zeros elsewhere.
void FillIdentity(const CanonicalLinear& linear, cudaStream_t stream);

/// y [tokens, n] = x [tokens, k] W^T and magnitude [tokens, n], the same sum of magnitudes; the scale of
/// the whole tensor is left out.
void ReferenceLinear(const CanonicalLinear& linear, const double* x, int tokens, double* y,
                     double* magnitude, cudaStream_t stream);

}  // namespace nibble::bench
