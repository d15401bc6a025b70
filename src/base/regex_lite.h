#pragma once

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
/// syntax   literals, `.`, `[a-z]`, `[^…]`, `\d \w \s \D \W \S`, escaped punctuation, `* + ?` (also
/// lazy: whether there is a
///          match does not depend on it), `|`, `(…)`, `(?:…)`, `^`, `$`. Everything else (counts,
///          look-around, back references, `\b`, flags, possessive repeats, bytes above 0x7F) is
///          refused by name.
/// limits   1024 bytes, 64 groups deep, at most two states a byte
class RegexLite {
 public:
  /// errors kUnsupported (a construct of Python's that is not taken), kCorruptFile (no regular
  /// expression at all, too long)
  static Result<RegexLite> Compile(std::string_view pattern);

  /// Whether a match begins at the first byte of the text (Python's re.match): it may end anywhere.
  /// cost at most states x bytes; the work done is added to `*steps` where given
  bool MatchesPrefix(std::string_view text, uint64_t* steps = nullptr) const;

  const std::string& pattern() const { return pattern_; }

 private:
  friend class RegexCompiler;
  enum class Op : uint8_t { kSet, kSplit, kBegin, kEnd, kAccept };
  struct State {
    Op op = Op::kAccept;
    int next = -1;
    int other = -1;    // kSplit: the second way
    uint32_t set = 0;  // kSet: index in sets_
  };

  void Follow(int state, size_t position, size_t length, std::vector<int>* stack,
              std::vector<bool>* seen, std::vector<int>* list, bool* accepted) const;

  std::string pattern_;
  std::vector<State> states_;
  std::vector<std::bitset<128>> sets_;
  int start_ = 0;
};

}  // namespace nibble
