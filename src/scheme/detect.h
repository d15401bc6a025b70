#pragma once

#include "base/error.h"
#include "base/json.h"
#include "scheme/quant_config.h"

namespace nibble::scheme {

/// Finds out which quantizer's dialect a checkpoint speaks and reads it. `config` is config.json
/// (its own, not text_config), `hf_quant_config` the file of that name or null.
///
/// order    config.json's quantization_config (or its text_config's) wins; hf_quant_config.json is
/// read where there is none,
///          where a MIXED_PRECISION one names no quantized_layers, and for a KV cache scheme that
///          only it knows.
/// errors   kUnsupported naming what was found and the list of what is taken (quant_method,
/// quant_algo, format, group size …);
///          kCorruptFile naming file and field
Result<QuantConfig> ReadQuantConfig(const Json& config, const Json* hf_quant_config);

}  // namespace nibble::scheme
