#pragma once

#include <cstdint>

#include "layout/canonical.h"
#include "weights/nvfp4_matrix.h"

namespace nibble::weights {

// The matrices of an expert as fused kernels want them: gate (w1) and up (w3) as one matrix w13,
// and the intermediate dimension I padded. A permutation and zeros: no code and no scale changes.

/// How the rows of gate and up lie in w13. Upstream, gate_up is what checkpoints, CUTLASS grouped
/// GEMM, Marlin and B12X in W4A4 have; up_gate is FlashInfer's and that of B12X in W4A16;
/// interleaved is how swigluoai checkpoints arrive. The wrong one runs, and gives garbage.
enum class W13Order : uint8_t {
  kGateUp,       // g0 g1 … u0 u1 …
  kUpGate,       // u0 u1 … g0 g1 …
  kInterleaved,  // g0 u0 g1 u1 …
};

/// I rounded up to a multiple of `pad_to` (a catalogue row's pad_intermediate).
constexpr int64_t PaddedIntermediate(int64_t intermediate, int64_t pad_to) {
  return (intermediate + pad_to - 1) / pad_to * pad_to;
}

/// The row of w13 that holds row `feature` of gate (half 0) or up (half 1); halves have `padded`
/// rows.
constexpr int64_t W13Row(W13Order order, int half, int64_t feature, int64_t padded) {
  switch (order) {
    case W13Order::kGateUp:
      return half * padded + feature;
    case W13Order::kUpGate:
      return (1 - half) * padded + feature;
    case W13Order::kInterleaved:
      break;
  }
  return 2 * feature + half;
}

/// Gate and up, each [I, H], as [2 I', H] with I' = PaddedIntermediate(I, pad_to). Each half is
/// padded for itself with rows of zero codes under zero scales. silu(0) * 0 and its kin are 0, and
/// PrepareW2 pads the columns that would meet them with zeros. `pad_to` is a multiple of 16. Gate
/// and up keep their own global scales (expert_scales.h).
Nvfp4Matrix PrepareW13(const CanonicalNvfp4& gate, const CanonicalNvfp4& up, W13Order order,
                       int64_t pad_to);

/// The same for experts without a gate: [I, H] to [I', H].
Nvfp4Matrix PrepareUngatedW13(const CanonicalNvfp4& up, int64_t pad_to);

/// Down, [H, I], as [H, I']: zero codes and scales behind every row.
Nvfp4Matrix PrepareW2(const CanonicalNvfp4& down, int64_t pad_to);

struct GateAndUp {
  Nvfp4Matrix gate, up;  // [I, H] each
};

/// Takes a fused [2 I, H] apart: the inverse of PrepareW13 where I needed no padding.
GateAndUp SplitW13(const CanonicalNvfp4& w13, W13Order order);

}  // namespace nibble::weights
