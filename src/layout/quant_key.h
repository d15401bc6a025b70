#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// The field's vocabulary of quantization (vLLM's QuantKey), with its exact printed form: users
// search for these strings.

/// What a number is stored as. uint8 holds two e2m1 codes.
enum class ScalarType : uint8_t { kU8, kF8E4M3, kF8E8M0, kF32, kF16, kBf16, kI8 };

/// "u8", "f8e4m3fn", "f8e8m0fnu", "f32", "f16", "bf16", "i8".
std::string_view NameOf(ScalarType type);

/// How many elements share one scale: rows x cols, -1 meaning the whole extent.
struct GroupShape {
  int row = -1;
  int col = -1;

  static constexpr GroupShape PerTensor() { return {-1, -1}; }
  static constexpr GroupShape PerToken() { return {1, -1}; }
  static constexpr GroupShape PerChannel() { return {-1, 1}; }
  bool operator==(const GroupShape&) const = default;
};

struct ScaleDesc {
  ScalarType dtype = ScalarType::kF32;
  bool is_static = true;
  GroupShape group;
  bool operator==(const ScaleDesc&) const = default;
};

/// How one operand (weight or activation) is quantized.
struct QuantKey {
  ScalarType dtype = ScalarType::kU8;
  ScaleDesc scale;
  std::optional<ScaleDesc> scale2;
  bool symmetric = true;
  bool operator==(const QuantKey&) const = default;
};

std::string ToString(const GroupShape& group);  // "GroupShape(row=1, col=16)"
std::string ToString(const ScaleDesc& scale);   // "f32,static,per_tensor"
std::string ToString(const QuantKey& key);      // "QuantKey(u8,scale(…),scale2(…),symmetric)"

inline constexpr QuantKey kNvfp4Static = {
    ScalarType::kU8,
    {ScalarType::kF8E4M3, true, {1, 16}},
    ScaleDesc{ScalarType::kF32, true, GroupShape::PerTensor()},
    true};
inline constexpr QuantKey kNvfp4Dynamic = {
    ScalarType::kU8,
    {ScalarType::kF8E4M3, false, {1, 16}},
    ScaleDesc{ScalarType::kF32, true, GroupShape::PerTensor()},
    true};
inline constexpr QuantKey kFp8StaticTensor = {
    ScalarType::kF8E4M3, {ScalarType::kF32, true, GroupShape::PerTensor()}, {}, true};
inline constexpr QuantKey kFp8StaticChannel = {
    ScalarType::kF8E4M3, {ScalarType::kF32, true, GroupShape::PerChannel()}, {}, true};
inline constexpr QuantKey kFp8StaticBlock128 = {
    ScalarType::kF8E4M3, {ScalarType::kF32, true, {128, 128}}, {}, true};
inline constexpr QuantKey kFp8DynamicToken = {
    ScalarType::kF8E4M3, {ScalarType::kF32, false, GroupShape::PerToken()}, {}, true};
inline constexpr QuantKey kFp8Dynamic128 = {
    ScalarType::kF8E4M3, {ScalarType::kF32, false, {1, 128}}, {}, true};

/// What a module's label says: how its weight and its input are held. Nothing means 16 bits (bf16).
struct QuantScheme {
  std::optional<QuantKey> weight;
  std::optional<QuantKey> activation;
  bool operator==(const QuantScheme&) const = default;
};

inline constexpr QuantScheme kBf16Scheme = {};
inline constexpr QuantScheme kW4A16 = {kNvfp4Static, std::nullopt};
inline constexpr QuantScheme kW4A4 = {kNvfp4Static, kNvfp4Dynamic};

/// FP8 as its producers pair it: one scale a tensor, a row or a 128x128 block, over activations
/// that are left alone, quantized under a calibrated scale, or under a scale of their own a token
/// or 128 values.
inline constexpr QuantScheme kFp8Schemes[] = {
    {kFp8StaticTensor, kFp8StaticTensor},  {kFp8StaticTensor, kFp8DynamicToken},
    {kFp8StaticTensor, std::nullopt},      {kFp8StaticChannel, kFp8DynamicToken},
    {kFp8StaticChannel, kFp8StaticTensor}, {kFp8StaticChannel, std::nullopt},
    {kFp8StaticBlock128, kFp8Dynamic128},  {kFp8StaticBlock128, std::nullopt},
};

/// The short word people use: "W4A16", "W4A4", "W8A8", "W8A16", "BF16".
std::string_view ShortName(const QuantScheme& scheme);

/// "<weight>x<activation>" as rejections print it; an absent key prints "None".
std::string PairName(const QuantScheme& scheme);

}  // namespace nibble
