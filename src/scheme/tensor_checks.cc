#include "scheme/tensor_checks.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/quoted.h"
#include "numerics/bf16.h"

namespace nibble::scheme {

using checkpoint::DType;
using checkpoint::ShapeText;
using checkpoint::TensorInfo;

namespace {

/// "F32 or BF16"
template <class List, class Name>
std::string Alternatives(const List& list, Name name) {
  std::string text;
  for (const auto& one : list) {
    if (!text.empty()) text += " or ";
    text += name(one);
  }
  return text;
}

/// The first byte for which `bad` holds, which for eight at a time raises a high bit. What it raises
/// beside a bad byte does not matter.
template <class Bad, class BadWord>
std::optional<size_t> FindByte(std::span<const std::byte> bytes, Bad bad, BadWord bad_word) {
  constexpr uint64_t kHigh = 0x8080808080808080u;
  constexpr size_t kChunk = 4096;
  for (size_t begin = 0; begin < bytes.size(); begin += kChunk) {
    const auto chunk = bytes.subspan(begin, std::min(kChunk, bytes.size() - begin));
    uint64_t seen = 0;
    size_t i = 0;
    for (; i + sizeof seen <= chunk.size(); i += sizeof seen) {
      uint64_t word;
      std::memcpy(&word, chunk.data() + i, sizeof word);
      seen |= bad_word(word);
    }
    const bool clean = (seen & kHigh) == 0;
    if (clean && i == chunk.size()) continue;
    for (size_t j = clean ? i : 0; j < chunk.size(); ++j) {
      if (bad(std::to_integer<unsigned>(chunk[j]))) return begin + j;
    }
  }
  return std::nullopt;
}

constexpr uint64_t kOnes = 0x0101010101010101u;

}  // namespace

std::string Place::Text() const {
  constexpr std::string_view kLayers = "layers.";
  std::string text = module;
  const size_t at = module.find(kLayers);
  if (at != std::string::npos) {
    const std::string_view rest = std::string_view(module).substr(at + kLayers.size());
    const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
    if (digits > 0) {
      text = fmt::format("{}layer {}", module.starts_with("mtp.") ? "mtp " : "",
                         rest.substr(0, digits));
    }
  }
  if (expert >= 0) text += fmt::format(", expert {}", expert);
  if (!projection.empty() && !text.ends_with(projection)) text += ", " + projection;
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
                                                    std::span<const DType> types,
                                                    std::span<const std::vector<uint64_t>> shapes,
                                                    const Place& place) const {
  const TensorInfo* tensor = checkpoint_.Find(name);
  if (!tensor) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("tensor {} is missing", Quoted(name, checkpoint::kMaxNameBytes)),
                 place.Text(),
                 {}};
  }
  if (std::ranges::find(types, tensor->dtype) == types.end()) {
    return Wrong(*tensor, place,
                 fmt::format("type {}, expected {}", checkpoint::NameOf(tensor->dtype),
                             Alternatives(types, checkpoint::NameOf)));
  }
  if (std::ranges::find(shapes, tensor->shape) == shapes.end()) {
    return Wrong(*tensor, place,
                 fmt::format("shape {}, expected {}", ShapeText(tensor->shape),
                             Alternatives(shapes, ShapeText)));
  }
  const bool wide = tensor->dtype == DType::kF32;
  std::vector<float> values(tensor->data.size() / (wide ? sizeof(float) : sizeof(Bf16)));
  if (wide) {
    std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
  } else {
    const std::byte* at = tensor->data.data();
    for (float& value : values) {
      value = LoadBf16(at);
      at += sizeof(Bf16);
    }
  }
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
  return FindByte(
      scales, [](unsigned byte) { return byte > 0x7E; },
      [](uint64_t word) { return word | (word + kOnes); });
}

std::optional<size_t> FindNanCode(std::span<const std::byte> codes) {
  return FindByte(
      codes, [](unsigned byte) { return (byte & 0x7F) == 0x7F; },
      [](uint64_t word) { return (word & (0x7F * kOnes)) + kOnes; });
}

}  // namespace nibble::scheme
