#include "kernels/cpu/linear.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <variant>

#include "base/error.h"
#include "kernels/cpu/strips.h"

namespace nibble::kernels::cpu {
namespace {

constexpr size_t kMaxShards =
    16;  // of linears that share an input: q, k, v; gate, up; four in a hybrid's delta rule

RowForm FormFor(const PreparedLinearShard& shard) {
  std::optional<float> scale = shard.input_scale;
  if (scale && shard.activation && shard.activation->dtype == ScalarType::kU8)
    scale = 1.0f / *scale;
  return FormOf(shard.activation, scale);
}

/// The distinct forms in which the shards want x: rounded to bf16, or quantized as one of them says
/// under its scale.
struct Forms {
  std::array<RowForm, kMaxShards> form;
  std::array<int, kMaxShards> of_shard{};
  int count = 0;
};

Forms DistinctForms(std::span<const PreparedLinearShard* const> shards) {
  Forms forms;
  for (size_t i = 0; i < shards.size(); ++i) {
    const RowForm wanted = FormFor(*shards[i]);
    int form = 0;
    while (form < forms.count && forms.form[form] != wanted) ++form;
    if (form == forms.count) forms.form[forms.count++] = wanted;
    forms.of_shard[i] = form;
  }
  return forms;
}

class LinearCall {
 public:
  LinearCall(const CpuKernels& kernels, std::span<const PreparedLinearShard* const> shards,
             std::span<const int64_t> columns, const float* x, int64_t tokens, int64_t k, float* y,
             int64_t ldy)
      : kernels_(kernels),
        shards_(shards),
        columns_(columns),
        x_(x),
        tokens_(tokens),
        k_(k),
        y_(y),
        ldy_(ldy),
        forms_(DistinctForms(shards)) {
    for (size_t i = 0; i < shards.size(); ++i) {
      const PackedMatrix& w = Matrix(i);
      NIBBLE_CHECK(w.n == shards[i]->n && w.k == k, "a shard's packed shape is not its own");
      as_panels_[i] = UsesPanels(kernels, w.format, tokens);
      needs_panels_ |= w.mapped() || (as_panels_[i] && Expands(w.format));
    }
  }

  void Carve(Carver carver, int threads) {
    rows_ = carver.Take<std::byte>(forms_.count * tokens_ * RowBytes());
    row_pointers_ = carver.Take<const std::byte*>(forms_.count * tokens_);
    panels_ = carver.Take<std::byte>(needs_panels_ ? threads * GroupBytes(k_) : 0);
    scratch_bytes_ = carver.used();
  }
  size_t scratch_bytes() const { return scratch_bytes_; }
  /// A shard whose mapped weights turned out to hold an FP8 NaN; null: none.
  const PreparedLinearShard* corrupt() const { return corrupt_; }

  void Pack(ThreadPool& pool) {
    const int64_t rows = forms_.count * tokens_;
    const auto pack = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) PackForm(static_cast<int>(i / tokens_), i % tokens_);
    };
    if (rows * k_ <= kInlinePackElements) {
      pack(0, rows, 0);
    } else {
      pool.Run(rows, pack);
    }
  }

  void Multiply(ThreadPool& pool) {
    int64_t units = 0;
    for (size_t i = 0; i < shards_.size(); ++i) units += Groups(i);
    if (tokens_ <=
        kDecodeTokens) {  // equal costs: contiguous parts keep each thread on its own streams
      pool.Run(units, [&](int64_t begin, int64_t end, int thread) {
        for (int64_t unit = begin; unit < end; ++unit) MultiplyUnit(unit, thread);
      });
    } else {
      pool.RunEach(units, [&](int64_t unit, int thread) { MultiplyUnit(unit, thread); });
    }
  }

 private:
  const PackedMatrix& Matrix(size_t shard) const {
    return std::get<PackedMatrix>(shards_[shard]->weight);
  }
  int64_t RowBytes() const { return PackedRowBytes(kernels_, k_); }
  int64_t Groups(size_t shard) const {
    return (StripCount(shards_[shard]->n) + kPanelStrips - 1) / kPanelStrips;
  }

  void PackForm(int form, int64_t t) {
    std::byte* out = rows_ + (form * tokens_ + t) * RowBytes();
    row_pointers_[form * tokens_ + t] = out;
    PackRow(kernels_, x_ + t * k_, k_, forms_.form[form], out);
  }

  /// Unit u is the u-th group of strips, the shards' groups counted one after the other.
  void MultiplyUnit(int64_t unit, int thread) {
    size_t shard = 0;
    for (; unit >= Groups(shard); ++shard) unit -= Groups(shard);
    const PackedMatrix& w = Matrix(shard);
    const int64_t first = unit * kPanelStrips;
    const int strips = static_cast<int>(std::min<int64_t>(kPanelStrips, StripCount(w.n) - first));
    std::byte* panels = needs_panels_ ? panels_ + thread * GroupBytes(k_) : nullptr;
    const StripGroup group(kernels_, w, first, strips, as_panels_[shard], panels,
                           w.strip(first + strips));
    if (group.has_nan()) corrupt_ = shards_[shard];

    const RowForm& form = forms_.form[forms_.of_shard[shard]];
    const std::byte* const* x = row_pointers_ + forms_.of_shard[shard] * tokens_;
    const float global = shards_[shard]->global * shards_[shard]->input_scale.value_or(1.0f);
    float* y = y_ + columns_[shard] + first * kStripRows;
    const int64_t rows = std::min(strips * kStripRows, w.n - first * kStripRows);
    if (rows == strips * kStripRows) return group.Multiply(x, form, tokens_, global, y, ldy_);
    for (int64_t t = 0; t < tokens_; t += kBlockTokens) {  // the last strip is padded: not into y
      float block[kBlockTokens * kBlockStride];
      const int64_t n = std::min<int64_t>(kBlockTokens, tokens_ - t);
      group.Multiply(x + t, form, n, global, block, kBlockStride);
      for (int64_t i = 0; i < n; ++i) {
        std::copy_n(block + i * kBlockStride, rows, y + (t + i) * ldy_);
      }
    }
  }

  const CpuKernels& kernels_;
  std::span<const PreparedLinearShard* const> shards_;
  std::span<const int64_t> columns_;
  const float* x_;
  int64_t tokens_, k_;
  float* y_;
  int64_t ldy_;
  Forms forms_;
  std::array<bool, kMaxShards> as_panels_{};
  bool needs_panels_ = false;
  std::atomic<const PreparedLinearShard*> corrupt_ = nullptr;

  size_t scratch_bytes_ = 0;
  std::byte* rows_ = nullptr;                 // [forms][tokens][RowBytes()]
  const std::byte** row_pointers_ = nullptr;  // [forms][tokens]
  std::byte* panels_ = nullptr;               // [threads][GroupBytes(k)]
};

}  // namespace

Result<void> Linear(const CpuKernels& kernels, ThreadPool& pool, Scratch& scratch,
                    std::span<const PreparedLinearShard* const> shards,
                    std::span<const int64_t> column_of_shard, const float* x, int64_t tokens,
                    int64_t k, float* y, int64_t ldy) {
  NIBBLE_CHECK(shards.size() <= kMaxShards && shards.size() == column_of_shard.size(),
               "more shards than a linear can have, or a column missing");
  NIBBLE_CHECK(k % kStripRows == 0, "k must be a multiple of 16");
  if (tokens == 0 || shards.empty()) return {};
  LinearCall call(kernels, shards, column_of_shard, x, tokens, k, y, ldy);
  call.Carve(Carver(), pool.threads());
  NIBBLE_TRY(std::byte * memory, scratch.Reserve(call.scratch_bytes()));
  call.Carve(Carver(memory), pool.threads());
  call.Pack(pool);
  call.Multiply(pool);
  if (const PreparedLinearShard* shard = call.corrupt()) return NanCodeError(shard->name);
  return {};
}

}  // namespace nibble::kernels::cpu
