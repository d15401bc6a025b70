#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace nibble::app {

// NumPy's .npy files, as far as token lists and logits need them (format 1.0 to 3.0, one dimension,
// little-endian).

/// errors  kCorruptFile: anything but a one-dimensional array of 16-, 32- or 64-bit integers whose
///         values fit int32
Result<std::vector<int32_t>> ReadTokensNpy(const std::string& path);

/// Writes float32 [n].
Result<void> WriteFloatsNpy(const std::string& path, std::span<const float> values);

}  // namespace nibble::app
