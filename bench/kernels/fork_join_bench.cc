// fork_join_bench pool|openmp [THREADS [auto|none|cores]]: the time to open and close an empty
// parallel region, hot and after 5 ms in which the threads went to sleep; what they use of the cores
// in these pauses; and the regions of one decoded token (two over the experts of each of 48 layers,
// their weights streaming from memory), on our thread pool, pinned or not, or on OpenMP. One of them
// a process, for the idle threads of the other would spin in its way; run them in turns, OpenMP
// also under OMP_WAIT_POLICY=active and passive.

#include <fmt/core.h>
#include <omp.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/isa.h"
#include "layout/cpu_tile.h"

namespace nibble::kernels::cpu {
namespace {

double Now(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

struct Samples {
  std::vector<double> us;
  double cpu = 0, wall = 0;
  double Quantile(double q) {
    std::sort(us.begin(), us.end());
    return us[static_cast<size_t>(q * static_cast<double>(us.size() - 1))];
  }
};

template <class F>
void Time(Samples& samples, int repeats, F body) {
  const double cpu = Now(CLOCK_PROCESS_CPUTIME_ID), wall = Now(CLOCK_MONOTONIC);
  for (int i = 0; i < repeats; ++i) body();
  const double spent = Now(CLOCK_MONOTONIC) - wall;
  samples.us.push_back(spent / repeats * 1e6);
  samples.wall += spent;
  samples.cpu += Now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
}

void Print(const char* what, const char* who, Samples& s) {
  fmt::print(
      "{{\"what\":\"{}\",\"with\":\"{}\",\"us_p10\":{:.2f},\"us_median\":{:.2f},\"us_p90\":{:.2f},"
      "\"cores_used\":{:.2f}}}\n",
      what, who, s.Quantile(0.1), s.Quantile(0.5), s.Quantile(0.9), s.cpu / s.wall);
}

/// One layer's share of a token: gate and up, then down, of 8 experts, as strips that stream from
/// memory.
struct Token {
  static constexpr int64_t kHidden = 2048, kIntermediate = 768, kTopK = 8, kLayers = 48;
  static constexpr int64_t kUpStrips = kTopK * 2 * kIntermediate / 16,
                           kDownStrips = kTopK * kHidden / 16;
  const CpuKernels& kernels;
  HugeBuffer weights, x;
  int64_t layer_bytes = 0;

  explicit Token(const CpuKernels& k) : kernels(k) {
    layer_bytes = kUpStrips * StripBytes(TileFormat::kNvfp4, kHidden) +
                  kDownStrips * StripBytes(TileFormat::kNvfp4, kIntermediate);
    auto w = HugeBuffer::Allocate(layer_bytes * kLayers), row = HugeBuffer::Allocate(kHidden * 4);
    if (!w || !row) std::exit(1);
    weights = *std::move(w);
    x = *std::move(row);
    std::memset(weights.data(), 0x33, weights.size());
  }

  void Strips(const std::byte* data, int64_t k, int64_t begin, int64_t end) const {
    const int64_t bytes = StripBytes(TileFormat::kNvfp4, k);
    const std::byte* rows[] = {x.data()};
    float y[16];
    for (int64_t s = begin; s < end; ++s) {
      kernels.decode_nvfp4(data + s * bytes, data + (s + 1) * bytes, k / kTileK, rows, 1, 1.0f, y,
                           16);
    }
  }

  /// for_strips(strips, fn(begin, end)) once for each of a token's regions.
  template <class F>
  void Run(F for_strips) const {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const std::byte* up = weights.data() + layer * layer_bytes;
      const std::byte* down = up + kUpStrips * StripBytes(TileFormat::kNvfp4, kHidden);
      for_strips(kUpStrips, [&](int64_t b, int64_t e) { Strips(up, kHidden, b, e); });
      for_strips(kDownStrips, [&](int64_t b, int64_t e) { Strips(down, kIntermediate, b, e); });
    }
  }
};

template <class Fork>
int Measure(const char* who, int threads, Fork fork) {
  std::vector<int64_t> sink(threads * 8);
  Samples empty, tokens;
  for (int round = 0; round < 100; ++round) {
    Time(empty, 200, [&] { fork(threads, [&](int64_t b, int64_t) { sink[b * 8] = b; }); });
  }
  Print("empty region", who, empty);
  Samples woken, asleep;
  for (int round = 0; round < 200; ++round) {
    Time(asleep, 1, [] {
      timespec pause{0, 5'000'000};
      nanosleep(&pause, nullptr);
    });
    Time(woken, 1, [&] { fork(threads, [&](int64_t b, int64_t) { sink[b * 8] = b; }); });
  }
  Print("empty region after 5 ms", who, woken);
  Print("those 5 ms", who, asleep);
  const auto isa = ChooseIsa(std::getenv("NIBBLE_ISA"));
  if (!isa) return 2;
  const Token token(KernelsFor(*isa));
  for (int round = 0; round < 60; ++round) Time(tokens, 1, [&] { token.Run(fork); });
  Print("experts of one token", who, tokens);
  return 0;
}

int Main(std::string_view who, int threads, Pinning pinning) {
  if (who == "openmp") {
    omp_set_num_threads(threads);
    return Measure("openmp", threads, [](int64_t units, const auto& fn) {
#pragma omp parallel
      {
        const int64_t n = omp_get_num_threads(), t = omp_get_thread_num();
        fn(units * t / n, units * (t + 1) / n);
      }
    });
  }
  const auto pool = OpenThreadPool(threads, pinning);
  return Measure("pool", pool->threads(), [&](int64_t units, const auto& fn) {
    pool->Run(units, [&](int64_t b, int64_t e, int) { fn(b, e); });
  });
}

}  // namespace
}  // namespace nibble::kernels::cpu

int main(int argc, char** argv) {
  const int threads = argc > 2 ? std::max(1, std::atoi(argv[2])) : nibble::AvailableCores();
  const auto pinning = nibble::ParsePinning(argc > 3 ? argv[3] : "none");
  if (!pinning) return 2;
  return nibble::kernels::cpu::Main(argc > 1 ? argv[1] : "pool", threads, *pinning);
}
