#pragma once

#include <cstdint>

namespace nibble::cuda {

/// Division of small numbers by a launch constant: exact while n * divisor < 2^32.
struct Divisor {
  uint32_t divisor = 1, magic = 0;
  Divisor() = default;
  explicit Divisor(int d) : divisor(d), magic(static_cast<uint32_t>((0xFFFFFFFFull + d) / d)) {}
};
__device__ __forceinline__ int operator/(int n, const Divisor& d) {
  return d.divisor == 1 ? n : static_cast<int>(__umulhi(n, d.magic));
}

}  // namespace nibble::cuda
