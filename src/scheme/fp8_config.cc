#include "scheme/fp8_config.h"

#include <fmt/core.h>

#include <memory>
#include <string>
#include <utility>

#include "base/quoted.h"
#include "scheme/module_patterns.h"
#include "scheme/uniform_dialect.h"

namespace nibble::scheme {
namespace {

/// The text of `key`, or `absent` where there is none.
Result<std::string> ReadWord(const ConfigField& config, const char* key, const char* absent) {
  auto word = config.json->GetString(key);
  if (!word) return std::move(word).error().At(config.path);
  return word->value_or(absent);
}

/// Whether weights have a scale a block.
Result<bool> ReadBlocks(const ConfigField& config) {
  const Json* blocks = config.json->FindSet("weight_block_size");
  if (!blocks) return false;
  const bool pair = blocks->is_array() && blocks->array().size() == 2 &&
                    blocks->array()[0].is_int() && blocks->array()[1].is_int();
  if (!pair) {
    return Err(ErrorCode::kCorruptFile, "\"weight_block_size\" is {}, expected [128,128]",
               WriteJson(*blocks))
        .At(config.path);
  }
  if (blocks->array()[0].integer() != 128 || blocks->array()[1].integer() != 128) {
    return Err(ErrorCode::kUnsupported, "weight_block_size {} is not supported, expected [128,128]",
               WriteJson(*blocks))
        .At(config.path);
  }
  return true;
}

}  // namespace

Result<QuantConfigParts> ReadFp8Config(const ConfigField& config) {
  NIBBLE_TRY(const std::string format, ReadWord(config, "fmt", "e4m3"));
  if (format != "e4m3") {
    return Err(ErrorCode::kUnsupported, "fmt {} is not supported, expected e4m3", Quoted(format))
        .At(config.path);
  }
  NIBBLE_TRY(const bool blocks, ReadBlocks(config));
  NIBBLE_TRY(const std::string activations, ReadWord(config, "activation_scheme", "(missing)"));
  if (activations != (blocks ? "dynamic" : "static")) {
    return Err(ErrorCode::kUnsupported, "activation_scheme {} is not supported {}, expected {}",
               Quoted(activations), blocks ? "with blocks" : "without weight_block_size",
               blocks ? "dynamic" : "static")
        .At(config.path);
  }
  ModulePatterns exclude;
  for (const char* key : {"modules_to_not_convert", "ignored_layers"}) {
    const Json* list = config.json->FindSet(key);
    if (!list) continue;
    NIBBLE_TRY(exclude,
               ModulePatterns::ReadModelopt(*list, fmt::format("{}.{}", config.path, key)));
    break;
  }
  const QuantScheme scheme = blocks ? QuantScheme{kFp8StaticBlock128, kFp8Dynamic128}
                                    : QuantScheme{kFp8StaticTensor, kFp8StaticTensor};
  QuantConfigParts parts;
  parts.source_format = SourceFormat::kFp8;
  parts.dialect = std::make_shared<UniformDialect>(
      ModuleScheme{scheme, SourceFormat::kFp8, config.path + ".quant_method"}, std::move(exclude));
  return parts;
}

}  // namespace nibble::scheme
