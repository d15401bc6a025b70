#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace nibble::checkpoint {

/// The model families that Nibble knows how to run.
enum class ModelFamily : uint8_t {
  kQwen3Moe,   // attention and routed experts
  kQwen35Moe,  // Qwen3.5, 3.6, 3.8: gated DeltaNet between gated attention layers, a shared expert
};

/// What mixes a layer's tokens.
enum class Mixer : uint8_t { kAttention, kDeltaNet };

/// What generation_config.json says of sampling; a request overrides each. Nothing where the file
/// says nothing.
struct SamplingDefaults {
  std::optional<bool> do_sample;
  std::optional<double> temperature;
  std::optional<int64_t> top_k;  // 0: off
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<int64_t> max_new_tokens;

  bool operator==(const SamplingDefaults&) const = default;
};

/// The hyperparameters of a model, validated: every integer is in a range in which no later product
/// of a few of them overflows 63 bits, and those that must fit each other do.
struct ModelConfig {
  ModelFamily family = ModelFamily::kQwen3Moe;
  std::string architecture;  // "Qwen3MoeForCausalLM"; empty when the config names none
  std::string model_type;    // "qwen3_moe"
  /// Before the names of the text model's tensors: "model." or, in the file of a vision-language
  /// wrapper, "model.language_model.". Files of text alone may have either: ResolvePrefix.
  std::string prefix;

  int n_layers = 0;
  int hidden = 0;        // H, the residual width
  int n_heads = 0;       // query heads
  int n_kv_heads = 0;    // divides n_heads
  int head_dim = 0;      // even
  int vocab = 0;         // V, as the embedding has rows; the tokenizer may use fewer
  int intermediate = 0;  // I of the dense layers; 0 when there are none and the config says nothing
  int moe_intermediate = 0;  // I of one expert; 0 when no layer is MoE
  int n_experts = 0;         // E; 0 when no layer is MoE
  int top_k = 0;             // experts a token; 0 when no layer is MoE
  bool norm_topk_prob = false;
  float rms_eps = 0;
  double rope_theta = 0;
  int rotary_dim = 0;  // even, at most head_dim: the first dimensions of a head, which turn
  int64_t max_positions = 0;
  bool tie_embeddings = false;      // the lm_head is the embedding
  bool attention_bias = false;      // q, k, v and o have one
  std::vector<bool> layer_is_moe;   // [n_layers]
  std::vector<Mixer> mixers;        // [n_layers]
  bool attention_gate = false;      // q_proj gives [query | gate] a head; the gate's sigmoid
                                    // multiplies what attention gives
  bool zero_centred_norms = false;  // norms multiply by 1 + w, but DeltaNet's own
  int shared_intermediate = 0;      // I of the shared expert; 0: there is none

  // Gated DeltaNet; all 0 where no layer has it. A value head uses key head (its index) /
  // (delta_v_heads / delta_k_heads).
  int delta_k_heads = 0, delta_v_heads = 0;
  int delta_k_dim = 0, delta_v_dim = 0;  // of one head
  int delta_conv = 0;                    // taps of the causal convolution, this token's included

  int mtp_layers = 0;  // of the multi-token prediction module; 0: there is none
  bool mtp_own_embeddings = false;

  int64_t DeltaChannels() const {  // q | k | v, what the convolution runs over
    return 2 * int64_t{delta_k_heads} * delta_k_dim + int64_t{delta_v_heads} * delta_v_dim;
  }
  int LayersOf(Mixer mixer) const {
    return static_cast<int>(std::count(mixers.begin(), mixers.end(), mixer));
  }

  std::vector<int32_t> eos_ids;  // any of them ends a generation; may be empty
  std::optional<int32_t> bos_id;
  SamplingDefaults sampling;
};

/// Reads a whole config.json and, where there is one, generation_config.json. The names of the
/// model stand at the top, its sizes in `text_config` where a wrapper has one.
/// errors   kUnsupported: a model or an option of it that nothing here computes, by name and with
/// those known;
///          kCorruptFile: missing, of another type, out of range, or in contradiction
Result<ModelConfig> ParseModelConfig(const Json& config, const Json* generation_config);

}  // namespace nibble::checkpoint
