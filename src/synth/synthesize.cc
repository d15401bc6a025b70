#include "synth/synthesize.h"

#include <algorithm>
#include <utility>

#include "base/quoted.h"
#include "scheme/detect.h"
#include "synth/declare.h"
#include "synth/tensors.h"

namespace nibble::synth {
namespace {

using checkpoint::Checkpoint;
using checkpoint::CheckpointParts;
using checkpoint::ModuleKind;
using checkpoint::ModuleSpec;

/// Leaves the first `layers` layers of a config.
Result<void> KeepLayers(int layers, Json* config) {
  Json* text = config;
  for (auto& [key, value] : config->object()) {
    if (key == "text_config" && value.is_object()) text = &value;
  }
  NIBBLE_TRY(const auto all, text->GetInt("num_hidden_layers", 1, 4096));
  if (!all || layers > *all) {
    return Err(ErrorCode::kInvalidArgument, "{} layers of a model that has {}", layers,
               all.value_or(0));
  }
  text->Set("num_hidden_layers", layers);
  for (auto& [key, value] : text->object()) {
    if (!value.is_array()) continue;
    if (key == "layer_types") value.array().resize(static_cast<size_t>(layers));
    if (key == "mlp_only_layers") {
      std::erase_if(value.array(),
                    [&](const Json& l) { return !l.is_int() || l.integer() >= layers; });
    }
  }
  return {};
}

void EraseMember(std::string_view key, Json* object) {
  std::erase_if(object->object(), [&](const Json::Member& m) { return m.first == key; });
}

/// Whether exporters quantize a module when they quantize all that they can.
bool IsQuantizable(const ModuleSpec& module) {
  if (module.name.starts_with("mtp.")) return false;
  if (module.kind == ModuleKind::kExperts) return true;
  // DeltaNet's gates: an error in them compounds through the recurrence.
  const bool gate = module.name.ends_with(".in_proj_a") || module.name.ends_with(".in_proj_b");
  return module.kind == ModuleKind::kLinear && !gate;
}

/// The model that the config describes, with the schemes that were asked for.
Result<QuantizedModel> ReadModel(const Json& config, const Checkpoint& source,
                                 const Options& options) {
  QuantizedModel model;
  NIBBLE_TRY(model.config, checkpoint::ParseModelConfig(config, nullptr));
  NIBBLE_TRY(const scheme::QuantConfig declared,
             scheme::ReadQuantConfig(config, source.hf_quant_config()));
  model.modules = checkpoint::ListModules(model.config, model.config.mtp_layers > 0);
  // A file of another dialect, or of none, becomes modelopt's.
  model.format =
      options.format.value_or(declared.source_format() == SourceFormat::kCompressedTensors
                                  ? SourceFormat::kCompressedTensors
                                  : SourceFormat::kModelopt);
  if (options.scheme) {
    for (const ModuleSpec& module : model.modules)
      model.schemes.push_back(IsQuantizable(module) ? *options.scheme : kBf16Scheme);
  } else {
    std::vector<scheme::ModuleQuery> queries;
    for (const ModuleSpec& module : model.modules) queries.push_back(scheme::QueryOf(module));
    NIBBLE_TRY(const auto schemes, declared.SchemesOf(queries));
    for (const scheme::ModuleScheme& s : schemes) model.schemes.push_back(s.scheme);
  }
  model.fp8_kv_cache = model.quantized() && declared.kv_cache() == scheme::KvCacheScheme::kFp8;
  return model;
}

/// Every tensor, viewing pools that then own all there is.
Result<void> MakeTensors(const std::vector<TensorSpec>& specs, uint64_t seed,
                         CheckpointParts* out) {
  auto pools = std::make_shared<NoisePools>(seed);
  for (const TensorSpec& spec : specs) {
    if (const auto* noise = std::get_if<Noise>(&spec.contents)) pools->Expect(*noise, spec.bytes());
  }
  out->tensors.reserve(specs.size());
  for (const TensorSpec& spec : specs) {
    checkpoint::TensorInfo tensor;
    tensor.name = spec.name;
    tensor.dtype = spec.dtype;
    tensor.shape = spec.shape;
    if (const auto* noise = std::get_if<Noise>(&spec.contents)) {
      NIBBLE_TRY(tensor.data, pools->View(*noise, spec.key(), spec.bytes()));
    } else {
      tensor.data = pools->Scalar(std::get<float>(spec.contents), spec.dtype);
    }
    out->tensors.push_back(std::move(tensor));
  }
  out->owner = std::move(pools);
  return {};
}

}  // namespace

Result<CheckpointParts> Synthesize(const std::string& config_dir, const Options& options) {
  NIBBLE_TRY(const Checkpoint source, Checkpoint::Open(config_dir, {.config_only = true}));
  CheckpointParts out;
  out.dir = source.dir();
  out.config = source.config();
  if (options.layers > 0) {
    auto kept = KeepLayers(options.layers, &out.config);
    if (!kept) return std::move(kept).error().At(config_dir);
  }
  NIBBLE_TRY(const QuantizedModel model, ReadModel(out.config, source, options));
  NIBBLE_TRY(std::vector<TensorSpec> specs, ListTensors(model));
  const Json* vision = out.config.FindSet("vision_config");
  if (options.vision && vision != nullptr) {
    NIBBLE_TRY(std::vector<TensorSpec> tower, ListVisionTensors(*vision));
    std::move(tower.begin(), tower.end(), std::back_inserter(specs));
  }
  NIBBLE_TRY(Declaration declared, Declare(model, vision != nullptr));
  for (auto& [key, value] : out.config.object()) {
    if (key == "text_config" && value.is_object()) EraseMember("quantization_config", &value);
  }
  EraseMember("quantization_config", &out.config);
  if (declared.quantization_config)
    out.config.Set("quantization_config", *std::move(declared.quantization_config));
  out.hf_quant_config = std::move(declared.hf_quant_config);
  if (source.generation_config() != nullptr) out.generation_config = *source.generation_config();
  NIBBLE_CHECK_OK(MakeTensors(specs, options.seed, &out));
  return out;
}

Result<std::optional<QuantScheme>> ParseScheme(std::string_view text) {
  using Scheme = std::optional<QuantScheme>;
  if (text == "recipe") return Scheme();
  if (text == "W4A16") return Scheme(kW4A16);
  if (text == "W4A4") return Scheme(kW4A4);
  if (text == "FP8") return Scheme(QuantScheme{kFp8StaticTensor, kFp8StaticTensor});
  if (text == "BF16") return Scheme(kBf16Scheme);
  return Err(ErrorCode::kInvalidArgument,
             "scheme {}; expected W4A16, W4A4, FP8, BF16 or recipe (what the config declares)",
             Quoted(text));
}

Result<SourceFormat> ParseFormat(std::string_view text) {
  if (text == "modelopt") return SourceFormat::kModelopt;
  if (text == "compressed-tensors") return SourceFormat::kCompressedTensors;
  return Err(ErrorCode::kInvalidArgument, "format {}; expected modelopt or compressed-tensors",
             Quoted(text));
}

}  // namespace nibble::synth
