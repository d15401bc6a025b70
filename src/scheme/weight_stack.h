#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "scheme/tensor_checks.h"

namespace nibble::scheme {

/// What a dialect calls the tensors of an NVFP4 linear, behind its name.
struct Nvfp4Names {
  std::string_view codes, scales, global, input;
};
inline constexpr Nvfp4Names kModeloptNames = {".weight", ".weight_scale", ".weight_scale_2",
                                              ".input_scale"};
inline constexpr Nvfp4Names kCompressedTensorsNames = {
    ".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale"};
inline constexpr Nvfp4Names kStackedNames = {"", "_weight_scale", "_weight_scale_2",
                                             "_input_scale"};

/// One tensor's worth of experts' weights: `count` experts of `halves` projections of [n,k] each,
/// one behind the other. A linear is one expert of one half.
struct WeightStack {
  std::string name;  // the tensors' common beginning
  Nvfp4Names nvfp4;  // and their ends where they are NVFP4
  Place place;
  bool stacked = false;  // three dimensions, and '_' before the scales' names
  int64_t count = 1, halves = 1, n = 0, k = 0;

  int64_t weights() const { return count * halves; }

  std::string Tensor(std::string_view end) const {
    return std::string(name).append(stacked ? "_" : ".").append(end);
  }
  /// The name of 16-bit weights and of FP8 codes.
  std::string PlainTensor() const { return stacked ? name : name + ".weight"; }

  /// [rows, columns], behind the number of experts where they are stacked.
  std::vector<uint64_t> Shape(std::vector<int64_t> of_one) const {
    if (stacked) of_one.insert(of_one.begin(), count);
    return {of_one.begin(), of_one.end()};
  }
  /// Shapes that numbers may have of which a projection needs one: for all together, one an expert,
  /// one a projection.
  std::vector<std::vector<uint64_t>> ScalarShapes() const {
    std::vector<std::vector<uint64_t>> shapes{{}, {1}};
    if (stacked) shapes.push_back({static_cast<uint64_t>(count)});
    if (halves > 1) shapes.push_back(Shape({halves}));
    return shapes;
  }
  /// Of `size` values in one of those shapes: that of the weight `i`, an expert's half.
  size_t ScalarIndex(size_t size, int64_t i) const {
    if (size == 1) return 0;
    const bool each_half = size == static_cast<size_t>(weights());
    return static_cast<size_t>(each_half ? i : i / halves);
  }
  /// Where the weight `i` belongs.
  Place PlaceOf(int64_t i) const {
    Place at = place;
    if (stacked) at.expert = static_cast<int>(i / halves);
    if (halves > 1) at.projection = i % halves == 0 ? "gate_proj" : "up_proj";
    return at;
  }
};

}  // namespace nibble::scheme
