#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

/// Bytes [begin, end) of a text.
struct Piece {
  size_t begin = 0;
  size_t end = 0;
};

/// Cuts text at the matches of a regular expression: each match is a piece, and so is what lies
/// between ("Isolated"). Immutable; safe for use from many threads.
class Splitter {
 public:
  /// `pattern` is Oniguruma's dialect, see CheckRegexDialect.
  /// errors   kUnsupported (a construct that cannot be honoured; built without PCRE2), kCorruptFile
  ///          (no valid pattern)
  static Result<Splitter> Make(const std::string& pattern);

  /// Appends the pieces of valid UTF-8, in order, without gaps.
  /// errors   kUnsupported: the pattern needs more steps on this text than a sane one would
  Result<void> Split(std::string_view utf8, std::vector<Piece>& out) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace nibble::text
