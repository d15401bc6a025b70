#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "scheme/test_schemes.h"

// Configurations as published checkpoints of the hybrid family have them, reduced to one layer of
// each kind: layer 0 with DeltaNet, layer 3 with attention.

namespace nibble::scheme {
namespace {

struct Expected {
  const char* module;  // behind the model's prefix; with "lm_head" or "mtp." from the root
  const char* says;
};

/// Asks for every module under both prefixes that checkpoints of this family have.
void ExpectSchemes(const std::string& config, const std::string& hf,
                   const std::vector<Expected>& expected) {
  for (const std::string prefix : {"model.language_model.", "model."}) {
    for (const Expected& e : expected) {
      const std::string module = e.module;
      const bool from_root = module == "lm_head" || module.starts_with("mtp.");
      const std::string name = (from_root ? "" : prefix) + module;
      ExpectSaid({name.c_str(), config, hf, name.c_str(), e.says});
    }
  }
}

std::string Listed(const std::vector<std::pair<std::string, std::string>>& layers) {
  std::string text;
  for (const auto& [name, algo] : layers) {
    text += (text.empty() ? "" : ", ") + std::string("'") + name + "': {'quant_algo': '" + algo +
            (algo.find("NVFP4") != std::string::npos ? "', 'group_size': 16}" : "'}");
  }
  return text;
}

// nvidia/Qwen3.6-35B-A3B-NVFP4: its group_1 claims activations of 4 bits for what quantized_layers
// calls W4A16_NVFP4; the KV cache's scheme stands in the older file alone.
const std::string kPrefix = "model.language_model.layers.";
const std::string kNvidiaLayers =
    Listed({{kPrefix + "0.linear_attn.in_proj_qkv", "FP8"},
            {kPrefix + "0.linear_attn.in_proj_z", "FP8"},
            {kPrefix + "0.linear_attn.out_proj", "FP8"},
            {kPrefix + "0.mlp.experts", "W4A16_NVFP4"},
            {kPrefix + "0.mlp.shared_expert.gate_proj", "W4A16_NVFP4"},
            {kPrefix + "0.mlp.shared_expert.up_proj", "W4A16_NVFP4"},
            {kPrefix + "0.mlp.shared_expert.down_proj", "W4A16_NVFP4"},
            {kPrefix + "3.self_attn.q_proj", "FP8"},
            {kPrefix + "3.self_attn.k_proj", "FP8"},
            {kPrefix + "3.self_attn.v_proj", "FP8"},
            {kPrefix + "3.self_attn.o_proj", "FP8"},
            {kPrefix + "3.mlp.experts", "W4A16_NVFP4"},
            {"lm_head", "W4A16_NVFP4"}});
const std::string kNvidiaConfig =
    "{'model_type': 'qwen3_5_moe', 'quantization_config': {'config_groups': {'group_0': "
    "{'input_activations': {'dynamic': false, 'num_bits': 8, 'type': 'float'}, 'weights': "
    "{'dynamic': false, 'num_bits': 8, 'type': 'float'}, 'targets': ['" +
    kPrefix +
    "3.self_attn.q_proj']}, 'group_1': {'input_activations': {'dynamic': false, 'num_bits': 4, "
    "'type': 'float', 'group_size': 16}, 'weights': {'dynamic': false, 'num_bits': 4, 'type': "
    "'float', 'group_size': 16}, 'targets': ['lm_head', '" +
    kPrefix + "0.mlp.experts']}}, 'quantized_layers': {" + kNvidiaLayers + "}, 'ignore': ['" +
    kPrefix + "0.linear_attn.conv1d', '" + kPrefix + "0.linear_attn.in_proj_a', '" + kPrefix +
    "0.linear_attn.in_proj_b', '" + kPrefix + "0.mlp.gate', '" + kPrefix +
    "0.mlp.shared_expert_gate', 'model.visual*', 'mtp*'], 'quant_algo': 'MIXED_PRECISION', "
    "'producer': {'name': 'modelopt', 'version': '0.43.0'}, 'quant_method': 'modelopt'}}";
const std::string kNvidiaHf =
    "{'producer': {'name': 'modelopt', 'version': '0.43.0'}, 'quantization': {'quant_algo': "
    "'MIXED_PRECISION', 'kv_cache_quant_algo': 'FP8', 'quantized_layers': {" +
    kNvidiaLayers + "}, 'exclude_modules': ['mtp*', 'model.visual*']}}";

const std::vector<Expected> kNvidiaSchemes = {
    {"layers.0.linear_attn.in_proj_qkv", "W8A8 by "},
    {"layers.0.linear_attn.in_proj_z", "W8A8 by "},
    {"layers.0.linear_attn.out_proj", "W8A8 by "},
    {"layers.0.linear_attn.in_proj_a", "BF16 by "},
    {"layers.0.linear_attn.in_proj_b", "BF16 by "},
    {"layers.0.linear_attn.norm", "BF16 by "},
    {"layers.0.mlp.experts",
     "quantized_layers['model.language_model.layers.0.mlp.experts'].quant_algo"},
    {"layers.0.mlp.experts", "W4A16 by "},
    {"layers.0.mlp.shared_expert.gate_proj", "W4A16 by "},
    {"layers.0.mlp.shared_expert.up_proj", "W4A16 by "},
    {"layers.0.mlp.shared_expert.down_proj", "W4A16 by "},
    {"layers.0.mlp.shared_expert_gate", "BF16 by "},
    {"layers.0.mlp.gate", "BF16 by "},
    {"layers.3.self_attn.q_proj", "W8A8 by "},
    {"layers.3.self_attn.k_proj", "W8A8 by "},
    {"layers.3.self_attn.v_proj", "W8A8 by "},
    {"layers.3.self_attn.o_proj", "W8A8 by "},
    {"layers.3.mlp.experts", "W4A16 by "},
    {"layers.3.mlp.shared_expert.up_proj", "quantized_layers (not listed)"},
    {"embed_tokens", "BF16 by "},
    {"lm_head", "W4A16 by "},
    {"mtp.fc", "BF16 by "},
    {"mtp.layers.0.self_attn.q_proj", "BF16 by "},
    {"mtp.layers.0.mlp.experts", "BF16 by "},
    {"mtp.layers.0.mlp.shared_expert.up_proj", "BF16 by "},
};

TEST(RealConfigs, ReadsNvidiasMixedFile) {
  ExpectSchemes(kNvidiaConfig, kNvidiaHf, kNvidiaSchemes);
  auto quant = ReadTexts(kNvidiaConfig, kNvidiaHf);
  ASSERT_TRUE(quant.ok()) << quant.error().Message();
  EXPECT_EQ(quant->source_format(), SourceFormat::kModelopt);
  EXPECT_EQ(quant->kv_cache(), KvCacheScheme::kFp8);
  EXPECT_EQ(quant->kv_cache_evidence(), "hf_quant_config.json: quantization.kv_cache_quant_algo");
  EXPECT_TRUE(quant->warnings().empty());
  auto alone = ReadTexts(kNvidiaConfig);
  ASSERT_TRUE(alone.ok()) << alone.error().Message();
  EXPECT_EQ(alone->kv_cache(), KvCacheScheme::kBf16);
}

TEST(RealConfigs, ReadsTheSameOfItsOlderFileAlone) {
  ExpectSchemes("{}", kNvidiaHf, kNvidiaSchemes);
}

// ModelOpt's W4A16_NVFP4 of the whole text model: the experts' names stand nowhere.
TEST(RealConfigs, ReadsModeloptsWeightOnlyFile) {
  const std::string lists =
      "['lm_head', 'model.language_model.embed_tokens', "
      "'model.language_model.layers.0.linear_attn.conv1d', "
      "'model.language_model.layers.0.linear_attn.in_proj_a', "
      "'model.language_model.layers.0.linear_attn.in_proj_b', "
      "'model.language_model.layers.0.mlp.gate', "
      "'model.language_model.layers.0.mlp.shared_expert_gate', 'model.visual*', 'mtp.fc*', "
      "'mtp.layers.0*']";
  const std::string config =
      "{'quantization_config': {'config_groups': {'group_0': {'weights': {'dynamic': false, "
      "'num_bits': 4, 'type': 'float', 'group_size': 16}, 'targets': ['Linear']}}, 'ignore': " +
      lists +
      ", 'quant_algo': 'W4A16_NVFP4', 'producer': {'name': 'modelopt'}, 'quant_method': "
      "'modelopt'}}";
  const std::string hf =
      "{'producer': {'name': 'modelopt'}, 'quantization': {'quant_algo': 'W4A16_NVFP4', "
      "'kv_cache_quant_algo': null, 'group_size': 16, 'exclude_modules': " +
      lists + "}}";
  const std::vector<Expected> schemes = {
      {"layers.0.linear_attn.in_proj_qkv", "W4A16 by "},
      {"layers.0.linear_attn.in_proj_z", "W4A16 by "},
      {"layers.0.linear_attn.in_proj_a", "BF16 by "},
      {"layers.0.linear_attn.out_proj", "W4A16 by "},
      {"layers.0.mlp.gate", "BF16 by "},
      {"layers.0.mlp.shared_expert.gate_proj", "W4A16 by "},
      {"layers.0.mlp.shared_expert_gate", "BF16 by "},
      {"layers.0.mlp.experts", "W4A16 by "},
      {"layers.3.self_attn.q_proj", "W4A16 by "},
      {"lm_head", "BF16 by "},
      {"mtp.fc", "BF16 by "},
      {"mtp.layers.0.mlp.experts", "BF16 by "},
      {"mtp.layers.0.self_attn.k_proj", "BF16 by "},
  };
  ExpectSchemes(config, hf, schemes);
  ExpectSchemes("{}", hf, schemes);
}

// llm-compressor's NVFP4A16: a class as target, every exception by name, one by expression.
TEST(RealConfigs, ReadsLlmCompressorsWeightOnlyFile) {
  const std::string config =
      "{'quantization_config': {'config_groups': {'group_0': {'format': 'nvfp4-pack-quantized', "
      "'input_activations': null, 'output_activations': null, 'targets': ['Linear'], 'weights': "
      "{'actorder': null, 'block_structure': null, 'dynamic': false, 'group_size': 16, 'num_bits': "
      "4, 'observer': 'memoryless_minmax', 'observer_kwargs': {}, 'scale_dtype': "
      "'torch.float8_e4m3fn', 'strategy': 'tensor_group', 'symmetric': true, 'type': 'float', "
      "'zp_dtype': null}}}, 'format': 'nvfp4-pack-quantized', 'global_compression_ratio': null, "
      "'ignore': ['model.visual.blocks.0.attn.qkv', "
      "'model.language_model.layers.0.linear_attn.in_proj_b', "
      "'model.language_model.layers.0.linear_attn.in_proj_a', "
      "'model.language_model.layers.0.mlp.gate', "
      "'model.language_model.layers.0.mlp.shared_expert_gate', 'lm_head', 're:^mtp.*'], "
      "'kv_cache_scheme': null, 'quant_method': 'compressed-tensors', 'quantization_status': "
      "'compressed', 'sparsity_config': {}, 'transform_config': {}, 'version': '0.19.0'}}";
  ExpectSchemes(config, "",
                {{"layers.0.linear_attn.in_proj_qkv", "W4A16 by "},
                 {"layers.0.linear_attn.in_proj_a", "BF16 by "},
                 {"layers.0.linear_attn.out_proj", "W4A16 by "},
                 {"layers.0.mlp.gate", "BF16 by "},
                 {"layers.0.mlp.shared_expert.up_proj", "W4A16 by "},
                 {"layers.0.mlp.shared_expert_gate", "BF16 by "},
                 {"layers.0.mlp.experts", "W4A16 by "},
                 {"layers.3.self_attn.v_proj", "W4A16 by "},
                 {"lm_head", "BF16 by "},
                 {"mtp.fc", "BF16 by config.json: quantization_config.ignore[6] = 're:^mtp.*'"},
                 {"mtp.layers.0.mlp.experts", "BF16 by "},
                 {"mtp.layers.0.mlp.shared_expert.down_proj", "BF16 by "}});
}

}  // namespace
}  // namespace nibble::scheme
