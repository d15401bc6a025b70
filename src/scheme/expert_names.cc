#include "scheme/expert_names.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <span>

#include "base/quoted.h"
#include "scheme/tensor_checks.h"

namespace nibble::scheme {
namespace {

using checkpoint::Checkpoint;
using checkpoint::TensorInfo;

// By projection; the short names behind the long ones.
constexpr std::array<std::string_view, 8> kNames = {
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w3", "w2", "w13"};
constexpr uint8_t kLong = 0x0F, kShort = 0xF0;

constexpr uint8_t Bits(ExpertNames::Projection projection) {
  return static_cast<uint8_t>(0x11 << projection);
}

/// The tensors below `module.` by name: they lie together, for tensors() is sorted.
std::span<const TensorInfo> TensorsBelow(const Checkpoint& checkpoint, const std::string& module) {
  const std::string prefix = module + ".";
  const auto all = checkpoint.tensors();
  const auto begin = std::ranges::lower_bound(all, prefix, {}, &TensorInfo::name);
  auto end = begin;
  while (end != all.end() && end->name.starts_with(prefix)) ++end;
  return {begin, end};
}

struct IndexedName {
  uint64_t expert;
  std::string_view projection;
};

/// "7.gate_proj.weight" is expert 7's gate_proj; an index of more than nine digits is only large.
bool ParseName(std::string_view rest, IndexedName* out) {
  const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
  if (digits == 0) return false;
  out->expert = 0;
  for (const char c : rest.substr(0, std::min<size_t>(digits, 10))) {
    out->expert = out->expert * 10 + static_cast<uint64_t>(c - '0');
  }
  rest.remove_prefix(std::min(digits + 1, rest.size()));
  out->projection = rest.substr(0, rest.find('.'));
  return true;
}

/// Whether an expert may not have both names.
bool Contradicts(int found) {
  const bool both_families = (found & kLong) && (found & kShort);
  const bool alone = found & (Bits(ExpertNames::kGate) | Bits(ExpertNames::kUp));
  return both_families || (alone && (found & Bits(ExpertNames::kGateUp)));
}

}  // namespace

Result<ExpertNames> ExpertNames::Find(const Checkpoint& checkpoint, const std::string& module,
                                      int experts) {
  ExpertNames names;
  names.found_.resize(static_cast<size_t>(experts));
  const TensorChecks checks(checkpoint);
  for (const TensorInfo& tensor : TensorsBelow(checkpoint, module)) {
    IndexedName name;
    if (!ParseName(std::string_view(tensor.name).substr(module.size() + 1), &name)) continue;
    const auto place = [&] {
      return Place{module, static_cast<int>(std::min<uint64_t>(name.expert, INT32_MAX)), ""};
    };
    if (name.expert >= static_cast<uint64_t>(experts)) {
      return checks.Wrong(
          tensor, place(),
          fmt::format("the config counts {} experts, 0 to {}", experts, experts - 1));
    }
    const auto known = std::ranges::find(kNames, name.projection);
    if (known == kNames.end()) continue;
    const auto bit = static_cast<uint8_t>(1u << (known - kNames.begin()));
    uint8_t& found = names.found_[name.expert];
    std::string others;
    for (size_t i = 0; i < kNames.size(); ++i) {
      const auto other = static_cast<uint8_t>(1u << i);
      if (!(found & other) || !Contradicts(other | bit)) continue;
      others += (others.empty() ? "" : ", ") + std::string(kNames[i]);
    }
    found |= bit;
    names.found_anywhere_ |= bit;
    if (others.empty()) continue;
    Error e = checks.Wrong(
        tensor, place(), fmt::format("the expert also has {}, another name for the same", others));
    e.hint = "expected gate_proj, up_proj and down_proj, or w1, w3 and w2";
    return e;
  }
  return names;
}

std::string_view ExpertNames::NameOf(int expert, Projection projection) const {
  const uint8_t own = found_[static_cast<size_t>(expert)];
  const bool is_short = ((own ? own : found_anywhere_) & kShort) != 0;
  return kNames[projection + (is_short ? kNames.size() / 2 : 0)];
}

bool ExpertNames::gate_up_together(int expert) const {
  return (found_[static_cast<size_t>(expert)] & Bits(kGateUp)) != 0;
}

}  // namespace nibble::scheme
