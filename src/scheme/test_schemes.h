#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "base/json.h"
#include "scheme/detect.h"

// How the tests of this folder write configurations and their answers: as text.

namespace nibble::scheme {

/// One apostrophe for each double quote, so that a row of a table stays readable.
inline std::string Quotes(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c == '\'') c = '"';
  }
  return out;
}

/// JSON with apostrophes for quotes.
inline Json ParseText(std::string_view text) {
  auto json = Json::Parse(Quotes(text));
  EXPECT_TRUE(json.ok()) << text << ": " << (json ? "" : json.error().Message());
  return json ? *std::move(json) : Json();
}

/// The configuration of a checkpoint with these two files; an empty `hf` means that there is none.
inline Result<QuantConfig> ReadTexts(std::string_view config, std::string_view hf = "") {
  const Json config_json = ParseText(config);
  if (hf.empty()) return ReadQuantConfig(config_json, nullptr);
  const Json hf_json = ParseText(hf);
  return ReadQuantConfig(config_json, &hf_json);
}

/// "W4A16 by EVIDENCE", or "ERRORCODE: MESSAGE".
inline std::string Describe(const Result<ModuleScheme>& scheme) {
  if (!scheme) {
    return std::string(NameOf(scheme.error().code)) + ": " + scheme.error().Message();
  }
  return std::string(ShortName(scheme->scheme)) + " by " + scheme->evidence;
}

/// A module by what its name ends in: four experts behind "experts", no linear behind "gate",
/// "norm" and "embed_tokens".
inline ModuleQuery Query(std::string_view name) {
  if (name.ends_with(".experts")) return {name, ModuleClass::kExperts, 4};
  for (const char* other : {".gate", "norm", "embed_tokens"}) {
    if (name.ends_with(other)) return {name, ModuleClass::kOther};
  }
  return {name};
}

/// What such a checkpoint says of a module.
inline std::string SchemeText(std::string_view config, std::string_view hf,
                              std::string_view module) {
  auto quant = ReadTexts(config, hf);
  if (!quant) return std::string(NameOf(quant.error().code)) + ": " + quant.error().Message();
  return Describe(quant->SchemeOf(Query(module)));
}

struct SchemeCase {
  const char* what;
  std::string config, hf;
  const char* module;
  const char* says;  // a part of SchemeText, apostrophes for quotes
};

inline void ExpectSaid(const SchemeCase& c) {
  const std::string text = SchemeText(c.config, c.hf, c.module);
  EXPECT_NE(text.find(Quotes(c.says)), std::string::npos)
      << c.what << "\n  said     " << text << "\n  expected " << Quotes(c.says);
}

}  // namespace nibble::scheme
