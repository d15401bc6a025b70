#pragma once

#include <cstdint>
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
  /// Activation scales that a W4A16 module carries though its label forbids them: never read,
  /// whatever they hold.
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
/// the last block scale, global scales as multipliers. The result views the checkpoint's mapping.
/// errors   kNotFound (a tensor is missing), kCorruptFile (type, shape, value, or a tensor that
/// contradicts the declared
///          scheme), both naming tensor, found and expected, and the place (layer, expert,
///          projection); kUnsupported (FP8, naming the pair of keys)
/// cost     reads every block scale once
Result<CanonicalWeight> ReadLinear(const checkpoint::Checkpoint& checkpoint,
                                   const std::string& module, const ModuleScheme& scheme, int64_t n,
                                   int64_t k, CanonicalReport* report);

/// The same for all experts of `module` ("model.layers.0.mlp.experts"), from one tensor an expert
/// and projection or from stacked three-dimensional ones; which of the two is decided tensor by
/// tensor.
/// errors   as ReadLinear's; an expert of index >= `experts` is kCorruptFile
Result<CanonicalExperts> ReadExperts(const checkpoint::Checkpoint& checkpoint,
                                     const std::string& module, const ModuleScheme& scheme,
                                     int experts, int64_t hidden, int64_t intermediate, bool gated,
                                     CanonicalReport* report);

/// Sees that nothing in the checkpoint was left unread: a weight that no module reads means that
/// the model was not understood. Gives the unread tensors that may be so: a vision tower's, an MTP
/// module's, KV cache scales.
/// errors   kCorruptFile naming the first other one and how many there
/// are
Result<std::vector<std::string>> CheckAllTensorsUsed(const checkpoint::Checkpoint& checkpoint,
                                                     const CanonicalReport& report);

}  // namespace nibble::scheme
