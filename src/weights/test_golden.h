#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "numerics/nvfp4.h"
#include "weights/nvfp4_matrix.h"

// For the tests of weight preparation: golden vectors, and what a matrix means.

namespace nibble::weights {

/// One part of tests/golden/weights/prepare.json, which tools/make_prepare_golden.py computes from
/// the definitions.
inline Json ReadGolden(std::string_view part) {
  const auto text = ReadFile(NIBBLE_SOURCE_DIR "/tests/golden/weights/prepare.json", 1 << 20);
  if (!text) {
    ADD_FAILURE() << text.error().Message();
    return Json::Array{};
  }
  const auto golden = Json::Parse(*text);
  if (!golden || golden->Find(part) == nullptr) {
    ADD_FAILURE() << "no part " << part << " in prepare.json";
    return Json::Array{};
  }
  return *golden->Find(part);
}

inline int64_t IntegerOf(const Json& object, std::string_view key) {
  return object.Find(key)->integer();
}

inline float FloatOf(const Json& object, std::string_view key) {
  return static_cast<float>(object.Find(key)->number());
}

inline std::vector<float> FloatsOf(const Json& object, std::string_view key) {
  std::vector<float> out;
  for (const Json& v : object.Find(key)->array()) out.push_back(static_cast<float>(v.number()));
  return out;
}

inline std::vector<uint8_t> BytesOf(const Json& object, std::string_view key) {
  const std::string_view hex = object.Find(key)->string();
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  std::vector<uint8_t> out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    out.push_back(static_cast<uint8_t>(digit(hex[i]) << 4 | digit(hex[i + 1])));
  }
  return out;
}

inline Nvfp4Matrix MatrixOf(const Json& object, std::string_view key, int64_t rows, int64_t k) {
  Nvfp4Matrix m(rows, k);
  m.codes = BytesOf(*object.Find(key), "codes");
  m.scales = BytesOf(*object.Find(key), "scales");
  EXPECT_EQ(m.codes.size(), static_cast<size_t>(rows * k / 2));
  EXPECT_EQ(m.scales.size(), static_cast<size_t>(rows * k / 16));
  return m;
}

/// What a weight is worth, from numerics/ in double: exact for every code, scale and global.
inline double ValueAt(const CanonicalNvfp4& w, int64_t row, int64_t k) {
  return double{DecodeE2m1(Nvfp4Code(w.codes + row * (w.k / 2), k))} *
         double{DecodeE4m3(w.scales[(row * w.k + k) / kNvfp4Group])} * double{w.global};
}

}  // namespace nibble::weights
