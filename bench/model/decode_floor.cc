// decode_floor DIR [TOKENS] [ROUNDS]: how near one-token decode comes to its floor, the bytes of
// weights that a token touches at this machine's plain-read bandwidth, measured in the same run.
// One JSON object a line, for one thread and for all.
//
// A model smaller than the last-level cache can beat that floor, which is of memory; it is still
// the yardstick for larger ones.

#include <fmt/core.h>

#include <vector>

#include "base/read_bandwidth.h"
#include "engine/engine.h"
#include "on_threads.h"

namespace nibble {
namespace {

using bench::Median;

Result<void> Measure(const std::string& dir, int threads, int64_t tokens, int rounds) {
  engine::EngineOptions options;
  options.threads = threads;
  options.wishes.context = tokens + 16;
  NIBBLE_TRY(const auto engine, engine::Engine::Open(dir, options));
  ThreadPool pool(threads);
  engine::Request request;
  request.prompt = {1};
  request.max_tokens = tokens;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  std::vector<double> rates, bandwidths;
  for (int i = 0; i < rounds; ++i) {
    bandwidths.push_back(PlainReadBandwidth(pool));
    NIBBLE_TRY(const engine::Completion c, engine->Generate(request));
    rates.push_back(static_cast<double>(c.ids.size() - 1) / c.timings.decode.seconds);
  }
  const double rate = Median(rates), bandwidth = Median(bandwidths);
  const double bytes = static_cast<double>(engine->BytesPerToken());
  fmt::print(
      "{{\"what\":\"decode\",\"threads\":{},\"tokens\":{},\"tokens_per_s\":{:.0f},\"bytes_per_"
      "token\":{:.0f},\"gb_per_s\":{:.2f},"
      "\"plain_read_gb_per_s\":{:.1f},\"floor_tokens_per_s\":{:.0f},\"share_of_floor\":{:.3f},"
      "\"rounds\":{}}}\n",
      threads, tokens, rate, bytes, rate * bytes * 1e-9, bandwidth * 1e-9, bandwidth / bytes,
      rate * bytes / bandwidth, rounds);
  return {};
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  return nibble::bench::OnThreads("decode_floor", argc, argv, 256, nibble::Measure);
}
