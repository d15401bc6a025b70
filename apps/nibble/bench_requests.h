#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench_report.h"
#include "engine/engine.h"

namespace nibble::app {

/// Requests one after the other, as a server that serves one user sees them.
struct RequestBench {
  int64_t requests = 0, warmup = 1;
  int64_t prefix = 0;                  // tokens that all share, prefilled once
  int64_t input = 1024, output = 128;  // tokens of each besides
  /// Tokens a round of speculation commits, whatever the drafts; 0: as they are.
  double acceptance = 0;

  int64_t Context() const { return prefix + input + output; }
};

/// What was seen of each request that counts, in seconds.
struct RequestFigures {
  std::vector<double> first_token;  // TTFT: from the request to its first token
  std::vector<double> inter_token;  // ITL: (latency - TTFT) / (tokens - 1)
  std::vector<double> latency;      // from the request to its last token
  double seconds = 0;               // of all of them
  double prefix_seconds = 0;        // of the shared prefix, not in the above
  int64_t tokens = 0;               // given
  engine::SpeculationStats speculation;
};

/// errors  those of Engine::Generate
Result<RequestFigures> RunRequests(
    engine::Engine& engine, const RequestBench& bench,
    const std::function<std::vector<int32_t>(int64_t length, int64_t request)>& ids);

/// The p-th percentile, linear between neighbours. values not empty; p 0 … 100
double Percentile(std::vector<double> values, double p);

/// A table for people, or the same as JSON.
void PrintRequests(const BenchModel& model, const RequestBench& bench,
                   const RequestFigures& figures);
Json RequestsJson(const BenchModel& model, const RequestBench& bench,
                  const RequestFigures& figures);

}  // namespace nibble::app
