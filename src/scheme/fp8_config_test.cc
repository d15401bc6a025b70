#include "scheme/fp8_config.h"

#include <gtest/gtest.h>

#include <string>

#include "scheme/test_schemes.h"

namespace nibble::scheme {
namespace {

const char* const kQ = "model.layers.0.self_attn.q_proj";

std::string Fp8(const std::string& fields) {
  return "{'quantization_config': {'quant_method': 'fp8'" + fields + "}}";
}
/// As Qwen writes it.
std::string Blocks(const std::string& more = "") {
  return Fp8(", 'fmt': 'e4m3', 'activation_scheme': 'dynamic', 'weight_block_size': [128, 128]" +
             more);
}

TEST(Fp8Config, ReadsQwensOwn) {
  struct Case {
    std::string config;
    QuantScheme scheme;
  };
  const Case cases[] = {
      {Blocks(), {kFp8StaticBlock128, kFp8Dynamic128}},
      {Fp8(", 'activation_scheme': 'static'"), {kFp8StaticTensor, kFp8StaticTensor}},
  };
  for (const Case& c : cases) {
    auto quant = ReadTexts(c.config);
    ASSERT_TRUE(quant.ok()) << quant.error().Message();
    EXPECT_EQ(quant->source_format(), SourceFormat::kFp8);
    EXPECT_EQ(quant->kv_cache(), KvCacheScheme::kBf16);
    auto scheme = quant->SchemeOf(Query(kQ));
    ASSERT_TRUE(scheme.ok());
    EXPECT_EQ(PairName(scheme->scheme), PairName(c.scheme));
    EXPECT_EQ(scheme->source_format, SourceFormat::kFp8);
  }
}

TEST(Fp8Config, ConvertsWhatItDoesNotList) {
  const std::string listed = Blocks(
      ", 'modules_to_not_convert': ['lm_head', 'model.language_model.layers.0.mlp.gate', "
      "'model.layers.0.linear_attn.in_proj_a', 'mtp.fc']");
  const SchemeCase cases[] = {
      {"a linear", listed, "", kQ, "W8A8 by config.json: quantization_config.quant_method"},
      {"experts", listed, "", "model.layers.0.mlp.experts", "W8A8 by "},
      {"a listed one", listed, "", "lm_head",
       "BF16 by config.json: quantization_config.modules_to_not_convert[0] = 'lm_head'"},
      {"spelled as in the wrapper", listed, "", "model.layers.0.mlp.gate",
       "quantization_config.modules_to_not_convert[1]"},
      {"no part of a name", listed, "", "model.layers.0.mlp.gate_proj", "W8A8 by "},
      {"a linear of DeltaNet", listed, "", "model.language_model.layers.0.linear_attn.in_proj_a",
       "BF16 by "},
      {"an MTP module's", listed, "", "mtp.layers.0.self_attn.q_proj", "W8A8 by "},
      {"mtp.fc", listed, "", "mtp.fc",
       "BF16 by config.json: quantization_config.modules_to_not_convert[3]"},
      {"the list's other name", Blocks(", 'ignored_layers': ['lm_head']"), "", "lm_head",
       "BF16 by config.json: quantization_config.ignored_layers[0]"},
      {"a router without a list", Blocks(), "", "model.layers.0.mlp.gate", "BF16 by "},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(Fp8Config, RefusesWhatItDoesNotKnow) {
  const SchemeCase cases[] = {
      {"another format", Fp8(", 'fmt': 'e5m2', 'activation_scheme': 'static'"), "", kQ,
       "Unsupported: config.json: quantization_config: fmt 'e5m2' is not supported, expected e4m3"},
      {"other blocks", Fp8(", 'activation_scheme': 'dynamic', 'weight_block_size': [64, 128]"), "",
       kQ,
       "Unsupported: config.json: quantization_config: weight_block_size [64, 128] is not "
       "supported, "
       "expected [128,128]"},
      {"no blocks", Fp8(", 'activation_scheme': 'dynamic', 'weight_block_size': 128"), "", kQ,
       "CorruptFile: config.json: quantization_config: 'weight_block_size' is 128, expected"},
      {"static with blocks",
       Fp8(", 'activation_scheme': 'static', 'weight_block_size': [128, 128]"), "", kQ,
       "activation_scheme 'static' is not supported with blocks, expected dynamic"},
      {"dynamic without", Fp8(", 'activation_scheme': 'dynamic'"), "", kQ,
       "activation_scheme 'dynamic' is not supported without weight_block_size, expected static"},
      {"none", Fp8(""), "", kQ, "activation_scheme '(missing)' is not supported"},
      {"no text", Fp8(", 'activation_scheme': 1"), "", kQ, "CorruptFile"},
      {"no list", Blocks(", 'modules_to_not_convert': 'lm_head'"), "", kQ,
       "CorruptFile: config.json: quantization_config.modules_to_not_convert: is string"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

}  // namespace
}  // namespace nibble::scheme
