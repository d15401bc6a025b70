#pragma once

#include <span>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "kernels/cpu/glue.h"
#include "kernels/cpu/scratch.h"
#include "kernels/operators.h"

namespace nibble::kernels {

/// One call of Operators::Attention on a host.
struct AttentionCall {
  const AttentionShape& shape;
  int64_t layer = 0;
  std::span<const SequenceRows> sequences;
  Vector q_norm, k_norm;
  const float* rope = nullptr;  // [rows, cosines | sines]
  int64_t frequencies = 0;
  const float* qkv = nullptr;  // [rows, q|k|v]
  float* out = nullptr;        // [rows, heads * dim]

  int64_t group() const { return shape.n_heads / shape.n_kv_heads; }
  const float* Query(int64_t row, int64_t head) const {
    return qkv + row * shape.qkv_width() + head * shape.q_stride();
  }
  const float* Key(int64_t row, int64_t kv_head) const {
    return qkv + row * shape.qkv_width() + shape.q_width() + kv_head * shape.head_dim;
  }
  const float* Value(int64_t row, int64_t kv_head) const {
    return Key(row, kv_head) + shape.kv_width();
  }
};

/// Attention on a host, with the KV cache of all layers and slots: in double as REFERENCE does, or
/// by the kernels. A row's bits depend neither on the rows that are computed with it nor on the number of
/// threads: it is summed over blocks of kKvBlock positions, counted from position 0, and the
/// blocks' sums are added in their order, by whomever and in whatever company they were made.
class HostAttention {
 public:
  HostAttention(bool in_double, const cpu::GlueKernels& glue, ThreadPool& pool)
      : in_double_(in_double), glue_(glue), pool_(pool), scratch_(pool.threads()) {}

  /// errors   kOutOfMemory
  Result<void> Allocate(const KvShape& shape);
  /// errors   kOutOfMemory, where a batch or a context is larger than any before
  Result<void> Run(const AttentionCall& call);
  /// Operators::CopySlot
  void CopySlot(int from, int to, int64_t positions);

 private:
  /// Some rows of a sequence, and the blocks of its cache that they read, in `runs` nearly equal
  /// parts.
  struct Queries {
    const SequenceRows* sequence = nullptr;
    int64_t first = 0, n = 0;  // of the sequence's rows
    int64_t blocks = 0, runs = 1;
    bool stores = false;  // the last run stores the sequence's keys and values before it reads
    int64_t sums = 0;     // with several runs: where their blocks' sums begin, in floats
    int64_t pending = 0;  // likewise: where the kv heads' counts of unfinished runs begin
  };
  /// What one thread does at a time: a run of a kv head.
  struct Unit {
    const Queries* queries;
    int64_t kv_head, run;
  };
  /// A kv head's cache of one slot and layer.
  struct Head {
    std::byte *keys = nullptr, *values = nullptr;
    float k_scale = 1, v_scale = 1;
  };
  /// A thread's memory.
  struct Workspace {
    float* q;          // [rows, dim]
    AttendSums sums;   // of `rows` rows
    int32_t* seen;     // [rows]
    float* row;        // [width]: a key or a value
    std::byte* codes;  // the same as the cache keeps it
    float* scratch;    // of Attend()
  };

  Result<void> RunInSingle(const AttentionCall& call);
  void Plan(const AttentionCall& call, bool fork);
  Result<void> Reserve(const AttentionCall& call);
  Workspace Carve(const AttentionCall& call, cpu::Carver carver, size_t* bytes) const;
  void RunUnit(const AttentionCall& call, const Unit& unit, int thread);
  void Store(const AttentionCall& call, const SequenceRows& sequence, int64_t kv_head,
             int64_t first, int64_t last, const Workspace& work);
  void NormAndRotate(const AttentionCall& call, const float* x, Vector norm, int64_t row,
                     float* out) const;
  AttendSums BlockSums(const Queries& queries, int64_t kv_head, int64_t block, int64_t rows);
  void WriteOut(const AttentionCall& call, const Unit& unit, float v_scale,
                const AttendSums& sums) const;
  Head HeadAt(const AttentionCall& call, const SequenceRows& sequence, int64_t kv_head);

  void RunInDouble(const AttentionCall& call);
  void StoreInDouble(const AttentionCall& call, int slot, int64_t row, int64_t position,
                     int64_t kv_head);
  void AttendInDouble(const AttentionCall& call, int slot, int64_t row, int64_t position,
                      int64_t kv_head);
  Head RowInDouble(const AttentionCall& call, int slot, int64_t position, int64_t kv_head);
  float Scale(const std::vector<float>& scales, int64_t layer) const;

  const bool in_double_;
  const cpu::GlueKernels& glue_;
  ThreadPool& pool_;
  KvShape kv_;
  int64_t capacity_ = 0;                     // positions that a slot has room for
  int64_t width_ = 0;                        // of values: head_dim rounded up to panels
  int64_t key_bytes_ = 0, value_bytes_ = 0;  // of a position of a kv head
  HugeBuffer keys_, values_;

  // Of the call that is going on.
  std::vector<Queries> queries_;
  std::vector<Unit> units_;
  std::vector<int32_t> pending_;
  int64_t most_rows_ = 0, sums_floats_ = 0;
  std::vector<cpu::Scratch> scratch_;  // [threads]
  cpu::Scratch sums_;
};

}  // namespace nibble::kernels
