#include "scheme/quant_config.h"

#include <fmt/core.h>

#include <array>
#include <unordered_map>
#include <utility>

#include "scheme/module_patterns.h"

namespace nibble::scheme {
namespace {

constexpr std::array<std::array<std::string_view, 3>, 2> kSharedInputs = {{
    {"q_proj", "k_proj", "v_proj"},
    {"gate_proj", "up_proj", ""},
}};

Error Disagree(std::string_view a, const ModuleScheme& of_a, std::string_view b,
               const ModuleScheme& of_b, std::string_view why) {
  return Err(ErrorCode::kCorruptFile, "{} is {} ({}) but {} is {} ({}): {}", a,
             ShortName(of_a.scheme), of_a.evidence, b, ShortName(of_b.scheme), of_b.evidence, why);
}

std::pair<std::string_view, std::string_view> SplitLast(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return {{}, name};
  return {name.substr(0, dot), name.substr(dot + 1)};
}

}  // namespace

ModuleQuery QueryOf(const checkpoint::ModuleSpec& module) {
  using checkpoint::ModuleKind;
  ModuleQuery query{module.name, ModuleClass::kOther, 0, true};
  switch (module.kind) {
    case ModuleKind::kLinear:
    case ModuleKind::kLmHead:
      query.module_class = ModuleClass::kLinear;
      break;
    case ModuleKind::kExperts:
      query.module_class = ModuleClass::kExperts;
      query.experts = module.experts;
      break;
    case ModuleKind::kEmbedding:
    case ModuleKind::kNorm:
    case ModuleKind::kRouter:
    case ModuleKind::kConv:
      break;
  }
  return query;
}

Result<Dialect::Answer> QuantConfig::Resolve(std::string_view name, uint64_t* steps) const {
  if (!parts_.dialect) {
    return Dialect::Answer{
        {kBf16Scheme, SourceFormat::kNone, "config.json: no quantization_config"}, false};
  }
  NIBBLE_TRY(Dialect::Answer answer, parts_.dialect->Resolve(ModuleNameOf(name), steps));
  if (*steps > kMaxPatternSteps) {
    return Err(ErrorCode::kCorruptFile,
               "matching the quantization config's patterns, up to {}, takes more than {} steps",
               name, kMaxPatternSteps);
  }
  const bool mtp_fc = name == "mtp.fc" || name.ends_with(".mtp.fc");
  if (mtp_fc && answer.module.scheme != kBf16Scheme) {
    // Exclude lists forget it, yet no exporter quantizes it.
    return Dialect::Answer{{kBf16Scheme, SourceFormat::kNone,
                            fmt::format("mtp.fc is 16-bit in every format, though {} says {}",
                                        answer.module.evidence, ShortName(answer.module.scheme))},
                           true};
  }
  return answer;
}

Result<ModuleScheme> QuantConfig::SchemeOfExperts(const ModuleQuery& module,
                                                  uint64_t* steps) const {
  std::string first_name;
  ModuleScheme first;
  for (int expert = 0; expert < module.experts; ++expert) {
    for (const std::string_view projection : {"gate_proj", "up_proj", "down_proj"}) {
      if (!module.gated && projection == "gate_proj") continue;
      std::string name = fmt::format("{}.{}.{}", module.name, expert, projection);
      NIBBLE_TRY(Dialect::Answer answer, Resolve(name, steps));
      if (first_name.empty()) {
        first_name = std::move(name);
        first = std::move(answer.module);
      } else if (answer.module.scheme != first.scheme) {
        return Disagree(first_name, first, name, answer.module,
                        "all experts of a layer must have one scheme");
      }
    }
  }
  return first;
}

Result<ModuleScheme> QuantConfig::SchemeOf(const ModuleQuery& module) const {
  uint64_t steps = 0;
  return SchemeOf(module, &steps);
}

Result<ModuleScheme> QuantConfig::SchemeOf(const ModuleQuery& module, uint64_t* steps) const {
  if (module.module_class == ModuleClass::kExperts) {
    NIBBLE_CHECK(module.experts > 0, "an expert block without experts");
    return SchemeOfExperts(module, steps);
  }
  NIBBLE_TRY(Dialect::Answer answer, Resolve(module.name, steps));
  if (module.module_class == ModuleClass::kOther && !answer.by_name &&
      answer.module.scheme != kBf16Scheme) {
    return ModuleScheme{kBf16Scheme, SourceFormat::kNone,
                        fmt::format("{} covers linear layers; this is none, and nothing names it",
                                    answer.module.evidence)};
  }
  return std::move(answer.module);
}

Result<std::vector<ModuleScheme>> QuantConfig::SchemesOf(
    std::span<const ModuleQuery> modules) const {
  std::vector<ModuleScheme> schemes;
  schemes.reserve(modules.size());
  uint64_t steps = 0;
  std::unordered_map<std::string, size_t> first_of;  // by "parent/group": who came first
  for (const ModuleQuery& module : modules) {
    NIBBLE_TRY(ModuleScheme scheme, SchemeOf(module, &steps));
    const auto [parent, leaf] = SplitLast(module.name);
    for (const auto& group : kSharedInputs) {
      if (leaf.empty() || (leaf != group[0] && leaf != group[1] && leaf != group[2])) continue;
      const auto [at, is_first] =
          first_of.emplace(fmt::format("{}/{}", parent, group[0]), schemes.size());
      if (!is_first && schemes[at->second].scheme != scheme.scheme) {
        return Disagree(modules[at->second].name, schemes[at->second], module.name, scheme,
                        "linears that share an input must have one scheme");
      }
    }
    schemes.push_back(std::move(scheme));
  }
  return schemes;
}

}  // namespace nibble::scheme
