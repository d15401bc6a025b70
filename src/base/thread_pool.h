#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/topology.h"

namespace nibble {

/// A reference to something callable, valid for the duration of a call: two words, no allocation.
template <class Signature>
class FunctionRef;

template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>) FunctionRef(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
        }) {}
  R operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

/// Units [begin, end).
struct UnitRange {
  int64_t begin = 0, end = 0;
};

/// What ThreadPool::Run(units, …) gives to `thread` of `threads`: contiguous, near equal, the first
/// units % threads parts one longer. Memory that a thread reads in this split is near it if it
/// was first written in the same one: the system puts a page on the node whose thread first
/// touches it.
UnitRange PartOf(int64_t units, int threads, int thread);

/// A fork-join pool for regions of microseconds. The caller works too, as thread 0; the others spin
/// for a few microseconds after a region, because on the token path the next one follows at once,
/// and then sleep. Which thread computes a unit never changes what it computes: a unit writes
/// results of its own, and whole.
/// Places hold for the workers alone. The caller's thread is its owner's, and threads that it starts
/// would inherit its mask; the workers leave it the first core, where the system then runs it.
/// threads  one region at a time, from one thread at a time; a region must not start another
class ThreadPool {
 public:
  /// `threads` counts the caller. Where the system refuses some, the pool has fewer. `places`, if
  /// not empty, has a list of processors for each thread.
  explicit ThreadPool(int threads, std::vector<std::vector<int>> places = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls fn(begin, end, thread) once a thread on contiguous, near-equal parts of [0, units), the
  /// same ones each time; empty parts are not called. Returns when all are done.
  void Run(int64_t units, FunctionRef<void(int64_t begin, int64_t end, int thread)> fn);

  /// Calls fn(unit, thread) for every unit of [0, units), drawn in ascending order by whichever
  /// thread is free: for units whose costs differ.
  void RunEach(int64_t units, FunctionRef<void(int64_t unit, int thread)> fn);

 private:
  using Job = FunctionRef<void(int thread)>;
  void Fork(Job job);
  void WorkerLoop(int thread);

  // The words that threads hand over on, each on a cache line of its own.
  alignas(64) std::atomic<uint32_t> epoch_{0};    // counts regions
  alignas(64) std::atomic<uint32_t> pending_{0};  // workers still in the region
  alignas(64) std::atomic<int64_t> next_unit_{0};
  alignas(64) const Job* job_ = nullptr;  // written before epoch_, read after it
  bool stop_ = false;
  const std::vector<std::vector<int>> places_;
  std::vector<std::thread> workers_;
};

/// A pool of `threads` threads, or, for 0, of as many as Topology::threads() says.
std::unique_ptr<ThreadPool> OpenThreadPool(int threads, Pinning pinning);

}  // namespace nibble
