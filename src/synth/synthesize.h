#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "layout/quant_key.h"
#include "layout/words.h"

namespace nibble::synth {

struct Options {
  /// One scheme for all linears that exporters quantize: neither lm_head, router nor gate, nor the
  /// MTP module. Nothing: what the config itself declares, module by module.
  std::optional<QuantScheme> scheme;
  /// Nothing: the config's own dialect, modelopt where it has none.
  std::optional<SourceFormat> format;
  int layers = 0;       // the first so many; 0: all
  bool vision = false;  // the vision tower's tensors too, which nothing runs
  uint64_t seed = 0;
};

/// A whole checkpoint of random weights: the configs of `config_dir` (config.json, and where they
/// are hf_quant_config.json and generation_config.json) with their quantization declared anew, and
/// every tensor that they promise, as views into a hundred megabytes of random numbers. The same
/// options give the same bytes on every machine, and both dialects the same numbers.
/// errors  kNotFound, kIo, kCorruptFile (configs), kUnsupported (a model or scheme that is not
///         known), kInvalidArgument (more layers than there are), kOutOfMemory
Result<checkpoint::CheckpointParts> Synthesize(const std::string& config_dir,
                                               const Options& options);

/// "W4A16", "W4A4", "FP8", "BF16", "recipe" (nothing); "modelopt", "compressed-tensors".
/// errors  kInvalidArgument naming those known
Result<std::optional<QuantScheme>> ParseScheme(std::string_view text);
Result<SourceFormat> ParseFormat(std::string_view text);

}  // namespace nibble::synth
