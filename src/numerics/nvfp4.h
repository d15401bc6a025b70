#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "numerics/e2m1.h"
#include "numerics/e4m3.h"

namespace nibble {

// NVFP4: blocks of 16 consecutive elements along K share one E4M3 scale; a whole tensor shares one
// fp32 global scale.
//   value = e2m1(code) * e4m3(scale) * global          (the multiplier convention, the only one
//   below scheme/)
// 2688 = 448 * 6 is the largest code times the largest scale.

inline constexpr int kNvfp4Group = 16;

/// The code of element i of a row: two codes a byte, element 2j in the low nibble.
constexpr unsigned Nvfp4Code(const uint8_t* row, int64_t i) {
  return (row[i / 2] >> (4 * (i & 1))) & 15u;
}

/// One block of 16 activations as the format holds them.
struct Nvfp4Block {
  std::array<uint8_t, kNvfp4Group> codes{};  // one code a byte
  uint8_t scale = 0;                         // e4m3
};

/// Quantizes one block under the tensor's activation scale `global` (the multiplier: about
/// amax/2688):
///   scale = e4m3(amax / 6 / global), code = e2m1(x / (scale * global)); a scale that rounds to
///   zero empties the block.
/// Arithmetic is Real's, in the order that the quantizers' own reference (compressed-tensors,
/// vLLM's ref_nvfp4_quant) has in fp32: with Real = float the codes are bit for bit theirs, with
/// Real = double they are the truth. `gscale` is the reciprocal of `global`, as the caller got it
/// (1/global, rounded once to Real).
template <class Real>
constexpr Nvfp4Block QuantizeNvfp4Block(std::span<const Real, kNvfp4Group> x, Real gscale) {
  Nvfp4Block block;
  Real amax = 0;
  for (Real v : x) {
    const Real a = v < 0 ? -v : v;
    if (a > amax) amax = a;
  }
  constexpr Real kSixth = static_cast<Real>(1.0 / 6.0);
  block.scale = EncodeE4m3(static_cast<double>(gscale * (amax * kSixth)));
  if (block.scale == 0) return block;
  const Real scale = static_cast<Real>(DecodeE4m3(block.scale));
  const Real inverse = Real(1) / (scale * (Real(1) / gscale));
  for (int i = 0; i < kNvfp4Group; ++i) {
    block.codes[i] = EncodeE2m1(static_cast<double>(x[i] * inverse));
  }
  return block;
}

/// The exact product of a code and its block scale: at most 6 significant bits, so exact in float
/// and in bf16.
constexpr float Nvfp4Product(unsigned code, uint8_t scale) {
  return DecodeE2m1(code) * DecodeE4m3(scale);
}

}  // namespace nibble
