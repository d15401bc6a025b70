#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble {

/// A regular expression out of a stranger's file: the part of Python's `re` that quantization
/// recipes use, matched in time linear in the text, so that no pattern can hang us.
///
/// syntax   literals, `.`, `[a-z]`, `[^a-z]`, `\d \w \s \D \W \S`, escaped punctuation, `* + ?`
///          (also lazy: whether there is a match does not depend on it), `|`, `(a)`, `(?:a)`, `^`,
///          `$`. Everything else (counts, look-around, back references, `\b`, flags, possessive
///          repeats, bytes above 0x7F) is refused by name.
/// limits   1024 bytes, groups 32 deep; at most two states a byte
class RegexLite {
 public:
  /// errors kUnsupported (a construct of Python's that is not taken, a limit), kCorruptFile (no
  ///        regular expression at all); both name the pattern and the byte
  static Result<RegexLite> Compile(std::string_view pattern);

  /// Whether a match begins at the first byte of the text (Python's re.match): it may end anywhere.
  /// cost   one table look-up a byte; for patterns whose table would be large, at most states x
  ///        (bytes + 1) steps. The steps are added to `*steps` where given.
  bool MatchesPrefix(std::string_view text, uint64_t* steps = nullptr) const;

  const std::string& pattern() const { return pattern_; }

 private:
  friend class RegexCompiler;
  class Walk;

  enum class Op : uint8_t { kSet, kSplit, kBegin, kEnd, kAccept };
  struct State {
    Op op = Op::kAccept;
    int next = -1;
    int other = -1;          // kSplit: the second way
    std::bitset<128> bytes;  // kSet: what it takes
  };

  /// The deterministic form. Row 0 is that of no way on, row 1 that of a match, both final.
  struct Table {
    std::array<uint8_t, 128> class_of = {};  // bytes that no state tells apart share a column
    size_t columns = 0;
    std::vector<uint16_t> next;       // [rows, columns]
    std::vector<bool> accept_at_end;  // [rows]: a match if the text ends here
    uint16_t start = 0;
  };

  void BuildClasses();
  void BuildTable();
  bool MatchStates(std::string_view text, uint64_t* steps) const;

  std::string pattern_;
  std::vector<State> states_;
  int start_ = 0;
  Table table_;  // next is empty where it would be too large
};

}  // namespace nibble
