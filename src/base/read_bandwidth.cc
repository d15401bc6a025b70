#include "base/read_bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "base/arena.h"

namespace nibble {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double PlainReadBandwidth(ThreadPool& pool) {
  constexpr size_t kBytes = size_t{512} << 20, kPiece = size_t{1} << 20;
  constexpr int kPasses = 7;
  auto buffer = HugeBuffer::Allocate(kBytes);
  if (!buffer) return 0;
  std::memset(buffer->data(), 1, kBytes);
  std::vector<double> speeds;
  std::vector<uint64_t> sums(pool.threads() * 8);
  for (int round = 0; round < kPasses; ++round) {
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
  std::sort(speeds.begin(), speeds.end());
  // What was read is used, or the compiler would not read it.
  return sums[0] == 0 ? 0 : speeds[kPasses / 2];
}

}  // namespace nibble
