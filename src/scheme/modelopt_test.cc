#include "scheme/modelopt.h"

#include <gtest/gtest.h>

#include <string>

#include "scheme/test_schemes.h"

// Numbers before rows are sections of vllm-nvfp4-moe.md, the notes on what upstream does: each of
// its rules and traps has a row, kept or on purpose not.

namespace nibble::scheme {
namespace {

/// config.json with this quantization_config of modelopt's.
std::string Flat(const std::string& fields) {
  return "{'quantization_config': {'quant_method': 'modelopt', " + fields + "}}";
}
std::string Excluding(const std::string& entries) {
  return Flat("'quant_algo': 'NVFP4', 'exclude_modules': [" + entries + "]");
}
std::string Mixed(const std::string& layers) {
  return Flat("'quant_algo': 'MIXED_PRECISION', 'quantized_layers': {" + layers + "}");
}
std::string Legacy(const std::string& fields) {
  return "{'producer': {'name': 'modelopt'}, 'quantization': {" + fields + "}}";
}
const std::string kNulls =
    ", 'group_size': 16, 'kv_cache_quant_algo': null, 'exclude_modules': null";

const std::string kAllNull =
    ", 'group_size': null, 'kv_cache_quant_algo': null, 'exclude_modules': null";

const char* const kQ = "model.layers.0.self_attn.q_proj";
const char* const kExperts = "model.layers.0.mlp.experts";

TEST(Modelopt, ReadsAlgorithms) {
  const SchemeCase cases[] = {
      {"W4A4", Flat("'quant_algo': 'NVFP4'"), "", kQ,
       "W4A4 by config.json: quantization_config.quant_algo"},
      {"W4A16", Flat("'quant_algo': 'W4A16_NVFP4'"), "", kExperts,
       "W4A16 by config.json: quantization_config.quant_algo"},
      {"FP8", Flat("'quant_algo': 'FP8'"), "", kQ, "W8A8 by "},
      {"any case", Flat("'quant_algo': 'w4a16_nvfp4'"), "", kQ, "W4A16 by "},
      {"quant_method in any case",
       "{'quantization_config': {'quant_method': 'ModelOpt_FP4', 'quant_algo': 'NVFP4'}}", "", kQ,
       "W4A4 by "},
      {"inside text_config",
       "{'text_config': {'quantization_config': {'quant_method': 'modelopt', 'quant_algo': "
       "'NVFP4'}}}",
       "", kQ, "W4A4 by config.json: text_config.quantization_config.quant_algo"},
      {"no quant_method, but the producer",
       "{'quantization_config': {'producer': {'name': 'modelopt'}, 'quant_algo': 'NVFP4'}}", "", kQ,
       "W4A4 by "},
      {"lm_head is a linear like any other", Flat("'quant_algo': 'NVFP4'"), "", "lm_head",
       "W4A4 by "},
      {"the embedding is none", Flat("'quant_algo': 'NVFP4'"), "", "model.embed_tokens",
       "BF16 by config.json: quantization_config.quant_algo covers linear layers"},
      {"a router is none", Flat("'quant_algo': 'NVFP4'"), "", "model.layers.0.mlp.gate",
       "BF16 by config.json: quantization_config.quant_algo covers linear layers"},
      {"a missing algorithm", Flat("'ignore': []"), "", kQ,
       "CorruptFile: config.json: quantization_config: 'quant_algo' is missing; it must be NVFP4"},
      {"an unknown algorithm", Flat("'quant_algo': 'W4A8_NVFP4_FP8'"), "", kQ,
       "Unsupported: config.json: quantization_config: quant_algo 'W4A8_NVFP4_FP8' is not "
       "supported, expected NVFP4, W4A16_NVFP4, FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, "
       "FP8_BLOCK_SCALES or MIXED_PRECISION"},
      // 1.2: taken upstream, where other kernels run it
      {"an algorithm that only upstream runs", Flat("'quant_algo': 'MXFP8'"), "", kQ,
       "quant_algo 'MXFP8' is not supported"},
      // 1.2: the method's name claims the file, the algorithm decides
      {"a method that says another algorithm",
       "{'quantization_config': {'quant_method': 'modelopt_fp4', 'quant_algo': 'FP8'}}", "", kQ,
       "W8A8 by config.json: quantization_config.quant_algo"},
      {"a method that is none of ModelOpt's",
       "{'quantization_config': {'quant_method': 'my_modelopt', 'quant_algo': 'FP8'}}", "", kQ,
       "Unsupported: config.json: quantization_config: quant_method 'my_modelopt'"},
      // 1.3: the word in its path does not make a module a vision tower's, nor is lm_head exempt
      {"a wrapper's lm_head is a linear too", Flat("'quant_algo': 'W4A16_NVFP4'"), "",
       "language_model.lm_head", "W4A16 by "},
      {"an algorithm that is no text", Flat("'quant_algo': 4"), "", kQ, "CorruptFile"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

struct AlgorithmCase {
  const char* algo;
  QuantScheme scheme;
};

// 1.2, the set of algorithms; 1.5, what they mean in a map.
TEST(Modelopt, KnowsWhatAnAlgorithmDoesToWeightsAndActivations) {
  const AlgorithmCase cases[] = {
      {"NVFP4", kW4A4},
      {"W4A16_NVFP4", kW4A16},
      {"FP8", {kFp8StaticTensor, kFp8StaticTensor}},
      {"FP8_PER_CHANNEL_PER_TOKEN", {kFp8StaticChannel, kFp8DynamicToken}},
      {"fp8_pb_wo", {kFp8StaticBlock128, std::nullopt}},
      {"FP8_BLOCK_SCALES", {kFp8StaticBlock128, kFp8Dynamic128}},
  };
  for (const AlgorithmCase& c : cases) {
    const std::string algo = std::string("'quant_algo': '") + c.algo + "'";
    for (const auto& [config, hf] :
         {std::pair(Flat(algo), std::string()),
          std::pair(std::string("{}"), Legacy(algo + kAllNull)),
          std::pair(Mixed("'m.experts': {" + algo + "}"), std::string())}) {
      auto quant = ReadTexts(config, hf);
      ASSERT_TRUE(quant.ok()) << c.algo << ": " << quant.error().Message();
      auto scheme = quant->SchemeOf(Query("m.experts"));
      ASSERT_TRUE(scheme.ok()) << c.algo;
      EXPECT_EQ(PairName(scheme->scheme), PairName(c.scheme)) << c.algo;
      EXPECT_EQ(scheme->source_format, SourceFormat::kModelopt) << c.algo;
    }
  }
}

TEST(Modelopt, TakesOnlyItsOwnBlocks) {
  const SchemeCase cases[] = {
      // 1.5: two sizes of FP8 blocks in one file; only one size is any kernel's
      {"128 in a layer of FP8 blocks",
       Mixed("'lm_head': {'quant_algo': 'FP8_BLOCK_SCALES', 'group_size': 128}"), "", "lm_head",
       "W8A8 by "},
      {"64 in another",
       Mixed("'lm_head': {'quant_algo': 'FP8_PB_WO', 'group_size': 128}, "
             "'x': {'quant_algo': 'FP8_PB_WO', 'group_size': 64}"),
       "", "lm_head",
       "Unsupported: config.json: quantization_config.quantized_layers['x']: group_size is 64, but "
       "FP8 blocks have 128x128 elements"},
      {"64 everywhere", Flat("'quant_algo': 'FP8_PB_WO', 'group_size': 64"), "", kQ,
       "group_size is 64, but FP8 blocks"},
      // 1.5: upstream takes the first listed NVFP4 layer's for all
      {"32 in the second of two listed layers",
       Mixed("'a': {'quant_algo': 'NVFP4', 'group_size': 16}, "
             "'b': {'quant_algo': 'W4A16_NVFP4', 'group_size': 32}"),
       "", kQ, "quantized_layers['b']: group_size is 32"},
      {"16", Flat("'quant_algo': 'NVFP4', 'group_size': 16"), "", kQ, "W4A4 by "},
      {"null", Flat("'quant_algo': 'NVFP4', 'group_size': null"), "", kQ, "W4A4 by "},
      {"32", Flat("'quant_algo': 'NVFP4', 'group_size': 32"), "", kQ,
       "Unsupported: config.json: quantization_config: group_size is 32, but NVFP4 blocks have 16"},
      {"a string", Flat("'quant_algo': 'NVFP4', 'group_size': '16'"), "", kQ,
       "CorruptFile: config.json: quantization_config: 'group_size' is string, expected"},
      {"32 in a group",
       Flat("'quant_algo': 'NVFP4', 'config_groups': {'g': {'weights': {'group_size': 32}}}"), "",
       kQ, "config_groups['g'].weights: group_size is 32"},
      {"32 in a listed layer", Mixed("'lm_head': {'quant_algo': 'W4A16_NVFP4', 'group_size': 32}"),
       "", "lm_head", "quantized_layers['lm_head']: group_size is 32"},
      {"FP8 has none", Mixed("'lm_head': {'quant_algo': 'FP8', 'group_size': 128}"), "", "lm_head",
       "W8A8 by "},
      {"32 in the older style", "{}",
       Legacy("'quant_algo': 'NVFP4', 'group_size': 32, 'kv_cache_quant_algo': null, "
              "'exclude_modules': []"),
       kQ, "Unsupported: hf_quant_config.json: quantization: group_size is 32"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(Modelopt, TakesGroupsWithoutActivationsForW4A16) {
  const std::string on = "{'weights': {'group_size': 16}, 'input_activations': {'num_bits': 4}}";
  const std::string null = "{'weights': {'group_size': 16}, 'input_activations': null}";
  const std::string absent = "{'weights': {'group_size': 16}}";
  auto groups = [](const std::string& list) {
    return Flat("'quant_algo': 'NVFP4', 'config_groups': {" + list + "}");
  };
  const SchemeCase cases[] = {
      {"all null", groups("'a': " + null + ", 'b': " + absent), "", kQ,
       "W4A16 by config.json: quantization_config.config_groups (input_activations null in every "
       "group)"},
      {"one is enough to stay W4A4", groups("'a': " + null + ", 'b': " + on), "", kQ,
       "W4A4 by config.json: quantization_config.quant_algo"},
      {"no group says nothing", groups(""), "", kQ, "W4A4 by "},
      {"the label W4A16 stands whatever the groups claim",
       Flat("'quant_algo': 'W4A16_NVFP4', 'config_groups': {'a': " + on + "}"), "", kQ,
       "W4A16 by config.json: quantization_config.quant_algo"},
      {"groups that are no object", Flat("'quant_algo': 'NVFP4', 'config_groups': [1]"), "", kQ,
       "CorruptFile: config.json: quantization_config.config_groups: is array"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(Modelopt, ExcludesByWholeComponents) {
  const char* const kGateUp = "model.layers.0.mlp.gate_up_proj";
  const SchemeCase cases[] = {
      {"by name", Excluding("'x', 'lm_head'"), "", "lm_head",
       "BF16 by config.json: quantization_config.exclude_modules[1] = 'lm_head'"},
      {"a wrapper's lm_head", Excluding("'lm_head'"), "", "language_model.lm_head", "BF16 by "},
      {"`mlp.gate` excludes the router", Excluding("'model.layers.0.mlp.gate'"), "",
       "model.layers.0.mlp.gate", "exclude_modules[0]"},
      {"`mlp.gate` leaves gate_up_proj", Excluding("'model.layers.0.mlp.gate'"), "", kGateUp,
       "W4A4 by "},
      {"`mlp.gate` leaves gate_proj", Excluding("'mlp.gate'"), "", "model.layers.0.mlp.gate_proj",
       "W4A4 by "},
      {"`*mlp.gate*` leaves gate_up_proj", Excluding("'*mlp.gate*'"), "", kGateUp, "W4A4 by "},
      {"`*mlp.gate*` excludes the router", Excluding("'*mlp.gate*'"), "", "model.layers.0.mlp.gate",
       "exclude_modules[0]"},
      {"layer 1 is not layer 10", Excluding("'model.layers.1'"), "",
       "model.layers.10.self_attn.q_proj", "W4A4 by "},
      {"layer 1* is not layer 10", Excluding("'model.layers.1*'"), "",
       "model.layers.10.self_attn.q_proj", "W4A4 by "},
      {"a parent excludes all below", Excluding("'model.layers.0.self_attn'"), "", kQ, "BF16 by "},
      {"a path from anywhere", Excluding("'self_attn'"), "", kQ, "BF16 by "},
      {"a star behind a word means the tree", Excluding("'mtp*'"), "", "mtp.layers.0.mlp.experts",
       "BF16 by config.json: quantization_config.exclude_modules[0]"},
      {"`mtp.layers.0*` is rooted", Excluding("'mtp.layers.0*'"), "", kQ, "W4A4 by "},
      {"`mtp.layers.0*` does not name mtp.fc, which is 16-bit anyway", Excluding("'mtp.layers.0*'"),
       "", "mtp.fc", "BF16 by mtp.fc is 16-bit in every format"},
      {"`mtp*` names it", Excluding("'mtp*'"), "", "mtp.fc",
       "BF16 by config.json: quantization_config.exclude_modules[0] = 'mtp*'"},
      // 1.3: an entry that ends in a star behind a dot stays a wildcard
      {"a star behind a dot means all below", Excluding("'model.layers.0.*'"), "", kQ, "BF16 by "},
      {"and no other layer", Excluding("'model.layers.0.*'"), "",
       "model.layers.01.self_attn.q_proj", "W4A4 by "},
      {"`mtp.fc*` and `mtp.layers.0*` together name the module's layer",
       Excluding("'mtp.fc*', 'mtp.layers.0*'"), "", "mtp.layers.0.self_attn.o_proj",
       "BF16 by config.json: quantization_config.exclude_modules[1] = 'mtp.layers.0*'"},
      {"`mtp*` names no layer of the model", Excluding("'mtp*'"), "", kQ, "W4A4 by "},
      {"a fused linear's own name means its parts",
       Excluding("'model.layers.0.self_attn.qkv_proj', 'model.layers.0.mlp.gate_up_proj'"), "", kQ,
       "BF16 by config.json: quantization_config.exclude_modules[0]"},
      {"both halves of it", Excluding("'model.layers.0.mlp.gate_up_proj'"), "",
       "model.layers.0.mlp.up_proj", "BF16 by "},
      {"and no other linear", Excluding("'model.layers.0.self_attn.qkv_proj'"), "",
       "model.layers.0.self_attn.o_proj", "W4A4 by "},
      {"a star crosses dots", Excluding("'model.*.q_proj'"), "", kQ, "BF16 by "},
      {"a wildcard is for the whole name", Excluding("'*.q_pro?'"), "", kQ, "BF16 by "},
      {"case matters", Excluding("'LM_HEAD'"), "", "lm_head", "W4A4 by "},
      {"spelled as in the wrapper", Excluding("'model.language_model.layers.0.self_attn.q_proj'"),
       "", kQ, "BF16 by "},
      {"spelled the other way round", Excluding("'language_model.model.layers.0.self_attn.q_proj'"),
       "", "model.language_model.layers.0.self_attn.q_proj", "BF16 by "},
      {"spelled without the wrapper", Excluding("'model.layers.0.self_attn*'"), "",
       "model.language_model.layers.0.self_attn.q_proj", "BF16 by "},
      // 1.3, 1.5: names in the wrapper and patterns without it, and the other way round
      {"a tree spelled as in the wrapper", Excluding("'model.language_model.layers.0.self_attn*'"),
       "", kQ, "BF16 by "},
      {"a wildcard spelled as in the wrapper",
       Excluding("'model.language_model.layers.?.self_attn.*'"), "", kQ, "BF16 by "},
      {"a wildcard spelled without it", Excluding("'model.layers.?.self_attn.*'"), "",
       "model.language_model.layers.0.self_attn.q_proj", "BF16 by "},
      {"a path behind either", Excluding("'layers.0.self_attn.q_proj'"), "",
       "model.language_model.layers.0.self_attn.q_proj", "BF16 by "},
      {"`ignore` wins over `exclude_modules`",
       Flat("'quant_algo': 'NVFP4', 'ignore': [], 'exclude_modules': ['lm_head']"), "", "lm_head",
       "W4A4 by "},
      {"a list of something else", Excluding("1"), "", kQ,
       "CorruptFile: config.json: quantization_config.exclude_modules[0]: is integer"},
      {"no list", Flat("'quant_algo': 'NVFP4', 'ignore': 'lm_head'"), "", kQ,
       "CorruptFile: config.json: quantization_config.ignore: is string, expected a list"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(Modelopt, KeepsAllExpertsOfALayerTogether) {
  auto each = [](int first, int last, const std::string& projection) {
    std::string list;
    for (int e = first; e <= last; ++e) {
      list += (list.empty() ? "" : ", ") + std::string("'") + kExperts + "." + std::to_string(e) +
              projection + "'";
    }
    return list;
  };
  const SchemeCase cases[] = {
      {"the block", Excluding("'model.layers.0.mlp.experts'"), "", kExperts, "BF16 by "},
      {"all of them by number", Excluding(each(0, 3, "")), "", kExperts, "BF16 by "},
      {"all of them by wildcard", Excluding("'*.experts.*'"), "", kExperts, "BF16 by "},
      {"one alone", Excluding(each(2, 2, "")), "", kExperts,
       "CorruptFile: model.layers.0.mlp.experts.0.gate_proj is W4A4 (config.json: "
       "quantization_config.quant_algo) but model.layers.0.mlp.experts.2.gate_proj is BF16 "
       "(config.json: quantization_config.exclude_modules[0] = 'model.layers.0.mlp.experts.2'): "
       "all experts of a layer must have one scheme"},
      {"all but the last", Excluding(each(0, 2, "")), "", kExperts,
       "but model.layers.0.mlp.experts.3.gate_proj is W4A4"},
      {"one projection alone", Excluding(each(0, 3, ".up_proj")), "", kExperts,
       "but model.layers.0.mlp.experts.0.up_proj is BF16"},
      {"half of the stacked tensors", Excluding("'model.layers.0.mlp.experts.gate_up_proj'"), "",
       kExperts, "but model.layers.0.mlp.experts.0.down_proj is W4A4"},
      {"both stacked tensors",
       Excluding("'model.layers.0.mlp.experts.gate_up_proj', "
                 "'model.layers.0.mlp.experts.down_proj'"),
       "", kExperts, "BF16 by "},
      {"all of them by their other names",
       Excluding("'*.experts.*.w1', '*.experts.*.w2', '*.experts.*.w3'"), "", kExperts, "BF16 by "},
      {"one projection by its other name", Excluding("'*.experts.*.w3'"), "", kExperts,
       "but model.layers.0.mlp.experts.0.up_proj is BF16"},
      {"another layer's", Excluding("'model.layers.1.mlp.experts'"), "", kExperts, "W4A4 by "},
      {"the shared expert is no routed one", Excluding("'model.layers.0.mlp.shared_expert'"), "",
       kExperts, "W4A4 by "},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(Modelopt, ReadsMixedPrecisionFromItsMapAlone) {
  const std::string fp8 = ": {'quant_algo': 'FP8'}", a16 = ": {'quant_algo': 'W4A16_NVFP4'}";
  const std::string shared = "'model.layers.0.mlp.shared_expert.up_proj'" + fp8;
  const SchemeCase cases[] = {
      {"listed", Mixed("'lm_head'" + a16), "", "lm_head",
       "W4A16 by config.json: quantization_config.quantized_layers['lm_head'].quant_algo"},
      {"listed in lower case", Mixed("'lm_head': {'quant_algo': 'nvfp4'}"), "", "lm_head",
       "W4A4 by "},
      {"not listed", Mixed(shared), "", "lm_head",
       "BF16 by config.json: quantization_config.quantized_layers (not listed)"},
      {"experts beside a listed shared expert", Mixed(shared), "", kExperts,
       "BF16 by config.json: quantization_config.quantized_layers (not listed)"},
      // 1.5, step 3: upstream takes any key that begins with the name, or with the parent's
      {"a key below the module", Mixed("'lm_head.weight'" + a16), "", "lm_head", "BF16 by "},
      {"a key above the module", Mixed("'model.layers.0'" + a16), "", kQ, "BF16 by "},
      {"a key that only begins alike", Mixed("'model.layers.0.mlp.experts_x'" + a16), "", kExperts,
       "BF16 by "},
      {"a shared expert beside listed experts", Mixed("'model.layers.0.mlp.experts'" + a16), "",
       "model.layers.0.mlp.shared_expert.up_proj", "BF16 by "},
      // 1.5, steps 1 and 2: the fused linear's key, and its parts'
      {"a fused linear's key", Mixed("'model.layers.0.self_attn.qkv_proj'" + fp8), "", kQ,
       "W8A8 by config.json: quantization_config.quantized_layers['model.layers.0.self_attn."
       "qkv_proj'].quant_algo"},
      {"each expert by its other names",
       Mixed("'m.experts.0.w1'" + fp8 + ", 'm.experts.0.w2'" + fp8 + ", 'm.experts.0.w3'" + fp8),
       "", "m.experts",
       "m.experts.0.gate_proj is W8A8 (config.json: "
       "quantization_config.quantized_layers['m.experts.0.w1'].quant_algo) but "
       "m.experts.1.gate_proj is BF16"},
      {"a list in the wrapper's spelling for its lm_head", Mixed("'language_model.lm_head'" + a16),
       "", "lm_head", "W4A16 by "},
      // 1.5: upstream leaves an algorithm that no linear has at 16 bits
      {"a block codec", Mixed("'lm_head': {'quant_algo': 'iq2_xs'}"), "", "lm_head",
       "Unsupported: config.json: quantization_config.quantized_layers['lm_head']: quant_algo "
       "'IQ2_XS' is not supported"},
      {"one key for all experts", Mixed("'model.layers.0.mlp.experts'" + a16), "", kExperts,
       "W4A16 by config.json: quantization_config.quantized_layers['model.layers.0.mlp.experts']"},
      {"one expert alone", Mixed("'model.layers.0.mlp.experts.1.up_proj'" + a16), "", kExperts,
       "model.layers.0.mlp.experts.0.gate_proj is BF16"},
      {"one expert unlike its block",
       Mixed("'model.layers.0.mlp.experts'" + a16 + ", 'model.layers.0.mlp.experts.3.down_proj'" +
             fp8),
       "", kExperts, "but model.layers.0.mlp.experts.3.down_proj is W8A8"},
      {"spelled as in the wrapper", Mixed("'model.language_model.layers.0.mlp.experts'" + a16), "",
       kExperts, "W4A16 by "},
      {"spelled the other way round", Mixed("'language_model.model.layers.0.mlp.experts'" + a16),
       "", "model.language_model.layers.0.mlp.experts", "W4A16 by "},
      {"a wrapper's lm_head", Mixed("'lm_head'" + a16), "", "language_model.lm_head", "W4A16 by "},
      {"excluded all the same",
       Flat("'quant_algo': 'MIXED_PRECISION', 'ignore': ['lm_head'], 'quantized_layers': "
            "{'lm_head'" +
            a16 + "}"),
       "", "lm_head", "BF16 by config.json: quantization_config.ignore[0]"},
      {"groups that contradict the map",
       Flat("'quant_algo': 'MIXED_PRECISION', 'config_groups': {'g': {'targets': ['lm_head'], "
            "'input_activations': {'num_bits': 4, 'group_size': 99}}}, 'quantized_layers': "
            "{'lm_head'" +
            a16 + "}"),
       "", "lm_head", "W4A16 by config.json: quantization_config.quantized_layers"},
      {"a router that is listed", Mixed("'model.layers.0.mlp.gate'" + fp8), "",
       "model.layers.0.mlp.gate", "W8A8 by "},
      {"an unknown algorithm", Mixed("'lm_head': {'quant_algo': 'NVFP3'}"), "", kQ,
       "Unsupported: config.json: quantization_config.quantized_layers['lm_head']: quant_algo "
       "'NVFP3' is not supported, expected NVFP4, W4A16_NVFP4, FP8, FP8_PER_CHANNEL_PER_TOKEN, "
       "FP8_PB_WO or FP8_BLOCK_SCALES"},
      {"no algorithm", Mixed("'lm_head': {}"), "", kQ, "'quant_algo' is missing"},
      {"an empty map", Mixed(""), "", kQ,
       "CorruptFile: config.json: quantization_config: quant_algo MIXED_PRECISION needs a "
       "non-empty map 'quantized_layers', found an empty one"},
      {"no map", Flat("'quant_algo': 'MIXED_PRECISION'"), "", kQ, "found none"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(Modelopt, ReadsTheOlderFile) {
  const std::string mixed = Legacy(
      "'quant_algo': 'MIXED_PRECISION', 'quantized_layers': {'lm_head': {'quant_algo': "
      "'FP8'}}");
  const SchemeCase cases[] = {
      {"NVFP4", "{}", Legacy("'quant_algo': 'NVFP4'" + kNulls), kQ,
       "W4A4 by hf_quant_config.json: quantization.quant_algo"},
      {"W4A16_NVFP4, which upstream refuses here", "{}",
       Legacy("'quant_algo': 'W4A16_NVFP4'" + kNulls), kQ,
       "W4A16 by hf_quant_config.json: quantization.quant_algo"},
      {"its exclude list", "{}",
       Legacy("'quant_algo': 'NVFP4', 'group_size': 16, 'kv_cache_quant_algo': null, "
              "'exclude_modules': ['a', 'b', 'c', 'lm_head']"),
       "lm_head", "BF16 by hf_quant_config.json: quantization.exclude_modules[3] = 'lm_head'"},
      {"a required field missing", "{}", Legacy("'quant_algo': 'NVFP4', 'group_size': 16"), kQ,
       "CorruptFile: hf_quant_config.json: quantization: 'kv_cache_quant_algo' is missing"},
      {"another", "{}", Legacy("'quant_algo': 'NVFP4', 'kv_cache_quant_algo': null"), kQ,
       "'group_size' is missing"},
      {"the third", "{}",
       Legacy("'quant_algo': 'W4A16_NVFP4', 'group_size': 16, 'kv_cache_quant_algo': null"), kQ,
       "'exclude_modules' is missing; an NVFP4 file of this style states group_size"},
      // 1.2: "Unknown ModelOpt quant algo" upstream
      {"an unknown algorithm", "{}", Legacy("'quant_algo': 'INT4_AWQ'"), kQ,
       "Unsupported: hf_quant_config.json: quantization: quant_algo 'INT4_AWQ' is not supported"},
      {"a missing one", "{}", Legacy("'group_size': 16"), kQ,
       "CorruptFile: hf_quant_config.json: quantization: 'quant_algo' is missing"},
      {"FP8 requires none", "{}", Legacy("'quant_algo': 'FP8'"), kQ, "W8A8 by "},
      {"mixed", "{}", mixed, "lm_head",
       "W8A8 by hf_quant_config.json: quantization.quantized_layers['lm_head'].quant_algo"},
      {"another producer", "{}",
       "{'producer': {'name': 'autoquant'}, 'quantization': {'quant_algo': 'FP8'}}", kQ,
       "Unsupported: hf_quant_config.json: producer.name is 'autoquant', expected 'modelopt'"},
      {"no producer", "{}", "{'quantization': {'quant_algo': 'FP8'}}", kQ,
       "producer.name is missing"},
      {"no quantization", "{}", "{'producer': {'name': 'modelopt'}}", kQ,
       "CorruptFile: hf_quant_config.json: 'quantization' is missing"},
      {"the older style inside config.json",
       "{'quantization_config': {'quant_method': 'modelopt', 'producer': {'name': 'modelopt'}, "
       "'quantization': {'quant_algo': 'FP8'}}}",
       "", kQ, "W8A8 by config.json: quantization_config.quantization.quant_algo"},
      {"config.json wins", Flat("'quant_algo': 'W4A16_NVFP4'"),
       Legacy("'quant_algo': 'NVFP4'" + kNulls), kQ,
       "W4A16 by config.json: quantization_config.quant_algo"},
      {"but not without the map of a mixed one", Flat("'quant_algo': 'MIXED_PRECISION'"), mixed,
       "lm_head", "W8A8 by hf_quant_config.json"},
      {"nor without its producer", Flat("'quant_algo': 'MIXED_PRECISION'"),
       "{'producer': {'name': 'x'}, 'quantization': {'quant_algo': 'MIXED_PRECISION', "
       "'quantized_layers': {'lm_head': {'quant_algo': 'FP8'}}}}",
       "lm_head", "producer.name is 'x', expected 'modelopt'"},
      {"nor does another label fill in", Flat("'quant_algo': 'MIXED_PRECISION'"),
       Legacy("'quant_algo': 'NVFP4'" + kNulls), kQ, "CorruptFile: config.json"},
  };
  for (const SchemeCase& c : cases) ExpectSaid(c);
}

TEST(Modelopt, WarnsWhenItsTwoFilesDisagree) {
  const std::string flat = Flat("'quant_algo': 'W4A16_NVFP4'");
  auto quant = ReadTexts(flat, Legacy("'quant_algo': 'NVFP4'" + kNulls));
  ASSERT_TRUE(quant.ok());
  ASSERT_EQ(quant->warnings().size(), 1u);
  EXPECT_EQ(quant->warnings()[0],
            "config.json: quantization_config.quant_algo is \"W4A16_NVFP4\", but "
            "hf_quant_config.json says \"NVFP4\": the former is used");
  auto same = ReadTexts(flat, Legacy("'quant_algo': 'w4a16_nvfp4'" + kNulls));
  ASSERT_TRUE(same.ok());
  EXPECT_TRUE(same->warnings().empty());
}

struct KvCase {
  const char* what;
  std::string config, hf;
  const char* says;
};

TEST(Modelopt, ReadsTheKvCacheScheme) {
  const std::string fp8 = Legacy("'quant_algo': 'NVFP4', 'kv_cache_quant_algo': 'FP8'");
  auto with = [](const std::string& scheme) {
    return Flat("'quant_algo': 'NVFP4', 'kv_cache_scheme': " + scheme);
  };
  const KvCase cases[] = {
      {"none", Flat("'quant_algo': 'NVFP4'"), "", "bf16 by "},
      {"null", with("null"), "", "bf16 by "},
      {"FP8", with("{'type': 'float', 'num_bits': 8, 'dynamic': false}"), "",
       "fp8 by config.json: quantization_config.kv_cache_scheme"},
      {"only in the older file", Flat("'quant_algo': 'NVFP4'"), fp8,
       "fp8 by hf_quant_config.json: quantization.kv_cache_quant_algo"},
      {"as a word in config.json", Flat("'quant_algo': 'NVFP4', 'kv_cache_quant_algo': 'fp8'"), "",
       "fp8 by config.json: quantization_config.kv_cache_quant_algo"},
      // 1.5: upstream reads one file, and loses it
      {"only in the older file, beside a map", Mixed("'lm_head': {'quant_algo': 'FP8'}"),
       Legacy("'quant_algo': 'MIXED_PRECISION', 'kv_cache_quant_algo': 'FP8'"),
       "fp8 by hf_quant_config.json: quantization.kv_cache_quant_algo"},
      {"only in config.json, whose map is in the older file",
       Flat("'quant_algo': 'MIXED_PRECISION', 'kv_cache_scheme': {'type': 'float', 'num_bits': 8}"),
       Legacy("'quant_algo': 'MIXED_PRECISION', 'quantized_layers': {'a': {'quant_algo': 'FP8'}}"),
       "fp8 by config.json: quantization_config.kv_cache_scheme"},
      {"dynamic", with("{'type': 'float', 'num_bits': 8, 'dynamic': true}"), "",
       "kv_cache_scheme: a KV cache with \"dynamic\" true is not supported, expected false"},
      {"NVFP4 as a word", "{}", Legacy("'quant_algo': 'FP8', 'kv_cache_quant_algo': 'NVFP4'"),
       "KV cache scheme \"NVFP4\" is not supported, expected FP8 or null"},
      // 1.2: upstream takes this for no quantization
      {"INT8 as a scheme", with("{'type': 'int', 'num_bits': 8}"), "",
       "a KV cache of type \"int\" with 8 bits is not supported"},
      {"NVFP4", with("{'type': 'float', 'num_bits': 4}"), "",
       "a KV cache of type \"float\" with 4 bits is not supported, expected float with 8"},
      {"INT8", "{}", Legacy("'quant_algo': 'FP8', 'kv_cache_quant_algo': 'INT8'"),
       "KV cache scheme \"INT8\" is not supported, expected FP8 or null"},
      {"no object", with("'FP8'"), "", "is string, expected object"},
  };
  for (const KvCase& c : cases) {
    auto quant = ReadTexts(c.config, c.hf);
    std::string text = quant ? "" : quant.error().Message();
    if (quant) {
      text = quant->kv_cache() == KvCacheScheme::kFp8 ? "fp8 by " : "bf16 by ";
      text += quant->kv_cache_evidence();
    }
    EXPECT_NE(text.find(c.says), std::string::npos) << c.what << ": " << text;
  }
}

TEST(Modelopt, BoundsWhatHostilePatternsCost) {
  std::string many = "'a?'";
  for (int i = 0; i < 1024; ++i) many += ", 'a?'";
  auto quant = ReadTexts(Excluding(many));
  ASSERT_FALSE(quant.ok());
  EXPECT_EQ(quant.error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace nibble::scheme
