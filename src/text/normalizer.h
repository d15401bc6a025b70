#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace nibble::text {

/// Nothing, or why text cannot be normalised by this build (kUnsupported: built without utf8proc).
Result<void> CanNormalize();

/// Unicode normalisation form C of valid UTF-8, as the reference tokenizer computes it: characters
/// that entered Unicode after version 9.0 with a combining class or a composition stay as they are
/// (unicode_delta.h).
/// needs    CanNormalize()
/// cost     O(n log n); n is bounded by memory, also for text that is one run of combining marks
std::string Nfc(std::string_view utf8);

}  // namespace nibble::text
