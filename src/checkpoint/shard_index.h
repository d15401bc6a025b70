#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace nibble::checkpoint {

/// `model.safetensors.index.json`: which shard holds which tensor.
struct ShardIndex {
  /// (tensor name, shard's number in `shards`), sorted by name, each name once.
  std::vector<std::pair<std::string, uint32_t>> weight_map;
  /// Plain file names, sorted, each once.
  std::vector<std::string> shards;
  /// metadata.total_size where it is given.
  std::optional<uint64_t> total_size;
};

/// Shard names must be plain `*.safetensors` file names: no directories, nothing that leaves the
/// checkpoint's own. A shard may be a symbolic link (the Hugging Face cache is made of them).
/// errors kCorruptFile
Result<ShardIndex> ParseShardIndex(const Json& index);

}  // namespace nibble::checkpoint
