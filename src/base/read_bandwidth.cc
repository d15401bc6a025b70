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

/// Every word or-ed into one: in vectors that any x86-64 has, and chains enough that no load waits
/// for another.
uint64_t OrOf(const std::byte* at, size_t bytes) {
  typedef uint64_t Lanes __attribute__((vector_size(16)));
  Lanes a = {}, b = {}, c = {}, d = {}, e = {}, f = {}, g = {}, h = {};
  const auto* v = reinterpret_cast<const Lanes*>(at);
  for (const Lanes* const end = v + bytes / sizeof(Lanes); v != end; v += 8) {
    a |= v[0];
    b |= v[1];
    c |= v[2];
    d |= v[3];
    e |= v[4];
    f |= v[5];
    g |= v[6];
    h |= v[7];
  }
  const Lanes all = a | b | c | d | e | f | g | h;
  return all[0] | all[1];
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
      sums[thread * 8] |= OrOf(buffer->data() + first * kPiece, (last - first) * kPiece);
    });
    speeds.push_back(kBytes / (Now() - start));
  }
  std::sort(speeds.begin(), speeds.end());
  // What was read is used, or the compiler would not read it.
  return sums[0] == 0 ? 0 : speeds[kPasses / 2];
}

}  // namespace nibble
