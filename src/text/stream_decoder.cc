#include "text/stream_decoder.h"

#include <utility>

#include "text/utf8.h"

namespace nibble::text {

std::string StreamDecoder::Push(int32_t id) {
  if (skip_special_ && tokenizer_.IsSpecial(id)) return {};
  held_ += tokenizer_.TokenBytes(id);
  size_t certain = 0;
  while (certain < held_.size()) {
    const Utf8Step step = DecodeUtf8(held_, certain);
    if (step.truncated) break;
    certain += step.length;
  }
  std::string text = LossyUtf8(std::string_view(held_).substr(0, certain));
  held_.erase(0, certain);
  return text;
}

std::string StreamDecoder::Finish() { return LossyUtf8(std::exchange(held_, {})); }

}  // namespace nibble::text
