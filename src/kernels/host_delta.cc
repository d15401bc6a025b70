#include "kernels/host_delta.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/reference/delta_rule.h"

namespace nibble::kernels {
namespace {

/// Below so many numbers of state to read, a parallel region costs more than it saves.
constexpr int64_t kWorthForking = 16384;

/// Rows of a block: what a unit prepares, runs and norms before it goes on.
constexpr int64_t kBlockRows = cpu::kDeltaChunk;

/// From so many rows on, chunks are faster than the recurrence: at 16, 1.1 against 1.6 ms at the
/// shape of Qwen3.5-35B with AVX-512, 1.65 against 1.8 with AVX2 (Zen 5, one thread).
constexpr int64_t kWorthChunks = 16;

/// Rows lie far apart, and a unit reads only a few lines of each: no hardware sees that coming.
constexpr int64_t kRowsAhead = 4;

void Prefetch(const float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(p + i);
}

double Sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
double Softplus(double v) { return v > 20 ? v : std::log1p(std::exp(v)); }

}  // namespace

Result<void> HostDelta::Allocate(const RecurrentShape& shape) {
  shape_ = shape;
  const DeltaShape& d = shape.delta;
  const size_t slots = static_cast<size_t>(shape.layers * shape.slots);
  const size_t element = form_ == DeltaForm::kDouble ? sizeof(double) : sizeof(float);
  const size_t history = static_cast<size_t>((d.taps - 1) * d.channels());
  const size_t log = static_cast<size_t>(shape.tentative_rows * LogWidth());
  NIBBLE_TRY(states_, HugeBuffer::Allocate(slots * static_cast<size_t>(d.state_size()) * element));
  NIBBLE_TRY(histories_, HugeBuffer::Allocate(slots * history * sizeof(float)));
  NIBBLE_TRY(logs_, HugeBuffer::Allocate(slots * log * sizeof(float)));
  pending_.assign(slots, {});
  rates_.resize(d.v_heads);
  thread_states_.resize(pool_.threads());
  workspaces_.resize(pool_.threads());
  return {};
}

HostDelta::Slot HostDelta::SlotAt(int64_t layer, int slot) {
  const DeltaShape& d = shape_.delta;
  const int64_t i = SlotIndex(layer, slot);
  const int64_t element = form_ == DeltaForm::kDouble ? sizeof(double) : sizeof(float);
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

void HostDelta::CopySlot(int from, int to) {
  const DeltaShape& d = shape_.delta;
  const size_t element = form_ == DeltaForm::kDouble ? sizeof(double) : sizeof(float);
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    const Slot a = SlotAt(layer, from), b = SlotAt(layer, to);
    std::copy_n(a.state, static_cast<size_t>(d.state_size()) * element, b.state);
    std::copy_n(a.history, (d.taps - 1) * d.channels(), b.history);
    std::copy_n(a.log, shape_.tentative_rows * LogWidth(), b.log);
    pending_[SlotIndex(layer, to)] = pending_[SlotIndex(layer, from)];
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

/// Row i of q | k | v after the convolution, q and k of unit length, and its gates.
void HostDelta::PrepareInDouble(const DeltaParameters& parameters, int64_t i, double* qkv,
                                double* g, double* beta) const {
  const DeltaShape& d = shape_.delta;
  const int64_t channels = d.channels(), keys = d.k_heads * d.k_dim;
  const double q_scale = 1 / std::sqrt(static_cast<double>(d.k_dim));
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
  for (int64_t h = 0; h < d.v_heads; ++h) {
    const double b = gates_[i][h], a = gates_[i][d.v_heads + h];
    beta[h] = Sigmoid(b);
    g[h] = -std::exp(static_cast<double>(parameters.a_log.data[h])) *
           Softplus(a + parameters.dt_bias.data[h]);
  }
}

/// out = RMS(o) * norm * silu(z)
void HostDelta::NormInDouble(const DeltaParameters& parameters, const double* o, const float* z,
                             float* out) const {
  const DeltaShape& d = shape_.delta;
  double sum = 0;
  for (int64_t i = 0; i < d.v_dim; ++i) sum += o[i] * o[i];
  const double inverse = 1 / std::sqrt(sum / static_cast<double>(d.v_dim) + d.norm_eps);
  for (int64_t i = 0; i < d.v_dim; ++i) {
    const double gate = z[i];
    out[i] = static_cast<float>(o[i] * inverse * parameters.norm.data[i] * gate * Sigmoid(gate));
  }
}

void HostDelta::RunInDouble(const Batch& batch) {
  const DeltaShape& d = shape_.delta;
  const int64_t n = batch.n, channels = d.channels();
  scratch_.resize(n * (channels + 2 * d.v_heads + d.out_width()));
  double* const qkv = scratch_.data();
  double* const g = qkv + n * channels;
  double* const beta = g + n * d.v_heads;
  double* const o = beta + n * d.v_heads;
  pool_.Run(n, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      PrepareInDouble(batch.parameters, i, qkv + i * channels, g + i * d.v_heads,
                      beta + i * d.v_heads);
    }
  });
  const int64_t keys = d.k_heads * d.k_dim, group = d.v_heads / d.k_heads;
  pool_.RunEach(d.v_heads, [&](int64_t h, int thread) {
    const int64_t key = h / group * d.k_dim, value = h * d.v_dim, size = d.v_dim * d.k_dim;
    double* state = reinterpret_cast<double*>(batch.state) + h * size;
    const auto run = [&](int64_t first, int64_t last) {
      const double* row = qkv + first * channels;
      reference::DeltaRecurrence(
          DeltaTokens<double>{last - first, d.k_dim, d.v_dim, row + key, row + keys + key,
                              row + 2 * keys + value, channels, g + first * d.v_heads + h,
                              beta + first * d.v_heads + h, d.v_heads,
                              o + first * d.out_width() + value, d.out_width()},
          state);
    };
    run(0, batch.kept);
    if (batch.tentative) {
      thread_states_[thread].assign(state, state + size);
      state = thread_states_[thread].data();
    }
    run(batch.kept, n);
    for (int64_t i = batch.kept; i < n; ++i) {
      const int64_t row = i - batch.kept;
      NormInDouble(batch.parameters, o + i * d.out_width() + value,
                   batch.in + row * d.in_width() + channels + value,
                   batch.out + row * d.out_width() + value);
    }
  });
}

/// Value heads of one key head share its q and k, unless that leaves threads without work.
int64_t HostDelta::HeadsPerUnit() const {
  const DeltaShape& d = shape_.delta;
  const int64_t group = d.v_heads / d.k_heads, threads = pool_.threads();
  const auto most = [&](int64_t units) { return (units + threads - 1) / threads; };
  return most(d.k_heads) * group <= most(d.v_heads) ? group : 1;
}

/// Rows [first, first + rows) of the run for some value heads: q | k | v after the convolution, q
/// and k of unit length, and the gates. The tokens of the first of these heads.
DeltaTokens<float> HostDelta::PrepareBlock(const Batch& batch, int64_t first_head, int64_t heads,
                                           int64_t first, int64_t rows, Workspace& work) const {
  const DeltaShape& d = shape_.delta;
  const DeltaParameters& p = batch.parameters;
  const int64_t channels = d.channels(), keys = d.k_heads * d.k_dim;
  const int64_t key = first_head / (d.v_heads / d.k_heads) * d.k_dim;
  const int64_t width = 2 * d.k_dim + heads * d.v_dim;
  const float q_scale = 1 / std::sqrt(static_cast<float>(d.k_dim));
  for (int64_t i = 0; i < rows; ++i) {
    float* const q = work.qkv.data() + i * width;
    float* const k = q + d.k_dim;
    if (first + i + kRowsAhead < batch.n) {
      const float* ahead = inputs_[first + i + kRowsAhead + d.taps - 1];
      Prefetch(ahead + key, d.k_dim);
      Prefetch(ahead + keys + key, d.k_dim);
      Prefetch(ahead + 2 * keys + first_head * d.v_dim, heads * d.v_dim);
    }
    const auto convolve = [&](int64_t channel, int64_t n, float* out) {
      glue_.conv_silu(inputs_.data() + first + i, channel, n, p.conv.data, channels, d.taps, out);
    };
    convolve(key, d.k_dim, q);
    convolve(keys + key, d.k_dim, k);
    convolve(2 * keys + first_head * d.v_dim, heads * d.v_dim, k + d.k_dim);
    glue_.unit_length(q, d.k_dim, q_scale);
    glue_.unit_length(k, d.k_dim, 1);
    const float* gates = gates_[first + i] + first_head;
    for (int64_t h = 0; h < heads; ++h) {
      work.beta[i * heads + h] = gates[h];
      work.a[i * heads + h] = gates[d.v_heads + h] + p.dt_bias.data[first_head + h];
      work.rate[i * heads + h] = rates_[first_head + h];
    }
  }
  glue_.delta_gates(work.a.data(), work.rate.data(), rows * heads, work.beta.data(), work.g.data());
  const float* q = work.qkv.data();
  return {rows,  d.k_dim,       d.v_dim,          q,     q + d.k_dim,   q + 2 * d.k_dim,
          width, work.g.data(), work.beta.data(), heads, work.o.data(), heads * d.v_dim};
}

/// The gated norm of new rows from a block.
void HostDelta::NormBlock(const Batch& batch, int64_t first_head, int64_t heads, int64_t first,
                          int64_t rows, const Workspace& work) const {
  const DeltaShape& d = shape_.delta;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = first + i - batch.kept;
    const float* z = batch.in + row * d.in_width() + d.channels() + first_head * d.v_dim;
    if (i + kRowsAhead < rows) Prefetch(z + kRowsAhead * d.in_width(), heads * d.v_dim);
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t value = (first_head + h) * d.v_dim;
      float* const out = batch.out + row * d.out_width() + value;
      glue_.rms_norm(work.o.data() + (i * heads + h) * d.v_dim, d.v_dim, batch.parameters.norm.data,
                     d.norm_eps, out);
      glue_.silu_mul(z + h * d.v_dim, out, d.v_dim, out);
    }
  }
}

/// Rows [first, last) of the run through some heads' states.
void HostDelta::RunRows(const Batch& batch, int64_t first_head, int64_t heads, int64_t first,
                        int64_t last, float* states, Workspace& work) const {
  const DeltaShape& d = shape_.delta;
  const bool is_new = first >= batch.kept, chunks = is_new && batch.chunks;
  DeltaTokens<float> shape;
  shape.k_dim = d.k_dim;
  shape.v_dim = d.v_dim;
  if (chunks) glue_.delta_load(shape, heads, states, work.chunks.data());
  for (int64_t i = first; i < last; i += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, last - i);
    const DeltaTokens<float> tokens = PrepareBlock(batch, first_head, heads, i, rows, work);
    if (chunks) {
      glue_.delta_chunk(tokens, heads, work.chunks.data());
    } else {
      for (int64_t h = 0; h < heads; ++h) {
        DeltaTokens<float> head = tokens;
        head.v += h * d.v_dim;
        head.o += h * d.v_dim;
        head.g += h;
        head.beta += h;
        glue_.delta_rows(head, states + h * d.v_dim * d.k_dim);
      }
    }
    if (is_new) NormBlock(batch, first_head, heads, i, rows, work);
  }
  if (chunks) glue_.delta_store(shape, heads, work.chunks.data(), states);
}

/// Value heads that share a key head, through all rows: block after block, so that what one step
/// writes is still in the cache when the next one reads it.
void HostDelta::RunUnit(const Batch& batch, int64_t first_head, int64_t heads,
                        Workspace& work) const {
  const DeltaShape& d = shape_.delta;
  const int64_t size = d.v_dim * d.k_dim;
  const auto grow = [](std::vector<float>& v, int64_t n) {
    if (static_cast<int64_t>(v.size()) < n) v.resize(n);
  };
  grow(work.qkv, kBlockRows * (2 * d.k_dim + heads * d.v_dim));
  grow(work.o, kBlockRows * heads * d.v_dim);
  for (auto* gates : {&work.a, &work.rate, &work.beta, &work.g}) grow(*gates, kBlockRows * heads);
  if (batch.chunks) grow(work.chunks, glue_.delta_scratch(d.k_dim, d.v_dim, heads));
  float* states = reinterpret_cast<float*>(batch.state) + first_head * size;
  RunRows(batch, first_head, heads, 0, batch.kept, states, work);
  if (batch.tentative) {
    work.states.assign(states, states + heads * size);
    states = work.states.data();
  }
  RunRows(batch, first_head, heads, batch.kept, batch.n, states, work);
}

void HostDelta::RunInSingle(const Batch& batch) {
  const DeltaShape& d = shape_.delta;
  for (int64_t h = 0; h < d.v_heads; ++h) {
    rates_[h] = static_cast<float>(std::exp(static_cast<double>(batch.parameters.a_log.data[h])));
  }
  const int64_t heads = HeadsPerUnit(), units = d.v_heads / heads;
  const auto run = [&](int64_t first, int64_t last, int thread) {
    for (int64_t unit = first; unit < last; ++unit) {
      RunUnit(batch, unit * heads, heads, workspaces_[thread]);
    }
  };
  d.state_size() < kWorthForking ? run(0, units, 0) : pool_.Run(units, run);
}

void HostDelta::Run(int64_t layer, const SequenceRows& rows, const DeltaParameters& parameters,
                    const float* in, float* out) {
  const DeltaShape& d = shape_.delta;
  const int64_t channels = d.channels();
  const bool in_double = form_ == DeltaForm::kDouble;
  const Slot slot = SlotAt(layer, rows.slot);
  Pending& pending = pending_[SlotIndex(layer, rows.slot)];
  if (rows.start == 0) {
    std::memset(slot.state, 0, d.state_size() * (in_double ? sizeof(double) : sizeof(float)));
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

  const bool chunks =
      form_ == DeltaForm::kFastest && !rows.tentative && rows.n_rows >= kWorthChunks;
  const Batch batch{parameters, kept,       n,        rows.tentative,
                    chunks,     slot.state, first_in, out + rows.first_row * d.out_width()};
  in_double ? RunInDouble(batch) : RunInSingle(batch);

  if (rows.tentative) {
    Remember(slot, kept, std::span(inputs_).last(rows.n_rows));
    pending = {rows.n_rows, 0, false};
  } else {
    Remember(slot, n, {});
    pending = {};
  }
}

}  // namespace nibble::kernels
