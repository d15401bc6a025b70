#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

/// Watches a stream of text for strings that end it. Text is held back as long as it may be part of
/// a stop string: max(length) - 1 bytes, moved to a character's border, so that a stop string never
/// shows, not even in part, wherever tokens cut it. Not safe for use from two threads.
class StopStrings {
 public:
  /// `keep_match`: the stop string itself belongs to the output (include_stop_str_in_output).
  /// errors   kInvalidArgument (an empty stop string, no UTF-8, more than 64 or one above 4 KiB)
  static Result<StopStrings> Make(std::vector<std::string> stops, bool keep_match = false);

  struct Output {
    std::string text;               // to be sent now: whole characters
    std::optional<size_t> matched;  // index of the stop string that ended the stream
  };
  /// Takes more text (whole characters). When a stop string is complete, the output ends before it
  /// (or behind it, with keep_match); of several the one that starts first, then the one listed
  /// first. Nothing may be pushed after a match.
  Output Push(std::string_view utf8);

  /// What was held back, when the stream ends without a match.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  size_t longest_ = 0;
  bool keep_match_ = false;
  std::string tail_;  // the last text, as far as a match may still begin in it
  size_t sent_ = 0;   // bytes of the tail that are sent already (only with keep_match)
};

}  // namespace nibble::text
