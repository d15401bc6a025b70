#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::text {

/// One step through bytes that should be UTF-8.
struct Utf8Step {
  char32_t code_point = 0;  // U+FFFD when not valid
  uint8_t length = 0;       // bytes taken: a whole character, or one maximal invalid subpart (1..3)
  bool valid = false;
  bool truncated = false;  // the bytes end inside what may yet become a valid character
};

/// Reads at `pos` (which must be inside). Invalid bytes are grouped into maximal subparts as the
/// Unicode standard (section 3.9, "U+FFFD Substitution of Maximal Subparts"), Python's
/// errors="replace" and Rust's lossy decoding do.
Utf8Step DecodeUtf8(std::string_view bytes, size_t pos);

/// Appends the UTF-8 of a code point (a scalar value: below 0x110000, no surrogate).
void AppendUtf8(std::string& out, char32_t code_point);

bool IsValidUtf8(std::string_view bytes);

/// The text with every maximal invalid subpart replaced by U+FFFD.
std::string LossyUtf8(std::string_view bytes);

/// How many code points valid UTF-8 holds.
size_t CountCodePoints(std::string_view utf8);

/// Unicode White_Space, 25 code points: what Rust's `\s` and Oniguruma's `\s` match.
bool IsWhiteSpace(char32_t c);

/// What Python's str.isspace(), str.strip() and re's `\s` take: White_Space and U+001C..U+001F.
bool IsPythonSpace(char32_t c);

/// True for a byte that starts a character (no continuation byte).
inline bool IsCharStart(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

}  // namespace nibble::text
