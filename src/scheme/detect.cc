#include "scheme/detect.h"

#include <fmt/core.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/quoted.h"
#include "scheme/compressed_tensors.h"
#include "scheme/config_field.h"
#include "scheme/fp8_config.h"
#include "scheme/modelopt.h"

namespace nibble::scheme {
namespace {

constexpr const char* kLegacyFile = "hf_quant_config.json";

enum class Method : uint8_t { kModelopt, kCompressedTensors, kFp8 };

std::optional<ConfigField> FindConfig(const Json& config) {
  if (const Json* own = config.FindSet("quantization_config")) {
    return ConfigField{own, "config.json: quantization_config"};
  }
  const Json* text = config.FindSet("text_config");
  const Json* inner = text ? text->FindSet("quantization_config") : nullptr;
  if (inner) return ConfigField{inner, "config.json: text_config.quantization_config"};
  return std::nullopt;
}

std::string Lower(std::string text) {
  for (char& c : text) {
    if ('A' <= c && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

Result<Method> ReadMethod(const ConfigField& config) {
  auto method = config.json->GetString("quant_method");
  if (!method) return std::move(method).error().At(config.path);
  if (*method) {
    const std::string name = Lower(**method);
    if (name.starts_with("modelopt")) return Method::kModelopt;
    if (name == "compressed-tensors") return Method::kCompressedTensors;
    if (name == "fp8") return Method::kFp8;
  } else {
    const Json* producer = config.json->FindSet("producer");
    const Json* name = producer ? producer->FindSet("name") : nullptr;
    if (name && name->is_string() && name->string() == "modelopt") return Method::kModelopt;
  }
  return Error{ErrorCode::kUnsupported,
               fmt::format("quant_method {} is not supported, expected modelopt, "
                           "compressed-tensors or fp8",
                           *method ? Quoted(**method) : "(missing)"),
               config.path,
               {}};
}

bool IsMixed(const Json* config) {
  const Json* algo = config ? config->FindSet("quant_algo") : nullptr;
  return algo && algo->is_string() && Lower(algo->string()) == "mixed_precision";
}

/// The scheme words of both files where both have one, for a warning when they differ: config.json
/// wins, but a person should know.
void WarnOfContradiction(const ConfigField& config, const Json& legacy, QuantConfigParts* parts) {
  const Json* quantization = legacy.FindSet("quantization");
  const Json* ours = config.json->FindSet("quant_algo");
  const Json* theirs = quantization ? quantization->FindSet("quant_algo") : nullptr;
  if (!ours || !theirs || !ours->is_string() || !theirs->is_string()) return;
  if (Lower(ours->string()) == Lower(theirs->string())) return;
  parts->warnings.push_back(fmt::format("{}.quant_algo is {}, but {} says {}: the former is used",
                                        config.path, Quoted(ours->string()), kLegacyFile,
                                        Quoted(theirs->string())));
}

Result<QuantConfigParts> ReadModelopt(const ConfigField& config, const Json* legacy) {
  if (config.json->FindSet("quantization")) return ReadModeloptLegacy(config);
  const bool no_layers = IsMixed(config.json) && !config.json->FindSet("quantized_layers");
  if (no_layers && legacy && IsMixed(legacy->FindSet("quantization"))) {
    NIBBLE_TRY(QuantConfigParts parts, ReadModeloptLegacy({legacy, kLegacyFile}));
    NIBBLE_CHECK_OK(ReadModeloptFlatKvCache(config, &parts));
    return parts;
  }
  NIBBLE_TRY(QuantConfigParts parts, ReadModeloptFlat(config));
  if (!legacy) return parts;
  WarnOfContradiction(config, *legacy, &parts);
  if (parts.kv_cache_evidence.empty()) {
    NIBBLE_CHECK_OK(ReadModeloptLegacyKvCache({legacy, kLegacyFile}, &parts));
  }
  return parts;
}

Result<QuantConfigParts> ReadDialect(Method method, const ConfigField& config, const Json* legacy) {
  switch (method) {
    case Method::kModelopt:
      return ReadModelopt(config, legacy);
    case Method::kCompressedTensors:
      return ReadCompressedTensors(config);
    case Method::kFp8:
      break;
  }
  return ReadFp8Config(config);
}

}  // namespace

Result<QuantConfig> ReadQuantConfig(const Json& config, const Json* hf_quant_config) {
  const std::optional<ConfigField> field = FindConfig(config);
  if (!field) {
    if (!hf_quant_config) return QuantConfig();
    NIBBLE_TRY(QuantConfigParts legacy, ReadModeloptLegacy({hf_quant_config, kLegacyFile}));
    return QuantConfig(std::move(legacy));
  }
  if (!field->json->is_object()) {
    return Err(ErrorCode::kCorruptFile, "is {}, expected object", field->json->TypeName())
        .At(field->path);
  }
  NIBBLE_TRY(const Method method, ReadMethod(*field));
  NIBBLE_TRY(QuantConfigParts parts, ReadDialect(method, *field, hf_quant_config));
  return QuantConfig(std::move(parts));
}

}  // namespace nibble::scheme
