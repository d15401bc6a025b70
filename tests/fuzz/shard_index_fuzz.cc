#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/json.h"
#include "checkpoint/shard_index.h"

// Any text as model.safetensors.index.json: no accepted shard name may leave the checkpoint's
// directory.

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto json = nibble::Json::Parse({reinterpret_cast<const char*>(data), size});
  if (!json) return 0;
  const auto index = nibble::checkpoint::ParseShardIndex(*json);
  if (!index) return 0;
  for (const auto& [tensor, shard] : index->weight_map) {
    NIBBLE_CHECK(shard < index->shards.size(), "a tensor in no shard");
    const std::string_view name = index->shards[shard];
    NIBBLE_CHECK(name.find_first_of(std::string_view("/\\\0", 3)) == name.npos,
                 "a shard name with a directory");
    NIBBLE_CHECK(name.front() != '.', "a hidden shard, or one above");
  }
  return 0;
}
