#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/modules.h"
#include "layout/quant_key.h"
#include "layout/words.h"
#include "scheme/names.h"

namespace nibble::scheme {

/// How a module is held, as the checkpoint's configuration declares it, and where it says so.
struct ModuleScheme {
  QuantScheme scheme;
  SourceFormat source_format = SourceFormat::kNone;  // kNone: 16 bits
  std::string evidence;  // file and field: "config.json: quantization_config.quant_algo"
};

/// What a module is, as far as a quantizer's rules ask.
enum class ModuleClass : uint8_t {
  kLinear,   // nn.Linear: what "every linear" means, lm_head too
  kExperts,  // the routed experts of one layer: all their projections, one scheme
  kOther,    // router, embedding, convolution: 16 bits unless named
};

struct ModuleQuery {
  std::string_view name;  // as in the checkpoint: "model.layers.3.mlp.experts"
  ModuleClass module_class = ModuleClass::kLinear;
  int experts = 0;    // kExperts: how many, > 0
  bool gated = true;  // kExperts: whether there is a gate_proj
};

/// What the KV cache is declared to hold.
enum class KvCacheScheme : uint8_t { kBf16, kFp8 };

/// One quantizer's dialect: what its configuration says of one linear. Immutable.
class Dialect {
 public:
  struct Answer {
    ModuleScheme module;
    bool by_name = false;  // something names just this module; not a rule for all linears
  };

  virtual ~Dialect() = default;

  /// `*steps` is raised by the work of matching patterns.
  /// errors kCorruptFile: two rules of equal rank contradict each other
  virtual Result<Answer> Resolve(const ModuleName& name, uint64_t* steps) const = 0;
};

/// What a dialect's reader makes.
struct QuantConfigParts {
  SourceFormat source_format = SourceFormat::kNone;
  std::shared_ptr<const Dialect> dialect;  // null: nothing is quantized
  KvCacheScheme kv_cache = KvCacheScheme::kBf16;
  std::string kv_cache_evidence;
  std::vector<std::string> warnings;
};

/// What SchemeOf must know of a module of the model.
ModuleQuery QueryOf(const checkpoint::ModuleSpec& module);

/// The quantization that a checkpoint's configuration declares. Immutable; safe to read from many
/// threads; cheap to copy.
class QuantConfig {
 public:
  /// No quantization at all: every module is 16 bits.
  QuantConfig() = default;
  explicit QuantConfig(QuantConfigParts parts) : parts_(std::move(parts)) {}

  SourceFormat source_format() const { return parts_.source_format; }
  KvCacheScheme kv_cache() const { return parts_.kv_cache; }
  /// Where the KV cache's scheme is said; empty when nothing says anything.
  const std::string& kv_cache_evidence() const { return parts_.kv_cache_evidence; }
  /// What a person should see: contradictions that the order of precedence decided, groups that
  /// were passed over.
  const std::vector<std::string>& warnings() const { return parts_.warnings; }

  /// The declared scheme of one module. Tensors are never looked at.
  /// errors kCorruptFile: the projections of one layer's experts disagree (naming two of them);
  ///        rules contradict each other; matching the patterns would take too long
  Result<ModuleScheme> SchemeOf(const ModuleQuery& module) const;

  /// The schemes of a whole model's modules, in their order. Also sees that linears which share
  /// an input (q, k and v; gate and up) have one scheme, as their producers mean them to.
  /// errors as SchemeOf's; kCorruptFile naming two that disagree
  Result<std::vector<ModuleScheme>> SchemesOf(std::span<const ModuleQuery> modules) const;

 private:
  Result<Dialect::Answer> Resolve(std::string_view name, uint64_t* steps) const;
  Result<ModuleScheme> SchemeOf(const ModuleQuery& module, uint64_t* steps) const;
  Result<ModuleScheme> SchemeOfExperts(const ModuleQuery& module, uint64_t* steps) const;

  QuantConfigParts parts_;
};

}  // namespace nibble::scheme
