#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/dtype.h"
#include "checkpoint/model_config.h"
#include "checkpoint/modules.h"
#include "layout/words.h"
#include "scheme/quant_config.h"
#include "synth/noise.h"

namespace nibble::synth {

/// A tensor to be made.
struct TensorSpec {
  std::string name;
  checkpoint::DType dtype = checkpoint::DType::kBf16;
  std::vector<uint64_t> shape;
  std::variant<Noise, float> contents;  // a float: one number, all there is

  uint64_t bytes() const;
  /// What the contents belong to: the same in both dialects, so that both hold the same model.
  std::string_view key() const;
};

/// A model with a scheme for each of its modules, in one dialect.
struct QuantizedModel {
  checkpoint::ModelConfig config;
  std::vector<checkpoint::ModuleSpec> modules;  // ListModules with MTP where the config has it
  std::vector<QuantScheme> schemes;             // of the same
  SourceFormat format = SourceFormat::kModelopt;
  bool fp8_kv_cache = false;

  /// Whether all that is quantized has one scheme; so too where nothing is.
  bool uniform() const;
  bool quantized() const;
};

/// Whether modelopt's file has an input scale for a W4A16 module: its mixed exports do, and readers
/// must pass over it.
bool WritesInputScaleOfW4A16(const QuantizedModel& model);

/// Every tensor that the exporters write for such a model, vision tower aside, with contents that
/// keep activations near 1 through any number of layers: weights have a standard deviation of
/// 1/sqrt(k), norms are near 1, DeltaNet's decays are spread as initialized models' are.
/// Sixteen-bit experts are stacked in the families that stack them.
/// errors  kUnsupported (a scheme that the dialect cannot say)
Result<std::vector<TensorSpec>> ListTensors(const QuantizedModel& model);

/// The tensors of the vision tower that `vision_config` describes; nothing of it is run.
/// errors  kCorruptFile (a size is missing)
Result<std::vector<TensorSpec>> ListVisionTensors(const Json& vision_config);

}  // namespace nibble::synth
