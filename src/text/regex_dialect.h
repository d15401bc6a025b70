#pragma once

#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

/// A character or range that a pattern names outside ASCII.
struct LiteralRange {
  char32_t first, last;
};

/// Checks that a split pattern means the same to PCRE2 (UTF, UCP, newline LF) as to Oniguruma's
/// Ruby syntax, for which it was written, and that it cannot backtrack exponentially. Accepted:
/// literals, classes without nesting, general categories such as \p{L}, \s \S \d \D, \r \n \t \f,
/// groups (plain, (?:), (?i:) over ASCII, lookaround, atomic), alternatives, and greedy, lazy and
/// possessive quantifiers where no repeated group repeats something itself. Everything else is
/// refused by name, because it differs: \w has other members, \h is a hex digit there, ^ and $ are
/// line anchors, [[...]] and && are set operations, (?i:ss) matches "ß".
/// returns  the non-ASCII literals of the pattern
/// errors   kUnsupported (with the construct and its byte offset), kCorruptFile (no pattern at all)
Result<std::vector<LiteralRange>> CheckRegexDialect(std::string_view pattern);

}  // namespace nibble::text
