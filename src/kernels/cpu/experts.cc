#include "kernels/cpu/experts.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <variant>

#include "base/error.h"
#include "kernels/cpu/strips.h"

namespace nibble::kernels::cpu {
namespace {

// A pair is one (token, rank); its position is its place in the order of experts, tokens ascending
// within one. Two parallel regions:
//   up    unit (expert, 3 strips of I): gate and up, the activation function, and h rounded or
//   quantized into its packed row, or kept as it is where only a whole row of h has a scale: then
//   a region in between packs those rows
//   down  unit (a few dozen rows of H): expert by expert these columns of its tokens, times their
//   weights, onto the tokens' sums
// so that results meet only within a unit, and the sums, [tokens][columns], stay in a core's caches.

bool AllEqual(const std::vector<float>& v) {
  return std::all_of(v.begin(), v.end(), [&](float s) { return s == v[0]; });
}

class ExpertsCall {
 public:
  ExpertsCall(const CpuKernels& kernels, const PreparedExperts& e, const float* x, int64_t tokens,
              const int32_t* ids, const float* weights, int top_k, float* y)
      : kernels_(kernels),
        e_(e),
        x_(x),
        tokens_(tokens),
        ids_(ids),
        weights_(weights),
        top_k_(top_k),
        y_(y),
        pairs_(tokens * top_k),
        gated_(!e.gate.empty()) {
    const MoeQuantConfig& q = e.quant;
    shards_ = gated_ ? 2 : 1;
    NIBBLE_CHECK(q.a1_gscale.has_value() == q.a2_gscale.has_value(),
                 "one activation scale without the other");
    NIBBLE_CHECK(q.a1_scale.has_value() == q.a2_scale.has_value(),
                 "one activation scale without the other");
    NIBBLE_CHECK(gated_ == (e.activation != Activation::kRelu2NoMul),
                 "relu2_no_mul has no gate, the others have one");
    const auto& a1 = q.a1_gscale ? q.a1_gscale : q.a1_scale;
    shared_rows_ = !a1 || AllEqual(*a1);
    keeps_h_ = A2(0).needs_whole_row();
    if (q.clamp_limit) how_.limit = *q.clamp_limit;
    if (e.activation != Activation::kSilu) {
      how_.alpha = q.alpha.value_or(1.0f);
      how_.beta = q.beta.value_or(0.0f);
    }
  }

  void Carve(Carver carver, int threads) {
    const int64_t rows = shared_rows_ ? tokens_ : pairs_ * shards_;
    first_ = carver.Take<int32_t>(e_.n_experts + 1);
    active_ = carver.Take<int32_t>(e_.n_experts);
    pair_at_ = carver.Take<int32_t>(pairs_);
    x_rows_ = carver.Take<const std::byte*>(pairs_ * shards_);
    h_rows_ = carver.Take<const std::byte*>(pairs_);
    packed_x_ = carver.Take<std::byte>(rows * XBytes());
    packed_h_ = carver.Take<std::byte>(pairs_ * HBytes());
    h_ = carver.Take<float>(keeps_h_ ? pairs_ * e_.intermediate : 0);
    down_groups_ = DownGroups(threads);
    sums_ = carver.Take<float>(threads * tokens_ * down_groups_ * kBlockStride);
    panels_ = carver.Take<std::byte>(threads * ThreadPanelBytes());
    scratch_bytes_ = carver.used();
  }
  size_t scratch_bytes() const { return scratch_bytes_; }
  /// An expert whose mapped weights turned out to hold an FP8 NaN; -1: none.
  int64_t corrupt() const { return corrupt_; }

  void Gather();
  void Pack(ThreadPool& pool);

  void Up(ThreadPool& pool) {
    const int64_t groups = Groups(e_.intermediate);
    ForUnits(pool, n_active_ * groups, [&](int64_t unit, int thread) {
      UpUnit(unit / groups, unit % groups * kPanelStrips, thread);
    });
    if (keeps_h_) PackH(pool);
  }
  void Down(ThreadPool& pool) {
    const int64_t groups = Groups(e_.hidden);
    ForUnits(pool, (groups + down_groups_ - 1) / down_groups_, [&](int64_t unit, int thread) {
      const int64_t first = unit * down_groups_;
      DownUnit(first, std::min(first + down_groups_, groups), thread);
    });
  }

 private:
  /// Groups of strips in one unit of Down. One token: a thread's whole share, for long streams.
  /// More: enough that an expert's h, once in L2, serves several groups, few enough that units can
  /// be dealt out evenly.
  int64_t DownGroups(int threads) const {
    const int64_t groups = Groups(e_.hidden);
    if (tokens_ == 1) return (groups + threads - 1) / threads;
    return std::clamp<int64_t>(groups / (threads * 8), 1, 4);
  }

  /// Contiguous parts while all units cost the same, which keeps each thread on its own streams;
  /// else whoever is free.
  template <class F>
  void ForUnits(ThreadPool& pool, int64_t units, F unit) {
    if (tokens_ > 1) return pool.RunEach(units, unit);
    pool.Run(units, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t u = begin; u < end; ++u) unit(u, thread);
    });
  }

  static const PackedMatrix& Matrix(const PreparedWeight& w) { return std::get<PackedMatrix>(w); }
  static int64_t Groups(int64_t n) { return (StripCount(n) + kPanelStrips - 1) / kPanelStrips; }
  static int StripsIn(int64_t n, int64_t first) {
    return static_cast<int>(std::min<int64_t>(kPanelStrips, StripCount(n) - first));
  }
  int64_t XBytes() const { return PackedRowBytes(kernels_, e_.hidden); }
  int64_t HBytes() const { return PackedRowBytes(kernels_, e_.intermediate); }
  int64_t ThreadPanelBytes() const {
    return std::max(shards_ * GroupBytes(e_.hidden), GroupBytes(e_.intermediate));
  }
  std::byte* ThreadPanels(int thread) const { return panels_ + thread * ThreadPanelBytes(); }
  int64_t CountOf(int64_t expert) const { return first_[expert + 1] - first_[expert]; }

  RowForm Form(const std::optional<std::vector<float>>& gscale,
               const std::optional<std::vector<float>>& scale, int64_t index) const {
    if (gscale) return {RowForm::Kind::kNvfp4, (*gscale)[index]};
    return FormOf(e_.quant.scheme.activation,
                  scale ? std::optional((*scale)[index]) : std::nullopt);
  }
  RowForm A1(int64_t expert, int shard) const {
    return Form(e_.quant.a1_gscale, e_.quant.a1_scale, expert * shards_ + shard);
  }
  RowForm A2(int64_t expert) const { return Form(e_.quant.a2_gscale, e_.quant.a2_scale, expert); }

  void UpUnit(int64_t active, int64_t first_strip, int thread);
  void Activate(const float* gate, const float* up, int strips, float* h) const;
  void PackH(ThreadPool& pool);
  void DownUnit(int64_t first_group, int64_t last_group, int thread);
  void DownGroup(int64_t active, int64_t first_strip, const std::byte* next, float* sums,
                 int64_t stride, std::byte* panels);

  const CpuKernels& kernels_;
  const PreparedExperts& e_;
  const float* x_;
  int64_t tokens_;
  const int32_t* ids_;
  const float* weights_;
  int top_k_;
  float* y_;
  int64_t pairs_;
  bool gated_;
  int shards_ = 1;
  bool shared_rows_ = true;  // one packed row a token serves all experts
  bool keeps_h_ = false;     // h is packed when its rows are whole
  std::atomic<int64_t> corrupt_ = -1;
  GatedActivation how_;

  size_t scratch_bytes_ = 0;
  int64_t n_active_ = 0, down_groups_ = 1;
  int32_t* first_ = nullptr;            // [E + 1] an expert's first position
  int32_t* active_ = nullptr;           // [n_active_] experts that have tokens
  int32_t* pair_at_ = nullptr;          // [pairs] of a position
  const std::byte** x_rows_ = nullptr;  // [shards][pairs] by position
  const std::byte** h_rows_ = nullptr;  // [pairs] by position
  std::byte* packed_x_ = nullptr;       // [tokens] or [shards][pairs] rows of XBytes()
  std::byte* packed_h_ = nullptr;       // [pairs] rows of HBytes(), by position
  float* h_ = nullptr;                  // [pairs][I] by position, where h is kept
  float* sums_ = nullptr;               // [threads][tokens][down_groups_ * kBlockStride]
  std::byte* panels_ = nullptr;         // [threads][ThreadPanelBytes()]
};

/// Counting sort of the pairs by expert.
void ExpertsCall::Gather() {
  std::fill_n(first_, e_.n_experts + 1, 0);
  for (int64_t p = 0; p < pairs_; ++p) {
    NIBBLE_CHECK(ids_[p] >= 0 && ids_[p] < e_.n_experts, "an expert that does not exist");
    ++first_[ids_[p] + 1];
  }
  n_active_ = 0;
  for (int64_t e = 0; e < e_.n_experts; ++e) {
    if (first_[e + 1] > 0) active_[n_active_++] = static_cast<int32_t>(e);
    first_[e + 1] += first_[e];
  }
  // first_[e] runs through e's positions, and is moved back afterwards.
  for (int64_t p = 0; p < pairs_; ++p) {
    const int32_t position = first_[ids_[p]]++;
    pair_at_[position] = static_cast<int32_t>(p);
  }
  std::move_backward(first_, first_ + e_.n_experts, first_ + e_.n_experts + 1);
  first_[0] = 0;
  for (int64_t i = 0; i < pairs_; ++i) h_rows_[i] = packed_h_ + i * HBytes();
}

void ExpertsCall::Pack(ThreadPool& pool) {
  const auto pack_shared = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      PackRow(kernels_, x_ + t * e_.hidden, e_.hidden, A1(0, 0), packed_x_ + t * XBytes());
    }
  };
  const auto pack_each = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t pair = pair_at_[i], expert = ids_[pair];
      const float* x = x_ + pair / top_k_ * e_.hidden;
      std::byte* row = packed_x_ + i * XBytes();
      PackRow(kernels_, x, e_.hidden, A1(expert, 0), row);
      x_rows_[i] = row;
      if (shards_ == 1) continue;
      if (A1(expert, 1) != A1(expert, 0)) {
        row = packed_x_ + (pairs_ + i) * XBytes();
        PackRow(kernels_, x, e_.hidden, A1(expert, 1), row);
      }
      x_rows_[pairs_ + i] = row;
    }
  };
  const int64_t units = shared_rows_ ? tokens_ : pairs_;
  const bool small = units * e_.hidden <= kInlinePackElements;
  if (shared_rows_) {
    for (int64_t i = 0; i < pairs_; ++i) {
      const std::byte* row = packed_x_ + pair_at_[i] / top_k_ * XBytes();
      for (int s = 0; s < shards_; ++s) x_rows_[s * pairs_ + i] = row;
    }
    small ? pack_shared(0, units, 0) : pool.Run(units, pack_shared);
  } else {
    small ? pack_each(0, units, 0) : pool.Run(units, pack_each);
  }
}

/// Neighbouring elements of h, 16 a strip.
void ExpertsCall::Activate(const float* gate, const float* up, int strips, float* h) const {
  if (gated_) return kernels_.gated_activation(how_, gate, up, strips, h);
  for (int64_t r = 0; r < strips * kStripRows; ++r) {
    const float u = std::clamp(up[r], -how_.limit, how_.limit);
    h[r] = u > 0 ? u * u : 0 * u;  // 0 * u: a NaN stays one
  }
}

void ExpertsCall::PackH(ThreadPool& pool) {
  const auto pack = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      PackRow(kernels_, h_ + i * e_.intermediate, e_.intermediate, A2(ids_[pair_at_[i]]),
              packed_h_ + i * HBytes());
    }
  };
  if (pairs_ * e_.intermediate <= kInlinePackElements) return pack(0, pairs_, 0);
  pool.Run(pairs_, pack);
}

void ExpertsCall::UpUnit(int64_t active, int64_t first_strip, int thread) {
  const int64_t expert = active_[active];
  const PackedMatrix& up = Matrix(e_.up[expert]);
  const int strips = StripsIn(up.n, first_strip);
  const int64_t count = CountOf(expert), first = first_[expert];
  std::byte* panels = ThreadPanels(thread);
  const float* alphas = &e_.quant.g1_alphas[expert * shards_];
  const int up_shard = shards_ - 1;

  const PackedMatrix& gate = gated_ ? Matrix(e_.gate[expert]) : up;
  const bool last = first_strip + strips == StripCount(e_.intermediate);
  const int64_t next_expert = active_[last && active + 1 < n_active_ ? active + 1 : active];
  const std::byte* next_up = Matrix(e_.up[next_expert]).strip(last ? 0 : first_strip + strips);
  const StripGroup ups(kernels_, up, first_strip, strips, UsesPanels(kernels_, up.format, count),
                       panels, gated_ ? gate.strip(first_strip) : next_up);
  const StripGroup gates(kernels_, gate, first_strip, gated_ ? strips : 0,
                         UsesPanels(kernels_, gate.format, count), panels + GroupBytes(e_.hidden),
                         next_up);
  if (ups.has_nan() || gates.has_nan()) corrupt_ = expert;
  const RowForm gate_form = A1(expert, 0), up_form = A1(expert, up_shard), h_form = A2(expert);
  const float gate_factor = alphas[0] * gate_form.factor();
  const float up_factor = alphas[up_shard] * up_form.factor();

  const int64_t strip_bytes = kStripRows * kernels_.activation_bytes;
  for (int64_t t = 0; t < count; t += kBlockTokens) {
    float g[kBlockTokens * kBlockStride], u[kBlockTokens * kBlockStride];
    const int64_t n = std::min<int64_t>(kBlockTokens, count - t);
    // In the order in which they said what comes next.
    ups.Multiply(x_rows_ + up_shard * pairs_ + first + t, up_form, n, up_factor, u, kBlockStride);
    if (gated_) gates.Multiply(x_rows_ + first + t, gate_form, n, gate_factor, g, kBlockStride);
    for (int64_t i = 0; i < n; ++i) {
      std::byte* row = packed_h_ + (first + t + i) * HBytes();
      float* kept = h_ + (first + t + i) * e_.intermediate + first_strip * kStripRows;
      const float *gate_row = g + i * kBlockStride, *up_row = u + i * kBlockStride;
      if (keeps_h_) {
        Activate(gate_row, up_row, strips, kept);
        continue;
      }
      float h[kBlockStride];
      Activate(gate_row, up_row, strips, h);
      PackGroups(kernels_, h, strips, h_form, row + first_strip * strip_bytes);
      if (last) {
        std::fill(row + e_.intermediate * kernels_.activation_bytes, row + HBytes(), std::byte{0});
      }
    }
  }
}

void ExpertsCall::DownUnit(int64_t first_group, int64_t last_group, int thread) {
  const int64_t first_strip = first_group * kPanelStrips;
  const int64_t last_strip = std::min(last_group * kPanelStrips, StripCount(e_.hidden));
  const int64_t stride = down_groups_ * kBlockStride;
  float* sums = sums_ + thread * tokens_ * stride;
  std::fill_n(sums, tokens_ * stride, 0.0f);
  for (int64_t i = 0; i < n_active_; ++i) {
    const PackedMatrix& down = Matrix(e_.down[active_[i]]);
    const PackedMatrix& next = Matrix(e_.down[active_[i + 1 < n_active_ ? i + 1 : 0]]);
    for (int64_t strip = first_strip; strip < last_strip; strip += kPanelStrips) {
      const bool ends = strip + kPanelStrips >= last_strip;
      DownGroup(i, strip, ends ? next.strip(first_strip) : down.strip(strip + kPanelStrips),
                sums + (strip - first_strip) * kStripRows, stride, ThreadPanels(thread));
    }
  }
  const int64_t columns = (last_strip - first_strip) * kStripRows;
  for (int64_t t = 0; t < tokens_; ++t) {
    std::copy_n(sums + t * stride, columns, y_ + t * e_.hidden + first_strip * kStripRows);
  }
}

/// Adds one expert's part of a few strips of H to the sums of its tokens.
void ExpertsCall::DownGroup(int64_t active, int64_t first_strip, const std::byte* next, float* sums,
                            int64_t stride, std::byte* panels) {
  const int64_t expert = active_[active], count = CountOf(expert), first = first_[expert];
  const PackedMatrix& down = Matrix(e_.down[expert]);
  const int strips = StripsIn(e_.hidden, first_strip);
  const RowForm form = A2(expert);
  const float factor = e_.quant.g2_alphas[expert] * form.factor();
  const StripGroup group(kernels_, down, first_strip, strips,
                         UsesPanels(kernels_, down.format, count), panels, next);
  if (group.has_nan()) corrupt_ = expert;
  for (int64_t t = 0; t < count; t += kBlockTokens) {
    float y[kBlockTokens * kBlockStride];
    const int64_t n = std::min<int64_t>(kBlockTokens, count - t);
    group.Multiply(h_rows_ + first + t, form, n, factor, y, kBlockStride);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t pair = pair_at_[first + t + i];
      kernels_.add_scaled(y + i * kBlockStride, weights_[pair], strips,
                          sums + pair / top_k_ * stride);
    }
  }
}

}  // namespace

Result<void> Experts(const CpuKernels& kernels, ThreadPool& pool, Scratch& scratch,
                     const PreparedExperts& experts, const float* x, int64_t tokens,
                     const int32_t* expert_ids, const float* weights, int top_k, float* y) {
  NIBBLE_CHECK(experts.hidden % kStripRows == 0 && experts.intermediate % kStripRows == 0,
               "hidden and intermediate must be multiples of 16");
  if (tokens == 0) return {};
  ExpertsCall call(kernels, experts, x, tokens, expert_ids, weights, top_k, y);
  call.Carve(Carver(), pool.threads());
  NIBBLE_TRY(std::byte * memory, scratch.Reserve(call.scratch_bytes()));
  call.Carve(Carver(memory), pool.threads());
  call.Gather();
  call.Pack(pool);
  call.Up(pool);
  call.Down(pool);
  if (call.corrupt() >= 0) return NanCodeError(fmt::format("{}.{}", experts.name, call.corrupt()));
  return {};
}

}  // namespace nibble::kernels::cpu
