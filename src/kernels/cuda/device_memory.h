#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/cuda_check.h"

namespace nibble::cuda {

/// Memory of the device, freed with its owner.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(DeviceMemory&& o) noexcept
      : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }

  /// `what`: for the error, "the KV cache".
  /// errors  kOutOfMemory, naming what was asked for and what is free
  static Result<DeviceMemory> Allocate(size_t bytes, std::string_view what) {
    DeviceMemory memory;
    if (cudaMalloc(&memory.data_, bytes > 0 ? bytes : 1) == cudaSuccess) {
      memory.bytes_ = bytes;
      return memory;
    }
    cudaGetLastError();
    memory.data_ = nullptr;
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    Error error =
        Err(ErrorCode::kOutOfMemory,
            "{} takes {:.3f} GB of the device's memory, of which {:.3f} of {:.3f} GB are free",
            what, 1e-9 * static_cast<double>(bytes), 1e-9 * static_cast<double>(free),
            1e-9 * static_cast<double>(total));
    error.hint = "nibble inspect shows the budget; --ctx makes the KV cache smaller";
    return error;
  }

  std::byte* get() const { return static_cast<std::byte*>(data_); }
  template <class T>
  T* As() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Working memory that grows to the largest call, zeroed where it is new.
class GrowingMemory {
 public:
  /// A larger one than before waits for the stream. (While a graph is being recorded there is none:
  /// its calls were made before, and graphs hold the addresses.)
  Result<std::byte*> Reserve(size_t bytes, cudaStream_t stream) {
    if (bytes <= memory_.size()) return memory_.get();
    NIBBLE_CUDA_TRY(cudaStreamSynchronize(stream));
    NIBBLE_TRY(DeviceMemory larger, DeviceMemory::Allocate(bytes, "a kernel's workspace"));
    NIBBLE_CUDA_TRY(cudaMemsetAsync(larger.get(), 0, bytes, stream));
    if (memory_.size() > 0) old_.push_back(std::move(memory_));
    memory_ = std::move(larger);
    return memory_.get();
  }

 private:
  DeviceMemory memory_;
  std::vector<DeviceMemory> old_;  // recorded graphs still use them
};

}  // namespace nibble::cuda
