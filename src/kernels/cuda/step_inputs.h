#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/delta.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/step.h"
#include "kernels/operators.h"

namespace nibble::cuda {

/// All of a step that its launches' arguments and grids depend on: steps of one shape are the same
/// graph.
struct StepShape {
  kernels::StepKind kind = kernels::StepKind::kForward;
  int rows = 0, sequences = 0;
  int max_rows = 0;  // that a sequence has
  int capacity = 0;  // at least any sequence's last position + 1: a power of two
  bool operator==(const StepShape&) const = default;

  /// Worth repeating as a graph, and of shapes that come again.
  bool IsSmall() const { return rows <= 64 && max_rows <= 8; }
};

/// What changes from step to step, on its way to the device.
class StepInputs {
 public:
  static constexpr int kMaxRows = 8192;

  StepInputs() = default;
  ~StepInputs();
  StepInputs(const StepInputs&) = delete;
  StepInputs& operator=(const StepInputs&) = delete;

  Result<void> Allocate(int64_t slots);
  /// Copies a step over, on the stream, behind everything before.
  Result<void> Send(kernels::StepKind kind, std::span<const int32_t> ids,
                    std::span<const kernels::SequenceRows> sequences, cudaStream_t stream);
  void Keep(int slot, int64_t rows) {
    kept_[static_cast<size_t>(slot)] = static_cast<int32_t>(rows);
  }

  void CopySlot(int from, int to) {
    kept_[static_cast<size_t>(to)] = kept_[static_cast<size_t>(from)];
  }

  const StepShape& shape() const { return shape_; }
  Step step() const;
  const int32_t* ids() const { return reinterpret_cast<const int32_t*>(memory_.get()); }
  const DeltaSequence* delta() const {
    return reinterpret_cast<const DeltaSequence*>(memory_.get() + delta_at_);
  }

 private:
  /// Host memory that a copy may still be reading.
  struct Staging {
    std::byte* data = nullptr;
    cudaEvent_t copied = nullptr;
  };

  size_t rows_at_ = 0, sequences_at_ = 0, delta_at_ = 0, bytes_ = 0;
  DeviceMemory memory_;
  std::array<Staging, 2> staging_;
  int turn_ = 0;
  StepShape shape_;
  std::vector<int32_t> kept_;  // [slots], of tentative rows, until the next step
};

}  // namespace nibble::cuda
