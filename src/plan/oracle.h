#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/catalogue.h"
#include "layout/words.h"

namespace nibble::plan {

/// What a module asks of a kernel.
struct Need {
  kernels::Operation operation = kernels::Operation::kLinear;
  QuantScheme scheme;
  Activation activation = Activation::kSilu;
  bool bias = false;
};

/// Why a backend does not run a module: every rule of its best row that said no.
struct Refusal {
  Backend backend = Backend::kReference;
  std::vector<std::string> reasons;
};

struct Choice {
  const kernels::CatalogueRow* row = nullptr;
  std::vector<Refusal>
      refused;  // the candidates that would have come before, or cannot run it at all
};

/// Everything that keeps `row` from serving `need` on `device`, in the words of the field ("kernel does not support …" follows each in an
/// error). Empty: it can.
std::vector<std::string> ReasonsAgainst(const kernels::CatalogueRow& row, const Need& need,
                                        const DeviceInfo& device);

/// The first row of the catalogue that can. `forced`: that backend or an error, never another.
/// errors  kUnsupported. Forced: the reference's sentence, naming the backend and every failed rule. Automatic: the sentence and each
///         candidate's reasons.
Result<Choice> Choose(const Need& need, const DeviceInfo& device, std::optional<Backend> forced);

/// Whether any row of the backend, on whatever device, serves this pair of keys.
bool CanEverServe(Backend backend, const Need& need);

}  // namespace nibble::plan
