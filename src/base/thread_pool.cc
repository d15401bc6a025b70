#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace nibble {
namespace {

// How long a thread looks for its next region, or the caller for the last worker, before it sleeps:
// first some ten microseconds of pauses (40 to 140 cycles each), which is more than lies between
// two regions of a token; then offering its core to others, because where threads outnumber cores
// the one waited for may need just that.
constexpr int kPauses = 500, kYields = 16;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // tens of cycles; `yield` is none on most cores
#endif
}

/// Waits until `word` is no longer `old`; returns the new value, acquired.
uint32_t AwaitChange(const std::atomic<uint32_t>& word, uint32_t old) {
  for (int i = 0; i < kPauses + kYields; ++i) {
    const uint32_t now = word.load(std::memory_order_acquire);
    if (now != old) return now;
    if (i < kPauses) {
      Pause();
    } else {
      sched_yield();
    }
  }
  word.wait(old, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

/// A wish: where the system refuses it, the thread runs as it would without.
void KeepTo(const std::vector<int>& cpus) {
  const int size = cpus.back() + 1;
  cpu_set_t* set = CPU_ALLOC(size);
  if (set == nullptr) return;
  const size_t bytes = CPU_ALLOC_SIZE(size);
  CPU_ZERO_S(bytes, set);
  for (int cpu : cpus) CPU_SET_S(cpu, bytes, set);
  sched_setaffinity(0, bytes, set);
  CPU_FREE(set);
}

}  // namespace

UnitRange PartOf(int64_t units, int threads, int thread) {
  const int64_t part = units / threads, rest = units % threads;
  const int64_t begin = thread * part + std::min<int64_t>(thread, rest);
  return {begin, begin + part + (thread < rest)};
}

ThreadPool::ThreadPool(int threads, std::vector<std::vector<int>> places)
    : places_(std::move(places)) {
  const int wanted = std::max(0, threads - 1);
  workers_.reserve(static_cast<size_t>(wanted));
  for (int i = 0; i < wanted; ++i) {
    try {
      workers_.emplace_back([this, i] { WorkerLoop(i + 1); });
    } catch (const std::system_error&) {
      break;
    }
  }
}

std::unique_ptr<ThreadPool> OpenThreadPool(int threads, Pinning pinning) {
  const Topology topology = ReadTopology();
  if (threads <= 0) threads = topology.threads();
  return std::make_unique<ThreadPool>(threads, PlaceThreads(topology, threads, pinning));
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::WorkerLoop(int thread) {
  if (static_cast<size_t>(thread) < places_.size()) KeepTo(places_[thread]);
  uint32_t seen = 0;
  while (true) {
    // A region ends only when every worker has left it, so no epoch is ever skipped.
    seen = AwaitChange(epoch_, seen);
    if (stop_) return;
    (*job_)(thread);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

void ThreadPool::Fork(Job job) {
  job_ = &job;
  pending_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  job(0);
  for (uint32_t left = pending_.load(std::memory_order_acquire); left != 0;) {
    left = AwaitChange(pending_, left);
  }
}

void ThreadPool::Run(int64_t units, FunctionRef<void(int64_t, int64_t, int)> fn) {
  if (units <= 0) return;
  const int n = threads();
  if (n == 1 || units == 1) return fn(0, units, 0);
  Fork([&](int thread) {
    const UnitRange part = PartOf(units, n, thread);
    if (part.begin < part.end) fn(part.begin, part.end, thread);
  });
}

void ThreadPool::RunEach(int64_t units, FunctionRef<void(int64_t, int)> fn) {
  if (units <= 0) return;
  if (threads() == 1 || units == 1) {
    for (int64_t unit = 0; unit < units; ++unit) fn(unit, 0);
    return;
  }
  next_unit_.store(0, std::memory_order_relaxed);
  Fork([&](int thread) {
    while (true) {
      const int64_t unit = next_unit_.fetch_add(1, std::memory_order_relaxed);
      if (unit >= units) return;
      fn(unit, thread);
    }
  });
}

}  // namespace nibble
