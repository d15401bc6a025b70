#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/attention.h"

namespace nibble::bench {

/// What attention is checked against: sums in double on the GPU over the cache as it is, of q
/// normalised and rotated in double and rounded to bf16. It shares no code with the kernels.
struct AttentionReferenceArgs {
  cuda::AttentionShape shape;
  cuda::Step step;
  const float *q_norm, *frequency;
  const Bf16* qkv;  // as it was before
  cuda::PagedKv cache;
  int capacity;         // positions in scratch
  double* scratch;      // [rows, n_heads, 2, capacity]
  double *out, *bound;  // [rows, out_width]: the result, and what bf16 and fp32 may make of it
};
void ReferenceAttention(const AttentionReferenceArgs& args, cudaStream_t stream);

}  // namespace nibble::bench
