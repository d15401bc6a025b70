#pragma once

#include "kernels/cuda/attention.h"

namespace nibble::cuda {

// What LaunchAttentionPrefill is made of. Arguments are checked there.

/// q of every row normalised and rotated in place, k and v into the cache.
Result<void> LaunchPrepareAttention(const AttentionParams& params, cudaStream_t stream);

/// Attention of rows whose queries and cache are prepared: with mma.sync, on every GPU; and with wgmma,
/// head_dim 128 and 256 on compute capability 9.0 alone.
Result<void> LaunchAttentionRows(const AttentionParams& params, cudaStream_t stream);
Result<void> LaunchSm90AttentionRows(const AttentionParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
