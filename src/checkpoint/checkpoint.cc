#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <utility>

#include "base/checked.h"
#include "base/log.h"
#include "base/quoted.h"
#include "checkpoint/shard_index.h"

namespace nibble::checkpoint {
namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxIndexBytes = uint64_t{256} << 20;
constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

Error Corrupt(std::string where, std::string what, std::string hint = {}) {
  return Error{ErrorCode::kCorruptFile, std::move(what), std::move(where), std::move(hint)};
}

Result<Json> ReadObject(const std::string& path, uint64_t max_bytes) {
  NIBBLE_TRY(std::string text, ReadFile(path, max_bytes));
  auto json = Json::Parse(text);
  if (!json) return std::move(json).error().At(path);
  if (!json->is_object()) {
    return Corrupt(path, fmt::format("a JSON {}, expected an object", json->TypeName()));
  }
  return json;
}

Result<std::optional<Json>> ReadObjectIfThere(const std::string& path, uint64_t max_bytes) {
  auto json = ReadObject(path, max_bytes);
  if (json) return std::optional<Json>(*std::move(json));
  if (json.error().code == ErrorCode::kNotFound) return std::optional<Json>();
  return std::move(json).error();
}

/// Both lists are sorted by name, each name once; walks them side by side.
Result<void> CheckAgainstIndex(const std::vector<TensorInfo>& tensors, const ShardIndex& index,
                               const std::string& dir) {
  auto mismatch = [&](uint32_t shard, std::string_view name, std::string_view what) {
    return Corrupt(dir + "/" + index.shards[shard],
                   fmt::format("tensor {}: {}", Quoted(name), what),
                   "shards and index are of different models or versions; download both again");
  };
  size_t i = 0;
  for (const auto& [name, shard] : index.weight_map) {
    if (i < tensors.size() && tensors[i].name < name) break;
    if (i == tensors.size() || tensors[i].name != name)
      return mismatch(shard, name, "not in this shard, where the index names it");
    if (tensors[i].shard != shard) {
      return mismatch(tensors[i].shard, name,
                      fmt::format("the index names it in {}", Quoted(index.shards[shard])));
    }
    ++i;
  }
  if (i < tensors.size())
    return mismatch(tensors[i].shard, tensors[i].name, "the index does not name it");
  return {};
}

Result<void> CheckNamesOnce(const std::vector<TensorInfo>& tensors,
                            const std::vector<std::string>& shards, const std::string& dir) {
  const auto twin =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; });
  if (twin == tensors.end()) return {};
  return Corrupt(
      dir + "/" + shards[std::next(twin)->shard],
      fmt::format("tensor {}: also in {}", Quoted(twin->name), Quoted(shards[twin->shard])));
}

/// Two ways to count are in use: the tensors' bytes (transformers, modelopt) and the shard files'
/// (llm-compressor 0.14, where it adds a model_mtp.safetensors).
Result<void> CheckTotalSize(const ShardIndex& index, uint64_t tensor_bytes, uint64_t file_bytes,
                            const std::string& dir, bool lenient) {
  if (!index.total_size || *index.total_size == tensor_bytes || *index.total_size == file_bytes)
    return {};
  std::string path = fmt::format("{}/{}", dir, kIndexFile);
  std::string what =
      fmt::format("metadata.total_size is {}, expected the tensors' {} bytes (or the files' {})",
                  *index.total_size, tensor_bytes, file_bytes);
  if (!lenient) {
    return Corrupt(std::move(path), std::move(what),
                   "shards and index may be of different versions; --lenient reads on");
  }
  Log(LogLevel::kWarning, "checkpoint file={} warning={}", Quoted(path), Quoted(what));
  return {};
}

/// The index, where there is one.
Result<std::optional<ShardIndex>> ReadIndex(const std::string& dir) {
  const std::string path = fmt::format("{}/{}", dir, kIndexFile);
  NIBBLE_TRY(std::optional<Json> json, ReadObjectIfThere(path, kMaxIndexBytes));
  if (!json) return std::optional<ShardIndex>();
  auto index = ParseShardIndex(*json);
  if (!index) return std::move(index).error().At(path);
  const bool names_single =
      std::binary_search(index->shards.begin(), index->shards.end(), kSingleFile);
  // Some programs would run the one and some the other; nobody can say which is meant.
  if (!names_single && FileExists(fmt::format("{}/{}", dir, kSingleFile))) {
    return Corrupt(path, fmt::format("does not name {}, which is there too", kSingleFile),
                   "remove whichever of the two is left over");
  }
  return std::optional<ShardIndex>(*std::move(index));
}

Result<MappedFile> OpenShard(const std::string& path, bool named_by_index) {
  auto file = MappedFile::Open(path);
  if (file || file.error().code != ErrorCode::kNotFound) return file;
  Error error = std::move(file).error();
  error.hint = named_by_index ? "the index names this shard; download it"
                              : fmt::format("expected this file, or {} and its shards", kIndexFile);
  return error;
}

}  // namespace

Result<Checkpoint> Checkpoint::Open(const std::string& dir, CheckpointOptions options) {
  Checkpoint out;
  out.dir_ = dir.empty() ? "." : dir;
  while (out.dir_.size() > 1 && out.dir_.ends_with('/')) out.dir_.pop_back();
  out.config_only_ = options.config_only;
  NIBBLE_CHECK_OK(out.OpenConfigs());
  if (!options.config_only) NIBBLE_CHECK_OK(out.OpenTensors(options.lenient));
  return out;
}

Checkpoint Checkpoint::FromParts(CheckpointParts parts) {
  Checkpoint out;
  out.dir_ = std::move(parts.dir);
  out.config_ = std::move(parts.config);
  out.hf_quant_config_ = std::move(parts.hf_quant_config);
  out.generation_config_ = std::move(parts.generation_config);
  out.owner_ = std::move(parts.owner);
  out.tensors_ = std::move(parts.tensors);
  out.shards_.push_back({"(in memory)", MappedFile()});
  for (TensorInfo& tensor : out.tensors_) {
    tensor.shard = 0;
    NIBBLE_CHECK(CheckedProduct(tensor.shape, BitsOf(tensor.dtype)) == 8 * tensor.data.size(),
                 "a tensor in memory whose bytes are not those of its shape");
    out.total_bytes_ += tensor.data.size();
  }
  const auto by_name = [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; };
  std::sort(out.tensors_.begin(), out.tensors_.end(), by_name);
  const auto same = [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; };
  NIBBLE_CHECK(
      std::adjacent_find(out.tensors_.begin(), out.tensors_.end(), same) == out.tensors_.end(),
      "two tensors in memory of one name");
  return out;
}

Result<void> Checkpoint::OpenConfigs() {
  auto config = ReadObject(dir_ + "/config.json", kMaxConfigBytes);
  if (!config) {
    Error error = std::move(config).error();
    if (error.code == ErrorCode::kNotFound) {
      error.hint =
          "expected the directory of a Hugging Face checkpoint: config.json, *.safetensors, "
          "tokenizer.json";
    }
    return error;
  }
  config_ = *std::move(config);
  if (const Json* text = config_.FindSet("text_config"); text != nullptr && !text->is_object()) {
    return Corrupt(dir_ + "/config.json",
                   fmt::format("\"text_config\" is {}, expected an object", text->TypeName()));
  }
  NIBBLE_TRY(hf_quant_config_, ReadObjectIfThere(dir_ + "/hf_quant_config.json", kMaxConfigBytes));
  NIBBLE_TRY(generation_config_,
             ReadObjectIfThere(dir_ + "/generation_config.json", kMaxConfigBytes));
  return {};
}

Result<void> Checkpoint::OpenTensors(bool lenient) {
  NIBBLE_TRY(std::optional<ShardIndex> index, ReadIndex(dir_));
  uint64_t file_bytes = 0;
  for (const std::string& name :
       index ? index->shards : std::vector<std::string>{std::string(kSingleFile)}) {
    NIBBLE_TRY(MappedFile file, OpenShard(dir_ + "/" + name, index.has_value()));
    auto tensors = SafetensorsFile::ParseHeader(file.bytes(), {.lenient = lenient});
    if (!tensors) return std::move(tensors).error().At(file.path());
    for (TensorInfo& tensor : *tensors) {
      tensor.shard = static_cast<uint32_t>(shards_.size());
      total_bytes_ += tensor.data.size();
    }
    if (tensors_.empty()) {
      tensors_ = *std::move(tensors);
    } else {
      std::move(tensors->begin(), tensors->end(), std::back_inserter(tensors_));
    }
    file_bytes += file.bytes().size();
    shards_.push_back({name, std::move(file)});
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  if (!index) return {};
  NIBBLE_CHECK_OK(CheckNamesOnce(tensors_, index->shards, dir_));
  NIBBLE_CHECK_OK(CheckAgainstIndex(tensors_, *index, dir_));
  return CheckTotalSize(*index, total_bytes_, file_bytes, dir_, lenient);
}

const Json& Checkpoint::text_config() const {
  const Json* text = config_.FindSet("text_config");
  return text != nullptr ? *text : config_;
}

const TensorInfo* Checkpoint::Find(std::string_view name) const {
  const auto at = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorInfo& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

void Checkpoint::Forget(std::span<const std::byte> part) const {
  for (const Shard& shard : shards_) {
    const std::span<const std::byte> file = shard.file.bytes();
    const std::less_equal<const std::byte*> before;
    if (file.empty() || !before(file.data(), part.data())) continue;
    if (before(part.data() + part.size(), file.data() + file.size()))
      return shard.file.Forget(part);
  }
}

const std::string& Checkpoint::FileOf(const TensorInfo& tensor) const {
  NIBBLE_CHECK(tensor.shard < shards_.size(), "FileOf() asked for a tensor of another checkpoint");
  return shards_[tensor.shard].name;
}

}  // namespace nibble::checkpoint
