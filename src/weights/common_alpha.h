#pragma once

#include <cstdint>
#include <span>

#include "base/error.h"
#include "layout/canonical.h"

namespace nibble::weights {

/// One global scale for gate and up, and the powers of two that bring their block scales to it:
///   scale_gate * gate.global == (scale_gate * 2^gate_shift) * alpha,   up likewise.
struct CommonAlpha {
  float alpha = 0;
  int gate_shift = 0, up_shift = 0;
};

/// The exact common global scale of an expert's gate and up, for kernels that multiply w13's
/// accumulator by one number. Equal scales need nothing. Different ones have one in general only if
/// their ratio is a power of two and no block scale of either half then leaves e4m3 at the top or
/// loses a bit at the bottom; the gate moves no more than it must. Never one of the two for both
/// (vLLM issue 54974: published checkpoints have differing pairs).
/// errors  kUnsupported, naming both scales and their ratio
/// cost    reads every block scale, if the globals differ
Result<CommonAlpha> FindCommonAlpha(const CanonicalNvfp4& gate, const CanonicalNvfp4& up);

/// Multiplies e4m3 scales by 2^shift, exactly. A scale whose product is no e4m3 value is our own
/// bug: shifts come from FindCommonAlpha.
void MultiplyByPowerOfTwo(std::span<uint8_t> scales, int shift);

}  // namespace nibble::weights
