// decode_floor DIR [TOKENS] [ROUNDS]: how near one-token decode comes to its floor, the bytes of
// weights that a token touches at this machine's plain-read bandwidth, measured in the same run.
// One JSON object a line, for one thread and for all.
//
// A model smaller than the last-level cache can beat that floor, which is of memory; it is still
// the yardstick for larger ones.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "engine/engine.h"

namespace nibble {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

/// Bytes a second of reading memory front to back, far larger than the caches; the median of seven
/// passes.
double PlainReadBandwidth(ThreadPool& pool) {
  constexpr size_t kBytes = size_t{512} << 20, kPiece = size_t{1} << 20;
  auto buffer = HugeBuffer::Allocate(kBytes);
  if (!buffer) return 0;
  std::memset(buffer->data(), 1, kBytes);
  std::vector<double> speeds;
  std::vector<uint64_t> sums(pool.threads() * 8);
  for (int round = 0; round < 7; ++round) {
    const double start = Now();
    pool.Run(kBytes / kPiece, [&](int64_t first, int64_t last, int thread) {
      typedef uint64_t Lanes __attribute__((vector_size(64)));
      Lanes sum = {};
      for (size_t at = first * kPiece; at < last * kPiece; at += 256) {
        for (int i = 0; i < 4; ++i)
          sum |= *reinterpret_cast<const Lanes*>(buffer->data() + at + 64 * i);
      }
      sums[thread * 8] |= sum[0] | sum[1] | sum[2] | sum[3] | sum[4] | sum[5] | sum[6] | sum[7];
    });
    speeds.push_back(kBytes / (Now() - start));
  }
  return sums[0] == 0 ? 0
                      : Median(speeds);  // what was read is used, or the compiler would not read it
}

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
    rates.push_back(static_cast<double>(c.ids.size() - 1) / c.timings.decode_seconds);
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
  if (argc < 2) {
    fmt::print(stderr, "usage: decode_floor DIR [TOKENS] [ROUNDS]\n");
    return 2;
  }
  const int64_t tokens = argc > 2 ? std::atoll(argv[2]) : 256;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
  for (int threads : {1, nibble::AvailableCores()}) {
    if (auto done =
            nibble::Measure(argv[1], threads, std::max<int64_t>(tokens, 2), std::max(rounds, 1));
        !done) {
      fmt::print(stderr, "decode_floor: {}\n", done.error().Message());
      return nibble::ExitCodeOf(done.error().code);
    }
  }
}
