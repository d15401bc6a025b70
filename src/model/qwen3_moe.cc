#include "model/qwen3_moe.h"

#include <algorithm>
#include <cmath>

#include "plan/plan.h"

namespace nibble::model {

using kernels::Matrix;
using kernels::SequenceRows;
using kernels::Vector;

namespace {

Vector VectorOf(const std::vector<float>& v) { return {v.data(), static_cast<int64_t>(v.size())}; }

}  // namespace

Result<Qwen3Moe> Qwen3Moe::Create(const checkpoint::ModelConfig& config,
                                  const weights::ModelWeights& weights,
                                  kernels::Operators& operators, int slots, int64_t context) {
  Qwen3Moe m;
  m.config_ = &config;
  m.weights_ = &weights;
  m.ops_ = &operators;
  m.context_ = context;
  m.attention_ = {config.n_heads, config.n_kv_heads, config.head_dim, config.rms_eps};
  for (int i = 0; i < config.head_dim / 2; ++i) {
    m.frequencies_.push_back(
        static_cast<float>(std::pow(config.rope_theta, -2.0 * i / config.head_dim)));
  }
  const int64_t rows = std::min(plan::kMaxBatchTokens, context);
  NIBBLE_TRY(m.residual_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.normed_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.delta_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.rope_, operators.Allocate(rows, config.head_dim));
  NIBBLE_TRY(m.qkv_, operators.Allocate(rows, m.attention_.qkv_width()));
  NIBBLE_TRY(m.attended_, operators.Allocate(rows, m.attention_.q_width()));
  if (std::find(config.layer_is_moe.begin(), config.layer_is_moe.end(), false) !=
      config.layer_is_moe.end()) {
    NIBBLE_TRY(m.gate_up_, operators.Allocate(rows, 2 * static_cast<int64_t>(config.intermediate)));
    NIBBLE_TRY(m.mlp_, operators.Allocate(rows, config.intermediate));
  }
  if (config.top_k > 0) {
    NIBBLE_TRY(m.routing_, operators.AllocateRouting(rows, config.top_k));
  }
  NIBBLE_TRY(m.last_, operators.Allocate(kLogitRows, config.hidden));
  NIBBLE_TRY(m.logits_, operators.Allocate(kLogitRows, config.vocab));
  NIBBLE_CHECK_OK(operators.AllocateKv({config.n_layers, slots, context, m.attention_.kv_width()}));
  return m;
}

void Qwen3Moe::Layer(int index, std::span<const SequenceRows> sequences, int64_t rows) {
  const weights::LayerWeights& w = weights_->layers[index];
  const float eps = config_->rms_eps;
  const Matrix x = residual_.Top(rows), normed = normed_.Top(rows), delta = delta_.Top(rows);

  ops_->RmsNorm(x, VectorOf(w.input_norm), eps, normed);
  ops_->Linear(w.qkv, normed, qkv_.Top(rows));
  ops_->Attention(attention_, index, sequences, VectorOf(w.q_norm), VectorOf(w.k_norm),
                  rope_.Top(rows), qkv_.Top(rows), attended_.Top(rows));
  ops_->Linear(w.o, attended_.Top(rows), delta);
  ops_->Add(x, delta);

  ops_->RmsNorm(x, VectorOf(w.post_attention_norm), eps, normed);
  if (w.is_moe) {
    ops_->Route(w.router, normed, config_->norm_topk_prob, routing_);
    ops_->Experts(w.experts, normed, routing_, delta);
  } else {
    ops_->Linear(w.gate_up, normed, gate_up_.Top(rows));
    ops_->SiluMul(gate_up_.Top(rows), mlp_.Top(rows));
    ops_->Linear(w.down, mlp_.Top(rows), delta);
  }
  ops_->Add(x, delta);
}

Result<void> Qwen3Moe::Forward(std::span<const int32_t> ids,
                               std::span<const SequenceRows> sequences) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  NIBBLE_CHECK(rows > 0 && rows <= residual_.rows, "a batch larger than the workspace");
  ops_->Embed(weights_->embedding, ids, residual_.Top(rows));
  ops_->RopeTable(VectorOf(frequencies_), sequences, rope_.Top(rows));
  for (int i = 0; i < config_->n_layers; ++i) Layer(i, sequences, rows);
  ops_->RmsNorm(residual_.Top(rows), VectorOf(weights_->final_norm), config_->rms_eps,
                normed_.Top(rows));
  return ops_->Finish();
}

Result<void> Qwen3Moe::Logits(std::span<const int64_t> rows, std::span<float> out) {
  const size_t vocab = static_cast<size_t>(config_->vocab);
  NIBBLE_CHECK(out.size() == rows.size() * vocab, "room for exactly the rows asked for");
  for (size_t first = 0; first < rows.size(); first += kLogitRows) {
    const size_t n = std::min<size_t>(kLogitRows, rows.size() - first);
    for (size_t i = 0; i < n; ++i)
      ops_->CopyRow(normed_, rows[first + i], last_, static_cast<int64_t>(i));
    const Matrix logits = logits_.Top(static_cast<int64_t>(n));
    ops_->Linear(weights_->head, last_.Top(static_cast<int64_t>(n)), logits);
    for (size_t i = 0; i < n; ++i) {
      ops_->ReadRow(logits, static_cast<int64_t>(i), out.subspan((first + i) * vocab, vocab));
    }
  }
  return ops_->Finish();
}

}  // namespace nibble::model
