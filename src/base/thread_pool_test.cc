#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <set>
#include <vector>

namespace nibble {
namespace {

TEST(ThreadPool, RunCoversEveryUnitOnceInNearEqualContiguousParts) {
  for (int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t units : {0, 1, 2, 5, 6, 7, 100, 1001}) {
      std::vector<int> hits(units);
      std::vector<int64_t> size(threads);
      pool.Run(units, [&](int64_t begin, int64_t end, int thread) {
        EXPECT_LT(begin, end);
        size[thread] += end - begin;
        for (int64_t i = begin; i < end; ++i) ++hits[i];
      });
      for (int hit : hits) EXPECT_EQ(hit, 1);
      if (units > 1) {
        for (int64_t s : size) {
          EXPECT_GE(s, units / threads);
          EXPECT_LE(s, units / threads + 1);
        }
      }
    }
  }
}

TEST(ThreadPool, RunSplitsTheSameWayEachTime) {
  ThreadPool pool(3);
  std::vector<std::pair<int64_t, int64_t>> first(3), again(3);
  pool.Run(100, [&](int64_t b, int64_t e, int t) { first[t] = {b, e}; });
  for (int i = 0; i < 100; ++i) {
    pool.Run(100, [&](int64_t b, int64_t e, int t) { again[t] = {b, e}; });
    ASSERT_EQ(first, again);
  }
}

TEST(ThreadPool, RunEachCoversEveryUnitOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t units : {0, 1, 2, 3, 1000}) {
      std::vector<int> hits(units);
      pool.RunEach(units, [&](int64_t unit, int thread) {
        EXPECT_LT(thread, threads);
        ++hits[unit];
      });
      for (int hit : hits) EXPECT_EQ(hit, 1);
    }
  }
}

TEST(ThreadPool, ARegionSeesWhatTheOneBeforeItWrote) {
  ThreadPool pool(3);
  std::vector<int64_t> a(64, 0), b(64, 0);
  for (int round = 0; round < 2000; ++round) {
    pool.Run(64, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) a[i] = b[63 - i] + 1;
    });
    pool.RunEach(64, [&](int64_t i, int) { b[i] = a[i]; });
  }
  for (int64_t v : b) EXPECT_EQ(v, 2000);
}

TEST(ThreadPool, WakesWorkersThatHaveGoneToSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> parts = 0;
    pool.Run(2, [&](int64_t, int64_t, int) { ++parts; });
    EXPECT_EQ(parts, 2);
  }
}

TEST(ThreadPool, TheCallerWaitsForASlowWorker) {
  ThreadPool pool(2);
  bool done = false;
  pool.Run(2, [&](int64_t, int64_t, int thread) {
    if (thread != 1) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    done = true;
  });
  EXPECT_TRUE(done);
}

TEST(ThreadPool, ZeroOrNegativeThreadsMeanTheCallerAlone) {
  EXPECT_EQ(ThreadPool(0).threads(), 1);
  EXPECT_EQ(ThreadPool(-3).threads(), 1);
}

TEST(PartOf, IsWhatRunGives) {
  for (int threads : {2, 3, 7}) {
    ThreadPool pool(threads);
    for (int64_t units : {2, 5, 6, 7, 100, 1001}) {
      std::vector<UnitRange> got(threads);
      pool.Run(units, [&](int64_t begin, int64_t end, int thread) { got[thread] = {begin, end}; });
      for (int t = 0; t < threads; ++t) {
        const UnitRange part = PartOf(units, threads, t);
        if (part.begin == part.end) continue;
        EXPECT_EQ(got[t].begin, part.begin) << units << " units, thread " << t << " of " << threads;
        EXPECT_EQ(got[t].end, part.end) << units << " units, thread " << t << " of " << threads;
      }
    }
  }
}

/// The processors that the calling thread may run on.
std::vector<int> MaskHere() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

TEST(ThreadPool, WorkersKeepToTheirPlacesAndTheCallerIsLeftAlone) {
  const std::vector<int> all = MaskHere();
  const int last = all.back();
  ThreadPool pool(3, {{all.front()}, {last}, all});
  std::vector<std::vector<int>> mask(3);
  pool.Run(3, [&](int64_t, int64_t, int thread) { mask[thread] = MaskHere(); });
  EXPECT_EQ(mask[0], all);
  EXPECT_EQ(mask[1], std::vector<int>{last});
  EXPECT_EQ(mask[2], all);
}

TEST(ThreadPool, APlaceThatTheSystemRefusesIsNoPlace) {
  const std::vector<int> all = MaskHere();
  ThreadPool pool(2, {all, {60000}});
  std::vector<int> mask;
  pool.Run(2, [&](int64_t, int64_t, int thread) {
    if (thread == 1) mask = MaskHere();
  });
  EXPECT_EQ(mask, all);
}

TEST(OpenThreadPool, TakesTheMachinesThreadsWhereNoneAreAskedFor) {
  EXPECT_EQ(OpenThreadPool(0, Pinning::kAuto)->threads(), AvailableCores());
  EXPECT_EQ(OpenThreadPool(3, Pinning::kCores)->threads(), 3);
}

}  // namespace
}  // namespace nibble
