#pragma once

#include <cstdint>

#include "layout/canonical.h"
#include "layout/cpu_tile.h"

namespace nibble::weights {

// From the file's row-major form to the tiles of layout/cpu_tile.h: a permutation, bit for bit; no
// number changes.

/// Bytes that the packed form of `from` takes, with FP8's scales by channel or block.
uint64_t PackedBytesOf(const CanonicalWeight& from);

/// The packed form of `from` at `at` (64-byte aligned), which PackStrips and PackScales fill.
PackedMatrix DescribePacked(const CanonicalWeight& from, std::byte* at);

/// Writes strips first … last-1 of the packed form, every byte of them: what pads n and k is zero
/// codes under zero scales.
/// threads  safe for distinct strips
void PackStrips(const CanonicalWeight& from, int64_t first, int64_t last, std::byte* at);

/// Writes the scales behind the strips and what pads them to a cache line; nothing where a weight
/// has none there.
void PackScales(const CanonicalWeight& from, std::byte* at);

}  // namespace nibble::weights
