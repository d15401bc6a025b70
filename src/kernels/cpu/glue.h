#pragma once

#include <cstdint>

#include "kernels/attend_args.h"
#include "kernels/delta_tokens.h"
#include "layout/words.h"

namespace nibble::kernels::cpu {

/// Tokens that the chunk form of the delta rule takes at a time.
constexpr int64_t kDeltaChunk = 64;

// What a forward pass does between its matrix multiplications, in fp32. One body (glue_body.h) is
// compiled for each instruction set; but for attention it computes in 16 fixed lanes without
// contraction, so every instruction set gives the same bits.
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
  /// out[t * ldo + r] = x[t * ldx ..] . w[r * n ..] over n, w little-endian bf16 at any address. The
  /// same bits whatever `tokens` and `rows` are.
  void (*dots_bf16)(const float* x, int64_t tokens, int64_t ldx, const uint8_t* w, int64_t rows,
                    int64_t n, float* out, int64_t ldo);

  // Attention, of which instruction sets may differ in the last bits. What a row gets depends on
  // nothing but the row and its blocks.

  /// Softmax sums of rows over one block of the cache, added to those of the blocks before it. Over
  /// a cache of 16 or 8 bits avx512bf16 multiplies weights rounded to bf16 and queries rounded to
  /// two bf16 numbers each.
  void (*attend)(const AttendBlock& block);
  /// Adds to the sums `into` those of the next block: the bits that attend() gives where it is not
  /// the first.
  void (*merge_sums)(const AttendSums& from, int64_t rows, int64_t width, const AttendSums& into);
  /// out = factor * x
  void (*multiplied)(const float* x, int64_t n, float factor, float* out);
  /// n numbers, rounded up to a multiple of 16 (there must be room), as the cache keeps them; kFp8
  /// keeps x / scale.
  void (*to_cache)(KvDtype dtype, const float* x, int64_t n, float scale, std::byte* out);
  /// x = exp(x - max(x)); returns the sum.
  float (*exp_and_sum)(float* x, int64_t n);
  /// x *= sigmoid(gate)
  void (*mul_sigmoid)(float* x, const float* gate, int64_t n);
  /// y += sigmoid(gate) * x
  void (*add_gated)(float* y, const float* x, float gate, int64_t n);
  /// out[c] = silu(sum_j w[j * channels + first + c] * rows[j][first + c]) for c < n: a causal
  /// convolution at one token.
  void (*conv_silu)(const float* const* rows, int64_t first, int64_t n, const float* w,
                    int64_t channels, int64_t taps, float* out);
  /// x *= scale / sqrt(sum(x^2) + 1e-6)
  void (*unit_length)(float* x, int64_t n, float scale);
  /// beta = sigmoid(beta), g = -rate * softplus(a), for n numbers rounded up to a multiple of 16:
  /// there must be room.
  void (*delta_gates)(const float* a, const float* rate, int64_t n, float* beta, float* g);
  /// The gated delta rule, token by token: kernels/operators.h, DeltaNet. state [v_dim, k_dim].
  void (*delta_rows)(const DeltaTokens<float>& tokens, float* state);

  // The same by matrix products over up to kDeltaChunk tokens, for `heads` value heads that share q
  // and k: `tokens` is the first one's, and v, o, g, beta and the state of each next lie right
  // behind. It equals delta_rows but for rounding, which depends on where the chunks begin. The
  // states are brought into scratch memory, in which chunk follows chunk, and back.

  /// Floats of scratch memory.
  int64_t (*delta_scratch)(int64_t k_dim, int64_t v_dim, int64_t heads);
  void (*delta_load)(const DeltaTokens<float>& shape, int64_t heads, const float* states,
                     float* scratch);
  void (*delta_chunk)(const DeltaTokens<float>& tokens, int64_t heads, float* scratch);
  void (*delta_store)(const DeltaTokens<float>& shape, int64_t heads, float* scratch,
                      float* states);
};

/// The table compiled for the widest vectors that `isa` allows.
const GlueKernels& GlueFor(CpuIsa isa);

extern const GlueKernels kGlueBaseline, kGlueAvx2, kGlueAvx512, kGlueAvx512Bf16;

}  // namespace nibble::kernels::cpu
