#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace nibble::checkpoint {

struct CheckpointOptions {
  bool config_only = false;  // read the JSON files, open no shard: what a plan needs
  bool lenient = false;  // what breaks a rule but cannot change a weight is a warning, not an error
};

/// A checkpoint that no file holds: what the files of one would say, and tensors in memory.
struct CheckpointParts {
  std::string dir;  // stands for the directory in error texts
  Json config;
  std::optional<Json> hf_quant_config, generation_config;
  std::vector<TensorInfo> tensors;    // in any order, each name once; their data views `owner`
  std::shared_ptr<const void> owner;  // keeps that memory; may be null where something else does
};

/// A Hugging Face model directory: its tensors by name and its JSON files, as they are. Knows
/// nothing of quantization.
/// threads  safe to read from many; the pointers and views it gives live
/// as long as it, wherever it moves
class Checkpoint {
 public:
  /// Opens `model.safetensors`, or `model.safetensors.index.json` and every shard that it names;
  /// `config.json`; `generation_config.json` and `hf_quant_config.json` where they are. Tensors and
  /// index must agree to the name. errors kNotFound (directory, config.json, a shard), kIo,
  /// kCorruptFile (naming file and tensor)
  static Result<Checkpoint> Open(const std::string& dir, CheckpointOptions options = {});

  /// The same of parts that a program made itself, and vouches for: a name twice, or a tensor whose
  /// bytes are not those of its shape, ends the process.
  static Checkpoint FromParts(CheckpointParts parts);

  /// Sorted by name, each name once. Empty when config_only.
  std::span<const TensorInfo> tensors() const { return tensors_; }
  /// The tensor of that name; null when there is none.
  const TensorInfo* Find(std::string_view name) const;
  /// The file name of the shard that holds a tensor of this checkpoint, for error texts.
  const std::string& FileOf(const TensorInfo& tensor) const;
  /// Lets go of the memory that `part` of a tensor takes in this process: the pages of a mapped file
  /// (MappedFile::Forget). Tensors that no file holds stay as they are.
  void Forget(std::span<const std::byte> part) const;
  /// The bytes of all tensors.
  uint64_t total_bytes() const { return total_bytes_; }

  const Json& config() const { return config_; }
  /// The language model's part of the config: `text_config` where a wrapper has one, else the
  /// config itself.
  const Json& text_config() const;
  const Json* hf_quant_config() const { return hf_quant_config_ ? &*hf_quant_config_ : nullptr; }
  const Json* generation_config() const {
    return generation_config_ ? &*generation_config_ : nullptr;
  }

  bool config_only() const { return config_only_; }
  const std::string& dir() const { return dir_; }

 private:
  struct Shard {
    std::string name;
    MappedFile file;
  };

  Result<void> OpenConfigs();
  Result<void> OpenTensors(bool lenient);

  std::string dir_;
  bool config_only_ = false;
  Json config_;
  std::optional<Json> hf_quant_config_;
  std::optional<Json> generation_config_;
  std::vector<Shard> shards_;
  std::shared_ptr<const void> owner_;  // of tensors that no file holds
  std::vector<TensorInfo> tensors_;
  uint64_t total_bytes_ = 0;
};

}  // namespace nibble::checkpoint
