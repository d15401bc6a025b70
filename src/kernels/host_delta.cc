#include "kernels/host_delta.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/reference/delta_rule.h"

namespace nibble::kernels {
namespace {

/// Below so many numbers of state to read, a parallel region costs more than it saves.
constexpr int64_t kWorthForking = 16384;

double Sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
double Softplus(double v) { return v > 20 ? v : std::log1p(std::exp(v)); }

}  // namespace

Result<void> HostDelta::Allocate(const RecurrentShape& shape) {
  shape_ = shape;
  const DeltaShape& d = shape.delta;
  const size_t slots = static_cast<size_t>(shape.layers * shape.slots);
  const size_t element = in_double_ ? sizeof(double) : sizeof(float);
  const size_t history = static_cast<size_t>((d.taps - 1) * d.channels());
  const size_t log = static_cast<size_t>(shape.tentative_rows * LogWidth());
  NIBBLE_TRY(states_, HugeBuffer::Allocate(slots * static_cast<size_t>(d.state_size()) * element));
  NIBBLE_TRY(histories_, HugeBuffer::Allocate(slots * history * sizeof(float)));
  NIBBLE_TRY(logs_, HugeBuffer::Allocate(slots * log * sizeof(float)));
  pending_.assign(slots, {});
  States<float>().resize(pool_.threads());
  States<double>().resize(pool_.threads());
  return {};
}

HostDelta::Slot HostDelta::SlotAt(int64_t layer, int slot) {
  const DeltaShape& d = shape_.delta;
  const int64_t i = SlotIndex(layer, slot);
  const int64_t element = in_double_ ? sizeof(double) : sizeof(float);
  return {states_.data() + i * d.state_size() * element,
          reinterpret_cast<float*>(histories_.data()) + i * (d.taps - 1) * d.channels(),
          reinterpret_cast<float*>(logs_.data()) + i * shape_.tentative_rows * LogWidth()};
}

void HostDelta::Keep(int slot, int64_t rows) {
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    Pending& p = pending_[SlotIndex(layer, slot)];
    NIBBLE_CHECK(!p.decided && rows >= 0 && rows <= p.logged,
                 "keeping rows that were not tentative");
    p.kept = rows;
    p.decided = true;
  }
}

void HostDelta::Run(int64_t layer, const SequenceRows& rows, const DeltaParameters& parameters,
                    const float* in, float* out) {
  in_double_ ? RunAs<double>(layer, rows, parameters, in, out)
             : RunAs<float>(layer, rows, parameters, in, out);
}

/// Row i of q | k | v after the convolution, q and k of unit length, and its gates.
template <class T>
void HostDelta::Prepare(const DeltaParameters& parameters, int64_t i, T* qkv, T* g, T* beta) const {
  const DeltaShape& d = shape_.delta;
  const int64_t channels = d.channels(), keys = d.k_heads * d.k_dim;
  const double q_scale = 1 / std::sqrt(static_cast<double>(d.k_dim));
  if constexpr (std::is_same_v<T, float>) {
    glue_.conv_silu(inputs_.data() + i, parameters.conv.data, d.taps, channels, qkv);
    for (int64_t h = 0; h < 2 * d.k_heads; ++h) {
      glue_.unit_length(qkv + h * d.k_dim, d.k_dim,
                        h < d.k_heads ? static_cast<float>(q_scale) : 1.0f);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < d.taps; ++j) {
        sum += static_cast<double>(parameters.conv.data[j * channels + c]) * inputs_[i + j][c];
      }
      qkv[c] = sum * Sigmoid(sum);
    }
    for (int64_t c = 0; c < 2 * keys; c += d.k_dim) {
      double sum = 0;
      for (int64_t j = 0; j < d.k_dim; ++j) sum += qkv[c + j] * qkv[c + j];
      const double factor = (c < keys ? q_scale : 1) / std::sqrt(sum + 1e-6);
      for (int64_t j = 0; j < d.k_dim; ++j) qkv[c + j] *= factor;
    }
  }
  for (int64_t h = 0; h < d.v_heads; ++h) {
    const double b = gates_[i][h], a = gates_[i][d.v_heads + h];
    beta[h] = static_cast<T>(Sigmoid(b));
    g[h] = static_cast<T>(-std::exp(static_cast<double>(parameters.a_log.data[h])) *
                          Softplus(a + parameters.dt_bias.data[h]));
  }
}

/// One value head through the kept and the new rows; `scratch` is a thread's own state.
template <class T>
void HostDelta::RunHead(const DeltaTokens<T>& all, int64_t kept, bool tentative, T* state,
                        std::vector<T>& scratch) const {
  const auto run = [&](DeltaTokens<T> t, int64_t first, int64_t n, T* s) {
    t.n = n;
    t.q += first * t.qkv_stride;
    t.k += first * t.qkv_stride;
    t.v += first * t.qkv_stride;
    t.g += first * t.gate_stride;
    t.beta += first * t.gate_stride;
    t.o += first * t.o_stride;
    if constexpr (std::is_same_v<T, float>) {
      glue_.delta_rows(t, s);
    } else {
      reference::DeltaRecurrence(t, s);
    }
  };
  if (!tentative) return run(all, 0, all.n, state);
  run(all, 0, kept, state);
  scratch.assign(state, state + all.v_dim * all.k_dim);
  run(all, kept, all.n - kept, scratch.data());
}

/// out = RMS(o) * norm * silu(z)
template <class T>
void HostDelta::GatedNorm(const DeltaParameters& parameters, const T* o, const float* z,
                          float* out) const {
  const DeltaShape& d = shape_.delta;
  if constexpr (std::is_same_v<T, float>) {
    glue_.rms_norm(o, d.v_dim, parameters.norm.data, d.norm_eps, out);
    glue_.silu_mul(z, out, d.v_dim, out);
  } else {
    double sum = 0;
    for (int64_t i = 0; i < d.v_dim; ++i) sum += o[i] * o[i];
    const double inverse = 1 / std::sqrt(sum / static_cast<double>(d.v_dim) + d.norm_eps);
    for (int64_t i = 0; i < d.v_dim; ++i) {
      const double gate = z[i];
      out[i] = static_cast<float>(o[i] * inverse * parameters.norm.data[i] * gate * Sigmoid(gate));
    }
  }
}

/// The convolution's history after `rows` of the run, and the log of those that may be taken back.
void HostDelta::Remember(Slot slot, int64_t rows, std::span<const float* const> logged) const {
  const DeltaShape& d = shape_.delta;
  const int64_t channels = d.channels();
  std::vector<float> history((d.taps - 1) * channels);
  for (int64_t j = 0; j + 1 < d.taps; ++j) {
    std::copy_n(inputs_[rows + j], channels, history.data() + j * channels);
  }
  std::copy(history.begin(), history.end(), slot.history);
  const int64_t gates = channels + d.out_width();
  for (const float* in : logged) {
    std::copy_n(in, channels, slot.log);
    std::copy_n(in + gates, 2 * d.v_heads, slot.log + channels);
    slot.log += LogWidth();
  }
}

template <class T>
void HostDelta::RunAs(int64_t layer, const SequenceRows& rows, const DeltaParameters& parameters,
                      const float* in, float* out) {
  const DeltaShape& d = shape_.delta;
  const int64_t channels = d.channels(), state_bytes = d.state_size() * int64_t{sizeof(T)};
  const Slot slot = SlotAt(layer, rows.slot);
  Pending& pending = pending_[SlotIndex(layer, rows.slot)];
  if (rows.start == 0) {
    std::memset(slot.state, 0, state_bytes);
    std::fill_n(slot.history, (d.taps - 1) * channels, 0.0f);
    pending = {};
  }
  NIBBLE_CHECK(pending.decided, "rows after tentative ones that nobody decided on");
  NIBBLE_CHECK(!rows.tentative || rows.n_rows <= shape_.tentative_rows,
               "more tentative rows than there is room for");
  const int64_t kept = pending.kept, n = kept + rows.n_rows;

  inputs_.clear();
  gates_.clear();
  for (int64_t j = 0; j + 1 < d.taps; ++j) inputs_.push_back(slot.history + j * channels);
  for (int64_t i = 0; i < kept; ++i) {
    inputs_.push_back(slot.log + i * LogWidth());
    gates_.push_back(inputs_.back() + channels);
  }
  const float* first_in = in + rows.first_row * d.in_width();
  for (int64_t i = 0; i < rows.n_rows; ++i) {
    inputs_.push_back(first_in + i * d.in_width());
    gates_.push_back(inputs_.back() + channels + d.out_width());
  }

  std::vector<T>& scratch = Scratch<T>();
  scratch.resize(n * (channels + 2 * d.v_heads + d.out_width()));
  T* const qkv = scratch.data();
  T* const g = qkv + n * channels;
  T* const beta = g + n * d.v_heads;
  T* const o = beta + n * d.v_heads;
  const auto prepare = [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      Prepare(parameters, i, qkv + i * channels, g + i * d.v_heads, beta + i * d.v_heads);
    }
  };
  n* channels < kWorthForking ? prepare(0, n, 0) : pool_.Run(n, prepare);

  const int64_t keys = d.k_heads * d.k_dim, group = d.v_heads / d.k_heads;
  const auto heads = [&](int64_t first, int64_t last, int thread) {
    for (int64_t h = first; h < last; ++h) {
      const int64_t key = h / group * d.k_dim, value = h * d.v_dim;
      const DeltaTokens<T> tokens{
          n,        d.k_dim, d.v_dim,  qkv + key, qkv + keys + key, qkv + 2 * keys + value,
          channels, g + h,   beta + h, d.v_heads, o + value,        d.out_width()};
      RunHead(tokens, kept, rows.tentative, reinterpret_cast<T*>(slot.state) + value * d.k_dim,
              States<T>()[thread]);
      for (int64_t i = 0; i < rows.n_rows; ++i) {
        GatedNorm(parameters, o + (kept + i) * d.out_width() + value,
                  first_in + i * d.in_width() + channels + value,
                  out + (rows.first_row + i) * d.out_width() + value);
      }
    }
  };
  d.state_size() < kWorthForking ? heads(0, d.v_heads, 0) : pool_.Run(d.v_heads, heads);

  if (rows.tentative) {
    Remember(slot, kept, std::span(inputs_).last(rows.n_rows));
    pending = {rows.n_rows, 0, false};
  } else {
    Remember(slot, n, {});
    pending = {};
  }
}

}  // namespace nibble::kernels
