#include "layout/quant_key.h"

#include <fmt/core.h>

namespace nibble {

std::string_view NameOf(ScalarType type) {
  switch (type) {
    case ScalarType::kU8:
      return "u8";
    case ScalarType::kF8E4M3:
      return "f8e4m3fn";
    case ScalarType::kF8E8M0:
      return "f8e8m0fnu";
    case ScalarType::kF32:
      return "f32";
    case ScalarType::kF16:
      return "f16";
    case ScalarType::kBf16:
      return "bf16";
    case ScalarType::kI8:
      return "i8";
  }
  return "?";
}

std::string ToString(const GroupShape& group) {
  return fmt::format("GroupShape(row={}, col={})", group.row, group.col);
}

std::string ToString(const ScaleDesc& scale) {
  std::string shape;
  if (scale.group == GroupShape::PerTensor())
    shape = "per_tensor";
  else if (scale.group == GroupShape::PerToken())
    shape = "per_token";
  else if (scale.group == GroupShape::PerChannel())
    shape = "per_channel";
  else
    shape = ToString(scale.group);
  return fmt::format("{},{},{}", NameOf(scale.dtype), scale.is_static ? "static" : "dynamic",
                     shape);
}

std::string ToString(const QuantKey& key) {
  return fmt::format("QuantKey({},scale({}),{}{})", NameOf(key.dtype), ToString(key.scale),
                     key.scale2 ? fmt::format("scale2({}),", ToString(*key.scale2)) : "",
                     key.symmetric ? "symmetric" : "asymmetric");
}

std::string_view ShortName(const QuantScheme& scheme) {
  if (!scheme.weight) return "BF16";
  if (scheme.weight->dtype == ScalarType::kU8) return scheme.activation ? "W4A4" : "W4A16";
  return scheme.activation ? "W8A8" : "W8A16";
}

std::string PairName(const QuantScheme& scheme) {
  auto name = [](const std::optional<QuantKey>& key) { return key ? ToString(*key) : "None"; };
  return fmt::format("{}x{}", name(scheme.weight), name(scheme.activation));
}

}  // namespace nibble
