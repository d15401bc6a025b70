// A tokenizer.json and a text to encode: the input is both, parted by the first byte 0xFF (which
// JSON cannot hold). Without one, the text is a fixed one. Ids must be in range, and streaming them
// must give what decoding them at once gives.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "text/stream_decoder.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t part = input.find('\xFF');
  const std::string_view json = input.substr(0, part);
  const std::string_view text = part == std::string_view::npos
                                    ? "He's  said 12 \u0301e\u0301 \n\n <s>"
                                    : input.substr(part + 1);
  const auto tokenizer = nibble::text::Tokenizer::FromJson(json, {});
  if (!tokenizer) return 0;
  const auto ids = tokenizer->Encode(text);
  if (!ids) return 0;
  nibble::text::StreamDecoder stream(*tokenizer, false);
  std::string streamed;
  for (int32_t id : *ids) {
    if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
    streamed += stream.Push(id);
  }
  streamed += stream.Finish();
  if (streamed != tokenizer->Decode(*ids)) std::abort();
  return 0;
}
