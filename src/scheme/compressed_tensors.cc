#include "scheme/compressed_tensors.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/quoted.h"
#include "scheme/module_patterns.h"

namespace nibble::scheme {
namespace {

constexpr std::string_view kNvfp4Format = "nvfp4-pack-quantized";
constexpr std::string_view kFp8Format = "float-quantized";
// "mixed-precision" leaves it to the groups, "dense" says that nothing is packed.
constexpr std::array<std::string_view, 4> kFormats = {kNvfp4Format, kFp8Format, "mixed-precision",
                                                      "dense"};

/// One `weights` or `input_activations` object, every field that changes numbers.
struct Args {
  int64_t num_bits = 0;
  std::string type, strategy;
  std::optional<int64_t> group_size;
  bool symmetric = true;
  enum class Dynamic : uint8_t { kFalse, kTrue, kLocal } dynamic = Dynamic::kFalse;
  std::optional<std::pair<int64_t, int64_t>> block;

  std::string Text() const {
    static constexpr std::array<std::string_view, 3> kDynamic = {"static", "dynamic", "local"};
    return fmt::format("{} {} bits, strategy {}{}{}, {}, {}", type, num_bits, strategy,
                       group_size ? fmt::format(", group_size {}", *group_size) : "",
                       block ? fmt::format(", block {}x{}", block->first, block->second) : "",
                       symmetric ? "symmetric" : "asymmetric",
                       kDynamic[static_cast<size_t>(dynamic)]);
  }
};

template <class T>
Result<T> At(Result<T> result, std::string_view path) {
  if (result) return result;
  return std::move(result).error().At(path);
}

Error WrongType(std::string_view key, const Json& found, std::string_view expected,
                std::string_view path) {
  return Err(ErrorCode::kCorruptFile, "\"{}\" is {}, expected {}", key, found.TypeName(), expected)
      .At(path);
}

Result<Args::Dynamic> ReadDynamic(const Json& json, const std::string& path) {
  const Json* dynamic = json.FindSet("dynamic");
  if (!dynamic) return Args::Dynamic::kFalse;
  if (dynamic->is_bool()) return dynamic->boolean() ? Args::Dynamic::kTrue : Args::Dynamic::kFalse;
  if (dynamic->is_string() && dynamic->string() == "local") return Args::Dynamic::kLocal;
  return WrongType("dynamic", *dynamic, "true, false or \"local\"", path);
}

/// Activation ordering permutes a weight's columns at run time; only the kinds that do not are
/// taken.
Result<void> CheckActorder(const Json& json, const std::string& path) {
  const Json* order = json.FindSet("actorder");
  if (!order || (order->is_bool() && !order->boolean())) return {};
  if (order->is_string() && (order->string() == "static" || order->string() == "weight")) return {};
  return Err(ErrorCode::kUnsupported,
             "actorder {} permutes columns at run time and is not supported, expected null, "
             "\"static\" or \"weight\"",
             order->is_string() ? Quoted(order->string()) : WriteJson(*order))
      .At(path);
}

Result<std::optional<std::pair<int64_t, int64_t>>> ReadBlock(const Json& json,
                                                             const std::string& path) {
  using Block = std::optional<std::pair<int64_t, int64_t>>;
  const Json* block = json.FindSet("block_structure");
  if (!block) return Block();
  if (!block->is_array() || block->array().size() != 2 || !block->array()[0].is_int() ||
      !block->array()[1].is_int()) {
    return WrongType("block_structure", *block, "a list of two integers", path);
  }
  return Block({block->array()[0].integer(), block->array()[1].integer()});
}

Result<Args> ReadArgs(const Json& json, const std::string& path) {
  if (!json.is_object()) {
    return Err(ErrorCode::kCorruptFile, "is {}, expected object or null", json.TypeName()).At(path);
  }
  Args args;
  NIBBLE_TRY(auto bits, At(json.GetInt("num_bits", 1, 64), path));
  args.num_bits = bits.value_or(0);
  NIBBLE_TRY(auto type, At(json.GetString("type"), path));
  args.type = type.value_or("int");  // the library's default
  NIBBLE_TRY(auto strategy, At(json.GetString("strategy"), path));
  args.strategy = strategy.value_or("null");
  NIBBLE_TRY(args.group_size, At(json.GetInt("group_size", -1, int64_t{1} << 31), path));
  NIBBLE_TRY(auto symmetric, At(json.GetBool("symmetric"), path));
  args.symmetric = symmetric.value_or(true);
  NIBBLE_TRY(args.dynamic, ReadDynamic(json, path));
  NIBBLE_TRY(args.block, ReadBlock(json, path));
  NIBBLE_CHECK_OK(CheckActorder(json, path));
  return args;
}

bool IsNvfp4(const Args& a) {
  return a.num_bits == 4 && a.type == "float" && a.strategy == "tensor_group" &&
         a.group_size == kNvfp4Static.scale.group.col && a.symmetric;
}

bool IsFp8(const Args& a) { return a.num_bits == 8 && a.type == "float" && a.symmetric; }

/// errors kUnsupported: nothing that a kernel could hold exactly
Result<QuantKey> WeightKey(const Args& args, const std::string& path) {
  if (args.dynamic == Args::Dynamic::kFalse) {
    if (IsNvfp4(args)) return kNvfp4Static;
    if (IsFp8(args) && args.strategy == "tensor") return kFp8StaticTensor;
    if (IsFp8(args) && args.strategy == "channel") return kFp8StaticChannel;
    if (IsFp8(args) && args.strategy == "block" &&
        args.block == std::pair<int64_t, int64_t>{128, 128}) {
      return kFp8StaticBlock128;
    }
  }
  Error e = Err(ErrorCode::kUnsupported, "weights of {} are not supported", args.Text());
  e.hint =
      "taken are NVFP4 (float 4 bits, strategy tensor_group, group_size 16, symmetric, static) and "
      "FP8 (float 8 bits, strategy tensor, channel or block 128x128, symmetric, static)";
  return std::move(e).At(path);
}

/// errors kUnsupported: activations that do not go with the weights
Result<QuantKey> ActivationKey(const Args& args, bool nvfp4_weight, const std::string& path) {
  const bool is_static = args.dynamic == Args::Dynamic::kFalse;
  const bool is_dynamic = args.dynamic == Args::Dynamic::kTrue;
  if (nvfp4_weight) {
    if (IsNvfp4(args) && args.dynamic == Args::Dynamic::kLocal) return kNvfp4Dynamic;
    return Error{ErrorCode::kUnsupported,
                 fmt::format("NVFP4 weights with activations of {} are not supported", args.Text()),
                 path, "taken are null (W4A16) and NVFP4 with dynamic \"local\" (W4A4)"};
  }
  if (IsFp8(args)) {
    if (args.strategy == "tensor" && is_static) return kFp8StaticTensor;
    if (args.strategy == "token" && is_dynamic) return kFp8DynamicToken;
    if (args.strategy == "group" && args.group_size == 128 && is_dynamic) return kFp8Dynamic128;
  }
  return Error{ErrorCode::kUnsupported,
               fmt::format("FP8 weights with activations of {} are not supported", args.Text()),
               path,
               "taken are null, FP8 static per tensor, FP8 dynamic per token and FP8 dynamic per "
               "group of 128"};
}

Result<std::optional<std::string>> ReadFormat(const Json& json, const std::string& path) {
  NIBBLE_TRY(auto format, At(json.GetString("format"), path));
  if (format && std::find(kFormats.begin(), kFormats.end(), *format) == kFormats.end()) {
    return Err(ErrorCode::kUnsupported,
               "format {} is not supported, expected nvfp4-pack-quantized, float-quantized, "
               "mixed-precision or dense",
               Quoted(*format))
        .At(path);
  }
  return format;
}

/// A format that names a packing must name the one that the arguments mean.
Result<void> CheckFormat(const std::optional<std::string>& format, const QuantKey& weight,
                         const std::string& path) {
  if (!format || *format == "mixed-precision") return {};
  const std::string_view meant = weight == kNvfp4Static ? kNvfp4Format : kFp8Format;
  if (*format == meant) return {};
  return Err(ErrorCode::kUnsupported, "format {} contradicts the group's weights, which need {}",
             Quoted(*format), meant)
      .At(path);
}

/// Whether a target is a class name that means nn.Linear: a part of that word in any case, as the
/// producer's and upstream's matching has it.
bool MeansLinear(std::string_view target) {
  constexpr std::string_view kLinear = "linear";
  std::string lower(target);
  for (char& c : lower) {
    if ('A' <= c && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return kLinear.find(lower) != std::string_view::npos;
}

struct Group {
  std::string path;
  QuantScheme scheme;
  ModulePatterns targets;
};

class CompressedTensorsDialect : public Dialect {
 public:
  CompressedTensorsDialect(std::string path, std::vector<Group> groups, ModulePatterns ignore)
      : path_(std::move(path)), groups_(std::move(groups)), ignore_(std::move(ignore)) {}

  Result<Answer> Resolve(const ModuleName& name, uint64_t* steps) const override {
    if (auto entry = ignore_.Match(name, steps)) {
      return Answer{{kBf16Scheme, SourceFormat::kNone, *entry}, true};
    }
    for (const Rank rank : {Rank::kWhole, Rank::kRegex, Rank::kClass}) {
      NIBBLE_TRY(auto found, ResolveRank(name, rank, steps));
      if (found) return Answer{*std::move(found), rank == Rank::kWhole};
    }
    return Answer{{kBf16Scheme, SourceFormat::kNone, path_ + ".config_groups (no target names it)"},
                  true};
  }

 private:
  enum class Rank : uint8_t { kWhole, kRegex, kClass };

  static std::optional<std::string> Match(const Group& group, const ModuleName& name, Rank rank,
                                          uint64_t* steps) {
    switch (rank) {
      case Rank::kWhole:
        return group.targets.MatchWhole(name);
      case Rank::kRegex:
        return group.targets.MatchRegex(name, steps);
      case Rank::kClass:
        break;
    }
    const auto& targets = group.targets.entries();
    const auto found = std::find_if(targets.begin(), targets.end(), MeansLinear);
    if (found == targets.end()) return std::nullopt;
    return group.targets.EvidenceOf(static_cast<size_t>(found - targets.begin()));
  }

  Result<std::optional<ModuleScheme>> ResolveRank(const ModuleName& name, Rank rank,
                                                  uint64_t* steps) const {
    std::optional<ModuleScheme> first;
    for (const Group& group : groups_) {
      const auto evidence = Match(group, name, rank, steps);
      if (!evidence) continue;
      if (!first) {
        first = ModuleScheme{group.scheme, SourceFormat::kCompressedTensors, *evidence};
      } else if (first->scheme != group.scheme) {
        return Error{ErrorCode::kCorruptFile,
                     fmt::format("{} is {} by one target and {} by another", name.own.front(),
                                 ShortName(first->scheme), ShortName(group.scheme)),
                     *evidence, fmt::format("{} is the other", first->evidence)};
      }
    }
    return first;
  }

  std::string path_;
  std::vector<Group> groups_;
  ModulePatterns ignore_;
};

/// Groups for attention quantize the KV cache's inputs, no linear; upstream passes over them too.
bool IsAttentionGroup(const ModulePatterns& targets) {
  return targets.entries().size() == 1 && targets.entries().front().ends_with("Attention");
}

Result<Group> ReadGroup(const Json& json, const std::optional<std::string>& global_format,
                        std::string path) {
  Group group;
  NIBBLE_TRY(auto format, ReadFormat(json, path));
  if (!format) format = global_format;
  const Json* weights = json.FindSet("weights");
  if (!weights) {
    return Err(ErrorCode::kUnsupported, "a group without \"weights\" is not supported").At(path);
  }
  NIBBLE_TRY(const Args weight_args, ReadArgs(*weights, path + ".weights"));
  NIBBLE_TRY(group.scheme.weight, WeightKey(weight_args, path + ".weights"));
  NIBBLE_CHECK_OK(CheckFormat(format, *group.scheme.weight, path));
  if (const Json* activations = json.FindSet("input_activations")) {
    const std::string at = path + ".input_activations";
    NIBBLE_TRY(const Args args, ReadArgs(*activations, at));
    NIBBLE_TRY(group.scheme.activation,
               ActivationKey(args, group.scheme.weight == kNvfp4Static, at));
  }
  if (json.FindSet("output_activations")) {
    return Err(ErrorCode::kUnsupported, "quantized outputs are not supported, expected null")
        .At(path + ".output_activations");
  }
  group.path = std::move(path);
  return group;
}

Result<std::vector<Group>> ReadGroups(const ConfigField& config,
                                      std::vector<std::string>* warnings) {
  const std::string path = config.path + ".config_groups";
  const Json* json = config.json->FindSet("config_groups");
  if (!json || !json->is_object() || json->object().empty()) {
    return Err(ErrorCode::kCorruptFile, "is {}, expected an object with at least one group",
               json ? (json->is_object() ? "empty" : json->TypeName()) : "missing")
        .At(path);
  }
  NIBBLE_TRY(const auto format, ReadFormat(*config.json, config.path));
  std::vector<Group> groups;
  for (const auto& [name, group_json] : json->object()) {
    std::string at = fmt::format("{}[{}]", path, Quoted(name));
    if (!group_json.is_object()) {
      return Err(ErrorCode::kCorruptFile, "is {}, expected object", group_json.TypeName()).At(at);
    }
    const Json* list = group_json.FindSet("targets");
    if (!list) return Err(ErrorCode::kCorruptFile, "\"targets\" is missing").At(at);
    NIBBLE_TRY(ModulePatterns targets,
               ModulePatterns::ReadCompressedTensors(*list, at + ".targets"));
    if (IsAttentionGroup(targets)) {
      warnings->push_back(at + " targets attention, not a linear, and is passed over");
      continue;
    }
    NIBBLE_TRY(Group group, ReadGroup(group_json, format, std::move(at)));
    group.targets = std::move(targets);
    groups.push_back(std::move(group));
  }
  return groups;
}

/// Sparsity and rotations change what the stored numbers mean.
Result<void> RefuseTransforms(const ConfigField& config) {
  for (const char* key : {"sparsity_config", "transform_config"}) {
    const Json* part = config.json->FindSet(key);
    if (!part || (part->is_object() && part->object().empty())) continue;
    const Json* format = part->FindSet("format");
    if (format && format->is_string() && format->string() == "dense") continue;
    return Err(ErrorCode::kUnsupported, "is not supported, expected null or empty")
        .At(fmt::format("{}.{}", config.path, key));
  }
  return {};
}

Result<void> ReadKvCache(const ConfigField& config, QuantConfigParts* parts) {
  const Json* json = config.json->FindSet("kv_cache_scheme");
  if (!json) return {};
  const std::string path = config.path + ".kv_cache_scheme";
  NIBBLE_TRY(const Args args, ReadArgs(*json, path));
  if (!IsFp8(args) || args.strategy != "tensor" || args.dynamic != Args::Dynamic::kFalse) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("a KV cache of {} is not supported", args.Text()), path,
                 "taken are null and float 8 bits, strategy tensor, symmetric, static"};
  }
  parts->kv_cache = KvCacheScheme::kFp8;
  parts->kv_cache_evidence = path;
  return {};
}

}  // namespace

Result<QuantConfigParts> ReadCompressedTensors(const ConfigField& config) {
  QuantConfigParts parts;
  parts.source_format = SourceFormat::kCompressedTensors;
  NIBBLE_CHECK_OK(RefuseTransforms(config));
  NIBBLE_TRY(auto groups, ReadGroups(config, &parts.warnings));
  ModulePatterns ignore;
  if (const Json* list = config.json->FindSet("ignore")) {
    NIBBLE_TRY(ignore, ModulePatterns::ReadCompressedTensors(*list, config.path + ".ignore"));
  }
  NIBBLE_CHECK_OK(ReadKvCache(config, &parts));
  parts.dialect =
      std::make_shared<CompressedTensorsDialect>(config.path, std::move(groups), std::move(ignore));
  return parts;
}

}  // namespace nibble::scheme
