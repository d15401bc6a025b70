#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "layout/prepared.h"
#include "plan/plan.h"

namespace nibble::weights {

/// A decoder layer's weights as its kernels want them.
struct LayerWeights {
  std::vector<float> input_norm, post_attention_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                   // [head_dim]
  PreparedLinear qkv;                                  // [q | k | v]
  PreparedLinear o;

  bool is_moe = false;
  CanonicalBf16 router;     // MoE: [experts, hidden]
  PreparedExperts experts;  // MoE
  PreparedLinear gate_up;   // dense: [gate | up]
  PreparedLinear down;      // dense
};

/// A whole model's. Views the checkpoint's mapping and the plan's names: both must outlive it.
struct ModelWeights {
  CanonicalBf16 embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;
  PreparedLinear head;  // [vocab, hidden]

  HugeBuffer arena;                          // holds every packed matrix
  std::vector<std::string> ignored_tensors;  // activation scales that the label forbids; never read
  std::vector<std::string> unused_tensors;   // of parts that are not run: vision towers, MTP
};

/// Told as packing goes on; may be empty.
using Progress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

/// Reads, checks and packs every weight as the plan says. Everything is checked before anything is
/// packed.
/// errors  those of scheme::ReadLinear and ReadExperts (kNotFound, kCorruptFile naming tensor and
///         place), kOutOfMemory
Result<ModelWeights> LoadWeights(const checkpoint::Checkpoint& checkpoint, const plan::Plan& plan,
                                 ThreadPool& pool, const Progress& progress = {});

/// Every check of LoadWeights and none of its work: is this checkpoint whole and does it mean what
/// it says?
Result<ModelWeights> CheckWeights(const checkpoint::Checkpoint& checkpoint, const plan::Plan& plan);

}  // namespace nibble::weights
