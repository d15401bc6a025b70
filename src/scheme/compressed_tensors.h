#pragma once

#include "base/error.h"
#include "scheme/config_field.h"
#include "scheme/quant_config.h"

namespace nibble::scheme {

/// compressed-tensors' quantization_config (llm-compressor): config_groups of targets with weight
/// and activation arguments, ignore, kv_cache_scheme.
///
/// order    an `ignore` entry wins; then a target that is the module's whole name, then a "re:"
///          target, then a class name ("Linear" and every part of it, whatever its case). Two
///          targets of one rank with different schemes are an error.
/// errors   kUnsupported naming format, argument and what is taken; kCorruptFile naming the field
Result<QuantConfigParts> ReadCompressedTensors(const ConfigField& config);

}  // namespace nibble::scheme
