#pragma once

#include "base/error.h"
#include "checkpoint/model_config.h"
#include "checkpoint/modules.h"

namespace nibble::plan {

// What one rank holds where several share a model, as upstream shards it (vLLM's column, row and
// vocabulary parallel linears): tp ranks share every linear and each expert's I, ep ranks deal the
// experts out whole. Norms, routers, convolutions and embeddings are counted whole: they are small,
// or are read from the file.

/// What tensor parallel ranks share of a linear.
enum class Split : uint8_t {
  kNone,    // nothing: every rank has all of it
  kOutput,  // n: q, k, v, gate, up and their kin, by heads or features
  kInput,   // k: what closes a block, o, down and out; the ranks' sums are added
  kPadded,  // n, rounded up to whole shares: lm_head's vocabulary
};
Split SplitOf(const checkpoint::ModuleSpec& spec);

struct Ranks {
  int tp = 1, ep = 1;
};

/// Whether heads can be dealt out: query, delta and either way of key-value heads (fewer than ranks
/// are repeated, as upstream does). Experts, I and linears are the oracle's to check.
/// errors  kInvalidArgument (fewer than one rank), kUnsupported naming heads and ranks
Result<void> CheckRanks(const checkpoint::ModelConfig& model, const Ranks& ranks);

/// The largest rank's part of a module: its n, k, experts and moe_intermediate are the rank's own.
checkpoint::ModuleSpec ShareOf(const checkpoint::ModuleSpec& spec,
                               const checkpoint::ModelConfig& model, const Ranks& ranks);

/// Key-value heads that one rank caches.
int64_t KvHeadsOf(const checkpoint::ModelConfig& model, const Ranks& ranks);

}  // namespace nibble::plan
