#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "base/error.h"

namespace nibble {

/// Zeroed memory straight from the system, given back on destruction. From 2 MiB on it starts on a
/// 2 MiB boundary and asks for huge pages: a decode pass reads weights from those at 40 GB/s a core
/// where 4 KiB pages give less (Zen 5). Always 64-byte aligned.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  ~HugeBuffer() { Release(); }
  HugeBuffer(HugeBuffer&& other) noexcept { *this = std::move(other); }
  HugeBuffer& operator=(HugeBuffer&& other) noexcept {
    if (this != &other) {
      Release();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }

  /// `bytes` of zeros; 0 gives an empty buffer.
  /// errors   kOutOfMemory, naming the bytes asked for
  static Result<HugeBuffer> Allocate(size_t bytes);

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<std::byte> bytes() { return {data_, size_}; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  void Release();
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nibble
