#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/scratch.h"
#include "layout/prepared.h"

namespace nibble::kernels::cpu {

/// y[t] = sum over ranks j, in order, of weights[t, j] * Expert[expert_ids[t, j]](x[t]), with
///   Expert(x) = Down(h'), h = activation(Gate(x'), Up(x')).
/// x' and h' are rounded to bf16 or quantized: to NVFP4 where `experts.quant` has gscales, to FP8
/// where its scheme says so; gate and up may have scales and alphas of their own. alphas hold the
/// weights' global scales alone: what activations are scaled by is multiplied on here.
/// shapes   x [T, H] fp32; expert_ids [T, K] in [0, E);
/// weights [T, K]; y [T, H] fp32, overwritten; matrices PackedMatrix needs    H and I multiples of
/// 16; y does not alias x; K >= 1
/// errors   kOutOfMemory (scratch grows on the first call of a
/// size), kCorruptFile (mapped weights hold an FP8 NaN); y is unspecified then
/// threads  results do not depend on their number
Result<void> Experts(const CpuKernels& kernels, ThreadPool& pool, Scratch& scratch,
                     const PreparedExperts& experts, const float* x, int64_t tokens,
                     const int32_t* expert_ids, const float* weights, int top_k, float* y);

}  // namespace nibble::kernels::cpu
