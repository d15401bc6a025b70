#pragma once

#include "kernels/delta_tokens.h"

namespace nibble::kernels::reference {

// The gated delta rule of one value head, in double, in its two forms. Both map the state S
// [v_dim, k_dim] over n tokens and give their outputs; they are equal but for rounding.
//   S <- e^g S;  S <- S + beta (v - S k) k^T;  o = S q
// Yang, Kautz, Hatamizadeh: Gated Delta Networks (arXiv 2412.06464), equation 10 and section 3.3.

/// Token by token.
void DeltaRecurrence(const DeltaTokens<double>& tokens, double* state);

/// 64 tokens at a time as matrix products (WY form): what prefill kernels compute.
void DeltaChunks(const DeltaTokens<double>& tokens, double* state);

}  // namespace nibble::kernels::reference
