#pragma once

#include <span>

namespace nibble::text {

// The reference (PyPI tokenizers 0.23.3) classifies characters by Oniguruma's Unicode 16.0 and normalises by a crate that still is
// at Unicode 9.0. PCRE2 10.42 is at 14.0, utf8proc 2.8.0 at 15.0. Tokens must be those that the model was trained on, so the tables
// below bridge both gaps. They were measured on the reference, code point by code point (tools/make_unicode_delta.py).

/// A range of characters whose general category the reference sees otherwise than PCRE2 does. For splitting, each is replaced by
/// `stand_in`: an old character of the right category and the same number of UTF-8 bytes.
struct CategoryDelta {
  char32_t first, last;
  char32_t stand_in;
};
/// Sorted.
std::span<const CategoryDelta> CategoryDeltas();

struct CodePointRange {
  char32_t first, last;
};
/// Sorted. Characters that the reference's NFC leaves alone as unknown (combining class 0, no composition), though Unicode by now
/// gives them one.
std::span<const CodePointRange> UnknownToNfc();

}  // namespace nibble::text
