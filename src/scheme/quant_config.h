#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "layout/quant_key.h"
#include "layout/words.h"

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
  int experts = 0;    // kExperts: how many
  bool gated = true;  // kExperts: whether there is a gate_proj
};

/// What the KV cache is declared to hold.
enum class KvCacheScheme : uint8_t { kBf16, kFp8 };

/// One quantizer's dialect: what its configuration says of one linear. Made by ReadModelopt and
/// ReadCompressedTensors.
class Dialect {
 public:
  virtual ~Dialect() = default;

  struct Answer {
    ModuleScheme module;
    bool by_default = false;  // only because it is a linear, not because anything names it
  };
  /// `names`: the module's name in its spellings, then (of an expert's projection) those of the
  /// stack and block that hold it.
  /// `*steps` is raised by the work of matching patterns.
  virtual Result<Answer> Resolve(const std::vector<std::vector<std::string>>& names,
                                 uint64_t* steps) const = 0;
};

/// The quantization that a checkpoint's configuration declares. Immutable; safe to read from many
/// threads.
class QuantConfig {
 public:
  /// No quantization at all: every module is 16 bits.
  QuantConfig();

  SourceFormat source_format() const { return source_format_; }
  KvCacheScheme kv_cache() const { return kv_cache_; }
  /// Where the KV cache's scheme is said; empty when nothing says anything.
  const std::string& kv_cache_evidence() const { return kv_cache_evidence_; }
  /// Things a person should see: contradictions that the order of precedence decided, groups that
  /// were passed over.
  const std::vector<std::string>& warnings() const { return warnings_; }

  /// The declared scheme of a module. Tensors are never looked at.
  /// errors kCorruptFile: the projections of one layer's experts disagree, or those that share an
  /// input (q, k, v; gate, up) do,
  ///        naming them; matching the patterns would take too long
  Result<ModuleScheme> SchemeOf(const ModuleQuery& module) const;

 private:
  friend struct QuantConfigBuilder;

  Result<Dialect::Answer> Resolve(std::string_view name, uint64_t* steps) const;
  Result<ModuleScheme> ExpertsScheme(const ModuleQuery& module) const;
  Result<void> CheckShards(std::string_view name, const ModuleScheme& found, uint64_t* steps) const;

  SourceFormat source_format_ = SourceFormat::kNone;
  std::shared_ptr<const Dialect> dialect_;  // null: not quantized
  KvCacheScheme kv_cache_ = KvCacheScheme::kBf16;
  std::string kv_cache_evidence_;
  std::vector<std::string> warnings_;
};

}  // namespace nibble::scheme
