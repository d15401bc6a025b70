#include "kernels/cuda/step_inputs.h"

#include <algorithm>
#include <bit>

#include "base/checked.h"

namespace nibble::cuda {

StepInputs::~StepInputs() {
  for (const Staging& s : staging_) {
    if (s.copied != nullptr) cudaEventDestroy(s.copied);
    cudaFreeHost(s.data);
  }
}

Result<void> StepInputs::Allocate(int64_t slots) {
  const auto n = static_cast<size_t>(slots);
  kept_.assign(n, 0);
  rows_at_ = kMaxRows * sizeof(int32_t);
  sequences_at_ = rows_at_ + kMaxRows * sizeof(StepRow);
  delta_at_ = RoundUp(sequences_at_ + n * sizeof(StepSequence), 256);
  bytes_ = delta_at_ + n * sizeof(DeltaSequence);
  NIBBLE_TRY(memory_, DeviceMemory::Allocate(bytes_, "a step's inputs"));
  for (Staging& s : staging_) {
    void* data = nullptr;
    NIBBLE_CUDA_TRY(cudaMallocHost(&data, bytes_));
    s.data = static_cast<std::byte*>(data);
    NIBBLE_CUDA_TRY(cudaEventCreateWithFlags(&s.copied, cudaEventDisableTiming));
  }
  return {};
}

Result<void> StepInputs::Send(kernels::StepKind kind, std::span<const int32_t> ids,
                              std::span<const kernels::SequenceRows> sequences,
                              cudaStream_t stream) {
  NIBBLE_CHECK(ids.size() <= kMaxRows && sequences.size() <= kept_.size(),
               "a step of more rows or sequences than there is room for");
  turn_ = 1 - turn_;
  const Staging& staging = staging_[static_cast<size_t>(turn_)];
  NIBBLE_CUDA_TRY(cudaEventSynchronize(staging.copied));
  auto* const rows = reinterpret_cast<StepRow*>(staging.data + rows_at_);
  auto* const steps = reinterpret_cast<StepSequence*>(staging.data + sequences_at_);
  auto* const delta = reinterpret_cast<DeltaSequence*>(staging.data + delta_at_);
  std::copy(ids.begin(), ids.end(), reinterpret_cast<int32_t*>(staging.data));
  std::fill_n(rows, ids.size(), StepRow{});
  shape_ = {kind, static_cast<int>(ids.size()), static_cast<int>(sequences.size()), 0, 256};
  for (size_t i = 0; i < sequences.size(); ++i) {
    const kernels::SequenceRows& s = sequences[i];
    const auto first = static_cast<int32_t>(s.first_row), n = static_cast<int32_t>(s.n_rows);
    const auto start = static_cast<int32_t>(s.start);
    for (int32_t r = 0; r < n; ++r) rows[first + r] = {start + r, s.slot};
    steps[i] = {s.slot, first, n, start};
    int32_t& kept = kept_[static_cast<size_t>(s.slot)];
    delta[i] = {s.slot, first, n, start, start > 0 ? kept : 0, s.tentative ? 1 : 0};
    if (kind == kernels::StepKind::kForward) kept = 0;
    shape_.max_rows = std::max(shape_.max_rows, n);
    shape_.capacity = std::max(shape_.capacity,
                               static_cast<int>(std::bit_ceil(static_cast<uint32_t>(start + n))));
  }
  const size_t bytes = delta_at_ + sequences.size() * sizeof(DeltaSequence);
  NIBBLE_CUDA_TRY(
      cudaMemcpyAsync(memory_.get(), staging.data, bytes, cudaMemcpyHostToDevice, stream));
  NIBBLE_CUDA_TRY(cudaEventRecord(staging.copied, stream));
  return {};
}

Step StepInputs::step() const {
  return {shape_.rows, shape_.sequences, reinterpret_cast<const StepRow*>(memory_.get() + rows_at_),
          reinterpret_cast<const StepSequence*>(memory_.get() + sequences_at_)};
}

}  // namespace nibble::cuda
