#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "layout/canonical.h"
#include "scheme/quant_config.h"

namespace nibble::scheme {

/// What reading a checkpoint's weights has touched, for the whole checkpoint. Views names of the
/// Checkpoint that it was read from, and must not outlive it.
struct CanonicalReport {
  /// A check that reads every byte of a tensor's block scales or FP8 codes.
  struct Scan {
    bool of_codes = false;                // FP8 codes: as large as the weights are
    std::function<Result<void>()> check;  // the checkpoint must be alive; safe beside others
  };
  /// Set: such checks are left in `scans`, for the reader's caller to run, instead of being run at
  /// once.
  bool defers_scans = false;
  std::vector<Scan> scans;

  /// Activation scales of modules whose label has no use for them (W4A16, W8A16, FP8 with dynamic
  /// activations): never read, whatever they hold.
  std::vector<std::string> ignored_tensors;
  /// Every tensor that was read or ignored so far. Who reads a tensor elsewhere (norms, embeddings)
  /// adds its name.
  std::unordered_set<std::string_view> used;
};

/// The routed experts of one layer, one entry an expert.
struct CanonicalExperts {
  std::vector<CanonicalWeight> gate;  // each [intermediate, hidden]; empty where there is no gate
  std::vector<CanonicalWeight> up;    // each [intermediate, hidden]
  std::vector<CanonicalWeight> down;  // each [hidden, intermediate]
};

/// The weight of linear `module` [n,k] in its canonical form: both dialects' tensors validated to
/// the last scale and FP8 code, global scales as multipliers. The result views the checkpoint's
/// mapping.
/// errors   kNotFound (a tensor is missing), kCorruptFile (type, shape, value, or a tensor that
///          contradicts the declared scheme), both naming tensor, found and expected, and the place
///          (layer, expert, projection); kUnsupported (a pair of keys that nothing here reads)
/// cost     reads every block scale and every FP8 code once, or leaves that to the report's scans
Result<CanonicalWeight> ReadLinear(const checkpoint::Checkpoint& checkpoint,
                                   const std::string& module, const ModuleScheme& scheme, int64_t n,
                                   int64_t k, CanonicalReport* report);

/// The same for all experts of `module` ("model.layers.0.mlp.experts"), from one tensor an expert
/// and projection (gate_proj, up_proj, down_proj or w1, w3, w2; gate and up maybe in one) or from
/// stacked three-dimensional ones; which of the two is decided tensor by tensor.
/// errors   as ReadLinear's; kCorruptFile: an expert of index >= `experts`, or one with both kinds
///          of names
Result<CanonicalExperts> ReadExperts(const checkpoint::Checkpoint& checkpoint,
                                     const std::string& module, const ModuleScheme& scheme,
                                     int experts, int64_t hidden, int64_t intermediate, bool gated,
                                     CanonicalReport* report);

/// What the caller computes of the parts that a checkpoint may have beyond the language model.
struct PartsRun {
  bool mtp = false;                               // the module for predicting several tokens
  KvCacheScheme kv_cache = KvCacheScheme::kBf16;  // kFp8: every k and v scale must be read
};

/// Sees that nothing in the checkpoint was left unread: a weight that no module reads means that
/// the model was not understood. Gives the unread tensors that may be so, for a person to see: a
/// vision tower's, an MTP module's that is not run, the scales of a KV cache that is not FP8.
/// errors   kCorruptFile naming the first other one and how many there are
Result<std::vector<std::string>> CheckAllTensorsUsed(const checkpoint::Checkpoint& checkpoint,
                                                     const CanonicalReport& report,
                                                     const PartsRun& parts = {});

}  // namespace nibble::scheme
