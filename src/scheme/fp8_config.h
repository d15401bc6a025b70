#pragma once

#include "base/error.h"
#include "scheme/config_field.h"
#include "scheme/quant_config.h"

namespace nibble::scheme {

/// The quantization_config of DeepSeek's and Qwen's own FP8 files, quant_method "fp8":
/// weight_block_size, activation_scheme, fmt, modules_to_not_convert (or ignored_layers), whose
/// entries name modules as ModelOpt's exclude list does. With blocks, activations are quantized in
/// groups of 128 as they come; without, weights and activations have one static scale a tensor.
/// errors kUnsupported naming field, value and what is taken; kCorruptFile naming the field
Result<QuantConfigParts> ReadFp8Config(const ConfigField& config);

}  // namespace nibble::scheme
