// A chat template over a fixed conversation: parsing and rendering end, within their bounds,
// whatever the template says.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "text/template.h"

namespace {

const nibble::Json& Messages() {
  static const nibble::Json messages = *nibble::Json::Parse(
      R"([{"role": "system", "content": " S "}, {"role": "user", "content": "h\u00e9 </think> x"},
          {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, true]}}}]},
          {"role": "tool", "content": [{"type": "text", "text": "t"}]}])");
  return messages;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto chat =
      nibble::text::ChatTemplate::Parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!chat) return 0;
  const auto text = chat->Render(Messages(), nibble::Json(nibble::Json::Array{}), true);
  if (text && text->size() > (size_t{4} << 20)) std::abort();
  return 0;
}
