#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plan/oracle.h"

// Laws of the oracle over random needs, devices and wishes, each from a fixed seed.

namespace nibble::plan {
namespace {

using kernels::CatalogueRow;
using kernels::Operation;

constexpr int kConfigs = 20000;

struct Config {
  Need need;
  DeviceInfo device;
  std::optional<Backend> forced;
};

// Keys that no kernel of ours runs are among them.
const QuantScheme kSchemes[] = {
    {},
    {kNvfp4Static, {}},
    {kNvfp4Static, kNvfp4Dynamic},
    {kNvfp4Static, kFp8DynamicToken},
    {kNvfp4Dynamic, kNvfp4Dynamic},
    {kFp8StaticTensor, {}},
    {kFp8StaticTensor, kFp8StaticTensor},
    {kFp8StaticChannel, kFp8DynamicToken},
    {kFp8StaticBlock128, kFp8Dynamic128},
    {kFp8StaticTensor, kNvfp4Dynamic},
    {std::nullopt, kFp8DynamicToken},
};
constexpr int kComputeCapabilities[] = {70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130};
constexpr Backend kBackends[] = {Backend::kReference, Backend::kCpu,  Backend::kMarlin,
                                 Backend::kHopper,    Backend::kB12x, Backend::kCutlass};

/// Random questions: ordinary ones but for scheme and device, with up to two unusual things each.
/// With everything unusual at once nothing would be served, and no rule would ever be the only one
/// to say no.
class Source {
 public:
  explicit Source(uint32_t seed) : random_(seed) {}

  Config Next() {
    Config c;
    c.need.operation = Coin(2)   ? Operation::kExperts
                       : Coin(8) ? Operation::kGlue
                                 : Operation::kLinear;
    c.need.scheme = Coin(2) ? kSchemes[Below(3)] : Any(kSchemes);
    c.need.input = 64 * Below(64);
    if (c.need.operation == Operation::kExperts) {
      c.need.intermediate = 128 * Below(12);
      c.need.top_k = Coin(2) ? 1 : 8;
    }
    for (int unusual = Below(3); unusual > 0; --unusual) MakeUnusual(&c.need);
    if (Coin(3)) {
      c.device.isa = static_cast<CpuIsa>(Below(4));
    } else {
      c.device.kind = DeviceKind::kCuda;
      c.device.compute_capability = Any(kComputeCapabilities);
      c.device.name = "sm_" + std::to_string(c.device.compute_capability);
    }
    c.device.present = Coin(4);
    if (Coin(2)) c.forced = Any(kBackends);
    return c;
  }

 private:
  void MakeUnusual(Need* need) {
    const bool experts = need->operation == Operation::kExperts;
    switch (Below(7)) {
      case 0:
        need->activation = static_cast<Activation>(Below(8));
        break;
      case 1:
        need->bias = true;
        break;
      case 2:
        need->router_weight_on_input = true;
        break;
      case 3:
        need->tp_size = 1 << Below(5);
        break;
      case 4:
        need->ep_size = 1 << Below(4);
        break;
      case 5:
        need->input = 8 * Below(512);
        break;
      case 6:
        if (experts) need->intermediate = 8 * Below(192);
        break;
    }
  }

  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  bool Coin(int n) { return Below(n) == 0; }
  template <class T, size_t N>
  const T& Any(const T (&all)[N]) {
    return all[Below(N)];
  }

  std::mt19937 random_;
};

std::string Describe(const Config& c) {
  const Need& n = c.need;
  return "operation " + std::to_string(static_cast<int>(n.operation)) + " " + PairName(n.scheme) +
         " " + std::string(NameOf(n.activation)) + " H=" + std::to_string(n.input) +
         " I=" + std::to_string(n.intermediate) + " tp=" + std::to_string(n.tp_size) +
         " ep=" + std::to_string(n.ep_size) + " top_k=" + std::to_string(n.top_k) +
         (n.bias ? " bias" : "") + (n.router_weight_on_input ? " router" : "") + " on " +
         c.device.name + " " + std::string(NameOf(c.device.isa)) +
         (c.device.present ? " here" : "") + ", " +
         (c.forced ? std::string(NameOf(*c.forced)) : "auto");
}

/// Bits of the activations that a kernel's name promises: arch_weight_act_op.
int ActivationBitsOf(std::string_view id) {
  if (id.find("_nvfp4_nvfp4_") != id.npos) return 4;
  if (id.find("_fp8_") != id.npos) return 8;
  return 16;
}
int WeightBitsOf(std::string_view id) {
  if (id.find("_nvfp4_") != id.npos) return 4;
  return id.find("_fp8_") != id.npos ? 8 : 16;
}
int BitsOf(const std::optional<QuantKey>& key) {
  if (!key) return 16;
  return key->dtype == ScalarType::kU8 ? 4 : 8;
}

bool Holds(std::span<const QuantScheme> schemes, const QuantScheme& scheme) {
  return std::find(schemes.begin(), schemes.end(), scheme) != schemes.end();
}

// ---- The contract once more, as predicates written from its table of backends and not from the
// catalogue.

/// Which cc's the contract gives a backend; an empty answer is a CPU's.
bool RunsOn(Backend backend, const DeviceInfo& d) {
  const int cc = d.compute_capability;
  const bool cuda = d.kind == DeviceKind::kCuda;
  switch (backend) {
    case Backend::kReference:
    case Backend::kCpu:
      return !cuda;
    case Backend::kMarlin:
      return cuda && cc >= 80;
    case Backend::kHopper:
      return cuda && cc == 90;
    case Backend::kB12x:
      return cuda && (cc == 120 || cc == 121);
    case Backend::kCutlass:
      return cuda && (cc == 100 || cc == 103);
  }
  return false;
}

bool RunsScheme(Backend backend, Operation operation, const QuantScheme& s) {
  const bool w4a16 = s == QuantScheme{kNvfp4Static, std::nullopt};
  const bool w4a4 = s == QuantScheme{kNvfp4Static, kNvfp4Dynamic};
  const bool bf16 = !s.weight && !s.activation;
  const bool fp8 = s.weight && s.weight->dtype == ScalarType::kF8E4M3 &&
                   (!s.activation || s.activation->dtype == ScalarType::kF8E4M3);
  if (operation == Operation::kGlue)
    return bf16 && (backend == Backend::kMarlin || backend == Backend::kCpu ||
                    backend == Backend::kReference);
  if (backend == Backend::kCutlass) return w4a4;
  if (backend == Backend::kB12x) return w4a16 || w4a4;
  return w4a16 || w4a4 || fp8 || bf16;
}

bool RunsRest(Backend backend, const Need& n) {
  const bool host = backend == Backend::kCpu || backend == Backend::kReference;
  const bool experts = n.operation == Operation::kExperts;
  if (experts && n.activation > Activation::kRelu2NoMul) return false;
  if (n.tp_size > 1 && host) return false;
  if (n.ep_size > 1 && (host || backend == Backend::kB12x)) return false;
  const int64_t multiple = host ? 16 : n.operation == Operation::kGlue ? 1 : 64;
  if (n.input % multiple != 0) return false;
  if (experts && n.intermediate % (16 * n.tp_size) != 0) return false;
  if (n.bias && !(experts && !host && backend != Backend::kB12x)) return false;
  if (n.router_weight_on_input) {
    const bool b12x_w4a4 = backend == Backend::kB12x && n.scheme.activation.has_value();
    if (host || b12x_w4a4 || n.top_k != 1) return false;
  }
  return true;
}

/// The backend that the contract gives a described device, in the order that it prefers; the build
/// does not matter there.
std::optional<Backend> ByContract(const Config& c) {
  for (const Backend backend : {Backend::kCutlass, Backend::kB12x, Backend::kHopper,
                                Backend::kMarlin, Backend::kCpu, Backend::kReference}) {
    if (c.forced && backend != *c.forced) continue;
    if (RunsOn(backend, c.device) && RunsScheme(backend, c.need.operation, c.need.scheme) &&
        RunsRest(backend, c.need))
      return backend;
  }
  return {};
}

TEST(OracleProperty, ADescribedDeviceGetsTheContractsBackend) {
  Source source(1);
  int served = 0, refused = 0;
  for (int i = 0; i < kConfigs; ++i) {
    Config c = source.Next();
    c.device.present = false;
    const auto expected = ByContract(c);
    const auto choice = Choose(c.need, c.device, c.forced);
    ASSERT_EQ(choice.ok(), expected.has_value())
        << Describe(c) << "\n"
        << (choice ? std::string(choice->row->id) : choice.error().what);
    if (choice) {
      ASSERT_EQ(choice->row->backend, *expected) << Describe(c);
    }
    ++(choice ? served : refused);
  }
  EXPECT_GT(served, kConfigs / 10) << "the questions are all alike";
  EXPECT_GT(refused, kConfigs / 10);
}

TEST(OracleProperty, NeverBelowTheLabel) {
  Source source(2);
  std::set<std::string_view> chosen;
  for (int i = 0; i < kConfigs; ++i) {
    const Config c = source.Next();
    const auto choice = Choose(c.need, c.device, c.forced);
    if (!choice) continue;
    const CatalogueRow& row = *choice->row;
    SCOPED_TRACE(Describe(c));
    chosen.insert(row.id);
    ASSERT_TRUE(Holds(row.schemes, c.need.scheme)) << row.id;
    if (c.need.operation == Operation::kGlue) continue;
    // What the name promises is what every one of its schemes holds, and what was declared.
    ASSERT_EQ(WeightBitsOf(row.id), BitsOf(c.need.scheme.weight)) << row.id;
    if (WeightBitsOf(row.id) != 8) {
      ASSERT_EQ(ActivationBitsOf(row.id), BitsOf(c.need.scheme.activation)) << row.id;
    } else {
      ASSERT_GE(BitsOf(c.need.scheme.activation), 8) << row.id;
    }
  }
  // Of 65 rows; the glue of REFERENCE, for one, is chosen by name alone.
  EXPECT_GE(chosen.size(), 60u) << "hardly any kernel was ever chosen";
}

TEST(OracleProperty, ForcedNeverYieldsAnother) {
  Source source(3);
  int served = 0;
  for (int i = 0; i < kConfigs; ++i) {
    Config c = source.Next();
    if (!c.forced) c.forced = kBackends[i % 6];
    const auto choice = Choose(c.need, c.device, c.forced);
    SCOPED_TRACE(Describe(c));
    if (choice) {
      ++served;
      ASSERT_EQ(choice->row->backend, *c.forced);
    } else {
      ASSERT_EQ(choice.error().code, ErrorCode::kUnsupported);
      ASSERT_NE(choice.error().what.find(NameOf(*c.forced)), std::string::npos);
      for (const Candidate& candidate : choice.error().candidates)
        ASSERT_EQ(candidate.name, NameOf(*c.forced));
    }
  }
  EXPECT_GT(served, kConfigs / 50);
}

TEST(OracleProperty, ARefusalNamesExactlyTheRulesThatMustBeLifted) {
  Source source(4);
  const auto catalogue = kernels::Catalogue();
  std::set<Rule> seen;
  for (int i = 0; i < kConfigs; ++i) {
    const Config c = source.Next();
    const CatalogueRow& row = catalogue[static_cast<size_t>(i) * 7919 % catalogue.size()];
    const auto reasons = ReasonsAgainst(row, c.need, c.device);
    std::set<Rule> rules;
    for (const Reason& r : reasons) rules.insert(r.rule);
    SCOPED_TRACE(Describe(c) + " against " + std::string(row.id));
    ASSERT_EQ(rules.size(), reasons.size()) << "a rule answers once";
    ASSERT_TRUE(ReasonsAgainst(row, c.need, c.device, rules).empty());
    for (const Rule kept : rules) {
      std::set<Rule> lifted = rules;
      lifted.erase(kept);
      const auto left = ReasonsAgainst(row, c.need, c.device, lifted);
      ASSERT_EQ(left.size(), 1u);
      ASSERT_EQ(left[0].rule, kept);
      ASSERT_FALSE(left[0].text.empty());
    }
    seen.insert(rules.begin(), rules.end());
  }
  EXPECT_EQ(seen.size(), std::size(kAllRules)) << "a rule never said no";
}

TEST(OracleProperty, AutomaticFailureGivesEveryCandidateAReason) {
  Source source(5);
  int failures = 0;
  for (int i = 0; i < kConfigs; ++i) {
    Config c = source.Next();
    c.forced.reset();
    const auto choice = Choose(c.need, c.device, {});
    if (choice) continue;
    ++failures;
    SCOPED_TRACE(Describe(c));
    const Error& error = choice.error();
    std::set<std::string> names;
    for (const Candidate& candidate : error.candidates) {
      ASSERT_FALSE(candidate.reasons.empty()) << candidate.name;
      ASSERT_TRUE(names.insert(candidate.name).second) << candidate.name;
      for (const std::string& reason : candidate.reasons) {
        ASSERT_FALSE(reason.empty());
        ASSERT_NE(error.what.find(reason), std::string::npos) << reason;
      }
      ASSERT_NE(error.what.find("\n  " + candidate.name + ": "), std::string::npos);
    }
    std::set<std::string> expected = {"REFERENCE", "CPU", "MARLIN"};
    if (c.need.operation != Operation::kGlue)
      expected.merge(std::set<std::string>{"HOPPER", "B12X", "CUTLASS"});
    ASSERT_EQ(names, expected);
  }
  EXPECT_GT(failures, kConfigs / 10);
}

TEST(OracleProperty, ChoosingIsDeterministic) {
  Source source(6), again(6);
  for (int i = 0; i < kConfigs; ++i) {
    const Config c = source.Next(), same = again.Next();
    const auto first = Choose(c.need, c.device, c.forced);
    const auto second = Choose(same.need, same.device, same.forced);
    SCOPED_TRACE(Describe(c));
    ASSERT_EQ(first.ok(), second.ok());
    if (!first) {
      ASSERT_EQ(first.error().what, second.error().what);
      continue;
    }
    ASSERT_EQ(first->row, second->row);
    ASSERT_EQ(first->refused.size(), second->refused.size());
    for (size_t r = 0; r < first->refused.size(); ++r) {
      ASSERT_EQ(first->refused[r].backend, second->refused[r].backend);
      ASSERT_EQ(first->refused[r].reasons.size(), second->refused[r].reasons.size());
    }
  }
}

// What a served module lists as refused is refused indeed, and is not the one that serves.
TEST(OracleProperty, WhatIsListedAsRefusedIsRefused) {
  Source source(7);
  for (int i = 0; i < kConfigs; ++i) {
    const Config c = source.Next();
    const auto choice = Choose(c.need, c.device, c.forced);
    if (!choice) continue;
    SCOPED_TRACE(Describe(c));
    for (const Refusal& refusal : choice->refused) {
      ASSERT_NE(refusal.backend, choice->row->backend);
      ASSERT_FALSE(refusal.reasons.empty());
      ASSERT_FALSE(Choose(c.need, c.device, refusal.backend).ok());
    }
  }
}

}  // namespace
}  // namespace nibble::plan
