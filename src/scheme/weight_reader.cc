#include "scheme/weight_reader.h"

#include <fmt/core.h>

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

namespace nibble::scheme {
namespace {

using checkpoint::DType;
using checkpoint::TensorInfo;

constexpr int64_t kGroup = 16;
constexpr std::array kF32 = {DType::kF32};

bool IsQuantizedType(DType dtype) { return checkpoint::BitsOf(dtype) <= 8; }
bool IsFloatType(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

const uint8_t* BytesOf(const TensorInfo& tensor) {
  return reinterpret_cast<const uint8_t*>(tensor.data.data());
}

bool IsFp8(const QuantKey& key) {
  return key == kFp8StaticTensor || key == kFp8StaticChannel || key == kFp8StaticBlock128;
}

}  // namespace

Result<std::vector<CanonicalWeight>> WeightReader::Read(const WeightStack& stack) {
  const QuantScheme& scheme = scheme_.scheme;
  if (!scheme.weight) return ReadBf16(stack);
  if (scheme == kW4A16 || scheme == kW4A4) return ReadNvfp4(stack);
  if (IsFp8(*scheme.weight)) return ReadFp8(stack);
  return Error{ErrorCode::kUnsupported,
               fmt::format("no weights of {} can be read", PairName(scheme)), stack.place.Text(),
               scheme_.evidence + " says so"};
}

Result<std::vector<CanonicalWeight>> WeightReader::ReadBf16(const WeightStack& stack) {
  for (const char* end : {"weight_packed", "weight_scale", "weight_scale_2", "weight_scale_inv"}) {
    const TensorInfo* scale = checkpoint_.Find(stack.Tensor(end));
    if (scale) return Contradiction(*scale, stack.place);
  }
  const std::string name = stack.PlainTensor();
  const TensorInfo* tensor = checkpoint_.Find(name);
  if (tensor && IsQuantizedType(tensor->dtype)) return Contradiction(*tensor, stack.place);
  if (tensor && tensor->dtype != DType::kBf16 && IsFloatType(tensor->dtype)) {
    Error e = checks_.Wrong(
        *tensor, stack.place,
        fmt::format("type {} is not supported, expected BF16", checkpoint::NameOf(tensor->dtype)));
    e.code = ErrorCode::kUnsupported;
    return e;
  }
  NIBBLE_TRY(tensor,
             Take(name, DType::kBf16, stack.Shape({stack.halves * stack.n, stack.k}), stack.place));
  std::vector<CanonicalWeight> weights;
  for (int64_t i = 0; i < stack.weights(); ++i) {
    weights.push_back(
        CanonicalBf16{stack.n, stack.k, BytesOf(*tensor) + i * stack.n * stack.k * 2});
  }
  return weights;
}

Result<std::vector<CanonicalWeight>> WeightReader::ReadNvfp4(const WeightStack& stack) {
  if (stack.k % kGroup != 0) {
    return Err(ErrorCode::kUnsupported, "NVFP4 needs K to be a multiple of 16, found K={}", stack.k)
        .At(stack.place.Text());
  }
  NIBBLE_CHECK_OK(RefuseUnquantized(stack));
  const auto name = [&stack](std::string_view end) { return stack.name + std::string(end); };
  const int64_t rows = stack.halves * stack.n;
  NIBBLE_TRY(const TensorInfo* codes, Take(name(stack.nvfp4.codes), DType::kU8,
                                           stack.Shape({rows, stack.k / 2}), stack.place));
  NIBBLE_TRY(const TensorInfo* scales, Take(name(stack.nvfp4.scales), DType::kF8E4m3,
                                            stack.Shape({rows, stack.k / kGroup}), stack.place));
  NIBBLE_CHECK_OK(Scan(CheckBlockScales, *scales, stack));
  NIBBLE_TRY(const std::vector<float> globals,
             ScalarScales(name(stack.nvfp4.global), kF32, stack, scheme_.source_format));
  std::vector<float> inputs;
  if (scheme_.scheme.activation) {
    NIBBLE_TRY(inputs, ScalarScales(name(stack.nvfp4.input), kF32, stack, scheme_.source_format));
  } else {
    Ignore(name(stack.nvfp4.input));
  }
  std::vector<CanonicalWeight> weights;
  const int64_t elements = stack.n * stack.k;
  for (int64_t i = 0; i < stack.weights(); ++i) {
    CanonicalNvfp4 w{stack.n,
                     stack.k,
                     BytesOf(*codes) + i * elements / 2,
                     BytesOf(*scales) + i * elements / kGroup,
                     globals[stack.ScalarIndex(globals.size(), i)],
                     std::nullopt};
    if (!inputs.empty()) w.input_scale = inputs[stack.ScalarIndex(inputs.size(), i)];
    weights.push_back(w);
  }
  return weights;
}

Result<void> WeightReader::Scan(ScanCheck check, const TensorInfo& tensor,
                                const WeightStack& stack) {
  if (!report_->defers_scans) return check(checks_, tensor, stack);
  report_->scans.push_back({check == CheckFp8Codes, [check, checks = checks_, &tensor, stack] {
                              return check(checks, tensor, stack);
                            }});
  return {};
}

Result<void> WeightReader::CheckBlockScales(const TensorChecks& checks, const TensorInfo& scales,
                                            const WeightStack& stack) {
  const auto bad = FindBadBlockScale(scales.data);
  if (!bad) return {};
  const auto byte = std::to_integer<unsigned>(scales.data[*bad]);
  const auto columns = static_cast<size_t>(stack.k / kGroup);
  const size_t row = *bad / columns, rows = static_cast<size_t>(stack.n);
  return checks.Wrong(
      scales, stack.PlaceOf(static_cast<int64_t>(row / rows)),
      fmt::format("block scale at row {}, column {} is 0x{:02X}, {}; expected 0x00 to 0x7E",
                  row % rows, *bad % columns, byte, (byte & 0x7F) == 0x7F ? "a NaN" : "negative"));
}

Result<const TensorInfo*> WeightReader::Take(const std::string& name, DType dtype,
                                             const std::vector<uint64_t>& shape,
                                             const Place& place) {
  auto tensor = checks_.Need(name, dtype, shape, place);
  if (!tensor) return Explained(std::move(tensor).error());
  report_->used.insert((*tensor)->name);
  return tensor;
}

Result<std::vector<float>> WeightReader::TakeFloats(const std::string& name,
                                                    std::span<const DType> types,
                                                    std::span<const std::vector<uint64_t>> shapes,
                                                    const Place& place) {
  auto values = checks_.NeedFloats(name, types, shapes, place);
  if (!values) return Explained(std::move(values).error());
  report_->used.insert(checkpoint_.Find(name)->name);
  return values;
}

Result<std::vector<float>> WeightReader::ScalarScales(const std::string& name,
                                                      std::span<const DType> types,
                                                      const WeightStack& stack,
                                                      SourceFormat format) {
  NIBBLE_TRY(std::vector<float> values, TakeFloats(name, types, stack.ScalarShapes(), stack.place));
  for (float& value : values) {
    const auto multiplier = GlobalScale(value, format);
    if (!multiplier) {
      const bool divides = format == SourceFormat::kCompressedTensors;
      return checks_.Wrong(
          *checkpoint_.Find(name), stack.place,
          fmt::format("value {}, expected a finite number above 0{}", value,
                      divides ? " whose reciprocal is a normal 32-bit float" : ""));
    }
    value = *multiplier;
  }
  return values;
}

void WeightReader::Ignore(const std::string& name) {
  const TensorInfo* ignored = checkpoint_.Find(name);
  if (!ignored) return;
  report_->ignored_tensors.push_back(ignored->name);
  report_->used.insert(ignored->name);
}

Result<void> WeightReader::RefuseUnquantized(const WeightStack& stack) const {
  const TensorInfo* tensor = checkpoint_.Find(stack.PlainTensor());
  if (tensor && IsFloatType(tensor->dtype)) return Contradiction(*tensor, stack.place);
  return {};
}

Error WeightReader::Contradiction(const TensorInfo& tensor, const Place& place) const {
  Error e = checks_.Wrong(
      tensor, place,
      fmt::format("type {} contradicts the label, which says {} ({})",
                  checkpoint::NameOf(tensor.dtype), ShortName(scheme_.scheme), scheme_.evidence));
  e.hint = "the configuration does not belong to these weights, or its exporter left this out";
  return e;
}

Error WeightReader::Explained(Error e) const {
  if (e.hint.empty()) e.hint = LabelText();
  if (e.code == ErrorCode::kNotFound) {
    e.hint = LabelText() + "; the checkpoint is incomplete, or its label wrong";
  }
  return e;
}

std::string WeightReader::LabelText() const {
  return fmt::format("the label says {} ({})", ShortName(scheme_.scheme), scheme_.evidence);
}

}  // namespace nibble::scheme
