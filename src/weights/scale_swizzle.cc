#include "weights/scale_swizzle.h"

#include <algorithm>

#include "base/error.h"

namespace nibble::weights {
namespace {

// Calls copy(linear, swizzled, count) for every run of up to four scales that both orders keep
// together.
template <class Copy>
void ForEachRun(int64_t rows, int64_t groups, Copy copy) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < groups; group += kScaleTileGroups) {
      copy(row * groups + group, SwizzledScaleOffset(row, group, groups),
           std::min(kScaleTileGroups, groups - group));
    }
  }
}

}  // namespace

std::vector<uint8_t> SwizzleScales(std::span<const uint8_t> scales, int64_t rows, int64_t groups) {
  NIBBLE_CHECK(scales.size() == static_cast<size_t>(rows * groups), "size of linear block scales");
  std::vector<uint8_t> out(SwizzledScaleBytes(rows, groups));
  ForEachRun(rows, groups, [&](int64_t linear, int64_t swizzled, int64_t count) {
    std::copy_n(scales.begin() + linear, count, out.begin() + swizzled);
  });
  return out;
}

std::vector<uint8_t> UnswizzleScales(std::span<const uint8_t> swizzled, int64_t rows,
                                     int64_t groups) {
  NIBBLE_CHECK(swizzled.size() == static_cast<size_t>(SwizzledScaleBytes(rows, groups)),
               "size of interleaved block scales");
  std::vector<uint8_t> out(rows * groups);
  ForEachRun(rows, groups, [&](int64_t linear, int64_t at, int64_t count) {
    std::copy_n(swizzled.begin() + at, count, out.begin() + linear);
  });
  return out;
}

}  // namespace nibble::weights
