#include <fmt/core.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

#include "base/quoted.h"
#include "scheme/weight_reader.h"

// FP8 weights. Both quantizers and Qwen's own files say `weight` for the codes and multiply by their
// scales, `weight_scale_inv` included; they differ in the shapes of the scales and in their type.

namespace nibble::scheme {
namespace {

using checkpoint::DType;
using checkpoint::TensorInfo;

constexpr std::array kScaleTypes = {DType::kF32, DType::kBf16};

int64_t Blocks(int64_t elements) { return (elements + 127) / 128; }

}  // namespace

Result<std::vector<CanonicalWeight>> WeightReader::ReadFp8(const WeightStack& stack) {
  NIBBLE_CHECK_OK(RefuseUnquantized(stack));
  NIBBLE_TRY(const TensorInfo* codes,
             Take(stack.PlainTensor(), DType::kF8E4m3,
                  stack.Shape({stack.halves * stack.n, stack.k}), stack.place));
  NIBBLE_CHECK_OK(Scan(CheckFp8Codes, *codes, stack));
  NIBBLE_TRY(std::vector<std::vector<float>> scales, Fp8Scales(stack));
  const std::string input_name = stack.Tensor("input_scale");
  const auto& activation = scheme_.scheme.activation;
  std::vector<float> inputs;
  if (activation && activation->scale.is_static) {
    NIBBLE_TRY(inputs, ScalarScales(input_name, kScaleTypes, stack, SourceFormat::kNone));
  } else {
    Ignore(input_name);
  }
  std::vector<CanonicalWeight> weights;
  const auto* bytes = reinterpret_cast<const uint8_t*>(codes->data.data());
  for (int64_t i = 0; i < stack.weights(); ++i) {
    CanonicalFp8 w;
    w.n = stack.n;
    w.k = stack.k;
    w.codes = bytes + i * stack.n * stack.k;
    w.group = scheme_.scheme.weight->scale.group;
    w.scales = std::move(scales[static_cast<size_t>(i)]);
    if (!inputs.empty()) w.input_scale = inputs[stack.ScalarIndex(inputs.size(), i)];
    weights.push_back(std::move(w));
  }
  return weights;
}

Result<void> WeightReader::CheckFp8Codes(const TensorChecks& checks, const TensorInfo& codes,
                                         const WeightStack& stack) {
  const auto bad = FindNanCode(codes.data);
  if (!bad) return {};
  const auto columns = static_cast<size_t>(stack.k), rows = static_cast<size_t>(stack.n);
  const size_t row = *bad / columns;
  return checks.Wrong(
      codes, stack.PlaceOf(static_cast<int64_t>(row / rows)),
      fmt::format("the code at row {}, column {} is 0x{:02X}, a NaN; expected a number", row % rows,
                  *bad % columns, std::to_integer<unsigned>(codes.data[*bad])));
}

/// The scales of each weight of the stack.
Result<std::vector<std::vector<float>>> WeightReader::Fp8Scales(const WeightStack& stack) {
  if (scheme_.scheme.weight->scale.group != GroupShape::PerTensor()) return Fp8ScaleGrid(stack);
  NIBBLE_TRY(const std::vector<float> values,
             ScalarScales(stack.Tensor("weight_scale"), kScaleTypes, stack, SourceFormat::kNone));
  std::vector<std::vector<float>> scales;
  for (int64_t i = 0; i < stack.weights(); ++i) {
    scales.push_back({values[stack.ScalarIndex(values.size(), i)]});
  }
  return scales;
}

/// The same of one scale a row or a block of 128x128.
Result<std::vector<std::vector<float>>> WeightReader::Fp8ScaleGrid(const WeightStack& stack) {
  const bool blocks = scheme_.scheme.weight->scale.group != GroupShape::PerChannel();
  if (blocks && stack.halves > 1 && stack.n % 128 != 0) {
    return Err(ErrorCode::kUnsupported,
               "{} rows of gate_proj and as many of up_proj lie in one tensor: blocks of 128 rows "
               "would belong to both",
               stack.n)
        .At(stack.place.Text());
  }
  const int64_t rows = blocks ? Blocks(stack.n) : stack.n, columns = blocks ? Blocks(stack.k) : 1;
  const int64_t all_rows = stack.halves * rows;
  // ModelOpt writes blocks with the dimensions that it reduced over, each of length 1.
  const std::vector<std::vector<uint64_t>> shapes =
      blocks ? std::vector{stack.Shape({all_rows, columns}), stack.Shape({all_rows, 1, columns, 1})}
             : std::vector{stack.Shape({all_rows}), stack.Shape({all_rows, 1})};
  NIBBLE_TRY(const std::string name, Fp8ScaleName(stack));
  NIBBLE_TRY(const std::vector<float> values, TakeFloats(name, kScaleTypes, shapes, stack.place));
  NIBBLE_CHECK_OK(CheckScaleGrid(*checkpoint_.Find(name), stack, values, columns));
  std::vector<std::vector<float>> scales;
  const int64_t each = rows * columns;
  for (int64_t i = 0; i < stack.weights(); ++i) {
    scales.emplace_back(values.begin() + i * each, values.begin() + (i + 1) * each);
  }
  return scales;
}

/// `weight_scale`, or for blocks `weight_scale_inv`, which Qwen's files say.
Result<std::string> WeightReader::Fp8ScaleName(const WeightStack& stack) const {
  std::string name = stack.Tensor("weight_scale");
  if (scheme_.scheme.weight != kFp8StaticBlock128) return name;
  std::string inverse = stack.Tensor("weight_scale_inv");
  const TensorInfo* tensor = checkpoint_.Find(inverse);
  if (!tensor) return name;
  if (!checkpoint_.Find(name)) return inverse;
  return Explained(checks_.Wrong(*tensor, stack.place,
                                 fmt::format("{} is there too, and both mean the scales of the "
                                             "blocks; expected one of them",
                                             Quoted(name, checkpoint::kMaxNameBytes))));
}

/// A scale of 0 is legal here: its row or block is zero.
Result<void> WeightReader::CheckScaleGrid(const TensorInfo& scales, const WeightStack& stack,
                                          std::span<const float> values, int64_t columns) const {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i]) && !std::signbit(values[i])) continue;
    const auto each = static_cast<int64_t>(values.size()) / stack.weights();
    const auto at = static_cast<int64_t>(i);
    return checks_.Wrong(
        scales, stack.PlaceOf(at / each),
        fmt::format("scale at row {}, column {} is {}; expected a finite number, not negative",
                    at % each / columns, at % columns, values[i]));
  }
  return {};
}

}  // namespace nibble::scheme
