#pragma once

#include <cstddef>
#include <span>

#include "base/arena.h"
#include "base/checked.h"

namespace nibble::kernels::cpu {

/// Working memory of the CPU operators: grows to the largest call, and is then reused, so that the
/// token path does not allocate. What it holds does not outlive a call. One caller at a time.
class Scratch {
 public:
  /// Room for `bytes`, 64-byte aligned, of undefined content; what was reserved before is gone.
  /// errors   kOutOfMemory
  Result<std::byte*> Reserve(size_t bytes) {
    if (bytes > buffer_.size()) {
      buffer_ = HugeBuffer();
      NIBBLE_TRY(buffer_, HugeBuffer::Allocate(bytes));
    }
    return buffer_.data();
  }
  std::span<std::byte> bytes() { return buffer_.bytes(); }

 private:
  HugeBuffer buffer_;
};

/// Lays arrays out one after the other, each on a 64-byte boundary: once to learn the size, and
/// once more over memory.
class Carver {
 public:
  explicit Carver(std::byte* base = nullptr) : base_(base) {}

  template <class T>
  T* Take(int64_t count) {
    const size_t at = used_;
    used_ += RoundUp(static_cast<size_t>(count) * sizeof(T), 64);
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace nibble::kernels::cpu
