#include "checkpoint/model_config.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble::checkpoint {
namespace {

/// Qwen3-30B-A3B as its config.json of 2025 has it (transformers 4 spelling).
constexpr char kQwen3Moe30b[] = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
  "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": true,
  "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
  "num_key_value_heads": 4, "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
  "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})";

Json Base() { return *Json::Parse(kQwen3Moe30b); }

/// Sets the members of `changes`, and takes those away that it sets to "-".
void Merge(Json& into, const std::string& changes) {
  const Json parsed = *Json::Parse(changes);
  for (const auto& [key, value] : parsed.object()) {
    if (value == Json("-")) {
      std::erase_if(into.object(), [&, k = std::string_view(key)](const auto& member) {
        return member.first == k;
      });
    } else {
      into.Set(key, value);
    }
  }
}

Json With(const std::string& changes) {
  Json json = Base();
  Merge(json, changes);
  return json;
}

TEST(ModelConfig, ReadsThePublishedConfig) {
  auto config = ParseModelConfig(Base(), nullptr);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_EQ(config->family, ModelFamily::kQwen3Moe);
  EXPECT_EQ(config->architecture, "Qwen3MoeForCausalLM");
  EXPECT_EQ(config->model_type, "qwen3_moe");
  EXPECT_EQ(config->n_layers, 48);
  EXPECT_EQ(config->hidden, 2048);
  EXPECT_EQ(config->n_heads, 32);
  EXPECT_EQ(config->n_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->vocab, 151936);
  EXPECT_EQ(config->intermediate, 6144);
  EXPECT_EQ(config->moe_intermediate, 768);
  EXPECT_EQ(config->n_experts, 128);
  EXPECT_EQ(config->top_k, 8);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->rms_eps, 1e-6f);
  EXPECT_EQ(config->rope_theta, 1e6);
  EXPECT_EQ(config->max_positions, 40960);
  EXPECT_FALSE(config->tie_embeddings);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_EQ(config->layer_is_moe, std::vector<bool>(48, true));
  EXPECT_EQ(config->eos_ids, std::vector<int32_t>{151645});
  EXPECT_EQ(config->bos_id, 151643);
  EXPECT_EQ(config->sampling, SamplingDefaults{});
}

TEST(ModelConfig, ReadsTheSpellingsOfTransformers5) {
  auto config = ParseModelConfig(
      With(R"({"num_experts":"-","num_local_experts":64,"rope_theta":"-","rope_scaling":"-",
      "rope_parameters":{"rope_theta":10000000.0,"rope_type":"default"}})"),
      nullptr);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_EQ(config->n_experts, 64);
  EXPECT_EQ(config->rope_theta, 1e7);
}

TEST(ModelConfig, ReadsSizesFromTheTextConfigOfAWrapper) {
  const Json wrapper = Json(Json::Object{{"model_type", "qwen3_moe"},
                                         {"hidden_size", 7},
                                         {"text_config", With(R"({"hidden_size":4096})")}});
  auto config = ParseModelConfig(wrapper, nullptr);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_EQ(config->hidden, 4096);
}

TEST(ModelConfig, HasTheDefaultsOfTheClassForSwitches) {
  auto config = ParseModelConfig(
      With(
          R"({"norm_topk_prob":"-","decoder_sparse_step":"-","mlp_only_layers":"-","attention_bias":"-","hidden_act":"-",
           "tie_word_embeddings":"-","use_sliding_window":"-","rms_norm_eps":"-","head_dim":"-","eos_token_id":null,
           "bos_token_id":"-","architectures":"-","sliding_window":4096})"),
      nullptr);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_FALSE(config->norm_topk_prob);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_FALSE(config->tie_embeddings);
  EXPECT_EQ(config->rms_eps, 1e-6f);
  EXPECT_EQ(config->head_dim, 64);  // 2048 / 32
  EXPECT_EQ(config->layer_is_moe, std::vector<bool>(48, true));
  EXPECT_TRUE(config->eos_ids.empty());
  EXPECT_FALSE(config->bos_id.has_value());
}

TEST(ModelConfig, KnowsWhichLayersAreMoe) {
  const struct {
    const char* changes;
    std::vector<bool> is_moe;
    int n_experts;
  } kCases[] = {
      {R"({"decoder_sparse_step":1})", {true, true, true, true, true, true}, 128},
      {R"({"decoder_sparse_step":2})", {false, true, false, true, false, true}, 128},
      {R"({"decoder_sparse_step":3})", {false, false, true, false, false, true}, 128},
      {R"({"mlp_only_layers":[0,5,0]})", {false, true, true, true, true, false}, 128},
      {R"({"decoder_sparse_step":2,"mlp_only_layers":[1]})",
       {false, false, false, true, false, true},
       128},
      {R"({"num_experts":0})", {false, false, false, false, false, false}, 0},
      {R"({"decoder_sparse_step":7,"num_experts_per_tok":"-","moe_intermediate_size":"-"})",
       {false, false, false, false, false, false},
       0},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.changes);
    Json json = With(c.changes);
    json.Set("num_hidden_layers", 6);
    auto config = ParseModelConfig(json, nullptr);
    ASSERT_TRUE(config) << config.error().Message();
    EXPECT_EQ(config->layer_is_moe, c.is_moe);
    EXPECT_EQ(config->n_experts, c.n_experts);
    EXPECT_EQ(config->top_k, c.n_experts == 0 ? 0 : 8);
  }
}

TEST(ModelConfig, RefusesByNameWhatItCannotRun) {
  const struct {
    const char* changes;
    const char* what;
  } kCases[] = {
      {R"({"model_type":"llama"})", "\"llama\""},
      {R"({"model_type":"qwen3_next","architectures":["Qwen3NextForCausalLM"]})", "\"qwen3_next\""},
      {R"({"architectures":["Qwen3_5MoeForConditionalGeneration"]})",
       "architecture \"Qwen3_5MoeForConditionalGeneration\""},
      {R"({"architectures":["Qwen3MoeForSequenceClassification"]})",
       "Qwen3MoeForSequenceClassification"},
      {R"({"hidden_act":"gelu"})", "hidden_act \"gelu\""},
      {R"({"use_sliding_window":true})", "use_sliding_window"},
      {R"({"num_hidden_layers":2,"layer_types":["full_attention","sliding_attention"]})",
       "\"sliding_attention\""},
      {R"({"num_hidden_layers":1,"layer_types":["linear_attention"]})", "\"linear_attention\""},
      {R"({"rope_scaling":{"type":"yarn","factor":4.0}})", "\"yarn\""},
      {R"({"rope_scaling":{"rope_type":"linear","factor":2.0}})", "\"linear\""},
      {R"({"rope_scaling":{"factor":2.0}})", "rope_scaling with a factor"},
      {R"({"rope_parameters":{"rope_type":"dynamic","rope_theta":1000000.0}})", "\"dynamic\""},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.changes);
    auto config = ParseModelConfig(With(c.changes), nullptr);
    ASSERT_FALSE(config);
    EXPECT_EQ(config.error().code, ErrorCode::kUnsupported);
    EXPECT_NE(config.error().what.find(c.what), std::string::npos) << config.error().Message();
    EXPECT_NE(config.error().hint.find("known"), std::string::npos) << config.error().Message();
    EXPECT_EQ(config.error().where, "config.json");
  }
}

TEST(ModelConfig, TakesTheHarmlessOnesOfThoseOptions) {
  for (const char* changes :
       {R"({"rope_scaling":{"rope_type":"default"}})",
        R"({"num_hidden_layers":1,"layer_types":["full_attention"]})",
        R"({"rope_parameters":{"rope_theta":1000000.0,"rope_type":"default"}})",
        R"({"partial_rotary_factor":1.0})", R"({"use_sliding_window":false,"sliding_window":128})",
        R"({"num_local_experts":128})", R"({"num_experts_per_tok":128})"}) {
    auto config = ParseModelConfig(With(changes), nullptr);
    EXPECT_TRUE(config) << changes << ": " << config.error().Message();
  }
}

TEST(ModelConfig, RefusesWhatCannotBeTrue) {
  const struct {
    const char* changes;
    const char* what;
  } kCases[] = {
      {R"({"model_type":"-"})", "\"model_type\" is missing"},
      {R"({"model_type":3})", "\"model_type\" is integer 3, expected a string"},
      {R"({"architectures":[]})", "architectures"},
      {R"({"architectures":"Qwen3MoeForCausalLM"})", "architectures"},
      {R"({"hidden_size":"-"})", "\"hidden_size\" is missing"},
      {R"({"hidden_size":0})", "\"hidden_size\" is integer 0"},
      {R"({"hidden_size":-2048})", "\"hidden_size\""},
      {R"({"hidden_size":1048577})", "\"hidden_size\""},
      {R"({"hidden_size":2048.0})", "\"hidden_size\" is number 2048.0"},
      {R"({"hidden_size":"2048"})", "\"hidden_size\" is string"},
      {R"({"hidden_size":true})", "\"hidden_size\" is bool"},
      {R"({"hidden_size":[2048]})", "\"hidden_size\" is array"},
      {R"({"num_hidden_layers":0})", "\"num_hidden_layers\""},
      {R"({"num_hidden_layers":4097})", "\"num_hidden_layers\""},
      {R"({"num_hidden_layers":9223372036854775808})", "\"num_hidden_layers\""},
      {R"({"num_attention_heads":0})", "\"num_attention_heads\""},
      {R"({"num_key_value_heads":0})", "\"num_key_value_heads\""},
      {R"({"num_key_value_heads":"-"})", "\"num_key_value_heads\" is missing"},
      {R"({"num_key_value_heads":5})", "no multiple of num_key_value_heads 5"},
      {R"({"num_key_value_heads":64})", "no multiple of num_key_value_heads 64"},
      {R"({"head_dim":127})", "head_dim 127 is odd"},
      {R"({"head_dim":0})", "\"head_dim\""},
      {R"({"head_dim":"-","num_attention_heads":24,"num_key_value_heads":4})", "no head_dim"},
      {R"({"vocab_size":0,"eos_token_id":null,"bos_token_id":null})", "\"vocab_size\""},
      {R"({"vocab_size":16777217})", "\"vocab_size\""},
      {R"({"moe_intermediate_size":"-"})", "\"moe_intermediate_size\" is missing"},
      {R"({"moe_intermediate_size":0})", "\"moe_intermediate_size\""},
      {R"({"intermediate_size":"-","decoder_sparse_step":2})", "\"intermediate_size\" is missing"},
      {R"({"num_experts":"-"})", "\"num_experts\" is missing"},
      {R"({"num_experts":65537})", "\"num_experts\""},
      {R"({"num_local_experts":64})", "num_experts is 128, num_local_experts 64"},
      {R"({"num_experts_per_tok":129})", "num_experts_per_tok 129 is more than num_experts 128"},
      {R"({"num_experts_per_tok":0})", "\"num_experts_per_tok\""},
      {R"({"decoder_sparse_step":0})", "\"decoder_sparse_step\""},
      {R"({"mlp_only_layers":[48]})", "mlp_only_layers"},
      {R"({"mlp_only_layers":[-1]})", "mlp_only_layers"},
      {R"({"mlp_only_layers":["0"]})", "mlp_only_layers"},
      {R"({"mlp_only_layers":3})", "mlp_only_layers"},
      {R"({"norm_topk_prob":1})", "\"norm_topk_prob\" is integer 1, expected true or false"},
      {R"({"rms_norm_eps":0})", "\"rms_norm_eps\""},
      {R"({"rms_norm_eps":-1e-6})", "\"rms_norm_eps\""},
      {R"({"rms_norm_eps":"1e-6"})", "\"rms_norm_eps\""},
      {R"({"rope_theta":"-"})", "\"rope_theta\" is missing"},
      {R"({"rope_theta":0.5})", "\"rope_theta\""},
      {R"({"rope_theta":1e300})", "\"rope_theta\""},
      {R"({"rope_parameters":{"rope_theta":10000.0}})", "\"rope_theta\" is 1000000 and 10000"},
      {R"({"rope_parameters":[]})", "\"rope_parameters\" is array"},
      {R"({"rope_scaling":"default"})", "\"rope_scaling\" is string"},
      {R"({"max_position_embeddings":0})", "\"max_position_embeddings\""},
      {R"({"layer_types":"full_attention"})", "layer_types"},
      {R"({"layer_types":["full_attention"]})", "\"layer_types\" has 1 entries"},
      {R"({"partial_rotary_factor":0.0})", "\"partial_rotary_factor\" is 0"},
      {R"({"partial_rotary_factor":1.5})", "\"partial_rotary_factor\" is 1.5"},
      {R"({"partial_rotary_factor":0.3})", "partial_rotary_factor 0.3 of head_dim 128"},
      {R"({"partial_rotary_factor":0.5,"rope_parameters":{"partial_rotary_factor":0.25}})",
       "\"partial_rotary_factor\" is 0.5 and 0.25"},
      {R"({"eos_token_id":151936})", "\"eos_token_id\" is \"151936\""},
      {R"({"eos_token_id":-1})", "\"eos_token_id\""},
      {R"({"eos_token_id":[1,"2"]})", "\"eos_token_id\""},
      {R"({"eos_token_id":{}})", "\"eos_token_id\""},
      {R"({"tie_word_embeddings":"false"})", "\"tie_word_embeddings\""},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.changes);
    auto config = ParseModelConfig(With(c.changes), nullptr);
    ASSERT_FALSE(config);
    EXPECT_EQ(config.error().code, ErrorCode::kCorruptFile);
    EXPECT_NE(config.error().what.find(c.what), std::string::npos) << config.error().Message();
  }
}

TEST(ModelConfig, GenerationConfigGivesStopIdsAndSampling) {
  const Json generation =
      *Json::Parse(R"({"bos_token_id":151643,"do_sample":true,"eos_token_id":[151645,151643],
      "pad_token_id":151643,"temperature":0.6,"top_k":20,"top_p":0.95,"transformers_version":"4.51.0"})");
  auto config = ParseModelConfig(Base(), &generation);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_EQ(config->eos_ids, (std::vector<int32_t>{151645, 151643}));
  const SamplingDefaults expected = {.do_sample = true,
                                     .temperature = 0.6,
                                     .top_k = 20,
                                     .top_p = 0.95,
                                     .min_p = {},
                                     .repetition_penalty = {},
                                     .presence_penalty = {},
                                     .frequency_penalty = {},
                                     .max_new_tokens = {}};
  EXPECT_EQ(config->sampling, expected);

  const Json silent =
      *Json::Parse(R"({"eos_token_id":null,"temperature":null,"top_k":-1,"repetition_penalty":1.05,
      "presence_penalty":-0.5,"frequency_penalty":2,"min_p":0,"max_new_tokens":512})");
  config = ParseModelConfig(Base(), &silent);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_EQ(config->eos_ids, std::vector<int32_t>{151645});
  const SamplingDefaults others = {.do_sample = {},
                                   .temperature = {},
                                   .top_k = 0,
                                   .top_p = {},
                                   .min_p = 0.0,
                                   .repetition_penalty = 1.05,
                                   .presence_penalty = -0.5,
                                   .frequency_penalty = 2.0,
                                   .max_new_tokens = 512};
  EXPECT_EQ(config->sampling, others);
}

TEST(ModelConfig, RefusesImpossibleSampling) {
  for (const char* text :
       {R"({"temperature":-0.1})", R"({"top_p":1.5})", R"({"top_p":-0.5})", R"({"top_k":-2})",
        R"({"top_k":1.5})", R"({"min_p":2})", R"({"repetition_penalty":0})", R"({"do_sample":1})",
        R"({"max_new_tokens":0})", R"({"eos_token_id":[151936]})", R"({"temperature":"0.6"})"}) {
    const Json generation = *Json::Parse(text);
    auto config = ParseModelConfig(Base(), &generation);
    ASSERT_FALSE(config) << text;
    EXPECT_EQ(config.error().code, ErrorCode::kCorruptFile);
    EXPECT_EQ(config.error().where, "generation_config.json");
  }
}

// ---- The hybrid family.

/// Qwen3.6-35B-A3B's text_config, shortened to eight layers.
constexpr char kHybridText[] = R"({
  "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "num_hidden_layers": 8, "vocab_size": 248320,
  "full_attention_interval": 4, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
  "attn_output_gate": true, "attention_bias": false, "partial_rotary_factor": 0.25,
  "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                      "mrope_interleaved": true, "mrope_section": [11, 11, 10]},
  "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
  "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32",
  "rms_norm_eps": 1e-06, "hidden_act": "silu", "num_experts": 256, "num_experts_per_tok": 8,
  "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "mtp_num_hidden_layers": 1,
  "mtp_use_dedicated_embeddings": false, "max_position_embeddings": 262144, "eos_token_id": 248044})";

/// The text_config with members set, inside its wrapper.
Json Hybrid(const std::string& changes = "{}", const std::string& outer = "{}") {
  Json text = *Json::Parse(kHybridText);
  Merge(text, changes);
  Json::Array architectures;
  architectures.push_back(Json("Qwen3_5MoeForConditionalGeneration"));
  Json wrapper = Json::Object{{"architectures", Json(std::move(architectures))},
                              {"model_type", "qwen3_5_moe"},
                              {"text_config", std::move(text)}};
  Merge(wrapper, outer);
  return wrapper;
}

TEST(ModelConfig, ReadsTheHybridFamilyFromItsWrapper) {
  auto config = ParseModelConfig(Hybrid(), nullptr);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_EQ(config->family, ModelFamily::kQwen35Moe);
  EXPECT_EQ(config->prefix, "model.language_model.");
  EXPECT_EQ(config->rotary_dim, 64);
  EXPECT_EQ(config->rope_theta, 1e7);
  EXPECT_TRUE(config->attention_gate);
  EXPECT_TRUE(config->zero_centred_norms);
  EXPECT_TRUE(config->norm_topk_prob);  // always, and there is no switch for it
  EXPECT_EQ(config->shared_intermediate, 512);
  EXPECT_EQ(config->delta_k_heads, 16);
  EXPECT_EQ(config->delta_v_heads, 32);
  EXPECT_EQ(config->delta_k_dim, 128);
  EXPECT_EQ(config->delta_v_dim, 128);
  EXPECT_EQ(config->delta_conv, 4);
  EXPECT_EQ(config->DeltaChannels(), 8192);
  EXPECT_EQ(config->mtp_layers, 1);
  EXPECT_FALSE(config->mtp_own_embeddings);
  EXPECT_EQ(config->layer_is_moe, std::vector<bool>(8, true));
  const auto d = Mixer::kDeltaNet, a = Mixer::kAttention;
  EXPECT_EQ(config->mixers, (std::vector<Mixer>{d, d, d, a, d, d, d, a}));
  EXPECT_EQ(config->LayersOf(Mixer::kAttention), 2);
}

TEST(ModelConfig, HybridLayerTypesWinOverTheInterval) {
  auto config = ParseModelConfig(
      Hybrid(
          R"({"num_hidden_layers":3,"layer_types":["full_attention","linear_attention","full_attention"]})"),
      nullptr);
  ASSERT_TRUE(config) << config.error().Message();
  EXPECT_EQ(config->mixers,
            (std::vector<Mixer>{Mixer::kAttention, Mixer::kDeltaNet, Mixer::kAttention}));
}

TEST(ModelConfig, ReadsTheHybridFamilyOfTextAlone) {
  for (const char* names :
       {R"({"architectures":["Qwen3_5MoeForCausalLM"]})",
        R"({"architectures":["Qwen3_5MoeForCausalLM"],"model_type":"qwen3_5_moe"})", R"({})"}) {
    Json json = *Json::Parse(kHybridText);
    Merge(json, names);
    auto config = ParseModelConfig(json, nullptr);
    ASSERT_TRUE(config) << names << config.error().Message();
    EXPECT_EQ(config->family, ModelFamily::kQwen35Moe);
    EXPECT_EQ(config->prefix, "model.");
  }
}

TEST(ModelConfig, TiedEmbeddingsMayBeSaidOutsideTheTextConfig) {
  auto outside = ParseModelConfig(Hybrid("{}", R"({"tie_word_embeddings":true})"), nullptr);
  auto inside = ParseModelConfig(
      Hybrid(R"({"tie_word_embeddings":false})", R"({"tie_word_embeddings":true})"), nullptr);
  ASSERT_TRUE(outside && inside);
  EXPECT_TRUE(outside->tie_embeddings);
  EXPECT_FALSE(inside->tie_embeddings);
}

TEST(ModelConfig, RefusesHybridsItCannotRun) {
  const struct {
    const char* changes;
    ErrorCode code;
    const char* what;
  } kCases[] = {
      {R"({"layer_types":["full_attention"]})", ErrorCode::kCorruptFile, "layer_types"},
      {R"({"num_hidden_layers":1,"layer_types":["sliding_attention"]})", ErrorCode::kUnsupported,
       "\"sliding_attention\""},
      {R"({"output_gate_type":"sigmoid"})", ErrorCode::kUnsupported, "output_gate_type"},
      {R"({"norm_topk_prob":false})", ErrorCode::kUnsupported, "norm_topk_prob"},
      {R"({"num_experts":0})", ErrorCode::kUnsupported, "num_experts 0"},
      {R"({"linear_num_value_heads":24})", ErrorCode::kCorruptFile, "linear_num_value_heads 24"},
      {R"({"linear_num_key_heads":0})", ErrorCode::kCorruptFile, "linear_num_key_heads"},
      {R"({"linear_key_head_dim":null})", ErrorCode::kCorruptFile, "linear_key_head_dim"},
      {R"({"linear_conv_kernel_dim":17})", ErrorCode::kCorruptFile, "linear_conv_kernel_dim"},
      {R"({"shared_expert_intermediate_size":0})", ErrorCode::kCorruptFile, "shared_expert"},
      {R"({"mtp_num_hidden_layers":-1})", ErrorCode::kCorruptFile, "mtp_num_hidden_layers"},
  };
  for (const auto& c : kCases) {
    auto config = ParseModelConfig(Hybrid(c.changes), nullptr);
    ASSERT_FALSE(config) << c.changes;
    EXPECT_EQ(config.error().code, c.code) << config.error().Message();
    EXPECT_NE(config.error().what.find(c.what), std::string::npos) << config.error().Message();
  }
}

}  // namespace
}  // namespace nibble::checkpoint
