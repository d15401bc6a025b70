#pragma once

#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"

namespace nibble::bench {

inline double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

/// NAME DIR [TOKENS] [ROUNDS]: measure(dir, threads, tokens, rounds) with one thread and with all.
/// Returns the exit status.
template <class Measure>
int OnThreads(const char* name, int argc, char** argv, int64_t default_tokens, Measure measure) {
  if (argc < 2) {
    fmt::print(stderr, "usage: {} DIR [TOKENS] [ROUNDS]\n", name);
    return 2;
  }
  const int64_t tokens = argc > 2 ? std::atoll(argv[2]) : default_tokens;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
  for (int threads : {1, AvailableCores()}) {
    const Result<void> done =
        measure(std::string(argv[1]), threads, std::max<int64_t>(tokens, 2), std::max(rounds, 1));
    if (done) continue;
    fmt::print(stderr, "{}: {}\n", name, done.error().Message());
    return ExitCodeOf(done.error().code);
  }
  return 0;
}

}  // namespace nibble::bench
