#pragma once

#include <cstdio>

#include "nibble/error.h"

namespace nibble::bench {

/// Launches `good` with each case's spoil() done to it: how many kernel.launch does not refuse as
/// an invalid argument, each of them printed.
template <class Kernel, class Params, class Cases>
int CountAccepted(const Kernel& kernel, const Params& good, const Cases& cases) {
  int accepted = 0;
  for (const auto& c : cases) {
    Params p = good;
    c.spoil(p);
    const Result<void> result = kernel.launch(p, nullptr);
    if (!result && result.error().code == ErrorCode::kInvalidArgument) continue;
    ++accepted;
    std::printf("FAIL %s is not refused by %s\n", c.what, kernel.name);
  }
  return accepted;
}

}  // namespace nibble::bench
