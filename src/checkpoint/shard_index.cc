#include "checkpoint/shard_index.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/quoted.h"

namespace nibble::checkpoint {
namespace {

constexpr size_t kMaxShards = 4096;        // the largest published models have a few hundred
constexpr size_t kMaxFileNameBytes = 255;  // of the common file systems
constexpr std::string_view kExtension = ".safetensors";

bool IsPlainFileName(std::string_view name) {
  if (name.size() <= kExtension.size() || name.size() > kMaxFileNameBytes) return false;
  if (name.front() == '.' || !name.ends_with(kExtension)) return false;
  return std::none_of(name.begin(), name.end(), [](char c) {
    const auto byte = static_cast<uint8_t>(c);
    return byte < 0x20 || byte == 0x7F || c == '/' || c == '\\';
  });
}

/// An integer, or a number without a fraction: some tools write 61064245248.0.
Result<std::optional<uint64_t>> TotalSize(const Json& index) {
  const Json* metadata = index.FindSet("metadata");
  if (metadata == nullptr) return std::optional<uint64_t>();
  if (!metadata->is_object()) return Err(ErrorCode::kCorruptFile, "\"metadata\" is no object");
  const Json* total = metadata->FindSet("total_size");
  if (total == nullptr) return std::optional<uint64_t>();
  constexpr double kExact = 9007199254740992.0;  // 2^53
  if (total->is_int() && total->integer() >= 0) {
    return std::optional<uint64_t>(static_cast<uint64_t>(total->integer()));
  }
  if (total->is_double() && total->number() >= 0 && total->number() <= kExact &&
      std::floor(total->number()) == total->number()) {
    return std::optional<uint64_t>(static_cast<uint64_t>(total->number()));
  }
  return Err(ErrorCode::kCorruptFile, "metadata.total_size is no number of bytes");
}

}  // namespace

Result<ShardIndex> ParseShardIndex(const Json& index) {
  const Json* map = index.Find("weight_map");
  if (map == nullptr || !map->is_object() || map->object().empty()) {
    return Err(ErrorCode::kCorruptFile,
               "no \"weight_map\", expected an object of tensor name to shard file name");
  }
  ShardIndex out;
  NIBBLE_TRY(out.total_size, TotalSize(index));
  for (const auto& [tensor, shard] : map->object()) {
    if (!shard.is_string() || !IsPlainFileName(shard.string())) {
      return Err(ErrorCode::kCorruptFile,
                 "tensor {} is said to be in {}, expected a plain *{} file name", Quoted(tensor),
                 shard.is_string() ? Quoted(shard.string()) : std::string(shard.TypeName()),
                 kExtension);
    }
    // Neighbours mostly share a shard, so that the list stays short before it is sorted.
    if (out.shards.empty() || out.shards.back() != shard.string())
      out.shards.push_back(shard.string());
  }
  std::sort(out.shards.begin(), out.shards.end());
  out.shards.erase(std::unique(out.shards.begin(), out.shards.end()), out.shards.end());
  if (out.shards.size() > kMaxShards) {
    return Err(ErrorCode::kCorruptFile, "{} shards, expected at most {}", out.shards.size(),
               kMaxShards);
  }
  out.weight_map.reserve(map->object().size());
  for (const auto& [tensor, shard] : map->object()) {
    const auto at = std::lower_bound(out.shards.begin(), out.shards.end(), shard.string());
    out.weight_map.emplace_back(tensor, static_cast<uint32_t>(at - out.shards.begin()));
  }
  std::sort(out.weight_map.begin(), out.weight_map.end());
  return out;
}

}  // namespace nibble::checkpoint
