#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/operator_times.h"

namespace nibble::cuda {

/// Events on a stream, each behind one operator: the time from one to the next is that operator's. (A
/// kernel cannot begin early behind an event, so their sum is more than a step without events takes.)
class Marks {
 public:
  Marks() = default;
  ~Marks() {
    for (const Passed& m : marks_) cudaEventDestroy(m.event);
  }
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;

  Result<void> Mark(std::string_view name, std::string_view detail, cudaStream_t stream) {
    if (used_ == marks_.size()) {
      marks_.push_back({});
      NIBBLE_CUDA_TRY(cudaEventCreate(&marks_.back().event));
    }
    Passed& mark = marks_[used_++];
    mark.name = name;
    mark.detail = detail;
    NIBBLE_CUDA_TRY(cudaEventRecord(mark.event, stream));
    return {};
  }

  void Forget() { used_ = 0; }

  /// Adds what lies between the marks so far, which have all been passed, and forgets them.
  Result<void> Collect(kernels::OperatorTimes& times) {
    for (size_t i = 1; i < used_; ++i) {
      float milliseconds = 0;
      NIBBLE_CUDA_TRY(cudaEventElapsedTime(&milliseconds, marks_[i - 1].event, marks_[i].event));
      times.Add(marks_[i].name, marks_[i].detail,
                std::chrono::duration<double, std::milli>(milliseconds));
    }
    if (used_ > 0) {  // the next stretch begins where this one ended
      std::swap(marks_[0], marks_[used_ - 1]);
      used_ = 1;
    }
    return {};
  }

 private:
  struct Passed {
    cudaEvent_t event = nullptr;
    std::string name, detail;
  };
  std::vector<Passed> marks_;
  size_t used_ = 0;
};

}  // namespace nibble::cuda
