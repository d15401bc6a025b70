#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble::text {

// Byte-level vocabularies write each byte as one printable character (the convention of GPT-2's
// tokenizer): the 188 bytes that are printable in Latin-1 stand for themselves, the other 68, in
// order, for U+0100..U+0143.

/// The character that stands for a byte.
char32_t CharOfByte(unsigned char byte);

/// The bytes that a vocabulary entry stands for. Nothing when it holds a character outside the
/// table: such an entry was not made of bytes.
std::optional<std::string> BytesOfToken(std::string_view token);

}  // namespace nibble::text
