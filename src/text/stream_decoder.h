#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"

namespace nibble::text {

/// Turns tokens into text as they come. What Push and Finish return, joined, is Tokenizer::Decode
/// of all the tokens, whatever the tokens' borders. Not safe for use from two threads.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = true)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  /// The text that is certain once this token is there: whole characters only. At most 3 bytes are
  /// held back, of a character that the next token may complete.
  std::string Push(int32_t id);

  /// The text of what was held back: U+FFFD, one a maximal invalid subpart. The decoder is then as
  /// new.
  std::string Finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::string held_;
};

}  // namespace nibble::text
