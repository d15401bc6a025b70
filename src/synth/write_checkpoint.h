#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/error.h"
#include "checkpoint/checkpoint.h"

namespace nibble::synth {

struct WriteOptions {
  uint64_t shard_bytes = 5'000'000'000;  // of tensors, at most, in one file
  bool force = false;                    // a checkpoint that is there is replaced
};

/// Told as writing goes on; may be empty.
using WriteProgress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

/// Writes a checkpoint as a directory: model.safetensors, or shards and their index; config.json,
/// hf_quant_config.json, generation_config.json. Every file is there whole or not at all, and on
/// the disk when this returns; config.json comes last, so that what was broken off is no
/// checkpoint. Tensors are written from where they lie, none is copied.
/// errors  kInvalidArgument (the directory holds a checkpoint, and not force), kIo
Result<void> WriteCheckpoint(const checkpoint::CheckpointParts& parts, const std::string& dir,
                             const WriteOptions& options = {}, const WriteProgress& progress = {});

}  // namespace nibble::synth
