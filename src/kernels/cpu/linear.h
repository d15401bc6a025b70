#pragma once

#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/scratch.h"
#include "layout/prepared.h"

namespace nibble::kernels::cpu {

/// y[t, column_of_shard[i] + r] = global_i * sum_k W_i[r, k] * x'[t, k] for every shard i of
/// linears that share an input. x' is x rounded to bf16, or quantized as the shard's `activation`
/// says: to NVFP4 or FP8 under its input_scale, or to FP8 under scales of x's own. The sums are then
/// multiplied with those scales too, and with the weight's of its channels or blocks.
/// shapes   x [tokens, k] fp32; y
/// [tokens, ldy] fp32: the shards' columns are written, the others left; weights PackedMatrix needs
/// the columns of shards do not overlap; y does not alias x
/// errors   kOutOfMemory (scratch grows on
/// the first call of a size), kCorruptFile (mapped weights hold an FP8 NaN); y is unspecified then
/// threads  results do not depend on their number
Result<void> Linear(const CpuKernels& kernels, ThreadPool& pool, Scratch& scratch,
                    std::span<const PreparedLinearShard* const> shards,
                    std::span<const int64_t> column_of_shard, const float* x, int64_t tokens,
                    int64_t k, float* y, int64_t ldy);

}  // namespace nibble::kernels::cpu
