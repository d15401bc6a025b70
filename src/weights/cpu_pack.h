#pragma once

#include <cstdint>

#include "layout/canonical.h"
#include "layout/cpu_tile.h"

namespace nibble::weights {

// How a canonical weight is described to the CPU's kernels: as tiles that kernels/cpu/pack.h is to
// make of it, or, mapped, as the file's rows themselves. Either has FP8's scales by channel or block
// beside it.

/// Bytes of memory that `from` takes besides the file's pages.
uint64_t HeldBytesOf(const CanonicalWeight& from, bool mapped);

/// That memory is at `at` (64-byte aligned): StripCount() strips, not packed yet, unless `mapped`;
/// then the scales, which are written.
PackedMatrix PlaceMatrix(const CanonicalWeight& from, bool mapped, std::byte* at);

}  // namespace nibble::weights
