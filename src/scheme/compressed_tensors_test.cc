#include "scheme/compressed_tensors.h"

#include <gtest/gtest.h>

#include <string>

#include "scheme/test_schemes.h"

namespace nibble::scheme {
namespace {

const std::string kFp4 =
    "'num_bits': 4, 'type': 'float', 'strategy': 'tensor_group', 'group_size': 16, 'symmetric': "
    "true";
const std::string kFp8 = "'num_bits': 8, 'type': 'float', 'symmetric': true";
const char* const kQ = "model.layers.0.self_attn.q_proj";
const char* const kExperts = "model.layers.0.mlp.experts";

std::string Config(const std::string& fields) {
  return "{'quantization_config': {'quant_method': 'compressed-tensors', " + fields + "}}";
}
std::string Group(const std::string& targets, const std::string& weights,
                  const std::string& activations = "null", const std::string& more = "") {
  return "{'targets': [" + targets + "], 'weights': {" + weights +
         "}, 'input_activations': " + activations + more + "}";
}
std::string One(const std::string& group, const std::string& more = "") {
  return Config("'config_groups': {'g': " + group + "}" + more);
}
/// NVFP4 weights everywhere, with these activations.
std::string Nvfp4(const std::string& activations, const std::string& more = "") {
  return One(Group("'Linear'", kFp4, activations), more);
}
std::string Fp8(const std::string& weights, const std::string& activations) {
  return One(Group("'Linear'", kFp8 + ", " + weights, activations));
}

TEST(CompressedTensors, ReadsNvfp4) {
  const std::string by = " by config.json: quantization_config.config_groups['g'].targets[0]";
  const std::string a4 = "W4A4" + by + " = 'Linear'", a16 = "W4A16" + by + " = 'Linear'";
  const SchemeCase cases[] = {
      {"no activations", Nvfp4("null"), "", kQ, a16.c_str()},
      {"activations with a local scale", Nvfp4("{" + kFp4 + ", 'dynamic': 'local'}"), "", kQ,
       a4.c_str()},
      {"for experts too", Nvfp4("null"), "", kExperts, a16.c_str()},
      {"for lm_head too", Nvfp4("null"), "", "lm_head", a16.c_str()},
      {"not for a router", Nvfp4("null"), "", "model.layers.0.mlp.gate", "BF16 by config.json"},
      {"the class in any case", One(Group("'LINEAR'", kFp4)), "", kQ, "W4A16 by "},
      {"another class", One(Group("'Conv1d'", kFp4)), "", kQ,
       "BF16 by config.json: quantization_config.config_groups (no target names it)"},
      {"activations dynamic throughout", Nvfp4("{" + kFp4 + ", 'dynamic': true}"), "", kQ,
       "Unsupported: config.json: quantization_config.config_groups['g'].input_activations: NVFP4 "
       "weights with activations of float 4 bits, strategy tensor_group, group_size 16, symmetric, "
       "dynamic are not supported; taken are null (W4A16) and NVFP4 with dynamic 'local' (W4A4)"},
      {"static activations", Nvfp4("{" + kFp4 + ", 'dynamic': false}"), "", kQ, "Unsupported"},
      {"FP8 activations", Nvfp4("{" + kFp8 + ", 'strategy': 'tensor'}"), "", kQ, "Unsupported"},
      {"groups of 32",
       One(Group("'Linear'",
                 "'num_bits': 4, 'type': 'float', 'strategy': 'tensor_group', "
                 "'group_size': 32")),
       "", kQ, "weights of float 4 bits, strategy tensor_group, group_size 32, symmetric, static"},
      {"integers",
       One(Group("'Linear'",
                 "'num_bits': 4, 'type': 'int', 'strategy': 'group', 'group_size': "
                 "16")),
       "", kQ, "Unsupported"},
      {"asymmetric",
       One(Group("'Linear'",
                 "'num_bits': 4, 'type': 'float', 'strategy': "
                 "'tensor_group', 'group_size': 16, 'symmetric': false")),
       "", kQ, "asymmetric"},
      {"actorder group", One(Group("'Linear'", kFp4 + ", 'actorder': 'group'")), "", kQ,
       "Unsupported: config.json: quantization_config.config_groups['g'].weights: actorder "
       "'group' permutes columns"},
      {"actorder dynamic", One(Group("'Linear'", kFp4 + ", 'actorder': 'dynamic'")), "", kQ,
       "actorder 'dynamic'"},
      {"actorder true", One(Group("'Linear'", kFp4 + ", 'actorder': true")), "", kQ,
       "actorder true"},
      {"actorder static", One(Group("'Linear'", kFp4 + ", 'actorder': 'static'")), "", kQ,
       "W4A16 by "},
      {"quantized outputs", One(Group("'Linear'", kFp4, "null", ", 'output_activations': {}")), "",
       kQ, "config_groups['g'].output_activations: quantized outputs are not supported"},
      {"no weights", One("{'targets': ['Linear'], 'weights': null}"), "", kQ,
       "a group without 'weights'"},
      {"no targets", One("{'weights': {}}"), "", kQ, "'targets' is missing"},
      {"no groups", Config("'config_groups': {}"), "", kQ,
       "CorruptFile: config.json: quantization_config.config_groups: is empty"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

struct KeyCase {
  const char* weights;
  const char* activations;
  QuantScheme scheme;
};

TEST(CompressedTensors, ReadsFp8) {
  const std::string token = "{" + kFp8 + ", 'strategy': 'token', 'dynamic': true}";
  const std::string tensor = "{" + kFp8 + ", 'strategy': 'tensor', 'dynamic': false}";
  const std::string group =
      "{" + kFp8 + ", 'strategy': 'group', 'group_size': 128, 'dynamic': true}";
  const KeyCase cases[] = {
      {"'strategy': 'tensor'", tensor.c_str(), {kFp8StaticTensor, kFp8StaticTensor}},
      {"'strategy': 'channel'", token.c_str(), {kFp8StaticChannel, kFp8DynamicToken}},
      {"'strategy': 'block', 'block_structure': [128, 128]",
       group.c_str(),
       {kFp8StaticBlock128, kFp8Dynamic128}},
      {"'strategy': 'channel'", "null", {kFp8StaticChannel, std::nullopt}},
  };
  for (const KeyCase& c : cases) {
    auto quant = ReadTexts(Fp8(c.weights, c.activations));
    ASSERT_TRUE(quant.ok()) << quant.error().Message();
    auto scheme = quant->SchemeOf(Query(kQ));
    ASSERT_TRUE(scheme.ok());
    EXPECT_EQ(PairName(scheme->scheme), PairName(c.scheme));
  }
  const SchemeCase refused[] = {
      {"blocks of 64", Fp8("'strategy': 'block', 'block_structure': [64, 64]", "null"), "", kQ,
       "Unsupported: config.json: quantization_config.config_groups['g'].weights: weights of "
       "float 8 bits, strategy block, block 64x64"},
      {"static per token", Fp8("'strategy': 'channel'", "{" + kFp8 + ", 'strategy': 'token'}"), "",
       kQ, "FP8 weights with activations of float 8 bits, strategy token, symmetric, static"},
      {"dynamic weights", Fp8("'strategy': 'tensor', 'dynamic': true", "null"), "", kQ,
       "Unsupported"},
  };
  for (const SchemeCase& c : refused) ExpectSaid(c);
}

TEST(CompressedTensors, TakesFormatsByName) {
  auto format = [](const std::string& global, const std::string& own) {
    return One(Group("'Linear'", kFp4, "null", own.empty() ? "" : ", 'format': '" + own + "'"),
               ", 'format': '" + global + "'");
  };
  const SchemeCase cases[] = {
      {"NVFP4's", format("nvfp4-pack-quantized", ""), "", kQ, "W4A16 by "},
      {"the group's above the whole's", format("mixed-precision", "nvfp4-pack-quantized"), "", kQ,
       "W4A16 by "},
      {"left to the arguments", format("mixed-precision", ""), "", kQ, "W4A16 by "},
      {"the group's, though the whole is dense", format("dense", "nvfp4-pack-quantized"), "", kQ,
       "W4A16 by "},
      {"an unknown one", format("int-quantized", ""), "", kQ,
       "Unsupported: config.json: quantization_config: format 'int-quantized' is not supported, "
       "expected nvfp4-pack-quantized, float-quantized, mixed-precision or dense"},
      {"an unknown one of a group", format("nvfp4-pack-quantized", "marlin-24"), "", kQ,
       "config_groups['g']: format 'marlin-24' is not supported"},
      {"one that the arguments contradict", format("float-quantized", ""), "", kQ,
       "format 'float-quantized' contradicts the group"},
      {"packed, but dense", format("dense", ""), "", kQ, "format 'dense' contradicts"},
      {"sparse", Nvfp4("null", ", 'sparsity_config': {'format': 'sparse-24-bitmask'}"), "", kQ,
       "Unsupported: config.json: quantization_config.sparsity_config"},
      {"not sparse", Nvfp4("null", ", 'sparsity_config': {'format': 'dense'}"), "", kQ,
       "W4A16 by "},
      {"nothing sparse nor rotated",
       Nvfp4("null", ", 'sparsity_config': {}, 'transform_config': {}"), "", kQ, "W4A16 by "},
      {"rotated", Nvfp4("null", ", 'transform_config': {'config_groups': {'u': {}}}"), "", kQ,
       "Unsupported: config.json: quantization_config.transform_config"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(CompressedTensors, Ignores) {
  auto ignoring = [](const std::string& entries) {
    return Nvfp4("null", ", 'ignore': [" + entries + "]");
  };
  const SchemeCase cases[] = {
      {"by name", ignoring("'x', 'lm_head'"), "", "lm_head",
       "BF16 by config.json: quantization_config.ignore[1] = 'lm_head'"},
      {"by expression", ignoring("'re:.*lm_head'"), "", "lm_head",
       "BF16 by config.json: quantization_config.ignore[0] = 're:.*lm_head'"},
      {"an expression is anchored at the start", ignoring("'re:layers'"), "", kQ, "W4A16 by "},
      {"but not at the end", ignoring("'re:model.layers.0.self'"), "", kQ, "BF16 by "},
      {"a name is no part of one", ignoring("'model.layers.0.mlp.gate'"), "",
       "model.layers.0.mlp.gate_proj", "W4A16 by "},
      {"a name is no parent", ignoring("'model.layers.0.self_attn'"), "", kQ, "W4A16 by "},
      {"a star is a star", ignoring("'model.layers.0*'"), "", kQ, "W4A16 by "},
      {"spelled as in the wrapper", ignoring("'model.language_model.layers.0.self_attn.q_proj'"),
       "", kQ, "BF16 by "},
      {"every expert's name", ignoring("'re:.*mlp.experts'"), "", kExperts, "BF16 by "},
      {"the block's name", ignoring("'model.layers.0.mlp.experts'"), "", kExperts, "BF16 by "},
      {"an expression for the block alone", ignoring("'re:.*mlp.experts$'"), "", kExperts,
       "BF16 by "},
      {"one expert", ignoring("'re:.*experts\\\\.3\\\\.'"), "", kExperts,
       "model.layers.0.mlp.experts.0.gate_proj is W4A16 (config.json: "
       "quantization_config.config_groups['g'].targets[0] = 'Linear') but "
       "model.layers.0.mlp.experts.3.gate_proj is BF16"},
      {"one projection", ignoring("'re:.*up_proj$'"), "", kExperts,
       "but model.layers.0.mlp.experts.0.up_proj is BF16"},
      {"an expression that is none", ignoring("'a', 're:('"), "", kQ,
       "CorruptFile: config.json: quantization_config.ignore[1]: regular expression '(': a group "
       "without"},
      {"an expression that is not taken", ignoring("'re:^(?!.*mlp)'"), "", kQ,
       "Unsupported: config.json: quantization_config.ignore[0]: regular expression '^(?!.*mlp)': "
       "a look-around group"},
      // 1.6, and a router's expression that is no gate_proj's (llm-compressor issue 2740)
      {"a router alone", ignoring("'re:.*mlp.gate$'"), "", "model.layers.0.mlp.gate", "BF16 by "},
      {"and not what begins alike", ignoring("'re:.*mlp.gate$'"), "",
       "model.layers.0.mlp.gate_proj", "W4A16 by "},
      {"all of an MTP module", ignoring("'re:^mtp.*'"), "", "mtp.layers.0.mlp.experts",
       "BF16 by config.json: quantization_config.ignore[0] = 're:^mtp.*'"},
      {"and nothing else", ignoring("'re:^mtp.*'"), "", kQ, "W4A16 by "},
      // section 8: lists that forget the MTP module's experts
      {"an MTP list without its experts",
       ignoring("'mtp.fc', 're:mtp.*self_attn.*', 're:mtp.*shared_expert.*'"), "",
       "mtp.layers.0.mlp.experts", "W4A16 by "},
      {"an expression spelled without the wrapper", ignoring("'re:model[.]layers[.]0[.]self'"), "",
       "model.language_model.layers.0.self_attn.q_proj", "BF16 by "},
      {"every expert by its other names", ignoring("'re:.*experts.*w[123]$'"), "", kExperts,
       "BF16 by "},
      {"no list", Nvfp4("null", ", 'ignore': 'lm_head'"), "", kQ,
       "quantization_config.ignore: is string"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(CompressedTensors, PrefersTheTargetThatSaysMore) {
  const std::string fp8 = kFp8 + ", 'strategy': 'channel'";
  auto groups = [](const std::string& a, const std::string& b) {
    return Config("'config_groups': {'a': " + a + ", 'b': " + b + "}");
  };
  const std::string linear = Group("'Linear'", kFp4);
  const SchemeCase cases[] = {
      {"a name before the class", groups(linear, Group("'lm_head'", fp8)), "", "lm_head",
       "W8A16 by config.json: quantization_config.config_groups['b'].targets[0] = 'lm_head'"},
      {"an expression before the class", groups(linear, Group("'re:.*self_attn.*'", fp8)), "", kQ,
       "W8A16 by "},
      {"a name before an expression", groups(Group("'re:.*head'", kFp4), Group("'lm_head'", fp8)),
       "", "lm_head", "W8A16 by "},
      {"two expressions that agree", groups(Group("'re:.*proj'", fp8), Group("'re:.*q_proj'", fp8)),
       "", kQ, "config_groups['a'].targets[0]"},
      {"two expressions that do not",
       groups(Group("'re:.*proj'", kFp4), Group("'re:.*q_proj'", fp8)), "", kQ,
       "CorruptFile: config.json: quantization_config.config_groups['b'].targets[0] = "
       "'re:.*q_proj': model.layers.0.self_attn.q_proj is W4A16 by one target and W8A16 by "
       "another"},
      {"two classes that do not agree", groups(linear, Group("'linear'", fp8)), "", kQ,
       "is W4A16 by one target and W8A16 by another"},
      // 1.6: a layer of another format
      {"one layer's experts by expression",
       groups(linear, Group("'re:.*layers[.]0[.]mlp[.]experts.*'", fp8)), "", kExperts,
       "W8A16 by "},
      {"and not another's", groups(linear, Group("'re:.*layers[.]1[.]mlp[.]experts.*'", fp8)), "",
       kExperts, "W4A16 by "},
      {"a name in the wrapper's spelling",
       groups(linear, Group("'model.language_model.layers.0.self_attn.q_proj'", fp8)), "", kQ,
       "W8A16 by "},
      {"a fused linear's name", groups(linear, Group("'model.layers.0.self_attn.qkv_proj'", fp8)),
       "", kQ, "W8A16 by "},
      {"the experts' block by name", groups(Group("'model.layers.0.mlp.experts'", fp8), linear), "",
       kExperts, "W8A16 by "},
      {"half of an expert by expression", groups(linear, Group("'re:.*experts.*down_proj'", fp8)),
       "", kExperts, "but model.layers.0.mlp.experts.0.down_proj is W8A16"},
      {"a router by a sweeping expression", One(Group("'re:.*mlp.*'", kFp4)), "",
       "model.layers.0.mlp.gate", "BF16 by "},
      {"a router by its name", One(Group("'model.layers.0.mlp.gate'", fp8)), "",
       "model.layers.0.mlp.gate", "W8A16 by "},
      {"nothing by a group for attention",
       groups(Group("'LlamaAttention'", kFp8 + ", 'strategy': 'tensor'"), linear), "", kQ,
       "W4A16 by "},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(CompressedTensors, WarnsOfGroupsThatItPassesOver) {
  auto quant = ReadTexts(Config("'config_groups': {'a': {'targets': ['LlamaAttention']}, 'b': " +
                                Group("'Linear'", kFp4) + "}"));
  ASSERT_TRUE(quant.ok()) << quant.error().Message();
  ASSERT_EQ(quant->warnings().size(), 1u);
  EXPECT_NE(quant->warnings()[0].find("config_groups[\"a\"]"), std::string::npos);
}

TEST(CompressedTensors, ReadsTheKvCacheScheme) {
  auto with = [](const std::string& scheme) {
    return ReadTexts(Nvfp4("null", ", 'kv_cache_scheme': " + scheme));
  };
  auto fp8 = with("{" + kFp8 + ", 'strategy': 'tensor', 'dynamic': false}");
  ASSERT_TRUE(fp8.ok()) << fp8.error().Message();
  EXPECT_EQ(fp8->kv_cache(), KvCacheScheme::kFp8);
  EXPECT_EQ(fp8->kv_cache_evidence(), "config.json: quantization_config.kv_cache_scheme");
  auto none = with("null");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->kv_cache(), KvCacheScheme::kBf16);
  EXPECT_EQ(none->kv_cache_evidence(), "");
  for (const std::string& args :
       {kFp8 + ", 'strategy': 'attn_head'", kFp8 + ", 'strategy': 'tensor', 'dynamic': true",
        std::string("'num_bits': 8, 'type': 'int', 'strategy': 'tensor'")}) {
    auto refused = with("{" + args + "}");
    ASSERT_FALSE(refused.ok()) << args;
    EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
  }
}

}  // namespace
}  // namespace nibble::scheme
