#pragma once

#include <cstdint>
#include <span>

namespace nibble::weights {

/// Turns every -0 (code 0x8) into +0, in place: B12X's W4A4 kernels want one zero. Values compare
/// equal before and after, and a sum of products differs at most in the sign of a zero. A step of
/// its own, taken only for a kernel that asks for it.
void ClearNegativeZeros(std::span<uint8_t> codes);

}  // namespace nibble::weights
