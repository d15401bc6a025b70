#pragma once

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/isa.h"

namespace nibble::kernels::cpu {

// What the tests of the glue, and of the operators made of it, share.

inline constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

/// The instruction sets of this machine that the glue has a table for.
inline std::vector<CpuIsa> GlueIsas() {
  std::vector<CpuIsa> out;
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (HasIsa(isa)) out.push_back(isa);
  }
  return out;
}

/// Normally distributed numbers, the same for the same seed.
inline std::vector<float> RandomNormal(int64_t n, uint64_t seed, float scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(static_cast<size_t>(n));
  for (float& v : out) v = normal(random);
  return out;
}

}  // namespace nibble::kernels::cpu
