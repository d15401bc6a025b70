#include "scheme/modelopt.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/quoted.h"
#include "scheme/module_patterns.h"
#include "scheme/uniform_dialect.h"

namespace nibble::scheme {
namespace {

constexpr std::string_view kMixed = "MIXED_PRECISION";

struct Algorithm {
  std::string_view name;
  QuantScheme scheme;

  bool nvfp4() const { return scheme.weight == kNvfp4Static; }
  /// How many elements of a row share a block's scale; 0 where there are no blocks.
  int group() const {
    const int columns = scheme.weight->scale.group.col;
    return columns > 1 ? columns : 0;
  }
};
// The last two: "per block, weight only" leaves activations alone, though upstream quantizes them;
// TensorRT-LLM's name means both in blocks, and ModelOpt writes it for experts of a mixed file.
constexpr std::array<Algorithm, 6> kAlgorithms = {{
    {"NVFP4", kW4A4},
    {"W4A16_NVFP4", kW4A16},
    {"FP8", {kFp8StaticTensor, kFp8StaticTensor}},
    {"FP8_PER_CHANNEL_PER_TOKEN", {kFp8StaticChannel, kFp8DynamicToken}},
    {"FP8_PB_WO", {kFp8StaticBlock128, std::nullopt}},
    {"FP8_BLOCK_SCALES", {kFp8StaticBlock128, kFp8Dynamic128}},
}};

/// The names of all algorithms, with or without that of a map of them.
std::string Accepted(bool with_mixed) {
  std::string text;
  for (size_t i = 0; i < kAlgorithms.size(); ++i) {
    const bool last = !with_mixed && i + 1 == kAlgorithms.size();
    text += i == 0 ? "" : last ? " or " : ", ";
    text += kAlgorithms[i].name;
  }
  if (with_mixed) text.append(" or ").append(kMixed);
  return text;
}

const Algorithm* FindAlgorithm(std::string_view name) {
  for (const Algorithm& a : kAlgorithms) {
    if (a.name == name) return &a;
  }
  return nullptr;
}

std::string Upper(std::string text) {
  for (char& c : text) {
    if ('a' <= c && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return text;
}

/// `quant_algo` in upper case, as every reader of these files takes it.
Result<std::string> ReadAlgo(const ConfigField& config) {
  auto algo = config.json->GetString("quant_algo");
  if (!algo) return std::move(algo).error().At(config.path);
  if (!*algo) {
    return Error{ErrorCode::kCorruptFile, "\"quant_algo\" is missing", config.path,
                 fmt::format("it must be {}", Accepted(true))};
  }
  return Upper(*std::move(*algo));
}

Error UnknownAlgo(std::string_view algo, std::string path, bool mixed_known) {
  return Error{ErrorCode::kUnsupported,
               fmt::format("quant_algo {} is not supported, expected {}", Quoted(algo),
                           Accepted(mixed_known)),
               std::move(path),
               {}};
}

/// That a `group_size`, where there is one, is the algorithm's.
Result<void> CheckGroupSize(const Json& object, const Algorithm& algorithm, std::string_view path) {
  const Json* size = object.FindSet("group_size");
  if (!size || algorithm.group() == 0) return {};
  if (!size->is_int()) {
    return Err(ErrorCode::kCorruptFile, "\"group_size\" is {}, expected the integer {}",
               size->TypeName(), algorithm.group())
        .At(path);
  }
  if (size->integer() != algorithm.group()) {
    return Err(ErrorCode::kUnsupported, "group_size is {}, but {} blocks have {} elements",
               size->integer(), algorithm.nvfp4() ? "NVFP4" : "FP8",
               algorithm.nvfp4() ? "16" : "128x128")
        .At(path);
  }
  return {};
}

/// Sees to the block sizes that config_groups names. Gives whether there are groups and none of
/// them quantizes activations.
Result<bool> ReadConfigGroups(const ConfigField& config, const Algorithm& algorithm) {
  const Json* groups = config.json->FindSet("config_groups");
  if (!groups) return false;
  const std::string path = config.path + ".config_groups";
  if (!groups->is_object()) {
    return Err(ErrorCode::kCorruptFile, "is {}, expected object", groups->TypeName()).At(path);
  }
  bool weight_only = !groups->object().empty();
  for (const auto& [name, group] : groups->object()) {
    const std::string at = fmt::format("{}[{}]", path, Quoted(name));
    if (!group.is_object()) {
      return Err(ErrorCode::kCorruptFile, "is {}, expected object", group.TypeName()).At(at);
    }
    for (const char* part : {"weights", "input_activations"}) {
      if (const Json* args = group.FindSet(part)) {
        NIBBLE_CHECK_OK(CheckGroupSize(*args, algorithm, fmt::format("{}.{}", at, part)));
      }
    }
    if (group.FindSet("input_activations")) weight_only = false;
  }
  return weight_only;
}

/// MIXED_PRECISION: a map from module to algorithm; what it does not list is 16 bits. Nothing is
/// inherited from a neighbour: upstream resolves unlisted experts beside a listed FP8
/// shared_expert as FP8.
class MixedDialect : public Dialect {
 public:
  MixedDialect(std::string path, ModulePatterns exclude)
      : path_(std::move(path)), exclude_(std::move(exclude)) {}

  Result<void> Add(const std::string& module, const Json& entry) {
    const std::string at = fmt::format("{}[{}]", path_, Quoted(module));
    if (!entry.is_object()) {
      return Err(ErrorCode::kCorruptFile, "is {}, expected object", entry.TypeName()).At(at);
    }
    NIBBLE_TRY(const std::string algo, ReadAlgo({&entry, at}));
    const Algorithm* known = FindAlgorithm(algo);
    if (!known) return UnknownAlgo(algo, at, false);
    NIBBLE_CHECK_OK(CheckGroupSize(entry, *known, at));
    layers_.emplace(module,
                    ModuleScheme{known->scheme, SourceFormat::kModelopt, at + ".quant_algo"});
    return {};
  }

  Result<Answer> Resolve(const ModuleName& name, uint64_t* steps) const override {
    if (auto entry = exclude_.Match(name, steps)) {
      return Answer{{kBf16Scheme, SourceFormat::kNone, *entry}, true};
    }
    for (const Spellings* spellings : {&name.own, &name.stack, &name.block}) {
      for (const std::string& spelling : *spellings) {
        const auto found = layers_.find(spelling);
        if (found != layers_.end()) return Answer{found->second, true};
      }
    }
    return Answer{{kBf16Scheme, SourceFormat::kNone, path_ + " (not listed)"}, true};
  }

 private:
  std::string path_;
  ModulePatterns exclude_;
  std::unordered_map<std::string, ModuleScheme> layers_;
};

Result<std::shared_ptr<const Dialect>> ReadMixed(const ConfigField& config,
                                                 ModulePatterns exclude) {
  const Json* layers = config.json->FindSet("quantized_layers");
  std::string path = config.path + ".quantized_layers";
  if (!layers || !layers->is_object() || layers->object().empty()) {
    return Error{
        ErrorCode::kCorruptFile,
        fmt::format("quant_algo {} needs a non-empty map \"quantized_layers\", found {}", kMixed,
                    layers ? (layers->is_object() ? "an empty one" : layers->TypeName()) : "none"),
        config.path,
        {}};
  }
  auto dialect = std::make_shared<MixedDialect>(std::move(path), std::move(exclude));
  for (const auto& [module, entry] : layers->object()) {
    NIBBLE_CHECK_OK(dialect->Add(module, entry));
  }
  return std::shared_ptr<const Dialect>(std::move(dialect));
}

Result<ModulePatterns> ReadExclude(const ConfigField& config) {
  for (const char* key : {"ignore", "exclude_modules"}) {
    if (const Json* list = config.json->FindSet(key)) {
      return ModulePatterns::ReadModelopt(*list, fmt::format("{}.{}", config.path, key));
    }
  }
  return ModulePatterns();
}

/// `kv_cache_quant_algo`, a word; null and absent are no quantization.
Result<void> ReadKvAlgo(const ConfigField& config, QuantConfigParts* parts) {
  auto algo = config.json->GetString("kv_cache_quant_algo");
  if (!algo) return std::move(algo).error().At(config.path);
  if (!*algo) return {};
  const std::string path = config.path + ".kv_cache_quant_algo";
  if (Upper(**algo) != "FP8") {
    return Err(ErrorCode::kUnsupported, "KV cache scheme {} is not supported, expected FP8 or null",
               Quoted(**algo))
        .At(path);
  }
  parts->kv_cache = KvCacheScheme::kFp8;
  parts->kv_cache_evidence = path;
  return {};
}

/// `kv_cache_scheme`, a description.
Result<void> ReadKvScheme(const ConfigField& config, QuantConfigParts* parts) {
  const Json* scheme = config.json->FindSet("kv_cache_scheme");
  if (!scheme) return ReadKvAlgo(config, parts);
  const std::string path = config.path + ".kv_cache_scheme";
  if (!scheme->is_object()) {
    return Err(ErrorCode::kCorruptFile, "is {}, expected object", scheme->TypeName()).At(path);
  }
  auto type = scheme->GetString("type");
  if (!type) return std::move(type).error().At(path);
  auto bits = scheme->GetInt("num_bits", 1, 64);
  if (!bits) return std::move(bits).error().At(path);
  const Json* dynamic = scheme->FindSet("dynamic");
  if (dynamic && !(dynamic->is_bool() && !dynamic->boolean())) {
    return Err(ErrorCode::kUnsupported,
               "a KV cache with \"dynamic\" {} is not supported, expected false",
               WriteJson(*dynamic))
        .At(path);
  }
  if (*type != "float" || *bits != 8) {
    return Err(ErrorCode::kUnsupported,
               "a KV cache of type {} with {} bits is not supported, expected float with 8",
               Quoted(type->value_or("null")), bits->value_or(0))
        .At(path);
  }
  parts->kv_cache = KvCacheScheme::kFp8;
  parts->kv_cache_evidence = path;
  return {};
}

Result<QuantConfigParts> ReadAlgorithm(const ConfigField& config, const std::string& algo,
                                       bool weight_only_groups) {
  NIBBLE_TRY(ModulePatterns exclude, ReadExclude(config));
  QuantConfigParts parts;
  parts.source_format = SourceFormat::kModelopt;
  if (algo == kMixed) {
    NIBBLE_TRY(parts.dialect, ReadMixed(config, std::move(exclude)));
    return parts;
  }
  const Algorithm* known = FindAlgorithm(algo);
  if (!known) return UnknownAlgo(algo, config.path, true);
  QuantScheme scheme = known->scheme;
  std::string evidence = config.path + ".quant_algo";
  if (scheme == kW4A4 && weight_only_groups) {
    // Exporters before W4A16_NVFP4 had a name said it so (vLLM issue 54189).
    scheme = kW4A16;
    evidence = config.path + ".config_groups (input_activations null in every group)";
  }
  parts.dialect = std::make_shared<UniformDialect>(
      ModuleScheme{scheme, SourceFormat::kModelopt, std::move(evidence)}, std::move(exclude));
  return parts;
}

Result<ConfigField> LegacyQuantization(const ConfigField& file) {
  if (!file.json->is_object()) {
    return Err(ErrorCode::kCorruptFile, "is {}, expected object", file.json->TypeName())
        .At(file.path);
  }
  const Json* quantization = file.json->FindSet("quantization");
  if (!quantization || !quantization->is_object()) {
    return Err(ErrorCode::kCorruptFile, "\"quantization\" is {}, expected object",
               quantization ? quantization->TypeName() : "missing")
        .At(file.path);
  }
  const Json* producer = file.json->FindSet("producer");
  const Json* name = producer ? producer->FindSet("name") : nullptr;
  if (!name || !name->is_string() || name->string() != "modelopt") {
    return Err(ErrorCode::kUnsupported, "producer.name is {}, expected \"modelopt\"",
               name ? (name->is_string() ? Quoted(name->string()) : std::string(name->TypeName()))
                    : "missing")
        .At(file.path);
  }
  // The file's top: "hf_quant_config.json:" reads better than "hf_quant_config.json.".
  return ConfigField{quantization,
                     file.path + (file.path.ends_with(".json") ? ": " : ".") + "quantization"};
}

}  // namespace

Result<QuantConfigParts> ReadModeloptFlat(const ConfigField& config) {
  NIBBLE_TRY(const std::string algo, ReadAlgo(config));
  bool weight_only = false;
  const Algorithm* known = FindAlgorithm(algo);
  if (known) {
    NIBBLE_CHECK_OK(CheckGroupSize(*config.json, *known, config.path));
    NIBBLE_TRY(weight_only, ReadConfigGroups(config, *known));
  }
  NIBBLE_TRY(QuantConfigParts parts, ReadAlgorithm(config, algo, weight_only));
  NIBBLE_CHECK_OK(ReadKvScheme(config, &parts));
  return parts;
}

Result<QuantConfigParts> ReadModeloptLegacy(const ConfigField& file) {
  NIBBLE_TRY(const ConfigField config, LegacyQuantization(file));
  NIBBLE_TRY(const std::string algo, ReadAlgo(config));
  const Algorithm* known = FindAlgorithm(algo);
  if (known) NIBBLE_CHECK_OK(CheckGroupSize(*config.json, *known, config.path));
  if (known && known->nvfp4()) {
    for (const char* key : {"group_size", "kv_cache_quant_algo", "exclude_modules"}) {
      if (config.json->Find(key)) continue;
      return Error{ErrorCode::kCorruptFile, fmt::format("\"{}\" is missing", key), config.path,
                   "an NVFP4 file of this style states group_size, kv_cache_quant_algo and "
                   "exclude_modules, null where there is none"};
    }
  }
  NIBBLE_TRY(QuantConfigParts parts, ReadAlgorithm(config, algo, false));
  NIBBLE_CHECK_OK(ReadKvAlgo(config, &parts));
  return parts;
}

Result<void> ReadModeloptFlatKvCache(const ConfigField& config, QuantConfigParts* parts) {
  return ReadKvScheme(config, parts);
}

Result<void> ReadModeloptLegacyKvCache(const ConfigField& file, QuantConfigParts* parts) {
  const Json* quantization = file.json->FindSet("quantization");
  if (!quantization || !quantization->is_object()) return {};
  return ReadKvAlgo({quantization, file.path + ": quantization"}, parts);
}

}  // namespace nibble::scheme
