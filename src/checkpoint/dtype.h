#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble::checkpoint {

/// The element types of the safetensors format (its reference implementation, version 0.8).
enum class DType : uint8_t {
  kBool,
  kF4,
  kF6E2m3,
  kF6E3m2,
  kU8,
  kI8,
  kF8E5m2,
  kF8E4m3,
  kF8E8m0,
  kI16,
  kU16,
  kF16,
  kBf16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

struct DTypeRow {
  DType dtype;
  std::string_view name;
  unsigned bits;
};

/// In the order of the enumerators.
inline constexpr std::array<DTypeRow, 20> kDTypes = {{
    {DType::kBool, "BOOL", 8},      {DType::kF4, "F4", 4},          {DType::kF6E2m3, "F6_E2M3", 6},
    {DType::kF6E3m2, "F6_E3M2", 6}, {DType::kU8, "U8", 8},          {DType::kI8, "I8", 8},
    {DType::kF8E5m2, "F8_E5M2", 8}, {DType::kF8E4m3, "F8_E4M3", 8}, {DType::kF8E8m0, "F8_E8M0", 8},
    {DType::kI16, "I16", 16},       {DType::kU16, "U16", 16},       {DType::kF16, "F16", 16},
    {DType::kBf16, "BF16", 16},     {DType::kI32, "I32", 32},       {DType::kU32, "U32", 32},
    {DType::kF32, "F32", 32},       {DType::kC64, "C64", 64},       {DType::kF64, "F64", 64},
    {DType::kI64, "I64", 64},       {DType::kU64, "U64", 64},
}};

static_assert([] {
  for (size_t i = 0; i < kDTypes.size(); ++i) {
    if (static_cast<size_t>(kDTypes[i].dtype) != i) return false;
  }
  return true;
}());

constexpr unsigned BitsOf(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].bits; }
constexpr std::string_view NameOf(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }

/// The type of that exact name ("F8_E4M3"); nothing for any other spelling.
constexpr std::optional<DType> ParseDType(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace nibble::checkpoint
