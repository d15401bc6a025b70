#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/catalogue.h"
#include "layout/words.h"
#include "plan/ranks.h"

namespace nibble::plan {

/// What a module asks of a kernel, and how it is to be deployed.
struct Need {
  kernels::Operation operation = kernels::Operation::kLinear;
  QuantScheme scheme;
  Activation activation = Activation::kSilu;
  bool bias = false;
  // Whole shapes, before any rank's share; 0: not known, any.
  int64_t input = 0;           // H of experts, k of a linear
  int64_t output = 0;          // n of a linear
  int64_t intermediate = 0;    // I of experts
  int64_t experts = 0;         // E
  Split split = Split::kNone;  // of a linear, where tp_size > 1
  int top_k = 1;
  bool router_weight_on_input = false;
  int tp_size = 1, ep_size = 1;
};

/// What may keep a kernel from serving a need, in the order in which they are asked.
enum class Rule : uint8_t {
  kBuild,
  kDevice,
  kActivation,
  kScheme,
  kParallel,
  kShape,
  kBias,
  kRouterWeight
};
inline constexpr Rule kAllRules[] = {Rule::kBuild,  Rule::kDevice,      Rule::kActivation,
                                     Rule::kScheme, Rule::kParallel,    Rule::kShape,
                                     Rule::kBias,   Rule::kRouterWeight};

/// One rule's "no", with what was measured. "kernel does not support " stands before it in an
/// error.
struct Reason {
  Rule rule = Rule::kDevice;
  std::string text;
};

/// Why a backend does not run a module: what its nearest row answered.
struct Refusal {
  Backend backend = Backend::kReference;
  std::vector<Reason> reasons;
};

struct Choice {
  const kernels::CatalogueRow* row = nullptr;
  std::vector<Refusal> refused;  // the backends that cannot run it
};

/// Everything that keeps `row` from serving `need` on `device`; rules in `lifted` are not asked.
std::vector<Reason> ReasonsAgainst(const kernels::CatalogueRow& row, const Need& need,
                                   const DeviceInfo& device, const std::set<Rule>& lifted = {});

/// The first row of the catalogue that can. `forced`: of that backend or an error, never another's.
/// errors  kUnsupported, in the reference's words. Forced: naming the backend and every failed
///         rule. Automatic: each candidate's reasons, in the text and as Error::candidates.
Result<Choice> Choose(const Need& need, const DeviceInfo& device, std::optional<Backend> forced);

/// Whether any row of the backend, on whatever device, serves this pair of keys.
bool CanEverServe(Backend backend, const Need& need);

/// Whether any row of the backend, on whatever device, serves weights held like these, whatever its
/// activations.
bool CanEverServeWeight(Backend backend, const Need& need);

/// A reason as a clause: "kernel does not support <text>", or the text where it is a sentence of
/// its own.
std::string Clause(const Reason& reason);

}  // namespace nibble::plan
