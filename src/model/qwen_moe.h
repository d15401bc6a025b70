#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/model_config.h"
#include "kernels/operators.h"
#include "weights/model_weights.h"

namespace nibble::model {

/// How many sequences a model holds, and of what.
struct ModelLimits {
  int slots = 1;
  int64_t context = 0;  // positions of a slot
  KvDtype kv_dtype = KvDtype::kF32;
  int tentative_rows = 0;  // that a sequence may have in one batch
  int64_t batch_tokens = plan::MaxBatchTokens(DeviceKind::kCpu);
};

/// The Qwen MoE family: pre-norm decoder layers of
///   Qwen3-MoE       grouped-query attention with per-head q and k norms, and a routed mixture of
///                   experts or a dense SwiGLU MLP;
///   Qwen3.5/3.6-MoE the same attention behind an output gate in every fourth layer, gated DeltaNet
///                   in the others, and a shared expert beside the routed ones; an MTP module.
/// The residual stream and logits are fp32.
/// threads  one caller at a time
class QwenMoe {
 public:
  /// `weights` and `operators` must outlive the model.
  /// errors  kOutOfMemory
  static Result<QwenMoe> Create(const checkpoint::ModelConfig& config,
                                const weights::ModelWeights& weights, kernels::Operators& operators,
                                const ModelLimits& limits);

  /// Runs up to ModelLimits::batch_tokens tokens: ids in row order, `sequences` saying whose they are.
  /// What the layers hold of them is then in the slots, and Logits may be asked of any of their
  /// rows.
  /// needs   ids in [0, vocab); positions inside the context; a sequence's earlier positions
  ///         already run
  /// Does not wait: what went wrong is told by Logits.
  void Forward(std::span<const int32_t> ids, std::span<const kernels::SequenceRows> sequences);

  /// The MTP module over rows of the last Forward or Draft, row i with token ids[i]: of a Forward
  /// the token that follows row i's, of a Draft the one that it drafted. Row i's position is the
  /// target's (arXiv 2412.19437 section 2.2, as Qwen3.5 has it: the hidden state is the one behind
  /// the final norm). Logits are then those of the token after ids[i].
  void Draft(std::span<const int32_t> ids, std::span<const kernels::SequenceRows> sequences);

  /// The logits [rows.size(), vocab] of rows of the last Forward or Draft.
  Result<void> Logits(std::span<const int64_t> rows, std::span<float> out);

  /// The likeliest of the first `drawable` ids, of at most kLogitRows rows of the last Forward or
  /// Draft; the lowest of equal ones.
  /// errors  kInternal: a logit is NaN (the model's weights or state are broken)
  Result<void> Greedy(std::span<const int64_t> rows, int64_t drawable, std::span<int32_t> ids);

  /// Row `from` of the last Forward or Draft becomes row 0: where a Draft goes on from.
  void GoOnFrom(int64_t from) { ops_->CopyRow(normed_, from, normed_, 0); }
  /// Of slot's tentative rows the first `rows` stay.
  void Keep(int slot, int64_t rows);

  const checkpoint::ModelConfig& config() const { return *config_; }
  int64_t context() const { return context_; }

  /// Rows that one Logits call computes at a time.
  static constexpr int64_t kLogitRows = 64;

 private:
  Result<void> AllocateState(const ModelLimits& limits);
  kernels::Matrix Head(std::span<const int64_t> rows);
  kernels::Matrix MixerIn(const weights::LayerWeights& w, int64_t rows) const;
  kernels::Matrix MixerOut(const weights::LayerWeights& w, int64_t rows) const;
  void Enter(const weights::LayerWeights& w, int64_t rows);
  void Mix(const weights::LayerWeights& w, int64_t index, int64_t rows);
  kernels::Routing RoutingOf(const weights::LayerWeights& w) const;
  kernels::SharedExpert FeedForward(const weights::LayerWeights& w, int64_t rows);
  void Leave(const weights::LayerWeights& w, int64_t rows, kernels::Vector norm,
             const weights::LayerWeights* next);

  const checkpoint::ModelConfig* config_ = nullptr;
  const weights::ModelWeights* weights_ = nullptr;
  kernels::Operators* ops_ = nullptr;
  int64_t context_ = 0;
  kernels::Vector frequencies_;
  kernels::AttentionShape attention_;
  kernels::DeltaShape delta_;
  kernels::Matrix residual_, normed_, mixed_;  // [T, hidden]
  kernels::Matrix rope_;                       // [T, rotary_dim]
  kernels::Matrix qkv_, attended_;
  kernels::Matrix delta_in_, delta_out_;
  kernels::Matrix gate_up_, mlp_;  // dense layers, shared experts
  kernels::Matrix shared_;         // [T, hidden], of shared experts
  kernels::Matrix pair_;           // [T, 2 * hidden], MTP
  kernels::Routing routing_;
  kernels::Matrix last_, logits_;  // [kLogitRows, hidden], [kLogitRows, vocab]
};

}  // namespace nibble::model
