#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "synth/declare.h"

namespace nibble::synth {
namespace {

using checkpoint::ModuleKind;
using checkpoint::ModuleSpec;

/// An object of arguments, in the library's order of members.
struct Args {
  int bits = 8;
  const char* strategy = "tensor";
  Json dynamic = false;
  Json group_size, block, observer, scale_dtype;

  Json ToJson() const {
    return Json::Object{{"actorder", nullptr},
                        {"block_structure", block},
                        {"dynamic", dynamic},
                        {"group_size", group_size},
                        {"num_bits", bits},
                        {"observer", observer},
                        {"observer_kwargs", Json::Object{}},
                        {"scale_dtype", scale_dtype},
                        {"strategy", strategy},
                        {"symmetric", true},
                        {"type", "float"},
                        {"zp_dtype", nullptr}};
  }
};

Result<Json> WeightArgs(const QuantKey& key) {
  Args args;
  args.observer = "memoryless_minmax";
  if (key == kNvfp4Static) {
    args.bits = 4;
    args.strategy = "tensor_group";
    args.group_size = 16;
    args.scale_dtype = "torch.float8_e4m3fn";
  } else if (key == kFp8StaticChannel) {
    args.strategy = "channel";
  } else if (key == kFp8StaticBlock128) {
    args.strategy = "block";
    args.block = Json::Array{128, 128};
  } else if (key != kFp8StaticTensor) {
    return Err(ErrorCode::kUnsupported, "compressed-tensors has no words for weights of {}",
               ToString(key));
  }
  return args.ToJson();
}

Result<Json> ActivationArgs(const std::optional<QuantKey>& key) {
  if (!key) return Json();
  Args args;
  if (*key == kNvfp4Dynamic) {
    args.bits = 4;
    args.strategy = "tensor_group";
    args.dynamic = "local";
    args.group_size = 16;
    args.observer = "static_minmax";
    args.scale_dtype = "torch.float8_e4m3fn";
  } else if (*key == kFp8StaticTensor) {
    args.observer = "static_minmax";
  } else if (*key == kFp8DynamicToken) {
    args.strategy = "token";
    args.dynamic = true;
  } else if (*key == kFp8Dynamic128) {
    args.strategy = "group";
    args.dynamic = true;
    args.group_size = 128;
  } else {
    return Err(ErrorCode::kUnsupported, "compressed-tensors has no words for activations of {}",
               ToString(*key));
  }
  return args.ToJson();
}

const char* FormatOf(const QuantScheme& scheme) {
  return scheme.weight == kNvfp4Static ? "nvfp4-pack-quantized" : "float-quantized";
}

Result<Json> Group(const QuantScheme& scheme, Json::Array targets) {
  NIBBLE_TRY(Json activations, ActivationArgs(scheme.activation));
  NIBBLE_TRY(Json weights, WeightArgs(*scheme.weight));
  return Json(Json::Object{{"format", FormatOf(scheme)},
                           {"input_activations", std::move(activations)},
                           {"output_activations", nullptr},
                           {"targets", std::move(targets)},
                           {"weights", std::move(weights)}});
}

/// A module's name with its layer's number taken out: what the modules of one part have in common.
struct Part {
  std::string head, layer, tail;  // "model.layers.", "3", ".mlp.experts"
};

Part PartOf(const std::string& name) {
  constexpr std::string_view kLayers = "layers.";
  const size_t found = name.find(kLayers);
  if (found == name.npos) return {name, {}, {}};
  const size_t digits = found + kLayers.size(), end = name.find('.', digits);
  return {name.substr(0, digits), name.substr(digits, end - digits), name.substr(end)};
}

std::string Escaped(std::string_view name) {
  std::string out;
  for (const char c : name) out += c == '.' ? std::string("\\.") : std::string(1, c);
  return out;
}

/// Recipes name the parts of a mixed model by expressions: one a part, with the layers' numbers
/// where not all of its layers are held alike.
class MixedTargets {
 public:
  explicit MixedTargets(const QuantizedModel& model) : model_(model) {
    for (size_t i = 0; i < model.modules.size(); ++i) {
      const Part part = PartOf(model.modules[i].name);
      ++sizes_[part.head + part.tail];
    }
  }

  Json::Array Of(const QuantScheme& scheme) const {
    std::vector<std::pair<std::string, std::vector<size_t>>> parts;
    for (size_t i = 0; i < model_.modules.size(); ++i) {
      if (model_.schemes[i] != scheme) continue;
      const Part part = PartOf(model_.modules[i].name);
      const std::string key = part.head + part.tail;
      auto at =
          std::find_if(parts.begin(), parts.end(), [&](const auto& p) { return p.first == key; });
      if (at == parts.end()) at = parts.insert(parts.end(), {key, {}});
      at->second.push_back(i);
    }
    Json::Array targets;
    for (const auto& [key, modules] : parts)
      targets.emplace_back(Expression(modules, modules.size() == sizes_.at(key)));
    return targets;
  }

 private:
  std::string Expression(const std::vector<size_t>& modules, bool every_layer) const {
    const ModuleSpec& first = model_.modules[modules.front()];
    const Part part = PartOf(first.name);
    if (part.layer.empty()) return first.name;
    std::string layers = "\\d+";
    if (!every_layer) {
      layers.clear();
      for (const size_t i : modules)
        layers += (layers.empty() ? "(" : "|") + PartOf(model_.modules[i].name).layer;
      layers += ")";
    }
    const char* experts =
        first.kind == ModuleKind::kExperts ? "\\.\\d+\\.(gate_proj|up_proj|down_proj)" : "";
    return "re:" + Escaped(part.head) + layers + Escaped(part.tail) + experts + "$";
  }

  const QuantizedModel& model_;
  std::map<std::string, size_t> sizes_;
};

/// The linears that are left alone, and whole parts by an expression.
Json::Array Ignored(const QuantizedModel& model, bool vision) {
  Json::Array names;
  bool mtp = false;
  if (vision) names.emplace_back("re:.*visual.*");
  for (size_t i = 0; i < model.modules.size(); ++i) {
    const ModuleSpec& module = model.modules[i];
    const bool linear = module.kind == ModuleKind::kLinear || module.kind == ModuleKind::kRouter ||
                        module.kind == ModuleKind::kLmHead;
    if (!linear || model.schemes[i] != kBf16Scheme) continue;
    const bool is_mtp = module.name.starts_with("mtp.");
    mtp = mtp || is_mtp;
    if (!is_mtp) names.emplace_back(module.name);
  }
  if (mtp) names.emplace_back("re:^mtp.*");
  return names;
}

Result<Json> Groups(const QuantizedModel& model) {
  Json out;
  std::vector<QuantScheme> told = {kBf16Scheme};
  const MixedTargets targets(model);
  for (const QuantScheme& scheme : model.schemes) {
    if (std::find(told.begin(), told.end(), scheme) != told.end()) continue;
    NIBBLE_TRY(Json group,
               Group(scheme, model.uniform() ? Json::Array{"Linear"} : targets.Of(scheme)));
    out.Set(fmt::format("group_{}", told.size() - 1), std::move(group));
    told.push_back(scheme);
  }
  return out;
}

}  // namespace

Result<Declaration> DeclareCompressedTensors(const QuantizedModel& model, bool vision) {
  NIBBLE_TRY(Json groups, Groups(model));
  const auto first = std::find_if(model.schemes.begin(), model.schemes.end(),
                                  [](const QuantScheme& s) { return s != kBf16Scheme; });
  Args kv;
  kv.observer = "static_minmax";
  return Declaration{
      Json::Object{{"config_groups", std::move(groups)},
                   {"format", model.uniform() ? FormatOf(*first) : "mixed-precision"},
                   {"global_compression_ratio", nullptr},
                   {"ignore", Ignored(model, vision)},
                   {"kv_cache_scheme", model.fp8_kv_cache ? kv.ToJson() : Json()},
                   {"quant_method", "compressed-tensors"},
                   {"quantization_status", "compressed"},
                   {"sparsity_config", Json::Object{}},
                   {"transform_config", Json::Object{}},
                   {"version", "0.19.0"}},
      std::nullopt};
}

}  // namespace nibble::synth
