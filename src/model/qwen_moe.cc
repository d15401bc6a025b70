#include "model/qwen_moe.h"

#include <algorithm>
#include <cmath>

#include "plan/plan.h"

namespace nibble::model {

using checkpoint::Mixer;
using kernels::Matrix;
using kernels::SequenceRows;
using kernels::SharedExpert;
using kernels::Vector;

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
  std::vector<float> frequencies;
  for (int i = 0; i < config.rotary_dim / 2; ++i) {
    frequencies.push_back(
        static_cast<float>(std::pow(config.rope_theta, -2.0 * i / config.rotary_dim)));
  }
  NIBBLE_TRY(m.frequencies_, operators.AllocateVector(frequencies));
  const int64_t rows = std::min(limits.batch_tokens, limits.context);
  NIBBLE_TRY(m.residual_, operators.Allocate(rows, config.hidden, kernels::Element::kFloat));
  NIBBLE_TRY(m.normed_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.mixed_, operators.Allocate(rows, config.hidden));
  NIBBLE_TRY(m.rope_, operators.Allocate(rows, config.rotary_dim, kernels::Element::kFloat));
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
    const int shared = config.shared_intermediate > 0 ? 1 : 0;
    NIBBLE_TRY(m.routing_, operators.AllocateRouting(rows, config.top_k + shared));
  }
  NIBBLE_TRY(m.last_, operators.Allocate(kLogitRows, config.hidden));
  NIBBLE_TRY(m.logits_, operators.Allocate(kLogitRows, config.vocab, kernels::Element::kFloat));
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

namespace {

const PreparedLinear& InOf(const weights::LayerWeights& w) {
  return w.mixer == Mixer::kAttention ? w.attention.qkv : w.delta.in;
}
const PreparedLinear& OutOf(const weights::LayerWeights& w) {
  return w.mixer == Mixer::kAttention ? w.attention.o : w.delta.out;
}

}  // namespace

Matrix QwenMoe::MixerIn(const weights::LayerWeights& w, int64_t rows) const {
  return (w.mixer == Mixer::kAttention ? qkv_ : delta_in_).Top(rows);
}
Matrix QwenMoe::MixerOut(const weights::LayerWeights& w, int64_t rows) const {
  return (w.mixer == Mixer::kAttention ? attended_ : delta_out_).Top(rows);
}

/// From a layer's normed input to what its mixer takes.
void QwenMoe::Enter(const weights::LayerWeights& w, int64_t rows) {
  ops_->Linear(InOf(w), normed_.Top(rows), MixerIn(w, rows));
}

/// `index` counts the layers of w's mixer.
void QwenMoe::Mix(const weights::LayerWeights& w, int64_t index, int64_t rows) {
  const Matrix in = MixerIn(w, rows), out = MixerOut(w, rows);
  if (w.mixer == Mixer::kAttention) {
    const weights::AttentionWeights& a = w.attention;
    return ops_->Attention(attention_, index, a.q_norm.vector(), a.k_norm.vector(), rope_.Top(rows),
                           in, out);
  }
  const weights::DeltaWeights& d = w.delta;
  ops_->DeltaNet(delta_, index,
                 {d.conv.vector(), d.a_log.vector(), d.dt_bias.vector(), d.norm.vector()}, in, out);
}

kernels::Routing QwenMoe::RoutingOf(const weights::LayerWeights& w) const {
  kernels::Routing routing = routing_;
  routing.shared = w.experts.shared;
  routing.top_k = config_->top_k + (w.experts.shared ? 1 : 0);
  return routing;
}

/// mixed = the MLP or the experts over normed; what a shared expert has to add besides.
SharedExpert QwenMoe::FeedForward(const weights::LayerWeights& w, int64_t rows) {
  const Matrix normed = normed_.Top(rows), mixed = mixed_.Top(rows);
  const bool shared = w.shared_gate.data != nullptr;
  if (w.is_moe) {
    const kernels::Routing routing = RoutingOf(w);
    ops_->Route(w.router, normed, config_->norm_topk_prob, routing);
    ops_->Experts(w.experts, normed, routing, mixed);
    if (!shared) return {};
  }
  const Matrix gate_up{gate_up_.data, rows, w.gate_up.n}, mlp{mlp_.data, rows, w.down.k};
  ops_->Linear(w.gate_up, normed, gate_up);
  ops_->SiluMul(gate_up, mlp);
  ops_->Linear(w.down, mlp, shared ? shared_.Top(rows) : mixed);
  if (!shared) return {};
  return {w.shared_gate, normed, shared_.Top(rows)};
}

/// From what the mixer has put out to the layer's output under `norm`, and on into the next layer.
void QwenMoe::Leave(const weights::LayerWeights& w, int64_t rows, Vector norm,
                    const weights::LayerWeights* next) {
  const Matrix x = residual_.Top(rows), normed = normed_.Top(rows), mixed = mixed_.Top(rows);
  const float eps = config_->rms_eps;
  if (w.is_moe && w.shared_gate.data == nullptr) {
    kernels::Between b;
    b.out = &OutOf(w);
    b.attended = MixerOut(w, rows);
    b.mid_norm = w.post_attention_norm.vector();
    b.router = w.router;
    b.renormalize = config_->norm_topk_prob;
    b.routing = RoutingOf(w);
    b.experts = &w.experts;
    b.next_norm = norm;
    b.eps = eps;
    if (next != nullptr) b.in = &InOf(*next), b.mixer_in = MixerIn(*next, rows);
    b.residual = x, b.mixed = mixed, b.normed = normed;
    if (ops_->BetweenMixers(b)) return;
  }
  ops_->Linear(OutOf(w), MixerOut(w, rows), mixed);
  ops_->AddRmsNorm(x, mixed, {}, w.post_attention_norm.vector(), eps, normed);
  const SharedExpert shared = FeedForward(w, rows);
  ops_->AddRmsNorm(x, mixed, shared, norm, eps, normed);
  if (next != nullptr) Enter(*next, rows);
}

void QwenMoe::Forward(std::span<const int32_t> ids, std::span<const SequenceRows> sequences) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  NIBBLE_CHECK(rows > 0 && rows <= residual_.rows, "a batch larger than the workspace");
  if (!ops_->Begin(kernels::StepKind::kForward, ids, sequences)) return;
  ops_->Embed(weights_->embedding, residual_.Top(rows));
  ops_->RopeTable(frequencies_, rope_.Top(rows));
  const auto& layers = weights_->layers;
  ops_->RmsNorm(residual_.Top(rows), layers[0].input_norm.vector(), config_->rms_eps,
                normed_.Top(rows));
  Enter(layers[0], rows);
  int64_t caches = 0, states = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const weights::LayerWeights* const next = i + 1 < layers.size() ? &layers[i + 1] : nullptr;
    Mix(layers[i], layers[i].mixer == Mixer::kAttention ? caches++ : states++, rows);
    Leave(layers[i], rows, (next ? next->input_norm : weights_->final_norm).vector(), next);
  }
  ops_->End();
}

void QwenMoe::Draft(std::span<const int32_t> ids, std::span<const SequenceRows> sequences) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  NIBBLE_CHECK(weights_->mtp && rows > 0 && rows <= residual_.rows,
               "drafting without an MTP module, or a batch larger than the workspace");
  if (!ops_->Begin(kernels::StepKind::kDraft, ids, sequences)) return;
  const weights::MtpWeights& w = *weights_->mtp;
  const float eps = config_->rms_eps;
  const Matrix x = residual_.Top(rows), normed = normed_.Top(rows), mixed = mixed_.Top(rows);
  ops_->Embed(weights_->embedding, mixed);
  ops_->RmsNorm(mixed, w.embedding_norm.vector(), eps, mixed);
  ops_->RmsNorm(normed, w.hidden_norm.vector(), eps, normed);
  ops_->Concat(mixed, normed, pair_.Top(rows));
  ops_->Linear(w.fc, pair_.Top(rows), x);
  ops_->RopeTable(frequencies_, rope_.Top(rows));
  ops_->RmsNorm(x, w.layer.input_norm.vector(), eps, normed);
  Enter(w.layer, rows);
  Mix(w.layer, config_->LayersOf(Mixer::kAttention), rows);
  Leave(w.layer, rows, w.norm.vector(), nullptr);
  ops_->End();
}

void QwenMoe::Keep(int slot, int64_t rows) {
  if (config_->LayersOf(Mixer::kDeltaNet) > 0) ops_->Keep(slot, rows);
}

/// The logits of rows of the last Forward or Draft, kLogitRows at most.
Matrix QwenMoe::Head(std::span<const int64_t> rows) {
  const auto n = static_cast<int64_t>(rows.size());
  for (int64_t i = 0; i < n; ++i) ops_->CopyRow(normed_, rows[static_cast<size_t>(i)], last_, i);
  ops_->Linear(weights_->head, last_.Top(n), logits_.Top(n));
  return logits_.Top(n);
}

Result<void> QwenMoe::Logits(std::span<const int64_t> rows, std::span<float> out) {
  const size_t vocab = static_cast<size_t>(config_->vocab);
  NIBBLE_CHECK(out.size() == rows.size() * vocab, "room for exactly the rows asked for");
  for (size_t first = 0; first < rows.size(); first += kLogitRows) {
    const size_t n = std::min<size_t>(kLogitRows, rows.size() - first);
    const Matrix logits = Head(rows.subspan(first, n));
    for (size_t i = 0; i < n; ++i) {
      ops_->ReadRow(logits, static_cast<int64_t>(i), out.subspan((first + i) * vocab, vocab));
    }
  }
  return ops_->Finish();
}

Result<void> QwenMoe::Greedy(std::span<const int64_t> rows, int64_t drawable,
                             std::span<int32_t> ids) {
  NIBBLE_CHECK(rows.size() <= kLogitRows && ids.size() == rows.size(), "rows of one head");
  ops_->ArgMax(Head(rows), drawable, ids);
  NIBBLE_CHECK_OK(ops_->Finish());
  if (std::find(ids.begin(), ids.end(), kernels::Operators::kNotNumbers) == ids.end()) return {};
  return Err(ErrorCode::kInternal, "the model's logits are not numbers");
}

}  // namespace nibble::model
