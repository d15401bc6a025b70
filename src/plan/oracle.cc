#include "plan/oracle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/checked.h"

namespace nibble::plan {
namespace {

using kernels::CatalogueRow;
using kernels::CcRange;
using kernels::Operation;
using kernels::RouterWeightOnInput;

using Answer = std::optional<std::string>;

Answer Build(const CatalogueRow& row, const Need&, const DeviceInfo& device) {
  // A kernel for a device that is not here is planned all the same, and marked.
  if (row.built || !device.present || row.device != device.kind) return {};
  return "kernel not in this build";
}

std::string CcName(int cc) { return fmt::format("{}.{}", cc / 10, cc % 10); }

std::string CcNames(std::span<const CcRange> ranges) {
  std::vector<std::string> parts;
  for (const CcRange& r : ranges) {
    std::string part = CcName(r.low);
    if (r.high == CcRange::kNoEnd)
      part += " or newer";
    else if (r.high != r.low)
      part += " to " + CcName(r.high);
    parts.push_back(std::move(part));
  }
  return fmt::format("{}", fmt::join(parts, " or "));
}

Answer Device(const CatalogueRow& row, const Need&, const DeviceInfo& device) {
  if (row.device == DeviceKind::kCpu) {
    if (device.kind != DeviceKind::kCpu)
      return fmt::format("current device {}: runs on a CPU", device.name);
    if (row.isa <= device.isa) return {};
    return fmt::format("current device {}: needs {}, has {}", device.name, NameOf(row.isa),
                       NameOf(device.isa));
  }
  const auto holds = [&](const CcRange& r) {
    return r.low <= device.compute_capability && device.compute_capability <= r.high;
  };
  if (device.kind == DeviceKind::kCuda && std::any_of(row.cc.begin(), row.cc.end(), holds))
    return {};
  return fmt::format("current device {}: needs CUDA compute capability {}", device.name,
                     CcNames(row.cc));
}

Answer KnowsActivation(const CatalogueRow& row, const Need& need, const DeviceInfo&) {
  if (need.operation != Operation::kExperts) return {};
  if (std::find(row.activations.begin(), row.activations.end(), need.activation) !=
      row.activations.end())
    return {};
  std::string name(NameOf(need.activation));
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return fmt::format("MoEActivation.{} activation", name);
}

Answer Scheme(const CatalogueRow& row, const Need& need, const DeviceInfo&) {
  if (std::find(row.schemes.begin(), row.schemes.end(), need.scheme) != row.schemes.end())
    return {};
  return "quantization scheme " + PairName(need.scheme);
}

Answer Parallel(const CatalogueRow& row, const Need& need, const DeviceInfo&) {
  if ((need.tp_size == 1 || row.tensor_parallel) && (need.ep_size == 1 || row.expert_parallel))
    return {};
  return fmt::format("parallel config FusedMoEParallelConfig(tp_size={}, ep_size={})", need.tp_size,
                     need.ep_size);
}

/// A share of `what` that must be a multiple of `unit` for each of `ranks`; 0: not known.
Answer Share(int64_t whole, std::string_view what, int ranks, int64_t unit) {
  if (whole % (unit * ranks) == 0) return {};
  return fmt::format("{} {} over {} ranks is not supported: needs a multiple of {}", whole, what,
                     ranks, unit * ranks);
}

Answer Shape(const CatalogueRow& row, const Need& need, const DeviceInfo&) {
  constexpr int64_t kGroup =
      16;  // a slice of I must keep whole scale groups; what is missing to pad_intermediate is padded
  if (need.input % row.hidden_multiple != 0) {
    return fmt::format("{} hidden dim is not supported: needs a multiple of {}", need.input,
                       row.hidden_multiple);
  }
  if (need.operation == Operation::kExperts) {
    if (auto no = Share(need.experts, "experts", need.ep_size, 1)) return no;
    return Share(need.intermediate, "intermediate dim", need.tp_size, kGroup);
  }
  if (need.operation != Operation::kLinear || need.tp_size == 1) return {};
  if (need.split == Split::kOutput) return Share(need.output, "output dim", need.tp_size, 1);
  if (need.split == Split::kInput)
    return Share(need.input, "input dim", need.tp_size, row.hidden_multiple);
  return {};
}

Answer Bias(const CatalogueRow& row, const Need& need, const DeviceInfo&) {
  if (!need.bias || row.bias) return {};
  return need.operation == Operation::kExperts ? "expert biases" : "bias";
}

Answer RouterWeight(const CatalogueRow& row, const Need& need, const DeviceInfo&) {
  if (!need.router_weight_on_input) return {};
  if (row.router_weight_on_input == RouterWeightOnInput::kNever) return "router weight on input";
  if (need.top_k != 1)
    return fmt::format("router weight on input with top-k {}: needs top-k 1", need.top_k);
  return {};
}

struct RuleRow {
  Rule rule;
  Answer (*ask)(const CatalogueRow&, const Need&, const DeviceInfo&);
};
constexpr RuleRow kRules[] = {{Rule::kBuild, Build},
                              {Rule::kDevice, Device},
                              {Rule::kActivation, KnowsActivation},
                              {Rule::kScheme, Scheme},
                              {Rule::kParallel, Parallel},
                              {Rule::kShape, Shape},
                              {Rule::kBias, Bias},
                              {Rule::kRouterWeight, RouterWeight}};

/// How the field's messages name what is chosen for, and the backend. FP8's sentences print the
/// name without quotes.
std::string SubjectOf(const Need& need) {
  std::string_view kind = "BF16";
  if (need.scheme.weight) kind = need.scheme.weight->dtype == ScalarType::kU8 ? "NvFp4" : "FP8";
  switch (need.operation) {
    case Operation::kExperts:
      return fmt::format("{} MoE", kind);
    case Operation::kLinear:
      return fmt::format("{} linear", kind);
    case Operation::kGlue:
      break;
  }
  return "attention";
}

std::string QuotedFor(const Need& need, Backend backend) {
  const bool fp8 = need.scheme.weight && need.scheme.weight->dtype == ScalarType::kF8E4M3;
  return fp8 ? std::string(NameOf(backend)) : fmt::format("'{}'", NameOf(backend));
}

std::string Sentence(const std::vector<Reason>& reasons) {
  std::vector<std::string> parts;
  for (const Reason& r : reasons) parts.push_back(Clause(r));
  return fmt::format("{}", fmt::join(parts, "; "));
}

/// What the row of the backend that comes nearest answers: one for the very scheme before any
/// other, then the one with the fewest reasons, then the first. Nothing when the backend has no
/// such kernel at all.
std::optional<Refusal> Nearest(Backend backend, const Need& need, const DeviceInfo& device) {
  const auto distance = [](const std::vector<Reason>& reasons) {
    const bool other_scheme = std::any_of(reasons.begin(), reasons.end(),
                                          [](const Reason& r) { return r.rule == Rule::kScheme; });
    return std::pair(other_scheme, reasons.size());
  };
  std::optional<Refusal> best;
  for (const CatalogueRow& row : kernels::Catalogue()) {
    if (row.backend != backend || row.operation != need.operation) continue;
    std::vector<Reason> reasons = ReasonsAgainst(row, need, device);
    if (!best || distance(reasons) < distance(best->reasons))
      best = Refusal{backend, std::move(reasons)};
  }
  return best;
}

template <class Fits>
bool AnyScheme(Backend backend, Operation operation, Fits fits) {
  for (const CatalogueRow& row : kernels::Catalogue()) {
    if (row.backend == backend && row.operation == operation &&
        std::any_of(row.schemes.begin(), row.schemes.end(), fits))
      return true;
  }
  return false;
}

std::vector<Backend> BackendsFor(Operation operation) {
  std::vector<Backend> out;
  for (const CatalogueRow& row : kernels::Catalogue()) {
    if (row.operation == operation && std::find(out.begin(), out.end(), row.backend) == out.end())
      out.push_back(row.backend);
  }
  return out;
}

}  // namespace

std::string Clause(const Reason& reason) {
  return reason.rule == Rule::kBuild ? reason.text : "kernel does not support " + reason.text;
}

std::vector<Reason> ReasonsAgainst(const CatalogueRow& row, const Need& need,
                                   const DeviceInfo& device, const std::set<Rule>& lifted) {
  std::vector<Reason> reasons;
  for (const RuleRow& r : kRules) {
    if (lifted.count(r.rule)) continue;
    if (auto why = r.ask(row, need, device)) reasons.push_back({r.rule, std::move(*why)});
  }
  return reasons;
}

bool CanEverServe(Backend backend, const Need& need) {
  return AnyScheme(backend, need.operation, [&](const QuantScheme& s) { return s == need.scheme; });
}

bool CanEverServeWeight(Backend backend, const Need& need) {
  return AnyScheme(backend, need.operation,
                   [&](const QuantScheme& s) { return s.weight == need.scheme.weight; });
}

Result<Choice> Choose(const Need& need, const DeviceInfo& device, std::optional<Backend> forced) {
  Choice choice;
  for (const CatalogueRow& row : kernels::Catalogue()) {
    if (row.operation != need.operation || (forced && row.backend != *forced)) continue;
    if (ReasonsAgainst(row, need, device).empty()) {
      choice.row = &row;
      break;
    }
  }
  std::vector<Candidate> candidates;
  std::string all;
  for (Backend backend : BackendsFor(need.operation)) {
    auto refusal = Nearest(backend, need, device);
    if (!refusal || refusal->reasons.empty()) continue;
    all += fmt::format("\n  {}: {}", NameOf(backend), Sentence(refusal->reasons));
    if (!forced || backend == *forced) {
      candidates.push_back({std::string(NameOf(backend)), {}});
      for (const Reason& r : refusal->reasons) candidates.back().reasons.push_back(Clause(r));
    }
    choice.refused.push_back(std::move(*refusal));
  }
  if (choice.row != nullptr) return choice;
  Error error{ErrorCode::kUnsupported, {}, {}, {}, std::move(candidates)};
  if (forced) {
    const auto refusal = Nearest(*forced, need, device);
    error.what = fmt::format("{} backend {} does not support the deployment configuration{}",
                             SubjectOf(need), QuotedFor(need, *forced),
                             refusal ? " since " + Sentence(refusal->reasons) : std::string("."));
  } else {
    error.what =
        fmt::format("No {} backend supports the deployment configuration.{}", SubjectOf(need), all);
  }
  return error;
}

}  // namespace nibble::plan
