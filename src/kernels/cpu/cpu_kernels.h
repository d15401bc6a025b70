#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/words.h"

namespace nibble::kernels::cpu {

// What an ISA file gives: the loops over packed strips (layout/cpu_tile.h), one table of pointers
// each. All compute
//   y[t, r] = global * sum_k w[r, k] * x[t, k]     with exact bf16 w and x, accumulated in fp32,
// and differ only in the order of that sum. One thread each, no allocation, no state. FP8's strips
// hold codes (none NaN): what has more scales than `global` is strips.h's.

/// Tokens that share one decode pass over a strip, at least.
inline constexpr int kDecodeTokens = 4;
/// Strips that one panel call multiplies at once.
inline constexpr int kPanelStrips = 3;

/// h = (min(up, limit) clipped below at -limit, + beta) * g * sigmoid(alpha * g) with g = min(gate,
/// limit). The defaults are silu(gate) * up.
struct GatedActivation {
  float limit = __builtin_huge_valf();
  float alpha = 1, beta = 0;
};

struct CpuKernels {
  CpuIsa isa;
  /// From how many tokens a strip of each format is multiplied as a panel: measured.
  int64_t nvfp4_panel_tokens, fp8_panel_tokens, bf16_panel_tokens;
  /// How many tokens decode_nvfp4 takes: kDecodeTokens or more.
  int nvfp4_decode_tokens;

  /// Bytes of one packed activation: an ISA with bf16 products holds it as bf16, the others as the
  /// same value in fp32.
  int64_t activation_bytes;

  /// Rounds x[16 * groups] to bf16, nearest-even.
  void (*pack_bf16)(const float* x, int64_t groups, std::byte* out);
  /// Quantizes x[16 * groups] to NVFP4 under gscale, bit for bit as QuantizeNvfp4Block<float> does,
  /// and holds code * block scale, which is exact. The accumulator must still be multiplied with 1
  /// / gscale.
  void (*pack_nvfp4)(const float* x, int64_t groups, float gscale, std::byte* out);

  /// Quantizes x[16 * groups] to e4m3 under `scale`, value for value as QuantizeFp8<float> does, and
  /// holds the codes' values, which are exact; a NaN stays one. The accumulator must still be
  /// multiplied with `scale`.
  void (*pack_fp8)(const float* x, int64_t groups, float scale, std::byte* out);
  /// LargestMagnitude of x[16 * groups].
  float (*largest_magnitude)(const float* x, int64_t groups);

  /// y[t * ldy + r] for the 16 rows of one strip and 1..kDecodeTokens tokens
  /// (decode_nvfp4: 1..nvfp4_decode_tokens).
  /// `next` is where reading goes on after this strip, to be fetched ahead of time; it is never
  /// dereferenced.
  /// shapes   strip: `tiles` tiles; x[t]: a packed activation of 64 * tiles elements; y: 16 floats
  /// a token, all written
  using Decode = void (*)(const std::byte* strip, const std::byte* next, int64_t tiles,
                          const std::byte* const* x, int tokens, float global, float* y,
                          int64_t ldy);
  Decode decode_nvfp4, decode_fp8, decode_bf16;

  /// A strip as the bf16 tiles of what is exact of it: code * block scale of NVFP4, the code's value
  /// of FP8.
  using Expand = void (*)(const std::byte* strip, const std::byte* next, int64_t tiles,
                          std::byte* panel);
  Expand expand_nvfp4, expand_fp8;
  /// y[t * ldy + 16 * s + r] for 1..kPanelStrips strips of bf16 tiles and any number of tokens.
  /// `from_memory`: the tiles are not in a cache yet, fetch them ahead of the first tokens.
  void (*panel_gemm)(const std::byte* const* panels, int strips, bool from_memory, int64_t tiles,
                     const std::byte* const* x, int64_t tokens, float global, float* y,
                     int64_t ldy);

  /// `tiles` whole tiles of a strip from 16 rows of the file's form, which begin at any address and
  /// lie `stride` bytes apart: a permutation, bit for bit. Of NVFP4 the rows of block scales too.
  using Tile = void (*)(const uint8_t* rows, int64_t stride, const uint8_t* scales,
                        int64_t scale_stride, int64_t tiles, std::byte* out);
  Tile tile_nvfp4, tile_fp8, tile_bf16;

  /// h[16 * groups] from gate and up of as many; h may be either of them. Errors of exp stay below 4
  /// ulp.
  void (*gated_activation)(const GatedActivation& how, const float* gate, const float* up,
                           int64_t groups, float* h);
  /// y[16 * groups] += factor * x[16 * groups], one rounding or two.
  void (*add_scaled)(const float* x, float factor, int64_t groups, float* y);
};

/// The kernels of an ISA. Calling them needs HasIsa(isa); asking for them does not.
const CpuKernels& KernelsFor(CpuIsa isa);

// One in each isa_*.cc.
extern const CpuKernels kScalarKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels;

}  // namespace nibble::kernels::cpu
