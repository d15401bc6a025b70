#pragma once

#include <cstddef>
#include <span>

#include "layout/canonical.h"
#include "layout/hopper_tile.h"

namespace nibble {

// Canonical weights to Hopper tiles on the CPU: the meaning of the format, and what the GPU's own
// packing (kernels/cuda/tile_pack.h) is tested against. Pure functions of their arguments.

/// Gate and up of one expert, each [I, H], into `out` of HopperW13Layout(H, I).bytes(format) bytes. NVFP4's
/// global scales and all of FP8's stay outside. Shapes that differ between gate and up are our own bug.
void PackHopperW13(const CanonicalNvfp4& gate, const CanonicalNvfp4& up, std::span<std::byte> out);
void PackHopperW13(const CanonicalBf16& gate, const CanonicalBf16& up, std::span<std::byte> out);
void PackHopperW13(const CanonicalFp8& gate, const CanonicalFp8& up, std::span<std::byte> out);

/// Up of one expert without a gate, [I, H], into `out` of HopperW1Layout(H, I).bytes(format) bytes.
void PackHopperW1(const CanonicalNvfp4& up, std::span<std::byte> out);
void PackHopperW1(const CanonicalBf16& up, std::span<std::byte> out);
void PackHopperW1(const CanonicalFp8& up, std::span<std::byte> out);

/// Down of one expert, [H, I], into `out` of HopperW2Layout(H, I).bytes(format) bytes.
void PackHopperW2(const CanonicalNvfp4& down, std::span<std::byte> out);
void PackHopperW2(const CanonicalBf16& down, std::span<std::byte> out);
void PackHopperW2(const CanonicalFp8& down, std::span<std::byte> out);

}  // namespace nibble
