#include <set>

#include "base/error.h"
#include "checkpoint/safetensors.h"

// Any bytes as a whole safetensors file. What is accepted must cover its data exactly.

namespace {

void CheckAccepted(std::span<const std::byte> file,
                   const std::vector<nibble::checkpoint::TensorInfo>& tensors) {
  uint64_t header = 0;
  for (size_t i = 8; i-- > 0;) header = header << 8 | std::to_integer<uint64_t>(file[i]);
  const std::byte* at = file.data() + 8 + header;
  std::set<std::string_view> names;
  for (const auto& tensor : tensors) {
    NIBBLE_CHECK(names.insert(tensor.name).second, "a name twice");
    NIBBLE_CHECK(tensor.shape.size() <= nibble::checkpoint::kMaxRank, "rank");
    NIBBLE_CHECK(tensor.data.data() == at, "a hole or an overlap");
    unsigned __int128 bits = BitsOf(tensor.dtype);
    for (uint64_t dim : tensor.shape)
      bits = dim == 0 ? 0 : bits * dim % ((unsigned __int128)1 << 100);
    NIBBLE_CHECK(bits == (unsigned __int128)8 * tensor.data.size(), "size and shape differ");
    at += tensor.data.size();
  }
  NIBBLE_CHECK(at == file.data() + file.size(), "data of no tensor");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  for (bool lenient : {false, true}) {
    const auto tensors =
        nibble::checkpoint::SafetensorsFile::ParseHeader(file, {.lenient = lenient});
    if (tensors) {
      CheckAccepted(file, *tensors);
    } else {
      NIBBLE_CHECK(!tensors.error().Message().empty(), "an error without a text");
    }
  }
  return 0;
}
