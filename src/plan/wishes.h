#pragma once

#include <optional>
#include <string_view>

#include "base/error.h"
#include "layout/quant_key.h"
#include "layout/words.h"

namespace nibble::plan {

/// What a person asked of the plan beyond the checkpoint's own label.
struct Wishes {
  // --moe-backend NAME, and nvfp4=NAME,…, which goes before `any` for its scheme.
  std::optional<Backend> any;
  std::optional<Backend> nvfp4, fp8, bf16, draft;
  // --activation-precision bf16: raise W4A4 to W4A16; never the other way.
  bool bf16_activations = false;
  // Tokens of KV cache; 0: the model's own, up to 32768.
  int64_t context = 0;
  // Sequences that have a cache of that many tokens each.
  int sequences = 1;
  // --kv-cache-dtype; nothing: what the checkpoint declares, else what the device computes in.
  std::optional<KvDtype> kv_dtype;
  // --spec mtp:K; 0: no speculation.
  int draft_tokens = 0;
  // A token's numbers must not depend on how many are computed with it.
  bool batch_invariant = false;
  // --no-repack: the CPU's weights stay in the file's pages, and are packed as they are used.
  bool map_weights = false;
  // Ranks that share the model: the plan, and its memory, is that of one (plan/ranks.h).
  int tp_size = 1, ep_size = 1;
};

/// The backend that a name means: ours or an upstream alias, case and '-' '_' folded ("auto":
/// nothing).
/// errors  kInvalidArgument: `moe_backend='x' is not supported … Expected one of [...]`
Result<std::optional<Backend>> ParseBackend(std::string_view name);

/// Reads "NAME" or "nvfp4=NAME,fp8=NAME,bf16=NAME,draft=NAME" into the wishes.
Result<void> ParseMoeBackend(std::string_view text, Wishes* wishes);

/// Tokens that the MTP module may draft a step.
inline constexpr int kMaxDraftTokens = 8;

/// Reads "none" or "mtp:K", K in 1 … kMaxDraftTokens, into the wishes.
Result<void> ParseSpeculation(std::string_view text, Wishes* wishes);

/// Reads "auto", "bf16" or "fp8" into the wishes.
Result<void> ParseKvDtype(std::string_view text, Wishes* wishes);

/// Reads "auto" or "bf16" into the wishes. Anything lower than the label is refused: there is no
/// flag for it.
Result<void> ParseActivationPrecision(std::string_view text, Wishes* wishes);

}  // namespace nibble::plan
