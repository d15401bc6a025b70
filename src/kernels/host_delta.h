#pragma once

#include <span>
#include <tuple>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "kernels/cpu/glue.h"
#include "kernels/operators.h"

namespace nibble::kernels {

/// Gated DeltaNet on a host, with the states of all layers and slots: in fp32 by the CPU's kernels,
/// or in double, as REFERENCE computes. Tentative rows change nothing: their inputs are logged, and
/// those that stay are run again before the slot's next rows. So taking rows back costs nothing, and
/// what stays is bit for bit what it would have been without them.
class HostDelta {
 public:
  HostDelta(bool in_double, const cpu::GlueKernels& glue, ThreadPool& pool)
      : in_double_(in_double), glue_(glue), pool_(pool) {}

  Result<void> Allocate(const RecurrentShape& shape);
  void Run(int64_t layer, const SequenceRows& rows, const DeltaParameters& parameters,
           const float* in, float* out);
  void Keep(int slot, int64_t rows);

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

  template <class T>
  void RunAs(int64_t layer, const SequenceRows& rows, const DeltaParameters& parameters,
             const float* in, float* out);
  template <class T>
  void Prepare(const DeltaParameters& parameters, int64_t i, T* qkv, T* g, T* beta) const;
  template <class T>
  void RunHead(const DeltaTokens<T>& all, int64_t kept, bool tentative, T* state,
               std::vector<T>& scratch) const;
  template <class T>
  void GatedNorm(const DeltaParameters& parameters, const T* o, const float* z, float* out) const;
  void Remember(Slot slot, int64_t rows, std::span<const float* const> logged) const;

  template <class T>
  auto& Scratch() {
    return std::get<std::vector<T>>(scratch_);
  }
  template <class T>
  auto& States() {
    return std::get<std::vector<std::vector<T>>>(thread_states_);
  }
  int64_t LogWidth() const { return shape_.delta.channels() + 2 * shape_.delta.v_heads; }
  int64_t SlotIndex(int64_t layer, int slot) const { return layer * shape_.slots + slot; }
  Slot SlotAt(int64_t layer, int slot);

  const bool in_double_;
  const cpu::GlueKernels& glue_;
  ThreadPool& pool_;
  RecurrentShape shape_;
  HugeBuffer states_, histories_, logs_;
  std::vector<Pending> pending_;  // [layers][slots]

  // Of the run that is going on.
  std::vector<const float*> inputs_;  // [taps-1 of history | kept | new rows]: q | k | v
  std::vector<const float*> gates_;   // [kept | new rows]: b | a
  std::tuple<std::vector<float>, std::vector<double>> scratch_;  // qkv, g, beta, o of all its rows
  // [threads]: a head's state that tentative rows may spoil
  std::tuple<std::vector<std::vector<float>>, std::vector<std::vector<double>>> thread_states_;
};

}  // namespace nibble::kernels
