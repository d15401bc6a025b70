#include "kernels/host_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numbers>

#include "base/checked.h"
#include "kernels/reference/reference.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels {
namespace {

/// Below this many multiplications a parallel region costs more than it saves.
constexpr int64_t kWorthForking = 32768;

/// Rows times heads that share a block of keys and values: enough that fetching the block from a
/// shared cache is a tenth of the work, and few enough that scores and sums stay in a core's own.
constexpr int64_t kQueryRows = 96;

/// Units that a thread should find when contexts are cut into runs: the last to finish is then
/// waited for a quarter of its time at most.
constexpr int64_t kUnitsPerThread = 4;

int64_t RowsOf(int64_t group) { return std::max<int64_t>(1, kQueryRows / group); }

/// From here on a block's sums lie at 64-byte boundaries.
int64_t SumsFloats(int64_t rows, int64_t width) {
  return static_cast<int64_t>(RoundUp(static_cast<size_t>(2 * rows), 16)) + rows * width;
}

AttendSums SumsAt(float* p, int64_t rows, int64_t width) {
  return {p, p + rows, p + SumsFloats(rows, width) - rows * width};
}

/// Of a key, each pair (fp32: each number) goes to another row of its panel.
template <class Unit>
void ScatterKey(const std::byte* codes, int64_t units, std::byte* to) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Unit));
  for (int64_t i = 0; i < units; ++i) {
    std::memcpy(to + i * kKvPanel * kBytes, codes + i * kBytes, sizeof(Unit));
  }
}

/// A value's numbers of a panel go to one half of its row's pairs. The next position's, which will
/// be written later if ever, begin as zeros: products take pairs.
template <class Code>
void ScatterValue(const std::byte* codes, int64_t position, std::byte* row) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Code));
  for (int64_t i = 0; i < kKvPanel; ++i) {
    Code pair[2] = {};
    std::memcpy(pair, codes + i * kBytes, sizeof(Code));
    if (position % 2 == 0) {
      std::memcpy(row + 2 * i * kBytes, pair, sizeof pair);
    } else {
      std::memcpy(row + (2 * i + 1) * kBytes, pair, sizeof(Code));
    }
  }
}

}  // namespace

Result<void> HostAttention::Allocate(const KvShape& shape) {
  kv_ = shape;
  const auto padded = [](int64_t n) {
    return static_cast<int64_t>(RoundUp(static_cast<size_t>(n), kKvPanel));
  };
  capacity_ = in_double_ ? shape.capacity : padded(shape.capacity);
  width_ = in_double_ ? shape.head_dim : padded(shape.head_dim);
  key_bytes_ =
      BytesOf(KeysOf(shape.dtype)) * (in_double_ ? shape.head_dim : KeyRows(shape.head_dim));
  value_bytes_ = BytesOf(ValuesOf(shape.dtype)) * width_;
  const auto positions = static_cast<uint64_t>(shape.layers * shape.slots *
                                               (shape.kv_width / shape.head_dim) * capacity_);
  NIBBLE_TRY(keys_, HugeBuffer::Allocate(positions * static_cast<uint64_t>(key_bytes_)));
  NIBBLE_TRY(values_, HugeBuffer::Allocate(positions * static_cast<uint64_t>(value_bytes_)));
  return {};
}

void HostAttention::CopySlot(int from, int to, int64_t positions) {
  const int64_t heads = kv_.kv_width / kv_.head_dim;
  // In double a position's heads lie together, else a head's positions, in whole blocks.
  const int64_t runs = in_double_ ? 1 : heads, together = in_double_ ? heads : 1;
  const int64_t used = in_double_
                           ? positions
                           : std::min(capacity_, (positions + kKvBlock - 1) / kKvBlock * kKvBlock);
  const auto copy = [&](HugeBuffer& cache, int64_t layer, int64_t run, int64_t bytes) {
    const auto at = [&](int64_t slot) {
      return cache.data() +
             ((layer * kv_.slots + slot) * runs + run) * capacity_ * together * bytes;
    };
    std::memcpy(at(to), at(from), static_cast<size_t>(used * together * bytes));
  };
  for (int64_t layer = 0; layer < kv_.layers; ++layer) {
    for (int64_t run = 0; run < runs; ++run) {
      copy(keys_, layer, run, key_bytes_);
      copy(values_, layer, run, value_bytes_);
    }
  }
}

float HostAttention::Scale(const std::vector<float>& scales, int64_t layer) const {
  return kv_.dtype == KvDtype::kFp8 && !scales.empty() ? scales[layer] : 1.0f;
}

Result<void> HostAttention::Run(const AttentionCall& call) {
  NIBBLE_CHECK(call.shape.head_dim == kv_.head_dim && call.shape.kv_width() == kv_.kv_width,
               "attention of another shape than its cache's");
  for (const SequenceRows& s : call.sequences) {
    NIBBLE_CHECK(s.slot < kv_.slots && s.start + s.n_rows <= kv_.capacity,
                 "a position outside the KV cache");
  }
  if (!in_double_) return RunInSingle(call);
  RunInDouble(call);
  return {};
}

// ---- In fp32

HostAttention::Head HostAttention::HeadAt(const AttentionCall& call, const SequenceRows& sequence,
                                          int64_t kv_head) {
  const int64_t head = (call.layer * kv_.slots + sequence.slot) * call.shape.n_kv_heads + kv_head;
  return {keys_.data() + head * capacity_ * key_bytes_,
          values_.data() + head * capacity_ * value_bytes_, Scale(kv_.k_scales, call.layer),
          Scale(kv_.v_scales, call.layer)};
}

void HostAttention::NormAndRotate(const AttentionCall& call, const float* x, Vector norm,
                                  int64_t row, float* out) const {
  const float* const rope = call.rope + row * 2 * call.frequencies;
  glue_.rms_norm(x, call.shape.head_dim, norm.data, call.shape.norm_eps, out);
  glue_.rotate_halves(out, rope, rope + call.frequencies, call.frequencies);
}

/// Puts keys and values of a sequence's rows [first, last) where attention reads them.
void HostAttention::Store(const AttentionCall& call, const SequenceRows& sequence, int64_t kv_head,
                          int64_t first, int64_t last, const Workspace& work) {
  const KvDtype keys = KeysOf(kv_.dtype), values = ValuesOf(kv_.dtype);
  const int64_t dim = kv_.head_dim, unit = RowsTogether(keys) * BytesOf(keys);
  const Head head = HeadAt(call, sequence, kv_head);
  for (int64_t i = first; i < last; ++i) {
    const int64_t row = sequence.first_row + i, position = sequence.start + i;
    NormAndRotate(call, call.Key(row, kv_head), call.k_norm, row, work.row);
    std::fill(work.row + dim, work.row + width_, 0.0f);
    glue_.to_cache(keys, work.row, width_, head.k_scale, work.codes);
    const int64_t column = position % kKvPanel;
    std::byte* const key = head.keys + (position - column) * key_bytes_ + column * unit;
    if (unit == 4) ScatterKey<uint32_t>(work.codes, key_bytes_ / unit, key);
    if (unit == 2) ScatterKey<uint16_t>(work.codes, key_bytes_ / unit, key);

    std::fill(std::copy_n(call.Value(row, kv_head), dim, work.row), work.row + width_, 0.0f);
    glue_.to_cache(values, work.row, width_, head.v_scale, work.codes);
    const int64_t block = position / kKvBlock * kKvBlock, bytes = BytesOf(values);
    const int64_t room = std::min(kKvBlock, capacity_ - block);
    const int64_t in_block = (position - block) / RowsTogether(values) * RowsTogether(values);
    for (int64_t d = 0; d < width_; d += kKvPanel) {
      std::byte* const to =
          head.values + block * value_bytes_ + (d * room + in_block * kKvPanel) * bytes;
      const std::byte* const codes = work.codes + d * bytes;
      if (bytes == 4) std::memcpy(to, codes, kKvPanel * sizeof(float));
      if (bytes == 2) ScatterValue<uint16_t>(codes, position, to);
      if (bytes == 1) ScatterValue<uint8_t>(codes, position, to);
    }
  }
}

/// Cuts the call into units. Where there are fewer than threads could use, contexts are cut too.
void HostAttention::Plan(const AttentionCall& call, bool fork) {
  const int64_t heads = call.shape.n_kv_heads, rows = RowsOf(call.group());
  queries_.clear();
  most_rows_ = sums_floats_ = 0;
  int64_t work = 0, counts = 0;
  for (const SequenceRows& s : call.sequences) {
    for (int64_t end = s.n_rows; end > 0;) {  // the longest first
      Queries q;
      q.sequence = &s;
      q.first = (end - 1) / rows * rows;
      q.n = end - q.first;
      q.blocks = (s.start + end + kKvBlock - 1) / kKvBlock;
      q.stores = s.n_rows <= rows;
      work += q.n * q.blocks * heads;
      most_rows_ = std::max(most_rows_, q.n * call.group());
      queries_.push_back(q);
      end = q.first;
    }
  }
  for (Queries& q : queries_) {
    const int64_t wanted = kUnitsPerThread * pool_.threads() * q.n * q.blocks;
    if (fork && pool_.threads() > 1)
      q.runs = std::clamp((wanted + work - 1) / work, int64_t{1}, q.blocks);
    // No run but the last may read what that one stores.
    while (q.runs > 1 && (q.runs - 1) * q.blocks / q.runs > q.sequence->start / kKvBlock) --q.runs;
    if (q.runs == 1) continue;
    q.sums = sums_floats_;
    sums_floats_ += heads * q.blocks * SumsFloats(q.n * call.group(), width_);
    q.pending = counts;
    counts += heads;
  }
  pending_.resize(counts);
  units_.clear();
  for (size_t first = 0, last = 0; first < queries_.size(); first = last) {
    while (last < queries_.size() && queries_[last].sequence == queries_[first].sequence) ++last;
    for (int64_t head = 0; head < heads; ++head) {  // a head's keys are read while they are near
      for (size_t i = first; i < last; ++i) {
        const Queries& q = queries_[i];
        if (q.runs > 1) pending_[q.pending + head] = static_cast<int32_t>(q.runs);
        for (int64_t run = 0; run < q.runs; ++run) units_.push_back({&q, head, run});
      }
    }
  }
}

HostAttention::Workspace HostAttention::Carve(const AttentionCall& call, cpu::Carver carver,
                                              size_t* bytes) const {
  const int64_t rows = most_rows_, dim = call.shape.head_dim;
  Workspace w;
  w.q = carver.Take<float>(rows * dim);
  w.sums.largest = carver.Take<float>(rows);
  w.sums.total = carver.Take<float>(rows);
  w.sums.out = carver.Take<float>(rows * width_);
  w.seen = carver.Take<int32_t>(rows);
  w.row = carver.Take<float>(width_);
  w.codes = carver.Take<std::byte>(width_ * 4);
  w.scratch = carver.Take<float>(AttendScratch(rows, dim, width_));
  *bytes = carver.used();
  return w;
}

Result<void> HostAttention::Reserve(const AttentionCall& call) {
  size_t bytes;
  Carve(call, cpu::Carver(), &bytes);
  for (cpu::Scratch& scratch : scratch_) NIBBLE_CHECK_OK(scratch.Reserve(bytes));
  NIBBLE_CHECK_OK(sums_.Reserve(static_cast<size_t>(sums_floats_) * sizeof(float)));
  return {};
}

AttendSums HostAttention::BlockSums(const Queries& queries, int64_t kv_head, int64_t block,
                                    int64_t rows) {
  float* const all = reinterpret_cast<float*>(sums_.bytes().data()) + queries.sums;
  return SumsAt(all + (kv_head * queries.blocks + block) * SumsFloats(rows, width_), rows, width_);
}

void HostAttention::RunUnit(const AttentionCall& call, const Unit& unit, int thread) {
  const Queries& q = *unit.queries;
  const SequenceRows& s = *q.sequence;
  const int64_t group = call.group(), rows = q.n * group, dim = kv_.head_dim;
  size_t bytes;
  const Workspace work = Carve(call, cpu::Carver(scratch_[thread].bytes().data()), &bytes);
  if (q.stores && unit.run == q.runs - 1) Store(call, s, unit.kv_head, 0, s.n_rows, work);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = s.first_row + q.first + r / group;
    NormAndRotate(call, call.Query(row, unit.kv_head * group + r % group), call.q_norm, row,
                  work.q + r * dim);
  }
  const Head head = HeadAt(call, s, unit.kv_head);
  const int64_t begin = unit.run * q.blocks / q.runs, end = (unit.run + 1) * q.blocks / q.runs;
  const int64_t start = s.start + q.first;     // the first row's position
  const auto first_row = [&](int64_t block) {  // that sees anything of it
    return std::max<int64_t>(0, block * kKvBlock - start) * group;
  };
  AttendBlock a;
  a.dtype = kv_.dtype;
  a.dim = dim;
  a.width = width_;
  a.scale =
      static_cast<float>(std::numbers::log2e * head.k_scale / std::sqrt(static_cast<double>(dim)));
  a.seen = work.seen;
  a.scratch = work.scratch;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t position = block * kKvBlock, r0 = first_row(block);
    a.keys = head.keys + position * key_bytes_;
    a.values = head.values + position * value_bytes_;
    a.positions = std::min(kKvBlock, capacity_ - position);
    a.next = block + 1 < end ? a.keys + kKvBlock * key_bytes_ : a.keys;
    a.q = work.q + r0 * dim;
    a.rows = rows - r0;
    for (int64_t r = r0; r < rows; ++r) {
      work.seen[r - r0] =
          static_cast<int32_t>(std::min(start + r / group + 1 - position, kKvBlock));
    }
    const bool apart = q.runs > 1;
    a.first = apart || block == 0;
    a.sums = (apart ? BlockSums(q, unit.kv_head, block, rows) : work.sums).From(r0, width_);
    glue_.attend(a);
  }
  if (q.runs == 1) return WriteOut(call, unit, head.v_scale, work.sums);
  std::atomic_ref<int32_t> pending(pending_[q.pending + unit.kv_head]);
  if (pending.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  const AttendSums sums = BlockSums(q, unit.kv_head, 0, rows);  // the last one adds them up
  for (int64_t block = 1; block < q.blocks; ++block) {
    const int64_t r0 = first_row(block);
    glue_.merge_sums(BlockSums(q, unit.kv_head, block, rows).From(r0, width_), rows - r0, width_,
                     sums.From(r0, width_));
  }
  WriteOut(call, unit, head.v_scale, sums);
}

void HostAttention::WriteOut(const AttentionCall& call, const Unit& unit, float v_scale,
                             const AttendSums& sums) const {
  const Queries& q = *unit.queries;
  const int64_t group = call.group(), dim = kv_.head_dim;
  for (int64_t r = 0; r < q.n * group; ++r) {
    const int64_t row = q.sequence->first_row + q.first + r / group;
    const int64_t head = unit.kv_head * group + r % group;
    float* const out = call.out + row * call.shape.out_width() + head * dim;
    glue_.multiplied(sums.out + r * width_, dim, v_scale / sums.total[r], out);
    if (call.shape.gated) glue_.mul_sigmoid(out, call.Query(row, head) + dim, dim);
  }
}

Result<void> HostAttention::RunInSingle(const AttentionCall& call) {
  int64_t work = 0;
  for (const SequenceRows& s : call.sequences) {
    work += s.n_rows * (s.start + s.n_rows) * 2 * call.shape.out_width();
  }
  const bool fork = work >= kWorthForking;
  Plan(call, fork);
  NIBBLE_CHECK_OK(Reserve(call));
  const auto run_each = [&](int64_t units, FunctionRef<void(int64_t, int)> unit) {
    if (fork) return pool_.RunEach(units, unit);
    for (int64_t u = 0; u < units; ++u) unit(u, 0);
  };
  for (const SequenceRows& s : call.sequences) {  // of which units wait for each other's keys
    if (s.n_rows <= RowsOf(call.group())) continue;
    const int64_t first_panel = s.start / kKvPanel;
    const int64_t panels = (s.start + s.n_rows - 1) / kKvPanel - first_panel + 1;
    run_each(panels * call.shape.n_kv_heads, [&](int64_t unit, int thread) {
      const int64_t first = (first_panel + unit % panels) * kKvPanel - s.start;
      size_t bytes;
      Store(call, s, unit / panels, std::max<int64_t>(0, first),
            std::min(s.n_rows, first + kKvPanel),
            Carve(call, cpu::Carver(scratch_[thread].bytes().data()), &bytes));
    });
  }
  run_each(static_cast<int64_t>(units_.size()),
           [&](int64_t unit, int thread) { RunUnit(call, units_[unit], thread); });
  return {};
}

// ---- In double

HostAttention::Head HostAttention::RowInDouble(const AttentionCall& call, int slot,
                                               int64_t position, int64_t kv_head) {
  const int64_t row =
      ((call.layer * kv_.slots + slot) * kv_.capacity + position) * call.shape.n_kv_heads + kv_head;
  return {keys_.data() + row * key_bytes_, values_.data() + row * value_bytes_,
          Scale(kv_.k_scales, call.layer), Scale(kv_.v_scales, call.layer)};
}

void HostAttention::StoreInDouble(const AttentionCall& call, int slot, int64_t row,
                                  int64_t position, int64_t kv_head) {
  const int64_t dim = kv_.head_dim;
  const Head at = RowInDouble(call, slot, position, kv_head);
  const auto store = [dim](KvDtype dtype, const float* from, float scale, std::byte* to) {
    for (int64_t i = 0; i < dim; ++i) {
      const Bf16 rounded = ToBf16(from[i]);
      if (dtype == KvDtype::kF32) std::memcpy(to + 4 * i, &from[i], 4);
      if (dtype == KvDtype::kBf16) std::memcpy(to + 2 * i, &rounded, 2);
      if (dtype == KvDtype::kFp8) to[i] = static_cast<std::byte>(EncodeE4m3(from[i] / scale));
    }
  };
  std::vector<float> k(dim);
  const float* const rope = call.rope + row * 2 * call.frequencies;
  reference::RmsNorm(call.Key(row, kv_head), 1, dim, call.k_norm.data, call.shape.norm_eps,
                     k.data());
  reference::RotateHalves(k.data(), dim, rope, rope + call.frequencies, call.frequencies);
  store(KeysOf(kv_.dtype), k.data(), at.k_scale, at.keys);
  store(ValuesOf(kv_.dtype), call.Value(row, kv_head), at.v_scale, at.values);
}

void HostAttention::AttendInDouble(const AttentionCall& call, int slot, int64_t row,
                                   int64_t position, int64_t kv_head) {
  const int64_t group = call.group(), dim = kv_.head_dim, head = kv_head * group;
  const float* const rope = call.rope + row * 2 * call.frequencies;
  std::vector<float> q(group * dim);
  for (int64_t h = 0; h < group; ++h) {
    float* const to = q.data() + h * dim;
    reference::RmsNorm(call.Query(row, head + h), 1, dim, call.q_norm.data, call.shape.norm_eps,
                       to);
    reference::RotateHalves(to, dim, rope, rope + call.frequencies, call.frequencies);
  }
  AttendArgs args;
  args.dtype = kv_.dtype;
  const Head from = RowInDouble(call, slot, 0, kv_head);
  args.keys = from.keys;
  args.values = from.values;
  args.n = position + 1;
  args.stride = kv_.kv_width;
  args.dim = dim;
  args.k_scale = from.k_scale;
  args.v_scale = from.v_scale;
  args.q = q.data();
  args.group = group;
  args.q_stride = dim;
  args.out = call.out + row * call.shape.out_width() + head * dim;
  reference::Attend(args);
  if (!call.shape.gated) return;
  for (int64_t h = 0; h < group; ++h) {
    reference::MulSigmoid(args.out + h * dim, call.Query(row, head + h) + dim, dim);
  }
}

void HostAttention::RunInDouble(const AttentionCall& call) {
  const int64_t heads = call.shape.n_kv_heads;
  for (const bool store : {true, false}) {
    for (const SequenceRows& s : call.sequences) {
      pool_.RunEach(s.n_rows * heads, [&](int64_t unit, int) {
        const int64_t i = unit / heads, head = unit % heads;
        const int64_t row = s.first_row + i, position = s.start + i;
        store ? StoreInDouble(call, s.slot, row, position, head)
              : AttendInDouble(call, s.slot, row, position, head);
      });
    }
  }
}

}  // namespace nibble::kernels
