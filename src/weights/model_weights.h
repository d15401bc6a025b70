#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "kernels/cuda/cuda.h"
#include "kernels/operators.h"
#include "layout/prepared.h"
#include "plan/plan.h"

namespace nibble::weights {

/// Small fp32 parameters, and where the operators find them.
class Parameters {
 public:
  Parameters() = default;
  Parameters(std::vector<float> values) : values_(std::move(values)) {}

  std::span<const float> values() const { return values_; }
  kernels::Vector vector() const {
    return {elsewhere_ ? elsewhere_ : values_.data(), static_cast<int64_t>(values_.size())};
  }
  /// A copy in the operators' memory, that will outlive this.
  void Place(const float* elsewhere) { elsewhere_ = elsewhere; }

 private:
  std::vector<float> values_;
  const float* elsewhere_ = nullptr;
};

struct AttentionWeights {
  Parameters q_norm, k_norm;  // [head_dim]
  PreparedLinear qkv;         // [q | k | v]; gated: q is [query | gate] a head
  PreparedLinear o;
  float k_scale = 1, v_scale = 1;  // of an FP8 KV cache
};

struct DeltaWeights {
  PreparedLinear in;          // [q | k | v | z | b | a]
  Parameters conv;            // [taps, channels]
  Parameters a_log, dt_bias;  // [v_heads]
  Parameters norm;            // [v_dim]
  PreparedLinear out;
};

/// A decoder layer's weights as its kernels want them. Norm weights are what their norm multiplies
/// by: a zero-centred one's 1 is in it.
struct LayerWeights {
  Parameters input_norm, post_attention_norm;  // [hidden]
  checkpoint::Mixer mixer = checkpoint::Mixer::kAttention;
  AttentionWeights attention;
  DeltaWeights delta;

  bool is_moe = false;
  CanonicalBf16 router;       // MoE: [experts, hidden]
  PreparedExperts experts;    // MoE
  CanonicalBf16 shared_gate;  // [1, hidden]; no data: no shared expert
  PreparedLinear gate_up;     // [gate | up] of the dense layer, or of the shared expert
  PreparedLinear down;        // of the same
};

/// The multi-token prediction module: a layer over [embedding | hidden state].
struct MtpWeights {
  Parameters embedding_norm, hidden_norm, norm;  // [hidden]
  PreparedLinear fc;                             // [hidden, 2 * hidden]
  LayerWeights layer;
};

/// A whole model's. Views the checkpoint's mapping and the plan's names: both must outlive it.
struct ModelWeights {
  CanonicalBf16 embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  Parameters final_norm;
  PreparedLinear head;  // [vocab, hidden]
  std::optional<MtpWeights> mtp;

  HugeBuffer arena;                           // holds every packed matrix, and FP8's scales
  std::unique_ptr<cuda::DeviceArena> device;  // on a GPU: holds everything above
  std::vector<std::string> ignored_tensors;  // activation scales that the label forbids; never read
  std::vector<std::string> unused_tensors;   // of parts that are not run: vision towers, MTP
};

/// Told as packing goes on, by the thread that loads; may be empty.
using Progress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

/// Reads, checks and packs every weight as the plan says, or leaves them in the file's pages where
/// it says that. Everything is checked before anything is packed.
/// errors  those of scheme::ReadLinear and ReadExperts (kNotFound, kCorruptFile naming tensor and
///         place), kOutOfMemory
Result<ModelWeights> LoadWeights(const checkpoint::Checkpoint& checkpoint, const plan::Plan& plan,
                                 ThreadPool& pool, const Progress& progress = {});

/// Every check of LoadWeights and none of its work: is this checkpoint whole and does it mean what
/// it says?
Result<ModelWeights> CheckWeights(const checkpoint::Checkpoint& checkpoint, const plan::Plan& plan);

}  // namespace nibble::weights
