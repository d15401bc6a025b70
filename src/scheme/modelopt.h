#pragma once

#include "base/error.h"
#include "scheme/config_field.h"
#include "scheme/quant_config.h"

namespace nibble::scheme {

/// NVIDIA ModelOpt's flat style: config.json's quantization_config with quant_algo, ignore (or
/// exclude_modules), config_groups, quantized_layers, kv_cache_scheme.
/// errors kUnsupported naming quant_algo, group size or KV cache scheme and those taken;
///        kCorruptFile naming the field
Result<QuantConfigParts> ReadModeloptFlat(const ConfigField& config);

/// ModelOpt's older style: the object that holds `producer` and `quantization` (quant_algo,
/// kv_cache_quant_algo, group_size, exclude_modules, quantized_layers), mostly all of
/// hf_quant_config.json. W4A16_NVFP4 is taken here too: vLLM 0.33 refuses it only because its list
/// of legacy algorithms was not extended, the file declares it as clearly as config.json does.
/// errors as above
Result<QuantConfigParts> ReadModeloptLegacy(const ConfigField& file);

/// Only the KV cache scheme of config.json, where it states one.
Result<void> ReadModeloptFlatKvCache(const ConfigField& config, QuantConfigParts* parts);

/// Only the KV cache scheme of hf_quant_config.json: exports exist whose config.json leaves it out.
Result<void> ReadModeloptLegacyKvCache(const ConfigField& file, QuantConfigParts* parts);

}  // namespace nibble::scheme
