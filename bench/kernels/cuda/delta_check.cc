#include "delta_check.h"

#include <algorithm>
#include <cmath>
#include <thread>

namespace nibble::bench {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class Run>
void InParallel(int64_t n, Run run) {
  const int64_t workers = std::min<int64_t>(n, std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int64_t w = 0; w < workers; ++w) {
    threads.emplace_back([=] {
      for (int64_t i = w; i < n; i += workers) run(i);
    });
  }
  for (std::thread& t : threads) t.join();
}

}  // namespace

DeltaLayer::DeltaLayer(const DeltaShape& s, DeltaKind kind, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  conv.resize(s.taps * s.channels());
  a_log.resize(s.v_heads), dt_bias.resize(s.v_heads), norm.resize(s.v_dim);
  for (float& x : conv) x = 0.5f * normal(random) + (kind == DeltaKind::kLongMemory ? 0.5f : 0.0f);
  for (float& x : a_log) x = kind == DeltaKind::kStrongDecay ? 2.0f : 0.5f * normal(random);
  for (float& x : dt_bias) x = normal(random) - (kind == DeltaKind::kLongMemory ? 7.0f : 1.0f);
  for (float& x : norm) x = 1.0f + 0.3f * normal(random);
  d_conv = Buffer<float>(conv), d_a_log = Buffer<float>(a_log);
  d_dt_bias = Buffer<float>(dt_bias), d_norm = Buffer<float>(norm);
}

kernels::DeltaParameters DeltaLayer::Device() const {
  const auto view = [](const Buffer<float>& b) {
    return kernels::Vector{b.get(), static_cast<int64_t>(b.size())};
  };
  return {view(d_conv), view(d_a_log), view(d_dt_bias), view(d_norm)};
}

std::vector<Bf16> DeltaInputs(const DeltaShape& s, DeltaKind kind, int64_t rows, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Bf16> in(rows * s.in_width());
  const int64_t gates = s.channels() + s.out_width();
  for (int64_t i = 0; i < rows * s.in_width(); ++i) {
    const int64_t c = i % s.in_width();
    float x = normal(random);
    if (kind == DeltaKind::kLongMemory && c < 2 * s.k_heads * s.k_dim) x = 0.3f * x + 1;
    if (kind == DeltaKind::kLongMemory && c >= gates && c < gates + s.v_heads) x += 6;
    if (kind == DeltaKind::kStrongDecay && c >= gates + s.v_heads) x = 6 * x;
    in[i] = ToBf16(x);
  }
  return in;
}

DeltaTruth::DeltaTruth(const DeltaShape& shape, const DeltaLayer& layer)
    : state(shape.state_size()),
      state_error(shape.v_heads * shape.v_dim),
      shape_(shape),
      layer_(layer),
      history_((shape.taps - 1) * shape.channels()) {}

void DeltaTruth::Run(const Bf16* in, int64_t rows, double unit, std::vector<double>& out,
                     std::vector<double>& bound) {
  const int64_t channels = shape_.channels(), before = shape_.taps - 1;
  std::vector<double> x = history_;
  x.resize((before + rows) * channels);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t c = 0; c < channels; ++c) {
      x[(before + t) * channels + c] = ToFloat(in[t * shape_.in_width() + c]);
    }
  }
  out.assign(rows * shape_.out_width(), 0), bound.assign(rows * shape_.out_width(), 0);
  InParallel(shape_.v_heads,
             [&](int64_t h) { RunHead(h, x, in, rows, unit, out.data(), bound.data()); });
  history_.assign(x.end() - before * channels, x.end());
}

void DeltaTruth::RunHead(int64_t head, const std::vector<double>& x, const Bf16* in, int64_t rows,
                         double unit, double* out, double* bound) {
  const DeltaShape& s = shape_;
  const int64_t channels = s.channels(), keys = s.k_heads * s.k_dim;
  const int64_t key_head = head / (s.v_heads / s.k_heads);
  std::vector<double> q(s.k_dim), k(s.k_dim), v(s.v_dim), o(s.v_dim), error(s.v_dim);
  std::vector<double> rounding(std::max(s.k_dim, s.v_dim));  // of the last convolution, in fp32
  const auto convolve = [&](int64_t t, int64_t channel, std::vector<double>& to) {
    for (size_t i = 0; i < to.size(); ++i) {
      double sum = 0, magnitude = 0;
      for (int64_t j = 0; j < s.taps; ++j) {
        const double product =
            double(layer_.conv[j * channels + channel + i]) * x[(t + j) * channels + channel + i];
        sum += product, magnitude += std::abs(product);
      }
      to[i] = sum * Sigmoid(sum);
      rounding[i] = 0x1p-22 * magnitude;
    }
  };
  const auto normalize = [&](std::vector<double>& a, double scale) {
    double sum = 1e-6;
    for (double e : a) sum += e * e;
    for (double& e : a) e *= scale / std::sqrt(sum);
  };
  for (int64_t t = 0; t < rows; ++t) {
    convolve(t, key_head * s.k_dim, q);
    convolve(t, keys + key_head * s.k_dim, k);
    convolve(t, 2 * keys + head * s.v_dim, v);
    const double q_length = 1 / std::sqrt(double(s.k_dim));
    normalize(q, q_length);
    normalize(k, 1);
    const Bf16* row = in + t * s.in_width();
    const Bf16* gates = row + channels + s.out_width();
    const double beta = Sigmoid(ToFloat(gates[head]));
    const double a = double(ToFloat(gates[s.v_heads + head])) + layer_.dt_bias[head];
    const double g = -std::exp(double(layer_.a_log[head])) * std::log1p(std::exp(a));
    const double decay = std::exp(g);
    double squares = 0, errors = 0;
    for (int64_t r = 0; r < s.v_dim; ++r) {
      double* S = state.data() + (head * s.v_dim + r) * s.k_dim;
      double dot = 0, length = 0, result = 0;
      for (int64_t c = 0; c < s.k_dim; ++c) {
        S[c] *= decay;
        dot += S[c] * k[c];
        length += S[c] * S[c];
      }
      length = std::sqrt(length);
      const double delta = beta * (v[r] - dot);
      for (int64_t c = 0; c < s.k_dim; ++c) {
        S[c] += delta * k[c];
        result += S[c] * q[c];
      }
      double& e = state_error[head * s.v_dim + r];
      e = decay * e +
          unit * (length * (1 + std::abs(g)) + std::abs(delta) + beta * (std::abs(v[r]) + length)) +
          beta * rounding[r];
      o[r] = result;
      error[r] = q_length * (e + 2 * unit * (length + std::abs(delta)));
      squares += result * result, errors += error[r] * error[r];
    }
    const double inverse = 1 / std::sqrt(squares / s.v_dim + s.norm_eps);
    for (int64_t r = 0; r < s.v_dim; ++r) {
      const double z = ToFloat(row[channels + head * s.v_dim + r]);
      const double factor = inverse * layer_.norm[r] * z * Sigmoid(z);
      const int64_t at = t * s.out_width() + head * s.v_dim + r;
      out[at] = o[r] * factor;
      // The norm's own error is that of all the head's outputs; bf16 rounds by up to 2^-8.
      bound[at] =
          std::abs(factor) * (error[r] + std::abs(o[r]) * inverse * std::sqrt(errors / s.v_dim)) +
          std::abs(out[at]) * 0x1.01p-8 + 1e-37;
    }
  }
}

}  // namespace nibble::bench
