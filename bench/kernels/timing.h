#pragma once

#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace nibble::bench {

inline double Seconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

inline double Median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

inline std::string only;  // --only

/// [--only TEXT] [THREADS...]; the thread counts, `all` if none is given.
inline std::vector<int> ParseThreads(int argc, char** argv, std::vector<int> all) {
  std::vector<int> threads;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
      only = argv[++i];
    } else {
      threads.push_back(std::max(1, std::atoi(argv[i])));
    }
  }
  return threads.empty() ? all : threads;
}

inline bool Wanted(const std::string& what) { return what.find(only) != std::string::npos; }

/// Times `body` up to `rounds` times, or for half a second, and prints its speed: `work` units of
/// `unit` in each. On a machine that others use too, a thread's CPU time still says what a core can
/// do ("cpu"); wall time is taken only from rounds in which the process had its cores to itself
/// ("wall", of "clean" rounds).
template <class F>
void Report(const std::string& what, int threads, int rounds, double work, const char* unit,
            F body) {
  if (!Wanted(what)) return;
  std::vector<double> wall, cpu;
  const double begin = Seconds(CLOCK_MONOTONIC);
  for (int i = 0; i < rounds && (i < 3 || Seconds(CLOCK_MONOTONIC) < begin + 0.5); ++i) {
    const double w = Seconds(CLOCK_MONOTONIC), c = Seconds(CLOCK_PROCESS_CPUTIME_ID);
    body(i);
    const double dw = Seconds(CLOCK_MONOTONIC) - w, dc = Seconds(CLOCK_PROCESS_CPUTIME_ID) - c;
    cpu.push_back(dc / threads);
    if (dc >= 0.95 * threads * dw) wall.push_back(dw);
  }
  const double cpu_s = Median(cpu), wall_s = Median(wall);
  fmt::print(
      "{{\"what\":\"{}\",\"threads\":{},\"unit\":\"{}\",\"cpu\":{:.1f},\"wall\":{:.1f},"
      "\"us\":{:.1f},\"clean\":{},\"rounds\":{}}}\n",
      what, threads, unit, work / cpu_s * 1e-9, wall.empty() ? 0 : work / wall_s * 1e-9,
      (wall.empty() ? cpu_s : wall_s) * 1e6, wall.size(), cpu.size());
  std::fflush(stdout);
}

}  // namespace nibble::bench
