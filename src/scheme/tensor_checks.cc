#include "scheme/tensor_checks.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/quoted.h"

namespace nibble::scheme {

using checkpoint::DType;
using checkpoint::ShapeText;
using checkpoint::TensorInfo;

std::string Place::Text() const {
  constexpr std::string_view kLayers = "layers.";
  std::string text = module;
  const size_t at = module.find(kLayers);
  if (at != std::string::npos) {
    const std::string_view rest = std::string_view(module).substr(at + kLayers.size());
    const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
    if (digits > 0) text = fmt::format("layer {}", rest.substr(0, digits));
  }
  if (expert >= 0) text += fmt::format(", expert {}", expert);
  if (!projection.empty()) text += ", " + projection;
  return text;
}

Error TensorChecks::Wrong(const TensorInfo& tensor, const Place& place, std::string what) const {
  return Error{ErrorCode::kCorruptFile,
               fmt::format("tensor {}: {}", Quoted(tensor.name, checkpoint::kMaxNameBytes), what),
               fmt::format("{}, {}", checkpoint_.FileOf(tensor), place.Text()),
               {}};
}

Result<const TensorInfo*> TensorChecks::Need(const std::string& name, DType dtype,
                                             std::span<const uint64_t> shape,
                                             const Place& place) const {
  const TensorInfo* tensor = checkpoint_.Find(name);
  if (!tensor) {
    return Error{
        ErrorCode::kNotFound,
        fmt::format("tensor {} is missing, expected {} {}", Quoted(name, checkpoint::kMaxNameBytes),
                    checkpoint::NameOf(dtype), ShapeText(shape)),
        place.Text(),
        {}};
  }
  if (tensor->dtype != dtype) {
    return Wrong(*tensor, place,
                 fmt::format("type {}, expected {}", checkpoint::NameOf(tensor->dtype),
                             checkpoint::NameOf(dtype)));
  }
  if (!std::ranges::equal(tensor->shape, shape)) {
    return Wrong(*tensor, place,
                 fmt::format("shape {}, expected {}", ShapeText(tensor->shape), ShapeText(shape)));
  }
  return tensor;
}

Result<std::vector<float>> TensorChecks::NeedFloats(const std::string& name,
                                                    std::span<const std::vector<uint64_t>> shapes,
                                                    const Place& place) const {
  const TensorInfo* tensor = checkpoint_.Find(name);
  if (!tensor) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("tensor {} is missing", Quoted(name, checkpoint::kMaxNameBytes)),
                 place.Text(),
                 {}};
  }
  if (tensor->dtype != DType::kF32) {
    return Wrong(*tensor, place,
                 fmt::format("type {}, expected F32", checkpoint::NameOf(tensor->dtype)));
  }
  if (std::ranges::find(shapes, tensor->shape) == shapes.end()) {
    std::string expected;
    for (const auto& shape : shapes) {
      expected += (expected.empty() ? "" : " or ") + ShapeText(shape);
    }
    return Wrong(*tensor, place,
                 fmt::format("shape {}, expected {}", ShapeText(tensor->shape), expected));
  }
  std::vector<float> values(tensor->data.size() / sizeof(float));
  std::memcpy(values.data(), tensor->data.data(), values.size() * sizeof(float));
  return values;
}

std::optional<float> GlobalScale(float stored, SourceFormat format) {
  if (!std::isfinite(stored) || !(stored > 0)) return std::nullopt;
  if (format != SourceFormat::kCompressedTensors) return stored;
  const float multiplier = 1.0f / stored;
  if (!std::isnormal(multiplier)) return std::nullopt;
  return multiplier;
}

std::optional<size_t> FindBadBlockScale(std::span<const std::byte> scales) {
  // Legal are 0x00..0x7E: a byte is bad if its high bit is set, or becomes so when one is added. A
  // carry out of a byte needs 0xFF, which is bad itself.
  constexpr uint64_t kOnes = 0x0101010101010101u, kHigh = 0x8080808080808080u;
  constexpr size_t kChunk = 4096;
  for (size_t begin = 0; begin < scales.size(); begin += kChunk) {
    const auto chunk = scales.subspan(begin, std::min(kChunk, scales.size() - begin));
    uint64_t seen = 0;
    size_t i = 0;
    for (; i + sizeof seen <= chunk.size(); i += sizeof seen) {
      uint64_t word;
      std::memcpy(&word, chunk.data() + i, sizeof word);
      seen |= word | (word + kOnes);
    }
    const bool clean = (seen & kHigh) == 0;
    if (clean && i == chunk.size()) continue;
    for (size_t j = clean ? i : 0; j < chunk.size(); ++j) {
      if (std::to_integer<unsigned>(chunk[j]) > 0x7E) return begin + j;
    }
  }
  return std::nullopt;
}

}  // namespace nibble::scheme
