#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "nibble/error.h"

// Device memory and checked calls for the programs here.

namespace nibble::bench {

#define BENCH_CUDA(call)                                                               \
  do {                                                                                 \
    if (const cudaError_t e_ = (call); e_ != cudaSuccess) {                            \
      std::printf("FAIL %s: %s (line %d)\n", #call, cudaGetErrorString(e_), __LINE__); \
      std::fflush(stdout);                                                             \
      std::_Exit(2);                                                                   \
    }                                                                                  \
  } while (false)

inline void Must(const Result<void>& result) {
  if (result) return;
  std::printf("FAIL %s\n", result.error().what.c_str());
  std::fflush(stdout);
  std::_Exit(2);
}

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n = 0) : n_(n) {
    if (n) BENCH_CUDA(cudaMalloc(&p_, n * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& v) : Buffer(v.size()) { Write(v); }
  Buffer(Buffer&& o) noexcept : p_(std::exchange(o.p_, nullptr)), n_(std::exchange(o.n_, 0)) {}
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(p_, o.p_), std::swap(n_, o.n_);
    return *this;
  }
  ~Buffer() { cudaFree(p_); }
  T* get() const { return p_; }
  size_t size() const { return n_; }
  void Fill(int byte) { BENCH_CUDA(cudaMemset(p_, byte, n_ * sizeof(T))); }
  void Write(const std::vector<T>& v) {
    BENCH_CUDA(cudaMemcpy(p_, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Read() const {
    std::vector<T> v(n_);
    BENCH_CUDA(cudaMemcpy(v.data(), p_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  T* p_ = nullptr;
  size_t n_ = 0;
};

}  // namespace nibble::bench
