#pragma once

#include <cstdint>

namespace nibble::kernels {

/// Tokens of one value head of a gated delta rule. Row t of q, k, v and o begins a stride after row
/// t-1.
template <class T>
struct DeltaTokens {
  int64_t n = 0, k_dim = 0, v_dim = 0;
  const T* q = nullptr;  // [n, k_dim], scaled
  const T* k = nullptr;  // [n, k_dim], of unit length
  const T* v = nullptr;  // [n, v_dim]
  int64_t qkv_stride = 0;
  const T* g = nullptr;     // [n], <= 0
  const T* beta = nullptr;  // [n], in (0, 1)
  int64_t gate_stride = 0;  // from token to token in g and beta
  T* o = nullptr;           // [n, v_dim]
  int64_t o_stride = 0;
};

}  // namespace nibble::kernels
