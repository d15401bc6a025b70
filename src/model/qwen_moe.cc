#include "model/qwen_moe.h"

#include <algorithm>
#include <cmath>

#include "plan/plan.h"

namespace nibble::model {

using checkpoint::Mixer;
using kernels::Matrix;
using kernels::SequenceRows;
using kernels::Vector;

namespace {

Vector VectorOf(const std::vector<float>& v) { return {v.data(), static_cast<int64_t>(v.size())}; }

}  // namespace

Result<QwenMoe> QwenMoe::Create(const checkpoint::ModelConfig& config,
                                const weights::ModelWeights& weights, kernels::Operators& operators,
                                const ModelLimits& limits) {
  QwenMoe m;
  m.config_ = &config;
  m.weights_ = &weights;
  m.ops_ = &operators;
  m.context_ = limits.context;
  m.attention_ = {config.n_heads, config.n_kv_heads, config.head_dim, config.rms_eps,
                  config.attention_gate};
  m.delta_ = {config.delta_k_heads, config.delta_v_heads, config.delta_k_dim,
              config.delta_v_dim,   config.delta_conv,    config.rms_eps};
  for (int i = 0; i < config.rotary_dim / 2; ++i) {
    m.frequencies_.push_back(
        static_cast<float>(std::pow(config.rope_theta, -2.0 * i / config.rotary_dim)));
  }
  const int64_t rows = std::min(plan::kMaxBatchTokens, limits.context);
  NIBBLE_TRY(m.residual_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.normed_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.mixed_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.rope_, operators.Allocate(rows, config.rotary_dim));
  NIBBLE_TRY(m.qkv_, operators.Allocate(rows, m.attention_.qkv_width()));
  NIBBLE_TRY(m.attended_, operators.Allocate(rows, m.attention_.out_width()));
  if (config.LayersOf(Mixer::kDeltaNet) > 0) {
    NIBBLE_TRY(m.delta_in_, operators.Allocate(rows, m.delta_.in_width()));
    NIBBLE_TRY(m.delta_out_, operators.Allocate(rows, m.delta_.out_width()));
  }
  const bool dense = std::find(config.layer_is_moe.begin(), config.layer_is_moe.end(), false) !=
                     config.layer_is_moe.end();
  const int64_t width = std::max(dense ? config.intermediate : 0, config.shared_intermediate);
  if (width > 0) {
    NIBBLE_TRY(m.gate_up_, operators.Allocate(rows, 2 * width));
    NIBBLE_TRY(m.mlp_, operators.Allocate(rows, width));
  }
  if (config.shared_intermediate > 0) {
    NIBBLE_TRY(m.shared_, operators.Allocate(rows, config.hidden));
  }
  if (weights.mtp) {
    NIBBLE_TRY(m.pair_, operators.Allocate(rows, 2 * int64_t{config.hidden}));
  }
  if (config.top_k > 0) {
    NIBBLE_TRY(m.routing_, operators.AllocateRouting(rows, config.top_k));
  }
  NIBBLE_TRY(m.last_, operators.Allocate(kLogitRows, config.hidden));
  NIBBLE_TRY(m.logits_, operators.Allocate(kLogitRows, config.vocab));
  NIBBLE_CHECK_OK(m.AllocateState(limits));
  return m;
}

Result<void> QwenMoe::AllocateState(const ModelLimits& limits) {
  kernels::KvShape kv;
  kv.slots = limits.slots;
  kv.capacity = limits.context;
  kv.kv_width = attention_.kv_width();
  kv.head_dim = attention_.head_dim;
  kv.dtype = limits.kv_dtype;
  const auto add = [&](const weights::LayerWeights& layer) {
    if (layer.mixer != Mixer::kAttention) return;
    ++kv.layers;
    kv.k_scales.push_back(layer.attention.k_scale);
    kv.v_scales.push_back(layer.attention.v_scale);
  };
  for (const weights::LayerWeights& layer : weights_->layers) add(layer);
  if (weights_->mtp) add(weights_->mtp->layer);
  NIBBLE_CHECK_OK(ops_->AllocateKv(kv));
  const int64_t recurrent = config_->LayersOf(Mixer::kDeltaNet);
  if (recurrent == 0) return {};
  return ops_->AllocateRecurrent({recurrent, limits.slots, limits.tentative_rows, delta_});
}

void QwenMoe::Attention(const weights::AttentionWeights& w, int64_t cache,
                        std::span<const SequenceRows> sequences, int64_t rows) {
  ops_->Linear(w.qkv, normed_.Top(rows), qkv_.Top(rows));
  ops_->Attention(attention_, cache, sequences, VectorOf(w.q_norm), VectorOf(w.k_norm),
                  rope_.Top(rows), qkv_.Top(rows), attended_.Top(rows));
  ops_->Linear(w.o, attended_.Top(rows), mixed_.Top(rows));
}

void QwenMoe::DeltaNet(const weights::DeltaWeights& w, int64_t state,
                       std::span<const SequenceRows> sequences, int64_t rows) {
  ops_->Linear(w.in, normed_.Top(rows), delta_in_.Top(rows));
  ops_->DeltaNet(delta_, state, sequences,
                 {VectorOf(w.conv), VectorOf(w.a_log), VectorOf(w.dt_bias), VectorOf(w.norm)},
                 delta_in_.Top(rows), delta_out_.Top(rows));
  ops_->Linear(w.out, delta_out_.Top(rows), mixed_.Top(rows));
}

/// mixed = the MLP or the experts over normed.
void QwenMoe::FeedForward(const weights::LayerWeights& w, int64_t rows) {
  const Matrix normed = normed_.Top(rows), mixed = mixed_.Top(rows);
  if (w.is_moe) {
    ops_->Route(w.router, normed, config_->norm_topk_prob, routing_);
    ops_->Experts(w.experts, normed, routing_, mixed);
    if (w.shared_gate.data == nullptr) return;
  }
  const Matrix gate_up{gate_up_.data, rows, w.gate_up.n}, mlp{mlp_.data, rows, w.down.k};
  ops_->Linear(w.gate_up, normed, gate_up);
  ops_->SiluMul(gate_up, mlp);
  if (!w.is_moe) return ops_->Linear(w.down, mlp, mixed);
  ops_->Linear(w.down, mlp, shared_.Top(rows));
  ops_->AddSharedExpert(w.shared_gate, normed, shared_.Top(rows), mixed);
}

/// `index` counts the layers of w's mixer.
void QwenMoe::Layer(const weights::LayerWeights& w, int64_t index,
                    std::span<const SequenceRows> sequences, int64_t rows) {
  const Matrix x = residual_.Top(rows);
  ops_->RmsNorm(x, VectorOf(w.input_norm), config_->rms_eps, normed_.Top(rows));
  if (w.mixer == Mixer::kAttention) {
    Attention(w.attention, index, sequences, rows);
  } else {
    DeltaNet(w.delta, index, sequences, rows);
  }
  ops_->Add(x, mixed_.Top(rows));
  ops_->RmsNorm(x, VectorOf(w.post_attention_norm), config_->rms_eps, normed_.Top(rows));
  FeedForward(w, rows);
  ops_->Add(x, mixed_.Top(rows));
}

Result<void> QwenMoe::Forward(std::span<const int32_t> ids,
                              std::span<const SequenceRows> sequences) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  NIBBLE_CHECK(rows > 0 && rows <= residual_.rows, "a batch larger than the workspace");
  ops_->Embed(weights_->embedding, ids, residual_.Top(rows));
  ops_->RopeTable(VectorOf(frequencies_), sequences, rope_.Top(rows));
  int64_t caches = 0, states = 0;
  for (const weights::LayerWeights& w : weights_->layers) {
    Layer(w, w.mixer == Mixer::kAttention ? caches++ : states++, sequences, rows);
  }
  ops_->RmsNorm(residual_.Top(rows), VectorOf(weights_->final_norm), config_->rms_eps,
                normed_.Top(rows));
  return ops_->Finish();
}

Result<void> QwenMoe::Draft(std::span<const int32_t> ids, std::span<const SequenceRows> sequences) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  NIBBLE_CHECK(weights_->mtp && rows > 0 && rows <= residual_.rows,
               "drafting without an MTP module, or a batch larger than the workspace");
  const weights::MtpWeights& w = *weights_->mtp;
  const float eps = config_->rms_eps;
  const Matrix x = residual_.Top(rows), normed = normed_.Top(rows), mixed = mixed_.Top(rows);
  ops_->Embed(weights_->embedding, ids, mixed);
  ops_->RmsNorm(mixed, VectorOf(w.embedding_norm), eps, x);
  ops_->RmsNorm(normed, VectorOf(w.hidden_norm), eps, mixed);
  ops_->Concat(x, mixed, pair_.Top(rows));
  ops_->Linear(w.fc, pair_.Top(rows), x);
  ops_->RopeTable(VectorOf(frequencies_), sequences, rope_.Top(rows));
  Layer(w.layer, config_->LayersOf(Mixer::kAttention), sequences, rows);
  ops_->RmsNorm(x, VectorOf(w.norm), eps, normed);
  return ops_->Finish();
}

void QwenMoe::Keep(int slot, int64_t rows) {
  if (config_->LayersOf(Mixer::kDeltaNet) > 0) ops_->Keep(slot, rows);
}

Result<void> QwenMoe::Logits(std::span<const int64_t> rows, std::span<float> out) {
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
