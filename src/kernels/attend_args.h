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
  float* out = nullptr;  // [group, dim]
};

/// The kernels' cache of a kv head is in panels of so many columns: of keys, positions; of values,
/// dimensions.
constexpr int64_t kKvPanel = 32;

/// Rows of a panel (of keys, dimensions; of values, positions) whose numbers lie side by side in
/// each column: pairs of the narrow types, as products of bf16 take them. `dtype`: of keys or of
/// values.
constexpr int64_t RowsTogether(KvDtype dtype) { return dtype == KvDtype::kF32 ? 1 : 2; }

/// Rows of a panel of keys: the last one of an odd number has a row of zeros beside it.
constexpr int64_t KeyRows(int64_t dim) { return dim + dim % 2; }

/// Positions that are attended to at once. Softmax sums go over these blocks, counted from position
/// 0, one after the other: what a row sums never depends on what is computed with it.
constexpr int64_t kKvBlock = 256;

/// Softmax sums of rows over some blocks: of each row the largest score, the sum of 2^(score -
/// largest), and the sum of values so weighed, [rows, width].
struct AttendSums {
  float* largest = nullptr;
  float* total = nullptr;
  float* out = nullptr;

  /// Those from `row` on.
  AttendSums From(int64_t row, int64_t width) const {
    return {largest + row, total + row, out + row * width};
  }
};

/// Some rows of queries and one block of the cache of the kv head that they read.
struct AttendBlock {
  KvDtype dtype = KvDtype::kF32;
  // t: RowsTogether() of keys or values. The row beside the last one seen holds no NaN.
  const std::byte* keys = nullptr;    // [panels][KeyRows(dim) / t][kKvPanel][t]
  const std::byte* values = nullptr;  // [panels][positions / t][kKvPanel][t]
  int64_t positions = 0;              // room for so many, a multiple of kKvPanel
  const std::byte* next = nullptr;    // what is read after this block: it is fetched ahead
  int64_t dim = 0;
  int64_t width = 0;              // dim rounded up to kKvPanel
  const float* q = nullptr;       // [rows, dim]
  const int32_t* seen = nullptr;  // [rows], ascending, 1…positions: keys that a row sees
  int64_t rows = 0;
  float scale = 1;           // of scores, which are powers of two
  bool first = true;         // sums begin here
  AttendSums sums;           // read unless `first`, and written
  float* scratch = nullptr;  // AttendScratch() floats, 64-byte aligned
};

/// Floats from one row of scores to the next: not a power of two, which would have rows share few
/// places of a cache.
constexpr int64_t kScoreStride = kKvBlock + 16;

/// Words of a query as pairs of bf16.
constexpr int64_t QueryPairs(int64_t dim) { return (dim + 15) / 16 * 8; }

/// Floats of scratch memory that an AttendBlock needs: scores, two factors a row, queries in bf16,
/// and a block of keys and values as floats.
constexpr int64_t AttendScratch(int64_t rows, int64_t dim, int64_t width) {
  return rows * (kScoreStride + 2 + QueryPairs(dim)) + 16 + kKvBlock * (KeyRows(dim) + width);
}

}  // namespace nibble::kernels
