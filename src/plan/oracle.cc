#include "plan/oracle.h"

#include <fmt/format.h>

#include <algorithm>

namespace nibble::plan {
namespace {

using kernels::CatalogueRow;
using kernels::Operation;

// A rule answers nothing, or why not. They are asked in this order, the order in which upstream asks.
using Rule = std::optional<std::string> (*)(const CatalogueRow&, const Need&, const DeviceInfo&);

std::optional<std::string> IsBuilt(const CatalogueRow& row, const Need&, const DeviceInfo& device) {
  if (row.built || !device.present) return {};
  return "kernel not in this build";
}

std::optional<std::string> RunsOnDevice(const CatalogueRow& row, const Need&,
                                        const DeviceInfo& device) {
  if (row.device != device.kind) return fmt::format("current device {}", device.name);
  if (row.device == DeviceKind::kCpu && row.isa > device.isa) {
    return fmt::format("current device {}: needs {}, has {}", device.name, NameOf(row.isa),
                       NameOf(device.isa));
  }
  return {};
}

std::optional<std::string> KnowsActivation(const CatalogueRow& row, const Need& need,
                                           const DeviceInfo&) {
  if (need.operation != Operation::kExperts) return {};
  if (std::find(row.activations.begin(), row.activations.end(), need.activation) !=
      row.activations.end())
    return {};
  return fmt::format("{} activation", NameOf(need.activation));
}

std::optional<std::string> RunsScheme(const CatalogueRow& row, const Need& need,
                                      const DeviceInfo&) {
  if (row.scheme == need.scheme) return {};
  return "quantization scheme " + PairName(need.scheme);
}

std::optional<std::string> TakesBias(const CatalogueRow& row, const Need& need, const DeviceInfo&) {
  if (!need.bias || row.bias) return {};
  return "bias";
}

constexpr Rule kRules[] = {IsBuilt, RunsOnDevice, KnowsActivation, RunsScheme, TakesBias};

/// "NvFp4 MoE", "FP8 linear", …: how the field's messages name what is being chosen for.
std::string SubjectOf(const Need& need) {
  std::string_view kind = "BF16";
  if (need.scheme.weight) kind = need.scheme.weight->dtype == ScalarType::kU8 ? "NvFp4" : "FP8";
  return fmt::format("{} {}", kind, need.operation == Operation::kExperts ? "MoE" : "linear");
}

/// "kernel does not support X; kernel does not support Y".
std::string Sentence(const std::vector<std::string>& reasons) {
  std::vector<std::string> parts;
  for (const std::string& r : reasons) {
    parts.push_back(r == "kernel not in this build" ? r : "kernel does not support " + r);
  }
  return fmt::format("{}", fmt::join(parts, "; "));
}

/// The reasons of the row that comes nearest: the one with the fewest, the first of those.
std::optional<Refusal> Nearest(Backend backend, const Need& need, const DeviceInfo& device) {
  std::optional<Refusal> best;
  for (const CatalogueRow& row : kernels::Catalogue()) {
    if (row.backend != backend || row.operation != need.operation) continue;
    std::vector<std::string> reasons = ReasonsAgainst(row, need, device);
    if (!best || reasons.size() < best->reasons.size()) best = Refusal{backend, std::move(reasons)};
  }
  return best;
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

std::vector<std::string> ReasonsAgainst(const CatalogueRow& row, const Need& need,
                                        const DeviceInfo& device) {
  std::vector<std::string> reasons;
  for (Rule rule : kRules) {
    if (auto why = rule(row, need, device)) reasons.push_back(std::move(*why));
  }
  return reasons;
}

bool CanEverServe(Backend backend, const Need& need) {
  for (const CatalogueRow& row : kernels::Catalogue()) {
    if (row.backend == backend && row.operation == need.operation && row.scheme == need.scheme)
      return true;
  }
  return false;
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
  if (forced && choice.row == nullptr) {
    const auto refusal = Nearest(*forced, need, device);
    Error error =
        Err(ErrorCode::kUnsupported,
            "{} backend '{}' does not support the deployment configuration{}", SubjectOf(need),
            NameOf(*forced), refusal ? " since " + Sentence(refusal->reasons) : std::string("."));
    return error;
  }
  std::string all;
  for (Backend backend : BackendsFor(need.operation)) {
    if (choice.row != nullptr && choice.row->backend == backend) continue;
    auto refusal = Nearest(backend, need, device);
    if (!refusal || refusal->reasons.empty()) continue;
    all += fmt::format("\n  {}: {}", NameOf(backend), Sentence(refusal->reasons));
    choice.refused.push_back(std::move(*refusal));
  }
  if (choice.row == nullptr) {
    return Err(ErrorCode::kUnsupported, "No {} backend supports the deployment configuration.{}",
               SubjectOf(need), all);
  }
  return choice;
}

}  // namespace nibble::plan
