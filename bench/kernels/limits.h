#pragma once

#include <vector>

namespace nibble::bench {

/// One instruction that a product of matrices could be made of, at the most that a core can do.
struct Limit {
  const char* name;  // "fma_f32_zmm"
  void (*burst)();   // runs `operations` multiplications and additions in registers alone
  double operations;
  bool present;  // this machine has it
};

std::vector<Limit> Limits();

}  // namespace nibble::bench
