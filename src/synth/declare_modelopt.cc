#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "synth/declare.h"

namespace nibble::synth {
namespace {

using checkpoint::ModuleKind;

struct Algorithm {
  QuantScheme scheme;
  const char* name;
};
constexpr Algorithm kAlgorithms[] = {
    {kW4A4, "NVFP4"},
    {kW4A16, "W4A16_NVFP4"},
    {{kFp8StaticTensor, kFp8StaticTensor}, "FP8"},
    {{kFp8StaticChannel, kFp8DynamicToken}, "FP8_PER_CHANNEL_PER_TOKEN"},
    {{kFp8StaticBlock128, std::nullopt}, "FP8_PB_WO"},
    {{kFp8StaticBlock128, kFp8Dynamic128}, "FP8_BLOCK_SCALES"},
};

bool IsNvfp4(const QuantScheme& scheme) { return scheme.weight == kNvfp4Static; }

Result<const char*> AlgorithmOf(const QuantScheme& scheme) {
  for (const Algorithm& a : kAlgorithms) {
    if (a.scheme == scheme) return a.name;
  }
  return Err(ErrorCode::kUnsupported, "modelopt has no quant_algo for {}", PairName(scheme));
}

Json Producer() { return Json::Object{{"name", "modelopt"}, {"version", "0.47.0"}}; }

/// "weights" or "input_activations" of a group.
Json Args(bool nvfp4) {
  Json args = Json::Object{{"dynamic", false}, {"num_bits", nvfp4 ? 4 : 8}, {"type", "float"}};
  if (nvfp4) args.Set("group_size", 16);
  return args;
}

Json Group(const QuantScheme& scheme, bool mixed, Json::Array targets) {
  Json group;
  // Mixed exports claim 4-bit activations for W4A16 modules too; their quantized_layers is the
  // truth.
  if (scheme.activation || (mixed && IsNvfp4(scheme)))
    group.Set("input_activations", Args(IsNvfp4(scheme)));
  group.Set("weights", Args(IsNvfp4(scheme)));
  group.Set("targets", std::move(targets));
  return group;
}

/// One group a scheme, in the order in which modules first have it; sorted names in each.
Json MixedGroups(const QuantizedModel& model) {
  std::vector<std::pair<QuantScheme, std::vector<std::string>>> groups;
  for (size_t i = 0; i < model.modules.size(); ++i) {
    const QuantScheme& scheme = model.schemes[i];
    if (scheme == kBf16Scheme) continue;
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& g) { return g.first == scheme; });
    if (group == groups.end()) group = groups.insert(groups.end(), {scheme, {}});
    group->second.push_back(model.modules[i].name);
  }
  Json out;
  for (size_t i = 0; i < groups.size(); ++i) {
    std::sort(groups[i].second.begin(), groups[i].second.end());
    out.Set(fmt::format("group_{}", i),
            Group(groups[i].first, true, {groups[i].second.begin(), groups[i].second.end()}));
  }
  return out;
}

Result<Json> QuantizedLayers(const QuantizedModel& model) {
  Json out;
  for (size_t i = 0; i < model.modules.size(); ++i) {
    const QuantScheme& scheme = model.schemes[i];
    if (scheme == kBf16Scheme) continue;
    NIBBLE_TRY(const char* const algorithm, AlgorithmOf(scheme));
    Json entry = Json::Object{{"quant_algo", algorithm}};
    if (IsNvfp4(scheme)) entry.Set("group_size", 16);
    out.Set(model.modules[i].name, std::move(entry));
  }
  return out;
}

/// What is left alone, sorted: modules by name, unless a map of those that are not says it already,
/// and whole parts by a star.
Json::Array Excluded(const QuantizedModel& model, bool mixed, bool vision) {
  std::set<std::string> names;
  bool mtp = false;
  for (size_t i = 0; i < model.modules.size(); ++i) {
    const checkpoint::ModuleSpec& module = model.modules[i];
    if (model.schemes[i] != kBf16Scheme || module.kind == ModuleKind::kNorm) continue;
    const bool is_mtp = module.name.starts_with("mtp.");
    mtp = mtp || is_mtp;
    if (!is_mtp && !mixed) names.insert(module.name);
  }
  if (vision && !mixed) names.insert("model.visual*");
  if (mtp) names.insert({"mtp.fc*", "mtp.layers.0*"});
  return {names.begin(), names.end()};
}

}  // namespace

Result<Declaration> DeclareModelopt(const QuantizedModel& model, bool vision) {
  const bool mixed = !model.uniform();
  const Json::Array excluded = Excluded(model, mixed, vision);
  Json config, file;
  Json algorithm = "MIXED_PRECISION";
  const Json kv = model.fp8_kv_cache ? Json("FP8") : Json();
  if (mixed) {
    NIBBLE_TRY(const Json layers, QuantizedLayers(model));
    config.Set("config_groups", MixedGroups(model));
    config.Set("quantized_layers", layers);
    file = Json::Object{
        {"quant_algo", algorithm}, {"kv_cache_quant_algo", kv}, {"quantized_layers", layers}};
    if (!excluded.empty()) file.Set("exclude_modules", excluded);
  } else {
    const auto quantized = std::find_if(model.schemes.begin(), model.schemes.end(),
                                        [](const QuantScheme& s) { return s != kBf16Scheme; });
    NIBBLE_TRY(algorithm, AlgorithmOf(*quantized));
    config.Set("config_groups",
               Json::Object{{"group_0", Group(*quantized, false, Json::Array{"Linear"})}});
    file = Json::Object{{"quant_algo", algorithm}, {"kv_cache_quant_algo", kv}};
    if (IsNvfp4(*quantized)) file.Set("group_size", 16);
    file.Set("exclude_modules", excluded);
  }
  config.Set("ignore", excluded);
  config.Set("quant_algo", algorithm);
  // A mixed export's config.json does not know of its cache; only the other file does.
  if (model.fp8_kv_cache && !mixed) config.Set("kv_cache_scheme", Args(false));
  config.Set("producer", Producer());
  config.Set("quant_method", "modelopt");
  return Declaration{std::move(config),
                     Json::Object{{"producer", Producer()}, {"quantization", std::move(file)}}};
}

Result<Declaration> Declare(const QuantizedModel& model, bool vision) {
  if (!model.quantized()) return Declaration{};
  return model.format == SourceFormat::kCompressedTensors ? DeclareCompressedTensors(model, vision)
                                                          : DeclareModelopt(model, vision);
}

}  // namespace nibble::synth
