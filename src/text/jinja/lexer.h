#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text::jinja {

enum class TokenKind : uint8_t {
  kData,           // text outside of tags, white space control applied
  kVariableBegin,  // {{
  kVariableEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kString,  // unescaped
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 1;
};

/// Cuts a template into tokens as Jinja2 3.1 does with trim_blocks and lstrip_blocks on and
/// keep_trailing_newline off; the last token is kEnd. Comments and raw blocks are resolved.
/// errors   kCorruptFile (syntax, with its line), kUnsupported (names outside ASCII, \N{...})
Result<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace nibble::text::jinja
