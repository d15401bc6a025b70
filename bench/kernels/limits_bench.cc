// limits_bench [--only TEXT] [THREADS...]: the multiplications and additions that a core can do at most, with each
// instruction that a product of matrices could be made of: what a kernel's GFLOP/s are a share of.
// JSON lines, one an instruction and number of threads; instructions that the machine lacks are
// left out.

#include "base/thread_pool.h"
#include "limits.h"
#include "timing.h"

int main(int argc, char** argv) {
  using namespace nibble;
  constexpr int kBursts = 64;
  for (const int n : bench::ParseThreads(argc, argv, {1, AvailableCores()})) {
    ThreadPool pool(n);
    for (const bench::Limit& limit : bench::Limits()) {
      if (!limit.present) continue;
      bench::Report(limit.name, n, 25, kBursts * limit.operations, "GFLOP/s",
                    [&](int) { pool.RunEach(kBursts, [&](int64_t, int) { limit.burst(); }); });
    }
  }
}
