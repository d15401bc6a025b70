#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/sm90_moe.h"

// What the expert kernels are checked against: the layer in double on the GPU, straight from the
// canonical weights, element by element, sharing no code with the kernels; and random inputs.

namespace nibble::bench {

/// Canonical experts on the device, each matrix NVFP4, [E][n][k/2] codes and [E][n][k/16] scales, or
/// without scales here [E][n][k] FP8 or BF16.
struct CanonicalExperts {
  cuda::Sm90MoeShape shape;
  uint8_t *gate_codes = nullptr, *gate_scales = nullptr, *up_codes = nullptr, *up_scales = nullptr,
          *down_codes = nullptr, *down_scales = nullptr;
};

/// Random codes, no NaN; random scales, of which one in 64 is zero, subnormal or smallest normal. BF16 as
/// FillRandomActivations makes it, so large that every stage is about 1.
void FillRandom(const CanonicalExperts& experts, uint64_t seed, cudaStream_t stream);

/// bf16 values, triangular around 0 with standard deviation about `factor`, one in 512 twenty times
/// larger.
void FillRandomActivations(Bf16* x, size_t n, uint64_t seed, float factor, cudaStream_t stream);

/// h of every token of `tokens` [count]: `hidden` [count, K, I]{h, what a kernel's may differ from it
/// by: fp32 accumulation in any order and the rounding to bf16}. `inputs` [count, K, shards, H] is
/// what multiplies the weights.
void ReferenceHidden(const CanonicalExperts& experts, const cuda::Sm90MoeParams& params,
                     const int32_t* tokens, int count, const double* inputs, double* hidden,
                     cudaStream_t stream);

/// y [count, H] from `hidden`, and bound [count, H], what a kernel's result may differ from it by:
/// what h does, fp32 accumulation in any order, the bf16 rounding of a route's output and of y.
void ReferenceOutput(const CanonicalExperts& experts, const cuda::Sm90MoeParams& params,
                     const int32_t* tokens, int count, const double* hidden, double* y,
                     double* bound, cudaStream_t stream);

}  // namespace nibble::bench
