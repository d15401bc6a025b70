#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/words.h"

namespace nibble::kernels {

/// n positions of one kv head, cached as `dtype`, and the query heads that read it.
struct AttendArgs {
  KvDtype dtype = KvDtype::kF32;
  const std::byte* keys = nullptr;    // of position 0
  const std::byte* values = nullptr;  // of position 0
  int64_t n = 0, stride = 0;          // stride: numbers from one position to the next
  int64_t dim = 0;
  float k_scale = 1, v_scale = 1;  // what cached codes are multiplied with
  const float* q = nullptr;        // [group] heads, q_stride floats from head to head
  int64_t group = 0, q_stride = 0;
  float* scores = nullptr;  // scratch, n floats
  float* out = nullptr;     // [group, dim]
};

}  // namespace nibble::kernels
