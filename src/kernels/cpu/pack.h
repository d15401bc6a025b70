#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/cpu_kernels.h"
#include "layout/cpu_tile.h"

namespace nibble::kernels::cpu {

/// Strip s of `w.rows` as tiles at `out` (64-byte aligned), every byte of them: what pads n and k is
/// zero codes under zero scales. A permutation, bit for bit; no number changes.
void PackStrip(const CpuKernels& kernels, const PackedMatrix& w, int64_t s, std::byte* out);

/// Whether one of these FP8 codes, whole tiles of them, is a NaN: mapped weights are not read before
/// they are used.
bool HasNanCode(std::span<const std::byte> tiles);

}  // namespace nibble::kernels::cpu
