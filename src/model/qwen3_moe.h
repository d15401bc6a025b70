#pragma once

#include <cstdint>
#include <span>

#include "checkpoint/model_config.h"
#include "kernels/operators.h"
#include "weights/model_weights.h"

namespace nibble::model {

/// Qwen3-MoE (`Qwen3MoeForCausalLM`): pre-norm decoder layers of grouped-query attention with
/// per-head q and k norms, and a routed mixture of experts or a dense SwiGLU MLP. The residual
/// stream is the operators' activation type: fp32 on a CPU.
/// threads  one caller at a time
class Qwen3Moe {
 public:
  /// `weights` and `operators` must outlive the model.
  /// errors  kOutOfMemory
  static Result<Qwen3Moe> Create(const checkpoint::ModelConfig& config,
                                 const weights::ModelWeights& weights,
                                 kernels::Operators& operators, int slots, int64_t context);

  /// Runs up to plan::kMaxBatchTokens tokens: ids in row order, `sequences` saying whose they are.
  /// Their keys and values are then cached, and Logits may be asked of any of their rows.
  /// needs   ids in [0, vocab); positions inside the context; a sequence's earlier positions
  ///         already run
  Result<void> Forward(std::span<const int32_t> ids,
                       std::span<const kernels::SequenceRows> sequences);

  /// The logits [rows.size(), vocab] of rows of the last Forward.
  Result<void> Logits(std::span<const int64_t> rows, std::span<float> out);

  const checkpoint::ModelConfig& config() const { return *config_; }
  int64_t context() const { return context_; }

  /// Rows that one Logits call computes at a time.
  static constexpr int64_t kLogitRows = 64;

 private:
  void Layer(int index, std::span<const kernels::SequenceRows> sequences, int64_t rows);

  const checkpoint::ModelConfig* config_ = nullptr;
  const weights::ModelWeights* weights_ = nullptr;
  kernels::Operators* ops_ = nullptr;
  int64_t context_ = 0;
  std::vector<float> frequencies_;
  kernels::AttentionShape attention_;
  kernels::Matrix residual_, normed_, delta_;  // [T, hidden]
  kernels::Matrix rope_;                       // [T, head_dim]
  kernels::Matrix qkv_, attended_;
  kernels::Matrix gate_up_, mlp_;  // dense layers
  kernels::Routing routing_;
  kernels::Matrix last_, logits_;  // [kLogitRows, hidden], [kLogitRows, vocab]
};

}  // namespace nibble::model
