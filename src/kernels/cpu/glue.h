#pragma once

#include <cstdint>

#include "kernels/attend_args.h"
#include "kernels/delta_tokens.h"
#include "layout/words.h"

namespace nibble::kernels::cpu {

// What a forward pass does between its matrix multiplications, in fp32. One body (glue_body.h) is
// compiled for each instruction set; it computes in 16 fixed lanes without contraction, so every
// instruction set gives the same bits.
struct GlueKernels {
  /// out = x / sqrt(mean(x^2) + eps) * w over one row of n.
  void (*rms_norm)(const float* x, int64_t n, const float* w, float eps, float* out);
  /// x += y
  void (*add)(float* x, const float* y, int64_t n);
  /// out = silu(gate) * up
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  /// n little-endian bf16 at any address, as floats.
  void (*from_bf16)(const uint8_t* x, int64_t n, float* out);
  /// Rotates (head[i], head[i + frequencies]) by the angle of (cosines[i], sines[i]).
  void (*rotate_halves)(float* head, const float* cosines, const float* sines, int64_t frequencies);
  /// The dot product of a float row and a bf16 row at any address.
  float (*dot_bf16)(const float* x, const uint8_t* w, int64_t n);
  /// Attention of a kv head's query heads over its cached positions.
  void (*attend)(const AttendArgs& args);
  /// x = exp(x - max(x)); returns the sum.
  float (*exp_and_sum)(float* x, int64_t n);
  /// x *= sigmoid(gate)
  void (*mul_sigmoid)(float* x, const float* gate, int64_t n);
  /// y += sigmoid(gate) * x
  void (*add_gated)(float* y, const float* x, float gate, int64_t n);
  /// out[c] = silu(sum_j w[j * n + c] * rows[j][c]): a causal convolution at one token.
  void (*conv_silu)(const float* const* rows, const float* w, int64_t taps, int64_t n, float* out);
  /// x *= scale / sqrt(sum(x^2) + 1e-6)
  void (*unit_length)(float* x, int64_t n, float scale);
  /// The gated delta rule, token by token: kernels/operators.h, DeltaNet. state [v_dim, k_dim].
  void (*delta_rows)(const DeltaTokens<float>& tokens, float* state);
};

/// The table compiled for the widest vectors that `isa` allows.
const GlueKernels& GlueFor(CpuIsa isa);

extern const GlueKernels kGlueBaseline, kGlueAvx2, kGlueAvx512;

}  // namespace nibble::kernels::cpu
