#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "layout/words.h"

namespace nibble::scheme {

/// Where a weight belongs, for errors: "layer 1, expert 2, gate_proj".
struct Place {
  std::string module;      // "model.layers.1.mlp.experts"
  int expert = -1;         // -1: no expert, or all in one tensor
  std::string projection;  // "gate_proj"; empty for a linear
  std::string Text() const;
};

/// Looks tensors up and checks what the headers say of them.
class TensorChecks {
 public:
  explicit TensorChecks(const checkpoint::Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  /// The tensor of that name with exactly this type and shape.
  /// errors kNotFound, kCorruptFile
  Result<const checkpoint::TensorInfo*> Need(const std::string& name, checkpoint::DType dtype,
                                             std::span<const uint64_t> shape,
                                             const Place& place) const;

  /// The values of a tensor in one of these types, F32 or BF16, and one of these shapes.
  /// errors kNotFound, kCorruptFile
  Result<std::vector<float>> NeedFloats(const std::string& name,
                                        std::span<const checkpoint::DType> types,
                                        std::span<const std::vector<uint64_t>> shapes,
                                        const Place& place) const;

  /// `what` with the tensor's name, its file and its place.
  Error Wrong(const checkpoint::TensorInfo& tensor, const Place& place, std::string what) const;

 private:
  const checkpoint::Checkpoint& checkpoint_;
};

/// The multiplier behind a stored global scale: compressed-tensors stores its reciprocal. Nothing
/// if the stored value or the result is no finite positive number, or if the inversion leaves the
/// range of normal floats.
std::optional<float> GlobalScale(float stored, SourceFormat format);

/// The first byte that is no legal block scale: an e4m3 NaN, or one with its sign set.
/// cost one pass
std::optional<size_t> FindBadBlockScale(std::span<const std::byte> scales);

/// The first byte that is an e4m3 NaN, of either sign.
/// cost one pass
std::optional<size_t> FindNanCode(std::span<const std::byte> codes);

}  // namespace nibble::scheme
