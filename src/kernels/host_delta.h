#pragma once

#include <span>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "kernels/cpu/glue.h"
#include "kernels/operators.h"

namespace nibble::kernels {

/// How a HostDelta computes.
enum class DeltaForm {
  kDouble,     // as REFERENCE does: the recurrence in double
  kInvariant,  // the recurrence in fp32: a row's bits do not depend on the batch it came in
  kFastest,    // the same for few rows, and for tentative ones; chunks for a prompt's
};

/// Gated DeltaNet on a host, with the states of all layers and slots. Tentative rows change nothing:
/// their inputs are logged, and those that stay are run again before the slot's next rows. So taking
/// rows back costs nothing, and what stays is bit for bit what it would have been without them.
/// The number of threads never changes a bit.
class HostDelta {
 public:
  HostDelta(DeltaForm form, const cpu::GlueKernels& glue, ThreadPool& pool)
      : form_(form), glue_(glue), pool_(pool) {}

  Result<void> Allocate(const RecurrentShape& shape);
  void Run(int64_t layer, const SequenceRows& rows, const DeltaParameters& parameters,
           const float* in, float* out);
  void Keep(int slot, int64_t rows);
  /// Operators::CopySlot
  void CopySlot(int from, int to);

 private:
  /// What a slot of one layer owes: rows that ran tentatively, and how many of them stay.
  struct Pending {
    int64_t logged = 0, kept = 0;
    bool decided = true;
  };

  /// Where a layer's slot keeps what.
  struct Slot {
    std::byte* state;  // [v_heads][v_dim][k_dim] of T
    float* history;    // [taps-1][channels]
    float* log;        // [tentative_rows][channels | b | a]
  };

  /// A thread's memory for one unit of fp32 work. See RunUnit().
  struct Workspace {
    std::vector<float> qkv, o, a, rate, beta, g;  // of a block of rows
    std::vector<float> states;                    // that tentative rows may spoil
    std::vector<float> chunks;                    // delta_scratch()
  };
  /// What every unit of a run shares.
  struct Batch {
    const DeltaParameters& parameters;
    int64_t kept, n;  // rows that are run again, and all rows
    bool tentative, chunks;
    std::byte* state;  // the slot's
    const float* in;   // of the first new row
    float* out;
  };

  void RunInDouble(const Batch& batch);
  void PrepareInDouble(const DeltaParameters& parameters, int64_t i, double* qkv, double* g,
                       double* beta) const;
  void NormInDouble(const DeltaParameters& parameters, const double* o, const float* z,
                    float* out) const;

  void RunInSingle(const Batch& batch);
  int64_t HeadsPerUnit() const;
  void RunUnit(const Batch& batch, int64_t first_head, int64_t heads, Workspace& work) const;
  DeltaTokens<float> PrepareBlock(const Batch& batch, int64_t first_head, int64_t heads,
                                  int64_t first, int64_t rows, Workspace& work) const;
  void RunRows(const Batch& batch, int64_t first_head, int64_t heads, int64_t first, int64_t last,
               float* states, Workspace& work) const;
  void NormBlock(const Batch& batch, int64_t first_head, int64_t heads, int64_t first, int64_t rows,
                 const Workspace& work) const;

  void Remember(Slot slot, int64_t rows, std::span<const float* const> logged) const;

  int64_t LogWidth() const { return shape_.delta.channels() + 2 * shape_.delta.v_heads; }
  int64_t SlotIndex(int64_t layer, int slot) const { return layer * shape_.slots + slot; }
  Slot SlotAt(int64_t layer, int slot);

  const DeltaForm form_;
  const cpu::GlueKernels& glue_;
  ThreadPool& pool_;
  RecurrentShape shape_;
  HugeBuffer states_, histories_, logs_;
  std::vector<Pending> pending_;  // [layers][slots]

  // Of the run that is going on.
  std::vector<const float*> inputs_;  // [taps-1 of history | kept | new rows]: q | k | v
  std::vector<const float*> gates_;   // [kept | new rows]: b | a
  std::vector<float> rates_;          // [v_heads]: e^a_log
  std::vector<double> scratch_;       // in double: qkv, g, beta, o of all its rows
  std::vector<std::vector<double>> thread_states_;  // a head's that tentative rows may spoil
  std::vector<Workspace> workspaces_;               // [threads]
};

}  // namespace nibble::kernels
