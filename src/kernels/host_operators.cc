#include "kernels/host_operators.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/experts.h"
#include "kernels/cpu/linear.h"

namespace nibble::kernels {
namespace {

float* Floats(Matrix m) { return static_cast<float*>(m.data); }

/// Below this many multiplications a parallel region costs more than it saves.
constexpr int64_t kWorthForking = 32768;

cpu::CpuKernels ChooseKernels(CpuIsa isa, bool batch_invariant) {
  cpu::CpuKernels kernels = cpu::KernelsFor(isa);
  if (batch_invariant) {  // panels sum in another order
    constexpr int64_t kNever = INT64_MAX;
    kernels.nvfp4_panel_tokens = kernels.fp8_panel_tokens = kernels.bf16_panel_tokens = kNever;
  }
  return kernels;
}

/// The top_k largest of p, falling, equal ones by lower index; returns their sum. p is as before.
float TakeLargest(float* p, int64_t n, int top_k, int32_t* ids, float* values) {
  float sum = 0;
  for (int j = 0; j < top_k; ++j) {
    int64_t best = 0;
    for (int64_t e = 1; e < n; ++e) best = p[e] > p[best] ? e : best;
    ids[j] = static_cast<int32_t>(best);
    values[j] = p[best];
    sum += p[best];
    p[best] = -1;  // below every probability
  }
  for (int j = 0; j < top_k; ++j) p[ids[j]] = values[j];
  return sum;
}

}  // namespace

HostOperators::HostOperators(Backend glue, CpuIsa isa, ThreadPool& pool, bool batch_invariant)
    : glue_(glue),
      kernels_(ChooseKernels(isa, batch_invariant)),
      ops_(cpu::GlueFor(isa)),
      pool_(pool),
      attention_(glue == Backend::kReference, ops_, pool),
      delta_(glue == Backend::kReference ? DeltaForm::kDouble
             : batch_invariant           ? DeltaForm::kInvariant
                                         : DeltaForm::kFastest,
             ops_, pool) {
  reference_.parallel = [this](int64_t n, const std::function<void(int64_t)>& unit) {
    pool_.RunEach(n, [&](int64_t i, int) { unit(i); });
  };
}

void HostOperators::Observe(HostObserver observer) {
  observer_ = std::move(observer);
  reference_.on_block = observer_.on_block;
}

void HostOperators::Note(Result<void> status) {
  if (status_ && !status) status_ = std::move(status);
}

Result<void> HostOperators::Finish() {
  Result<void> status = std::move(status_);
  status_ = {};
  return status;
}

Result<Matrix> HostOperators::Allocate(int64_t rows, int64_t cols, Element element) {
  NIBBLE_TRY(HugeBuffer buffer,
             HugeBuffer::Allocate(static_cast<size_t>(rows * cols) * sizeof(float)));
  buffers_.push_back(std::move(buffer));
  return Matrix{buffers_.back().data(), rows, cols, element};
}

Result<Vector> HostOperators::AllocateVector(std::span<const float> values) {
  vectors_.emplace_back(values.begin(), values.end());
  return Vector{vectors_.back().data(), static_cast<int64_t>(values.size())};
}

Result<Routing> HostOperators::AllocateRouting(int64_t rows, int top_k) {
  NIBBLE_TRY(Matrix ids, Allocate(rows, top_k));
  NIBBLE_TRY(Matrix weights, Allocate(rows, top_k));
  return Routing{static_cast<int32_t*>(ids.data), Floats(weights), top_k};
}

Result<void> HostOperators::AllocateKv(const KvShape& shape) { return attention_.Allocate(shape); }

Result<void> HostOperators::AllocateRecurrent(const RecurrentShape& shape) {
  return delta_.Allocate(shape);
}

void HostOperators::ForRows(int64_t rows, int64_t work_a_row,
                            FunctionRef<void(int64_t, int64_t, int)> body) {
  if (rows * work_a_row < kWorthForking) {
    body(0, rows, 0);
  } else {
    pool_.Run(rows, body);
  }
}

bool HostOperators::Begin(StepKind, std::span<const int32_t> ids,
                          std::span<const SequenceRows> sequences) {
  ids_ = ids;
  sequences_ = sequences;
  return true;
}

void HostOperators::Embed(const CanonicalBf16& table, Matrix out) {
  const auto timed = times_.Time("embed");
  for (size_t t = 0; t < ids_.size(); ++t) {
    NIBBLE_CHECK(ids_[t] >= 0 && ids_[t] < table.n, "token id outside the embedding");
    ops_.from_bf16(table.data + 2 * ids_[t] * table.k, table.k, Floats(out) + t * table.k);
  }
}

void HostOperators::RmsNorm(Matrix x, Vector w, float eps, Matrix out) {
  const auto timed = times_.Time("rms_norm");
  if (glue_ == Backend::kReference) {
    reference::RmsNorm(Floats(x), x.rows, x.cols, w.data, eps, Floats(out));
    return;
  }
  ForRows(x.rows, x.cols, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      ops_.rms_norm(Floats(x) + r * x.cols, x.cols, w.data, eps, Floats(out) + r * x.cols);
    }
  });
}

void HostOperators::Linear(const PreparedLinear& linear, Matrix x, Matrix y) {
  const auto timed = times_.Time("linear", linear.shards[0].name);
  constexpr int kMaxShards = 8;
  const PreparedLinearShard* shards[kMaxShards];
  int64_t columns[kMaxShards];
  int n_cpu = 0;
  int64_t column = 0;
  for (const PreparedLinearShard& shard : linear.shards) {
    if (shard.backend == Backend::kCpu) {
      NIBBLE_CHECK(n_cpu < kMaxShards, "more shards in a fused linear than foreseen");
      shards[n_cpu] = &shard;
      columns[n_cpu++] = column;
    } else {
      reference::Linear(reference_, shard.name, shard, Floats(x), x.rows, Floats(y) + column,
                        y.cols);
    }
    column += shard.n;
  }
  if (n_cpu > 0) {
    Note(cpu::Linear(kernels_, pool_, scratch_, {shards, static_cast<size_t>(n_cpu)},
                     {columns, static_cast<size_t>(n_cpu)}, Floats(x), x.rows, linear.k, Floats(y),
                     y.cols));
  }
}

void HostOperators::Add(Matrix x, Matrix y) {
  const auto timed = times_.Time("add");
  ForRows(x.rows, x.cols, [&](int64_t first, int64_t last, int) {
    ops_.add(Floats(x) + first * x.cols, Floats(y) + first * x.cols, (last - first) * x.cols);
  });
}

void HostOperators::AddRmsNorm(Matrix x, Matrix y, const SharedExpert& shared, Vector w, float eps,
                               Matrix out) {
  if (shared.gate.data != nullptr) AddSharedExpert(shared.gate, shared.in, shared.out, y);
  Add(x, y);
  RmsNorm(x, w, eps, out);
}

void HostOperators::SiluMul(Matrix gate_up, Matrix out) {
  const auto timed = times_.Time("silu_mul");
  if (glue_ == Backend::kReference) {
    reference::SiluMul(Floats(gate_up), out.rows, out.cols, Floats(out));
    return;
  }
  ForRows(out.rows, 8 * out.cols, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      const float* gate = Floats(gate_up) + r * 2 * out.cols;
      ops_.silu_mul(gate, gate + out.cols, out.cols, Floats(out) + r * out.cols);
    }
  });
}

void HostOperators::RopeTable(Vector frequencies, Matrix table) {
  const auto timed = times_.Time("rope_table");
  for (const SequenceRows& s : sequences_) {
    for (int64_t i = 0; i < s.n_rows; ++i) {
      float* row = Floats(table) + (s.first_row + i) * table.cols;
      for (int64_t f = 0; f < frequencies.n; ++f) {
        const double angle = static_cast<double>(s.start + i) * frequencies.data[f];
        row[f] = static_cast<float>(std::cos(angle));
        row[frequencies.n + f] = static_cast<float>(std::sin(angle));
      }
    }
  }
}

void HostOperators::Attention(const AttentionShape& shape, int64_t layer, Vector q_norm,
                              Vector k_norm, Matrix rope_table, Matrix qkv, Matrix out) {
  const auto timed = times_.Time("attention");
  Note(attention_.Run({shape, layer, sequences_, q_norm, k_norm, Floats(rope_table),
                       rope_table.cols / 2, Floats(qkv), Floats(out)}));
}

/// From the logits of rows first … last-1, at p, to their probabilities and their experts.
void HostOperators::ChooseExperts(int64_t first, int64_t last, int64_t n, bool renormalize,
                                  float* p, Routing routing) {
  for (int64_t t = first; t < last; ++t) {
    float* of_token = p + t * n;
    float* weights = routing.weights + t * routing.top_k;
    const float total = ops_.exp_and_sum(of_token, n);
    const float chosen =
        TakeLargest(of_token, n, routing.top_k, routing.experts + t * routing.top_k, weights);
    const float divisor = renormalize ? chosen : total;
    for (int j = 0; j < routing.top_k; ++j) weights[j] /= divisor;
    if (!observer_.on_route) continue;  // no one else reads the probabilities
    for (int64_t e = 0; e < n; ++e) of_token[e] /= total;
  }
}

void HostOperators::RouteCpu(const CanonicalBf16& router, Matrix x, bool renormalize, float* p,
                             Routing routing) {
  const int64_t n = router.n, k = router.k;
  const auto logits = [&](int64_t row, int64_t rows, int64_t expert, int64_t experts) {
    ops_.dots_bf16(Floats(x) + row * x.cols, rows, x.cols, router.data + 2 * expert * k, experts, k,
                   p + row * n + expert, n);
  };
  if (x.rows >= pool_.threads()) {
    ForRows(x.rows, n * k, [&](int64_t first, int64_t last, int) {
      logits(first, last - first, 0, n);
      ChooseExperts(first, last, n, renormalize, p, routing);
    });
  } else {  // too few rows for all threads: each takes some experts
    ForRows(n, x.rows * k,
            [&](int64_t first, int64_t last, int) { logits(0, x.rows, first, last - first); });
    ChooseExperts(0, x.rows, n, renormalize, p, routing);
  }
}

void HostOperators::Route(const CanonicalBf16& router, Matrix x, bool renormalize,
                          Routing routing) {
  NIBBLE_CHECK(!routing.shared, "a host runs shared experts apart");
  const auto timed = times_.Time("route");
  const int top_k = routing.top_k;
  const size_t needed = static_cast<size_t>(x.rows * router.n);
  if (probabilities_.size() < needed) probabilities_.resize(needed);
  float* p = probabilities_.data();
  if (glue_ == Backend::kReference) {
    ForRows(x.rows, router.n * router.k, [&](int64_t first, int64_t last, int) {
      for (int64_t t = first; t < last; ++t) {
        reference::RouteOne(router, Floats(x) + t * x.cols, renormalize, top_k, p + t * router.n,
                            routing.experts + t * top_k, routing.weights + t * top_k);
      }
    });
  } else {
    RouteCpu(router, x, renormalize, p, routing);
  }
  if (observer_.on_route) {
    for (int64_t t = 0; t < x.rows; ++t) {
      observer_.on_route(t, {p + t * router.n, static_cast<size_t>(router.n)},
                         {routing.experts + t * top_k, static_cast<size_t>(top_k)});
    }
  }
}

void HostOperators::Experts(const PreparedExperts& experts, Matrix x, const Routing& routing,
                            Matrix y) {
  const auto timed = times_.Time("experts");
  if (experts.backend == Backend::kReference) {
    reference::Experts(reference_, experts, Floats(x), x.rows, routing.experts, routing.weights,
                       routing.top_k, Floats(y));
  } else {
    Note(cpu::Experts(kernels_, pool_, scratch_, experts, Floats(x), x.rows, routing.experts,
                      routing.weights, routing.top_k, Floats(y)));
  }
}

void HostOperators::DeltaNet(const DeltaShape&, int64_t layer, const DeltaParameters& parameters,
                             Matrix in, Matrix out) {
  const auto timed = times_.Time("delta_net");
  for (const SequenceRows& rows : sequences_) {
    delta_.Run(layer, rows, parameters, Floats(in), Floats(out));
  }
}

void HostOperators::Keep(int slot, int64_t rows) { delta_.Keep(slot, rows); }

void HostOperators::CopySlot(int from, int to, int64_t positions) {
  attention_.CopySlot(from, to, positions);
  delta_.CopySlot(from, to);
}

void HostOperators::AddSharedExpert(const CanonicalBf16& gate, Matrix x, Matrix shared, Matrix y) {
  const auto timed = times_.Time("add_shared_expert");
  ForRows(x.rows, 3 * x.cols, [&](int64_t first, int64_t last, int) {
    for (int64_t t = first; t < last; ++t) {
      const float* in = Floats(x) + t * x.cols;
      const float* from = Floats(shared) + t * shared.cols;
      float* to = Floats(y) + t * y.cols;
      if (glue_ == Backend::kReference) {
        reference::AddSharedExpert(gate, in, from, y.cols, to);
      } else {
        float dot;
        ops_.dots_bf16(in, 1, gate.k, gate.data, 1, gate.k, &dot, 1);
        ops_.add_gated(to, from, dot, y.cols);
      }
    }
  });
}

void HostOperators::Concat(Matrix a, Matrix b, Matrix out) {
  const auto timed = times_.Time("concat");
  for (int64_t t = 0; t < a.rows; ++t) {
    float* row = Floats(out) + t * out.cols;
    std::copy_n(Floats(b) + t * b.cols, b.cols, std::copy_n(Floats(a) + t * a.cols, a.cols, row));
  }
}

void HostOperators::WriteMatrix(std::span<const float> from, Matrix to) {
  std::copy(from.begin(), from.end(), Floats(to));
}

void HostOperators::WriteRouting(std::span<const int32_t> experts, std::span<const float> weights,
                                 const Routing& to) {
  std::copy(experts.begin(), experts.end(), to.experts);
  std::copy(weights.begin(), weights.end(), to.weights);
}

void HostOperators::ReadRow(Matrix x, int64_t row, std::span<float> out) {
  std::copy_n(Floats(x) + row * x.cols, out.size(), out.begin());
}

void HostOperators::ArgMax(Matrix x, int64_t drawable, std::span<int32_t> ids) {
  for (size_t r = 0; r < ids.size(); ++r) {
    const float* row = Floats(x) + static_cast<int64_t>(r) * x.cols;
    bool numbers = true;
    for (int64_t i = 0; i < drawable; ++i) numbers &= row[i] == row[i];
    ids[r] =
        numbers ? static_cast<int32_t>(std::max_element(row, row + drawable) - row) : kNotNumbers;
  }
}

void HostOperators::CopyRow(Matrix x, int64_t from, Matrix y, int64_t to) {
  std::copy_n(Floats(x) + from * x.cols, x.cols, Floats(y) + to * x.cols);
}

}  // namespace nibble::kernels
