#include "synth/write_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace nibble::synth {
namespace {

using checkpoint::CheckpointParts;
using checkpoint::TensorInfo;

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr std::string_view kConfigs[] = {"hf_quant_config.json", "generation_config.json",
                                         "config.json"};

Error IoError(const std::string& path, std::string_view action) {
  return Error{
      ErrorCode::kIo, fmt::format("cannot {}: {}", action, std::strerror(errno)), path, {}};
}

/// A file that takes its name when it is whole and on the disk.
class NewFile {
 public:
  explicit NewFile(std::string path)
      : path_(std::move(path)), temporary_(fmt::format("{}.tmp.{}", path_, ::getpid())) {}
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(temporary_.c_str());
  }

  Result<void> Open() {
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) return IoError(path_, "create");
    return {};
  }

  Result<void> Write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return IoError(path_, "write");
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return {};
  }

  Result<void> Finish() {
    if (::fsync(fd_) != 0) return IoError(path_, "write");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) return IoError(path_, "rename");
    ::close(std::exchange(fd_, -1));
    return {};
  }

 private:
  std::string path_, temporary_;
  int fd_ = -1;
};

std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// The tensors of one file, in the order of its data.
using Shard = std::vector<const TensorInfo*>;

/// Neighbours by name, in files of at most `most` bytes. Inside a file wide types come first, as
/// its reference writer sorts them: so every tensor is aligned to its type.
std::vector<Shard> MakeShards(const CheckpointParts& parts, uint64_t most) {
  Shard all;
  for (const TensorInfo& tensor : parts.tensors) all.push_back(&tensor);
  std::sort(all.begin(), all.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->name < b->name; });
  std::vector<Shard> shards(1);
  uint64_t bytes = 0;
  for (const TensorInfo* tensor : all) {
    if (!shards.back().empty() && bytes + tensor->data.size() > most) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += tensor->data.size();
    shards.back().push_back(tensor);
  }
  for (Shard& shard : shards) {
    std::stable_sort(shard.begin(), shard.end(), [](const TensorInfo* a, const TensorInfo* b) {
      return BitsOf(a->dtype) > BitsOf(b->dtype);
    });
  }
  return shards;
}

/// The length and the header of a file, padded so that the data begin at a multiple of eight.
std::string HeaderOf(const Shard& shard) {
  Json::Object header = {{"__metadata__", Json::Object{{"format", "pt"}}}};
  header.reserve(shard.size() + 1);
  uint64_t begin = 0;
  for (const TensorInfo* tensor : shard) {
    Json::Array shape;
    for (const uint64_t dim : tensor->shape) shape.emplace_back(dim);
    const uint64_t end = begin + tensor->data.size();
    header.emplace_back(tensor->name,
                        Json::Object{{"dtype", Json(NameOf(tensor->dtype))},
                                     {"shape", std::move(shape)},
                                     {"data_offsets", Json::Array{Json(begin), Json(end)}}});
    begin = end;
  }
  std::string text = WriteJson(Json(std::move(header)), {0, ",", ":"});
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(uint64_t{text.size()} >> (8 * i)));
  return out + text;
}

class Writer {
 public:
  Writer(const CheckpointParts& parts, const std::string& dir, const WriteProgress& progress)
      : parts_(parts), dir_(dir), progress_(progress) {
    for (const TensorInfo& tensor : parts.tensors) total_ += tensor.data.size();
  }

  Result<void> Shards(const std::vector<Shard>& shards) {
    Json::Object map;
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name = shards.size() == 1 ? std::string(kSingle)
                                                  : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                                i + 1, shards.size());
      for (const TensorInfo* tensor : shards[i]) map.emplace_back(tensor->name, Json(name));
      NIBBLE_CHECK_OK(OneShard(name, shards[i]));
    }
    if (shards.size() == 1) return {};
    return File(kIndex, Json::Object{{"metadata", Json::Object{{"total_size", Json(total_)}}},
                                     {"weight_map", std::move(map)}});
  }

  Result<void> Configs() {
    const std::optional<Json> configs[] = {parts_.hf_quant_config, parts_.generation_config,
                                           parts_.config};
    for (size_t i = 0; i < std::size(configs); ++i) {
      if (configs[i]) NIBBLE_CHECK_OK(File(kConfigs[i], *configs[i]));
    }
    return {};
  }

 private:
  Result<void> OneShard(const std::string& name, const Shard& shard) {
    constexpr size_t kPiece = size_t{16} << 20;  // what progress is told after
    NewFile file(dir_ + "/" + name);
    NIBBLE_CHECK_OK(file.Open());
    NIBBLE_CHECK_OK(file.Write(BytesOf(HeaderOf(shard))));
    for (const TensorInfo* tensor : shard) {
      for (auto left = tensor->data; !left.empty();) {
        const auto piece = left.first(std::min(kPiece, left.size()));
        NIBBLE_CHECK_OK(file.Write(piece));
        left = left.subspan(piece.size());
        done_ += piece.size();
        if (progress_) progress_(done_, total_);
      }
    }
    return file.Finish();
  }

  Result<void> File(std::string_view name, const Json& json) {
    NewFile file(fmt::format("{}/{}", dir_, name));
    NIBBLE_CHECK_OK(file.Open());
    NIBBLE_CHECK_OK(file.Write(BytesOf(WriteJson(json, {.indent = 2, .comma = ","}) + "\n")));
    return file.Finish();
  }

  const CheckpointParts& parts_;
  const std::string& dir_;
  const WriteProgress& progress_;
  uint64_t done_ = 0, total_ = 0;
};

/// The files of a checkpoint that are in a directory: ours alone, by the names that we would write.
Result<std::vector<std::filesystem::path>> FilesThere(const std::string& dir) {
  std::vector<std::filesystem::path> found;
  std::error_code error;
  for (std::filesystem::directory_iterator at(dir, error), end; !error && at != end;
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    const bool shard = name.starts_with("model") && name.ends_with(".safetensors");
    const bool config =
        std::find(std::begin(kConfigs), std::end(kConfigs), name) != std::end(kConfigs);
    if (shard || config || name == kIndex) found.push_back(at->path());
  }
  if (error) return Err(ErrorCode::kIo, "cannot list: {}", error.message()).At(dir);
  std::sort(found.begin(), found.end());
  return found;
}

/// A directory without a checkpoint in it.
Result<void> Prepare(const std::string& dir, bool force) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return Err(ErrorCode::kIo, "cannot make the directory: {}", error.message()).At(dir);
  NIBBLE_TRY(const auto there, FilesThere(dir));
  if (there.empty()) return {};
  if (!force) {
    Error e = Err(ErrorCode::kInvalidArgument, "holds a checkpoint already ({}{})",
                  there.front().filename().string(),
                  there.size() > 1 ? fmt::format(" and {} more", there.size() - 1) : "");
    e.hint = "choose another directory, or replace it with --force";
    return std::move(e).At(dir);
  }
  for (const std::filesystem::path& path : there) {
    std::filesystem::remove(path, error);
    if (error) return Err(ErrorCode::kIo, "cannot remove: {}", error.message()).At(path.string());
  }
  return {};
}

Result<void> SyncDirectory(const std::string& dir) {
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool synced = fd >= 0 && ::fsync(fd) == 0;
  Error error = IoError(dir, "sync");
  if (fd >= 0) ::close(fd);
  if (!synced) return error;
  return {};
}

}  // namespace

Result<void> WriteCheckpoint(const CheckpointParts& parts, const std::string& dir,
                             const WriteOptions& options, const WriteProgress& progress) {
  NIBBLE_CHECK_OK(Prepare(dir, options.force));
  Writer writer(parts, dir, progress);
  NIBBLE_CHECK_OK(writer.Shards(MakeShards(parts, options.shard_bytes)));
  NIBBLE_CHECK_OK(writer.Configs());
  return SyncDirectory(dir);
}

}  // namespace nibble::synth
