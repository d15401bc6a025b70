#pragma once

#include <cstdint>

namespace nibble::kernels {

/// Small fp32 parameters (norm weights, RoPE frequencies) in the operators' memory.
struct Vector {
  const float* data = nullptr;
  int64_t n = 0;
};

/// Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464), as Qwen3-Next and Qwen3.5 have
/// it. Its state is [v_heads][v_dim][k_dim], and the last taps-1 inputs of the convolution.
struct DeltaShape {
  int64_t k_heads = 0, v_heads = 0, k_dim = 0, v_dim = 0;
  int64_t taps = 0;
  float norm_eps = 1e-6f;

  int64_t channels() const { return 2 * k_heads * k_dim + v_heads * v_dim; }  // q | k | v
  int64_t out_width() const { return v_heads * v_dim; }
  int64_t in_width() const {
    return channels() + out_width() + 2 * v_heads;
  }  // q | k | v | z | b | a
  int64_t state_size() const { return v_heads * v_dim * k_dim; }
};

struct DeltaParameters {
  Vector conv;            // [taps, channels], the last tap the current token's
  Vector a_log, dt_bias;  // [v_heads]
  Vector norm;            // [v_dim]
};

}  // namespace nibble::kernels
