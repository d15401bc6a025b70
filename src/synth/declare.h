#pragma once

#include <optional>

#include "base/error.h"
#include "base/json.h"
#include "synth/tensors.h"

namespace nibble::synth {

/// What the quantizers write of a model.
struct Declaration {
  std::optional<Json> quantization_config;  // of config.json; nothing: 16 bits
  std::optional<Json> hf_quant_config;      // modelopt's own file
};

/// The configuration with which the model's dialect declares its schemes, field by field as
/// modelopt 0.47 and compressed-tensors 0.19 write it. `vision`: the config has a vision tower,
/// which the lists of what is left alone then name.
/// errors  kUnsupported (a scheme that the dialect cannot say)
Result<Declaration> Declare(const QuantizedModel& model, bool vision);

/// Both, chosen by Declare.
Result<Declaration> DeclareModelopt(const QuantizedModel& model, bool vision);
Result<Declaration> DeclareCompressedTensors(const QuantizedModel& model, bool vision);

}  // namespace nibble::synth
