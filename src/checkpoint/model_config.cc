#include "checkpoint/model_config.h"

#include <cmath>
#include <string_view>

#include "base/quoted.h"

// Field by field after Qwen3MoeConfig and Qwen3_5MoeTextConfig of transformers 5. A switch that the file leaves out has that
// class's default; a size that it leaves out is an error, because a guessed size can only load the
// wrong weights.

namespace nibble::checkpoint {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxExperts = 65536;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

struct Known {
  ModelFamily family;
  std::string_view architecture;
  std::string_view model_type;
};
constexpr Known kKnown[] = {
    {ModelFamily::kQwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe"},
    {ModelFamily::kQwen35Moe, "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"},
    {ModelFamily::kQwen35Moe, "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text"},
};

std::string KnownTypes() {
  std::string out;
  for (const Known& known : kKnown) {
    out += fmt::format("{}{} ({})", out.empty() ? "" : ", ", known.model_type, known.architecture);
  }
  return out;
}

Error Corrupt(std::string what) { return Error{ErrorCode::kCorruptFile, std::move(what), {}, {}}; }
Error Unsupported(std::string what, std::string hint = {}) {
  return Error{ErrorCode::kUnsupported, std::move(what), {}, std::move(hint)};
}

Result<int> RequiredInt(const Json& json, std::string_view key, int64_t min, int64_t max) {
  NIBBLE_TRY(auto value, json.GetInt(key, min, max));
  if (!value)
    return Corrupt(
        fmt::format("\"{}\" is missing, expected an integer in [{}, {}]", key, min, max));
  return static_cast<int>(*value);
}

Result<bool> BoolOr(const Json& json, std::string_view key, bool fallback) {
  NIBBLE_TRY(auto value, json.GetBool(key));
  return value.value_or(fallback);
}

/// A number in [min, max], where it is given. NaN is in no range.
Result<std::optional<double>> DoubleIn(const Json& json, std::string_view key, double min,
                                       double max) {
  NIBBLE_TRY(auto value, json.GetDouble(key));
  if (value && !(*value >= min && *value <= max)) {
    return Corrupt(
        fmt::format("\"{}\" is {}, expected a number in [{}, {}]", key, *value, min, max));
  }
  return value;
}

Result<void> ReadFamily(const Json& json, ModelConfig& out) {
  NIBBLE_TRY(auto model_type, json.GetString("model_type"));
  if (!model_type) return Corrupt("\"model_type\" is missing, expected one of: " + KnownTypes());
  out.model_type = *model_type;
  if (const Json* list = json.FindSet("architectures")) {
    const bool good = list->is_array() && !list->array().empty() && list->array()[0].is_string();
    if (!good) return Corrupt("\"architectures\" is no list of names");
    out.architecture = list->array()[0].string();
  }
  // Exporters of text alone pair a family's names in every way.
  for (const Known& type : kKnown) {
    if (out.model_type != type.model_type) continue;
    for (const Known& name : kKnown) {
      const bool named = out.architecture.empty() || out.architecture == name.architecture;
      if (!named || name.family != type.family) continue;
      out.family = type.family;
      return {};
    }
  }
  std::string what = fmt::format("model_type {}", Quoted(out.model_type));
  if (!out.architecture.empty())
    what += fmt::format(" with architecture {}", Quoted(out.architecture));
  return Unsupported(std::move(what), "known: " + KnownTypes());
}

/// What mixes each layer: `layer_types`, or every full_attention_interval-th layer attention.
Result<std::vector<Mixer>> ReadMixers(const Json& json, const ModelConfig& config) {
  const bool hybrid = config.family == ModelFamily::kQwen35Moe;
  std::vector<Mixer> mixers(static_cast<size_t>(config.n_layers), Mixer::kAttention);
  const Json* types = json.FindSet("layer_types");
  if (types == nullptr) {
    if (!hybrid) return mixers;
    NIBBLE_TRY(auto interval, json.GetInt("full_attention_interval", 1, kMaxLayers));
    for (int64_t i = 0; i < config.n_layers; ++i) {
      if ((i + 1) % interval.value_or(4) != 0) mixers[static_cast<size_t>(i)] = Mixer::kDeltaNet;
    }
    return mixers;
  }
  if (!types->is_array()) return Corrupt("\"layer_types\" is no list");
  if (types->array().size() != mixers.size()) {
    return Corrupt(fmt::format("\"layer_types\" has {} entries, num_hidden_layers is {}",
                               types->array().size(), config.n_layers));
  }
  for (size_t i = 0; i < mixers.size(); ++i) {
    const Json& type = types->array()[i];
    if (type.is_string() && type.string() == "full_attention") continue;
    if (!hybrid || !type.is_string() || type.string() != "linear_attention") {
      return Unsupported(
          fmt::format("layer_types entry {}",
                      type.is_string() ? Quoted(type.string()) : WriteJson(type)),
          hybrid ? "known: full_attention, linear_attention" : "known: full_attention");
    }
    mixers[i] = Mixer::kDeltaNet;
  }
  return mixers;
}

/// Options that change the forward pass and that nothing here computes.
Result<void> RefuseOptions(const Json& json) {
  NIBBLE_TRY(auto act, json.GetString("hidden_act"));
  if (act && *act != "silu")
    return Unsupported(fmt::format("hidden_act {}", Quoted(*act)), "known: silu");
  NIBBLE_TRY(bool window, BoolOr(json, "use_sliding_window", false));
  if (window) return Unsupported("use_sliding_window true", "only full attention is known");
  NIBBLE_TRY(auto gate, json.GetString("output_gate_type"));
  if (gate && *gate != "swish" && *gate != "silu")
    return Unsupported(fmt::format("output_gate_type {}", Quoted(*gate)), "known: swish, silu");
  return {};
}

struct Rope {
  double theta = 0;
  double rotated = 1;  // the part of a head that turns
};

/// `rope_theta` beside `rope_scaling` (transformers 4) or both inside `rope_parameters`
/// (transformers 5). A file with both spellings must mean the same by them. The sections of
/// multimodal positions are passed over: for text alone its three positions are one.
Result<Rope> ReadRope(const Json& json) {
  std::optional<double> theta, part;
  const Json* places[] = {&json, json.FindSet("rope_parameters"), json.FindSet("rope_scaling")};
  static constexpr std::string_view kNames[] = {"", "rope_parameters", "rope_scaling"};
  for (size_t i = 0; i < std::size(places); ++i) {
    const Json* place = places[i];
    if (place == nullptr) continue;
    if (!place->is_object())
      return Corrupt(fmt::format("\"{}\" is {}, expected an object", kNames[i], place->TypeName()));
    NIBBLE_TRY(auto here, DoubleIn(*place, "rope_theta", 1.0, 1e15));
    if (here && theta && *here != *theta) {
      return Corrupt(
          fmt::format("\"rope_theta\" is {} and {} in \"{}\"", *theta, *here, kNames[i]));
    }
    if (here) theta = here;
    NIBBLE_TRY(auto rotated, DoubleIn(*place, "partial_rotary_factor", 1e-6, 1.0));
    if (rotated && part && *rotated != *part) {
      return Corrupt(fmt::format("\"partial_rotary_factor\" is {} and {} in \"{}\"", *part,
                                 *rotated, kNames[i]));
    }
    if (rotated) part = rotated;
    if (i == 0) continue;
    bool typed = false;
    for (const char* key : {"rope_type", "type"}) {
      NIBBLE_TRY(auto type, place->GetString(key));
      typed = typed || type.has_value();
      if (type && *type != "default") {
        return Unsupported(fmt::format("{} {} {}", kNames[i], key, Quoted(*type)),
                           "known: default");
      }
    }
    // A factor without a type once meant "linear".
    if (!typed && place->FindSet("factor") != nullptr) {
      return Unsupported(fmt::format("{} with a factor", kNames[i]), "known: rope_type default");
    }
  }
  if (!theta) return Corrupt("\"rope_theta\" is missing, there and in \"rope_parameters\"");
  return Rope{*theta, part.value_or(1.0)};
}

Result<void> ReadAttention(const Json& json, ModelConfig& out) {
  NIBBLE_TRY(out.n_heads, RequiredInt(json, "num_attention_heads", 1, kMaxHeads));
  NIBBLE_TRY(out.n_kv_heads, RequiredInt(json, "num_key_value_heads", 1, kMaxHeads));
  if (out.n_heads % out.n_kv_heads != 0) {
    return Corrupt(fmt::format("num_attention_heads {} is no multiple of num_key_value_heads {}",
                               out.n_heads, out.n_kv_heads));
  }
  NIBBLE_TRY(auto head_dim, json.GetInt("head_dim", 2, kMaxHeadDim));
  if (!head_dim && out.hidden % out.n_heads != 0) {
    return Corrupt(
        fmt::format("no head_dim, and hidden_size {} is no multiple of num_attention_heads {}",
                    out.hidden, out.n_heads));
  }
  out.head_dim = static_cast<int>(head_dim.value_or(out.hidden / out.n_heads));
  if (out.head_dim % 2 != 0) {
    return Corrupt(
        fmt::format("head_dim {} is odd, but rotary positions turn pairs", out.head_dim));
  }
  NIBBLE_TRY(out.attention_bias, BoolOr(json, "attention_bias", false));
  NIBBLE_TRY(const Rope rope, ReadRope(json));
  out.rope_theta = rope.theta;
  out.rotary_dim = static_cast<int>(std::lround(out.head_dim * rope.rotated));
  if (out.rotary_dim != out.head_dim * rope.rotated || out.rotary_dim % 2 != 0) {
    return Corrupt(fmt::format("partial_rotary_factor {} of head_dim {} is no even number",
                               rope.rotated, out.head_dim));
  }
  NIBBLE_TRY(out.max_positions, RequiredInt(json, "max_position_embeddings", 1, kMaxPositions));
  return {};
}

/// `num_experts`, which transformers 5 writes as `num_local_experts`.
Result<int64_t> ReadExpertCount(const Json& json) {
  NIBBLE_TRY(auto plain, json.GetInt("num_experts", 0, kMaxExperts));
  NIBBLE_TRY(auto local, json.GetInt("num_local_experts", 0, kMaxExperts));
  if (plain && local && *plain != *local) {
    return Corrupt(fmt::format("num_experts is {}, num_local_experts {}", *plain, *local));
  }
  if (!plain && !local) return Corrupt("\"num_experts\" is missing (as is \"num_local_experts\")");
  return plain ? *plain : *local;
}

/// Layer i is MoE iff it is not in mlp_only_layers, there are experts, and (i + 1) %
/// decoder_sparse_step == 0.
Result<std::vector<bool>> ReadMoeLayers(const Json& json, int n_layers, int64_t n_experts) {
  NIBBLE_TRY(auto step, json.GetInt("decoder_sparse_step", 1, kMaxLayers));
  std::vector<bool> is_moe(static_cast<size_t>(n_layers));
  for (int i = 0; i < n_layers; ++i) {
    is_moe[static_cast<size_t>(i)] = n_experts > 0 && (i + 1) % step.value_or(1) == 0;
  }
  const Json* dense = json.FindSet("mlp_only_layers");
  if (dense == nullptr) return is_moe;
  if (!dense->is_array()) return Corrupt("\"mlp_only_layers\" is no list");
  for (const Json& layer : dense->array()) {
    if (!layer.is_int() || layer.integer() < 0 || layer.integer() >= n_layers) {
      return Corrupt(
          fmt::format("\"mlp_only_layers\" holds what is no layer, expected integers in [0, {}]",
                      n_layers - 1));
    }
    is_moe[static_cast<size_t>(layer.integer())] = false;
  }
  return is_moe;
}

Result<void> ReadFeedForward(const Json& json, ModelConfig& out) {
  const bool hybrid = out.family == ModelFamily::kQwen35Moe;
  NIBBLE_TRY(int64_t n_experts, ReadExpertCount(json));
  if (hybrid) {
    if (n_experts == 0) return Unsupported("num_experts 0", "known: at least 1");
    out.layer_is_moe.assign(static_cast<size_t>(out.n_layers), true);
  } else {
    NIBBLE_TRY(out.layer_is_moe, ReadMoeLayers(json, out.n_layers, n_experts));
  }
  bool any_moe = false;
  bool any_dense = false;
  for (bool is_moe : out.layer_is_moe) (is_moe ? any_moe : any_dense) = true;
  if (any_dense) {
    NIBBLE_TRY(out.intermediate, RequiredInt(json, "intermediate_size", 1, kMaxWidth));
  } else {
    NIBBLE_TRY(auto unused, json.GetInt("intermediate_size", 0, kMaxWidth));
    out.intermediate = static_cast<int>(unused.value_or(0));
  }
  if (!any_moe) return {};
  out.n_experts = static_cast<int>(n_experts);
  NIBBLE_TRY(out.moe_intermediate, RequiredInt(json, "moe_intermediate_size", 1, kMaxWidth));
  NIBBLE_TRY(out.top_k, RequiredInt(json, "num_experts_per_tok", 1, kMaxExperts));
  if (out.top_k > out.n_experts) {
    return Corrupt(fmt::format("num_experts_per_tok {} is more than num_experts {}", out.top_k,
                               out.n_experts));
  }
  // The hybrid's router always renormalizes and has no switch for it.
  NIBBLE_TRY(out.norm_topk_prob, BoolOr(json, "norm_topk_prob", hybrid));
  if (!hybrid) return {};
  if (!out.norm_topk_prob) return Unsupported("norm_topk_prob false", "known: true");
  NIBBLE_TRY(out.shared_intermediate,
             RequiredInt(json, "shared_expert_intermediate_size", 1, kMaxWidth));
  return {};
}

/// What the hybrid family has besides: DeltaNet's sizes and the MTP module.
Result<void> ReadHybrid(const Json& json, ModelConfig& out) {
  constexpr int64_t kMaxTaps = 16, kMaxMtpLayers = 16;
  out.zero_centred_norms = true;
  NIBBLE_TRY(out.attention_gate, BoolOr(json, "attn_output_gate", true));
  NIBBLE_TRY(auto mtp, json.GetInt("mtp_num_hidden_layers", 0, kMaxMtpLayers));
  out.mtp_layers = static_cast<int>(mtp.value_or(0));
  NIBBLE_TRY(out.mtp_own_embeddings, BoolOr(json, "mtp_use_dedicated_embeddings", false));
  if (out.LayersOf(Mixer::kDeltaNet) == 0) return {};
  NIBBLE_TRY(out.delta_k_heads, RequiredInt(json, "linear_num_key_heads", 1, kMaxHeads));
  NIBBLE_TRY(out.delta_v_heads, RequiredInt(json, "linear_num_value_heads", 1, kMaxHeads));
  NIBBLE_TRY(out.delta_k_dim, RequiredInt(json, "linear_key_head_dim", 1, kMaxHeadDim));
  NIBBLE_TRY(out.delta_v_dim, RequiredInt(json, "linear_value_head_dim", 1, kMaxHeadDim));
  NIBBLE_TRY(out.delta_conv, RequiredInt(json, "linear_conv_kernel_dim", 1, kMaxTaps));
  if (out.delta_v_heads % out.delta_k_heads != 0) {
    return Corrupt(
        fmt::format("linear_num_value_heads {} is no multiple of linear_num_key_heads {}",
                    out.delta_v_heads, out.delta_k_heads));
  }
  return {};
}

/// A token id, a list of them, or nothing.
Result<std::vector<int32_t>> ReadIds(const Json& json, std::string_view key, int vocab) {
  constexpr size_t kMostIds = 1024;
  std::vector<int32_t> ids;
  const Json* value = json.FindSet(key);
  if (value == nullptr) return ids;
  const Json::Array one = {value->is_array() ? Json() : *value};
  const Json::Array& items = value->is_array() ? value->array() : one;
  for (const Json& item : items) {
    if (!item.is_int() || item.integer() < 0 || item.integer() >= vocab || ids.size() == kMostIds) {
      return Corrupt(fmt::format("\"{}\" is {}, expected at most {} token ids in [0, {}]", key,
                                 Quoted(WriteJson(*value)), kMostIds, vocab - 1));
    }
    ids.push_back(static_cast<int32_t>(item.integer()));
  }
  return ids;
}

Result<SamplingDefaults> ReadSampling(const Json& json) {
  constexpr double kMaxPenalty = 1e6;
  SamplingDefaults out;
  NIBBLE_TRY(out.do_sample, json.GetBool("do_sample"));
  NIBBLE_TRY(out.temperature, DoubleIn(json, "temperature", 0, 1e6));
  NIBBLE_TRY(out.top_k, json.GetInt("top_k", -1, kMaxVocab));
  if (out.top_k == -1) out.top_k = 0;  // how vLLM's files say "off"
  NIBBLE_TRY(out.top_p, DoubleIn(json, "top_p", 0, 1));
  NIBBLE_TRY(out.min_p, DoubleIn(json, "min_p", 0, 1));
  NIBBLE_TRY(out.repetition_penalty, DoubleIn(json, "repetition_penalty", 1e-6, kMaxPenalty));
  NIBBLE_TRY(out.presence_penalty, DoubleIn(json, "presence_penalty", -kMaxPenalty, kMaxPenalty));
  NIBBLE_TRY(out.frequency_penalty, DoubleIn(json, "frequency_penalty", -kMaxPenalty, kMaxPenalty));
  NIBBLE_TRY(out.max_new_tokens, json.GetInt("max_new_tokens", 1, kMaxPositions));
  return out;
}

Result<void> ReadGeneration(const Json& json, ModelConfig& out) {
  NIBBLE_TRY(out.sampling, ReadSampling(json));
  NIBBLE_TRY(std::vector<int32_t> eos, ReadIds(json, "eos_token_id", out.vocab));
  if (!eos.empty()) out.eos_ids = std::move(eos);
  return {};
}

Result<ModelConfig> ReadConfig(const Json& config) {
  ModelConfig out;
  NIBBLE_CHECK_OK(ReadFamily(config, out));
  const Json* text = config.FindSet("text_config");
  const Json& json = text != nullptr ? *text : config;
  NIBBLE_CHECK_OK(RefuseOptions(json));
  NIBBLE_TRY(out.n_layers, RequiredInt(json, "num_hidden_layers", 1, kMaxLayers));
  NIBBLE_TRY(out.hidden, RequiredInt(json, "hidden_size", 1, kMaxWidth));
  NIBBLE_TRY(out.vocab, RequiredInt(json, "vocab_size", 1, kMaxVocab));
  out.prefix = text != nullptr ? "model.language_model." : "model.";
  NIBBLE_TRY(out.mixers, ReadMixers(json, out));
  NIBBLE_CHECK_OK(ReadAttention(json, out));
  NIBBLE_CHECK_OK(ReadFeedForward(json, out));
  if (out.family == ModelFamily::kQwen35Moe) NIBBLE_CHECK_OK(ReadHybrid(json, out));
  NIBBLE_TRY(auto eps, DoubleIn(json, "rms_norm_eps", 1e-30, 1.0));
  out.rms_eps = static_cast<float>(eps.value_or(1e-6));
  NIBBLE_TRY(const bool tied, BoolOr(config, "tie_word_embeddings", false));
  NIBBLE_TRY(out.tie_embeddings, BoolOr(json, "tie_word_embeddings", tied));
  NIBBLE_TRY(out.eos_ids, ReadIds(json, "eos_token_id", out.vocab));
  NIBBLE_TRY(std::vector<int32_t> bos, ReadIds(json, "bos_token_id", out.vocab));
  if (!bos.empty()) out.bos_id = bos.front();
  return out;
}

}  // namespace

Result<ModelConfig> ParseModelConfig(const Json& config, const Json* generation_config) {
  auto out = ReadConfig(config);
  if (!out) return std::move(out).error().At("config.json");
  if (generation_config != nullptr) {
    if (auto read = ReadGeneration(*generation_config, *out); !read) {
      return std::move(read).error().At("generation_config.json");
    }
  }
  return out;
}

}  // namespace nibble::checkpoint
