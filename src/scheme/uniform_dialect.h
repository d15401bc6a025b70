#pragma once

#include <utility>

#include "scheme/module_patterns.h"
#include "scheme/quant_config.h"

namespace nibble::scheme {

/// One scheme for every linear that no exclude entry names.
class UniformDialect : public Dialect {
 public:
  UniformDialect(ModuleScheme scheme, ModulePatterns exclude)
      : scheme_(std::move(scheme)), exclude_(std::move(exclude)) {}

  Result<Answer> Resolve(const ModuleName& name, uint64_t* steps) const override {
    if (auto entry = exclude_.Match(name, steps)) {
      return Answer{{kBf16Scheme, SourceFormat::kNone, *entry}, true};
    }
    return Answer{scheme_, false};
  }

 private:
  ModuleScheme scheme_;
  ModulePatterns exclude_;
};

}  // namespace nibble::scheme
