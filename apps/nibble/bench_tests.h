#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::app {

/// One row of a benchmark: `prompt` tokens at once, then `generated` one after the other. Before
/// what is timed, `depth` tokens are in the cache: only where there is no prompt.
struct BenchTest {
  int64_t prompt = 0, generated = 0, depth = 0;

  /// "pp512", "tg128", "tg128 @ d8192", "pp512+tg128"
  std::string Name() const;
  bool operator==(const BenchTest&) const = default;
};

/// Numbers as llama-bench takes them: "512", "512,1024", "1-4" (each), "1-9+2" (steps of 2),
/// "128-512*2" (each twice the one before), and lists of these.
/// errors  kInvalidArgument naming what is no number or range, or outside [min, max]
Result<std::vector<int64_t>> ParseNumbers(std::string_view text, int64_t min, int64_t max);

/// The rows that -p, -n (each at every depth of -d) and -pg ask for, in that order. Each is as
/// given, one text an occurrence; a pair is "512,128". A zero asks for nothing.
/// errors  as above; kInvalidArgument where nothing is asked for
Result<std::vector<BenchTest>> ParseBenchTests(const std::vector<std::string>& prompts,
                                               const std::vector<std::string>& generated,
                                               const std::vector<std::string>& pairs,
                                               const std::vector<std::string>& depths);

}  // namespace nibble::app
