#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <system_error>

namespace nibble {
namespace {

/// The lowest hyperthread of `cpu`'s core, or `cpu` itself where the system does not say.
int CoreOf(int cpu) {
  const std::string path =
      "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list";
  int first = cpu;
  if (std::FILE* file = std::fopen(path.c_str(), "re")) {
    if (std::fscanf(file, "%d", &first) != 1) first = cpu;
    std::fclose(file);
  }
  return first;
}

// How long a thread looks for its next region, or the caller for the last worker, before it sleeps:
// first some ten microseconds of pauses (40 to 140 cycles each), which is more than lies between
// two regions of a token; then offering its core to others, because where threads outnumber cores
// the one waited for may need just that.
constexpr int kPauses = 500, kYields = 16;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
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

}  // namespace

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  std::set<int> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cores.insert(CoreOf(cpu));
  }
  return std::max(1, static_cast<int>(cores.size()));
}

ThreadPool::ThreadPool(int threads) {
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

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::WorkerLoop(int thread) {
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
  const int64_t n = threads();
  if (n == 1 || units == 1) return fn(0, units, 0);
  const int64_t part = units / n, rest = units % n;  // the first `rest` parts have one more
  Fork([&](int thread) {
    const int64_t begin = thread * part + std::min<int64_t>(thread, rest);
    const int64_t end = begin + part + (thread < rest);
    if (begin < end) fn(begin, end, thread);
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
