#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "numerics/e4m3.h"
#include "numerics/fp8.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels::reference {
namespace {

/// Row n under its channel's or its blocks' scales; a scale of the whole tensor is left out.
void DecodeFp8Row(const CanonicalFp8& w, int64_t n, double* out) {
  const int64_t blocks = (w.k + kFp8Block - 1) / kFp8Block;
  for (int64_t i = 0; i < w.k; ++i) {
    double scale = 1;
    if (w.group == GroupShape::PerChannel()) scale = w.scales[n];
    if (w.group == kFp8StaticBlock128.scale.group)
      scale = w.scales[n / kFp8Block * blocks + i / kFp8Block];
    out[i] = DecodeE4m3(w.codes[n * w.k + i]) * scale;
  }
}

/// Row n of a weight without its one scale of the whole tensor.
void DecodeRow(const CanonicalWeight& w, int64_t n, double* out) {
  if (const auto* fp8 = std::get_if<CanonicalFp8>(&w)) return DecodeFp8Row(*fp8, n, out);
  if (const auto* bf16 = std::get_if<CanonicalBf16>(&w)) {
    for (int64_t i = 0; i < bf16->k; ++i) out[i] = LoadBf16(bf16->data + 2 * (n * bf16->k + i));
    return;
  }
  const auto& fp4 = std::get<CanonicalNvfp4>(w);
  const uint8_t* codes = fp4.codes + n * (fp4.k / 2);
  const uint8_t* scales = fp4.scales + n * (fp4.k / kNvfp4Group);
  for (int64_t i = 0; i < fp4.k; ++i) {
    out[i] =
        static_cast<double>(DecodeE2m1(Nvfp4Code(codes, i))) * DecodeE4m3(scales[i / kNvfp4Group]);
  }
}

const QuantKey* Fp8Key(const std::optional<QuantKey>& key) {
  return key && key->dtype == ScalarType::kF8E4M3 ? &*key : nullptr;
}

/// Replaces x by what its FP8 form is worth: under `input_scale` if the key is static, else under
/// scales of its own.
void QuantizeFp8Row(const QuantKey& key, float input_scale, double* x, int64_t k) {
  const int64_t width = key.scale.group.col == -1 ? k : key.scale.group.col;
  for (int64_t first = 0; first < k; first += width) {
    const std::span<double> group(x + first, std::min(width, k - first));
    const double scale =
        key.scale.is_static ? input_scale : DynamicFp8Scale(LargestMagnitude<double>(group));
    for (double& v : group) v = DecodeE4m3(QuantizeFp8(v, scale)) * scale;
  }
}

/// Replaces x by what its NVFP4 form is worth.
void QuantizeNvfp4Row(const Context& context, BlockEvent event, double* x, int64_t k) {
  for (int64_t b = 0; b < k / kNvfp4Group; ++b) {
    std::span<double, kNvfp4Group> block(x + b * kNvfp4Group, kNvfp4Group);
    if (context.on_block) {
      event.block = b;
      event.x = block;
      context.on_block(event);
    }
    const Nvfp4Block q =
        QuantizeNvfp4Block<double>(std::span<const double, kNvfp4Group>(block), event.gscale);
    for (int i = 0; i < kNvfp4Group; ++i) {
      block[i] = static_cast<double>(DecodeE2m1(q.codes[i])) * DecodeE4m3(q.scale) / event.gscale;
    }
  }
}

/// store(t, n, global * sum_k x[t, k] W[n, k]) for rows first <= n < last.
template <class Store>
void Multiply(const CanonicalWeight& w, double global, const std::vector<double>& x, int64_t tokens,
              int64_t first, int64_t last, Store store) {
  const int64_t k = ColumnsOf(w);
  std::vector<double> row(k);
  for (int64_t n = first; n < last; ++n) {
    DecodeRow(w, n, row.data());
    for (int64_t t = 0; t < tokens; ++t) {
      const double* xt = x.data() + t * k;
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += xt[i] * row[i];
      store(t, n, sum * global);
    }
  }
}

double Sigmoid(double v) { return 1.0 / (1.0 + std::exp(-v)); }

double Activate(const PreparedExperts& e, double gate, double up) {
  const MoeQuantConfig& q = e.quant;
  const double alpha = q.alpha.value_or(1.0f), beta = q.beta.value_or(0.0f);
  if (q.clamp_limit) {
    const double limit = *q.clamp_limit;
    gate = std::min(gate, limit);
    up = std::clamp(up, -limit, limit);
  }
  switch (e.activation) {
    case Activation::kSilu:
      return gate * Sigmoid(gate) * up;
    case Activation::kSwigluOai:
    case Activation::kSwigluOaiUninterleave:
      return gate * Sigmoid(alpha * gate) * (up + beta);
    case Activation::kRelu2NoMul:
      return up > 0 ? up * up : 0;
    case Activation::kGelu:
    case Activation::kGeluTanh:
    case Activation::kSwigluStep:
    case Activation::kSitu:
      break;
  }
  NIBBLE_CHECK(false, "an activation that no plan lets through");
}

struct Route {
  int64_t token = 0;
  int rank = 0;
};

void OfferRows(const Context& context, int expert, int projection, const std::vector<Route>& routes,
               std::vector<double>& rows, int64_t width) {
  if (!context.on_expert_input) return;
  for (size_t t = 0; t < routes.size(); ++t) {
    context.on_expert_input(expert, projection, routes[t].token,
                            std::span(rows).subspan(t * width, width));
  }
}

/// One expert's outputs for the tokens routed to it: out[token * top_k + rank, :].
void RunExpert(const Context& context, const PreparedExperts& e, int expert,
               const std::vector<Route>& routes, const float* x, int top_k, double* out) {
  const int64_t tokens = static_cast<int64_t>(routes.size());
  const MoeQuantConfig& q = e.quant;
  const auto weight = [](const PreparedWeight& w) -> const CanonicalWeight& {
    return std::get<CanonicalWeight>(w);
  };
  const bool gated = q.w13_shards == 2;

  std::vector<double> input(tokens * e.hidden);
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(x + routes[t].token * e.hidden, e.hidden, input.begin() + t * e.hidden);
  }
  const QuantKey* fp8 = Fp8Key(q.scheme.activation);
  const auto first_gemm = [&](int shard, int projection, const CanonicalWeight& w) {
    std::vector<double> in = input;
    const int64_t index = expert * q.w13_shards + shard;
    for (int64_t t = 0; t < tokens; ++t) {
      double* row = in.data() + t * e.hidden;
      if (q.a1_gscale) {
        const double gscale = (*q.a1_gscale)[index];
        QuantizeNvfp4Row(context, {e.name, expert, projection, routes[t].token, 0, {}, gscale}, row,
                         e.hidden);
      } else if (fp8 != nullptr) {
        QuantizeFp8Row(*fp8, q.a1_scale ? (*q.a1_scale)[index] : 0, row, e.hidden);
      }
    }
    OfferRows(context, expert, projection, routes, in, e.hidden);
    std::vector<double> result(tokens * e.intermediate);
    Multiply(w, q.g1_alphas[index], in, tokens, 0, e.intermediate,
             [&](int64_t t, int64_t n, double v) { result[t * e.intermediate + n] = v; });
    return result;
  };
  std::vector<double> h(tokens * e.intermediate);
  if (gated) {
    const std::vector<double> gate = first_gemm(0, 0, weight(e.gate[expert]));
    const std::vector<double> up = first_gemm(1, 1, weight(e.up[expert]));
    for (size_t i = 0; i < h.size(); ++i) h[i] = Activate(e, gate[i], up[i]);
  } else {
    const std::vector<double> up = first_gemm(0, 1, weight(e.up[expert]));
    for (size_t i = 0; i < h.size(); ++i) h[i] = Activate(e, 0, up[i]);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    double* row = h.data() + t * e.intermediate;
    if (q.a2_gscale) {
      const double gscale = (*q.a2_gscale)[expert];
      QuantizeNvfp4Row(context, {e.name, expert, 2, routes[t].token, 0, {}, gscale}, row,
                       e.intermediate);
    } else if (fp8 != nullptr) {
      QuantizeFp8Row(*fp8, q.a2_scale ? (*q.a2_scale)[expert] : 0, row, e.intermediate);
    }
  }
  OfferRows(context, expert, 2, routes, h, e.intermediate);
  Multiply(weight(e.down[expert]), q.g2_alphas[expert], h, tokens, 0, e.hidden,
           [&](int64_t t, int64_t n, double v) {
             out[(routes[t].token * top_k + routes[t].rank) * e.hidden + n] = v;
           });
}

}  // namespace

void Linear(const Context& context, std::string_view module, const PreparedLinearShard& shard,
            const float* x, int64_t tokens, float* y, int64_t ldy) {
  const auto& w = std::get<CanonicalWeight>(shard.weight);
  const int64_t k = ColumnsOf(w);
  std::vector<double> input(x, x + tokens * k);
  for (int64_t t = 0; shard.activation && t < tokens; ++t) {
    double* row = input.data() + t * k;
    if (const QuantKey* fp8 = Fp8Key(shard.activation)) {
      QuantizeFp8Row(*fp8, shard.input_scale.value_or(0), row, k);
    } else {
      const double gscale = 1.0f / *shard.input_scale;
      QuantizeNvfp4Row(context, {module, -1, 0, t, 0, {}, gscale}, row, k);
    }
  }
  constexpr int64_t kRowsAUnit = 16;
  context.parallel((shard.n + kRowsAUnit - 1) / kRowsAUnit, [&](int64_t unit) {
    const int64_t first = unit * kRowsAUnit, last = std::min(first + kRowsAUnit, shard.n);
    Multiply(w, shard.global, input, tokens, first, last,
             [&](int64_t t, int64_t n, double v) { y[t * ldy + n] = static_cast<float>(v); });
  });
}

void Experts(const Context& context, const PreparedExperts& e, const float* x, int64_t tokens,
             const int32_t* ids, const float* weights, int top_k, float* y) {
  std::vector<std::vector<Route>> routes(e.n_experts);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int j = 0; j < top_k; ++j) routes[ids[t * top_k + j]].push_back({t, j});
  }
  std::vector<double> out(tokens * top_k * e.hidden);
  context.parallel(e.n_experts, [&](int64_t expert) {
    if (!routes[expert].empty()) {
      RunExpert(context, e, static_cast<int>(expert), routes[expert], x, top_k, out.data());
    }
  });
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < e.hidden; ++i) {
      double sum = 0;
      for (int j = 0; j < top_k; ++j)
        sum += weights[t * top_k + j] * out[(t * top_k + j) * e.hidden + i];
      y[t * e.hidden + i] = static_cast<float>(sum);
    }
  }
}

void RmsNorm(const float* x, int64_t rows, int64_t cols, const float* w, double eps, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < cols; ++i)
      sum += static_cast<double>(x[r * cols + i]) * x[r * cols + i];
    const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(cols) + eps);
    for (int64_t i = 0; i < cols; ++i) {
      out[r * cols + i] = static_cast<float>(x[r * cols + i] * inverse * w[i]);
    }
  }
}

void SiluMul(const float* gate_up, int64_t rows, int64_t intermediate, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < intermediate; ++i) {
      const double gate = gate_up[r * 2 * intermediate + i],
                   up = gate_up[(r * 2 + 1) * intermediate + i];
      out[r * intermediate + i] = static_cast<float>(gate * Sigmoid(gate) * up);
    }
  }
}

void RotateHalves(float* head, int64_t dim, const float* cosines, const float* sines,
                  int64_t frequencies) {
  NIBBLE_CHECK(2 * frequencies <= dim, "more rotary frequencies than half the head");
  for (int64_t i = 0; i < frequencies; ++i) {
    const double a = head[i], b = head[i + frequencies], c = cosines[i], s = sines[i];
    head[i] = static_cast<float>(a * c - b * s);
    head[i + frequencies] = static_cast<float>(b * c + a * s);
  }
}

void Attend(const AttendArgs& a) {
  const auto cached = [](KvDtype dtype, const std::byte* cache, int64_t i) -> double {
    if (dtype == KvDtype::kBf16) return LoadBf16(cache + 2 * i);
    if (dtype == KvDtype::kFp8) return DecodeE4m3(std::to_integer<uint8_t>(cache[i]));
    float v;
    std::memcpy(&v, cache + 4 * i, 4);
    return v;
  };
  const KvDtype keys = KeysOf(a.dtype), values = ValuesOf(a.dtype);
  std::vector<double> p(a.n);
  for (int64_t h = 0; h < a.group; ++h) {
    const float* q = a.q + h * a.q_stride;
    double largest = -HUGE_VAL, total = 0;
    for (int64_t j = 0; j < a.n; ++j) {
      double dot = 0;
      for (int64_t i = 0; i < a.dim; ++i) dot += q[i] * cached(keys, a.keys, j * a.stride + i);
      p[j] = dot * a.k_scale / std::sqrt(static_cast<double>(a.dim));
      largest = std::max(largest, p[j]);
    }
    for (double& v : p) total += v = std::exp(v - largest);
    for (int64_t i = 0; i < a.dim; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < a.n; ++j) sum += p[j] * cached(values, a.values, j * a.stride + i);
      a.out[h * a.dim + i] = static_cast<float>(sum / total * a.v_scale);
    }
  }
}

void MulSigmoid(float* x, const float* gate, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(x[i] * Sigmoid(gate[i]));
}

void AddSharedExpert(const CanonicalBf16& gate, const float* x, const float* shared, int64_t n,
                     float* y) {
  double dot = 0;
  for (int64_t i = 0; i < gate.k; ++i)
    dot += static_cast<double>(x[i]) * LoadBf16(gate.data + 2 * i);
  const double factor = Sigmoid(dot);
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(y[i] + factor * shared[i]);
}

void RouteOne(const CanonicalBf16& router, const float* x, bool renormalize, int top_k,
              float* probabilities, int32_t* ids, float* weights) {
  std::vector<double> p(router.n);
  for (int64_t e = 0; e < router.n; ++e) {
    for (int64_t i = 0; i < router.k; ++i) {
      p[e] += static_cast<double>(x[i]) * LoadBf16(router.data + 2 * (e * router.k + i));
    }
  }
  const double largest = *std::max_element(p.begin(), p.end());
  double total = 0;
  for (double& v : p) total += v = std::exp(v - largest);
  for (int64_t e = 0; e < router.n; ++e) probabilities[e] = static_cast<float>(p[e] / total);
  std::vector<int32_t> order(router.n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return p[a] > p[b]; });
  double chosen = 0;
  for (int j = 0; j < top_k; ++j) chosen += p[order[j]];
  for (int j = 0; j < top_k; ++j) {
    ids[j] = order[j];
    weights[j] = static_cast<float>(p[order[j]] / (renormalize ? chosen : total));
  }
}

}  // namespace nibble::kernels::reference
