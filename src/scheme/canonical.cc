#include "scheme/canonical.h"

#include <fmt/core.h>

#include <optional>
#include <utility>

#include "base/quoted.h"
#include "scheme/expert_names.h"
#include "scheme/kv_scales.h"
#include "scheme/weight_reader.h"

namespace nibble::scheme {
namespace {

using checkpoint::Checkpoint;
using checkpoint::TensorInfo;
using Weights = std::vector<CanonicalWeight>;

const Nvfp4Names& NamesOf(SourceFormat format) {
  return format == SourceFormat::kCompressedTensors ? kCompressedTensorsNames : kModeloptNames;
}

/// Reads the experts of one module.
class ExpertsReader {
 public:
  ExpertsReader(const Checkpoint& checkpoint, const std::string& module, const ModuleScheme& scheme,
                const ExpertNames& names, int experts, CanonicalReport* report)
      : checkpoint_(checkpoint),
        module_(module),
        format_(scheme.source_format),
        names_(names),
        experts_(experts),
        reader_(checkpoint, scheme, report) {}

  /// All experts' gate and up, or only up.
  Result<void> ReadW13(int64_t n, int64_t k, bool gated, CanonicalExperts* out) {
    NIBBLE_TRY(const auto stacked,
               ReadStacked(gated ? "gate_up_proj" : "up_proj", gated ? 2 : 1, n, k));
    if (stacked) return AddW13(*stacked, gated, out);
    for (int e = 0; e < experts_; ++e) {
      if (gated && names_.gate_up_together(e)) {
        WeightStack both = StackOf(e, ExpertNames::kGateUp, n, k);
        both.halves = 2;
        NIBBLE_TRY(const Weights weights, reader_.Read(both));
        NIBBLE_CHECK_OK(AddW13(weights, gated, out));
        continue;
      }
      if (gated) NIBBLE_CHECK_OK(ReadOne(e, ExpertNames::kGate, n, k, &out->gate));
      NIBBLE_CHECK_OK(ReadOne(e, ExpertNames::kUp, n, k, &out->up));
    }
    return {};
  }

  Result<void> ReadDown(int64_t n, int64_t k, Weights* out) {
    NIBBLE_TRY(auto stacked, ReadStacked("down_proj", 1, n, k));
    if (stacked) {
      *out = *std::move(stacked);
      return {};
    }
    for (int e = 0; e < experts_; ++e) {
      NIBBLE_CHECK_OK(ReadOne(e, ExpertNames::kDown, n, k, out));
    }
    return {};
  }

 private:
  static Result<void> AddW13(const Weights& weights, bool gated, CanonicalExperts* out) {
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool is_gate = gated && i % 2 == 0;
      (is_gate ? out->gate : out->up).push_back(weights[i]);
    }
    return {};
  }

  WeightStack StackOf(int expert, ExpertNames::Projection projection, int64_t n, int64_t k) const {
    const std::string_view name = names_.NameOf(expert, projection);
    WeightStack stack;
    stack.name = fmt::format("{}.{}.{}", module_, expert, name);
    stack.nvfp4 = NamesOf(format_);
    stack.place = {module_, expert, std::string(name)};
    stack.n = n;
    stack.k = k;
    return stack;
  }

  Result<void> ReadOne(int expert, ExpertNames::Projection projection, int64_t n, int64_t k,
                       Weights* out) {
    NIBBLE_TRY(Weights one, reader_.Read(StackOf(expert, projection, n, k)));
    out->push_back(std::move(one.front()));
    return {};
  }

  /// A stacked tensor's weights, or nothing when there is no such tensor.
  Result<std::optional<Weights>> ReadStacked(const std::string& projection, int64_t halves,
                                             int64_t n, int64_t k) {
    WeightStack stack;
    stack.name = fmt::format("{}.{}", module_, projection);
    if (!checkpoint_.Find(stack.name)) return std::optional<Weights>();
    if (format_ == SourceFormat::kCompressedTensors) {
      return Error{ErrorCode::kUnsupported,
                   fmt::format("tensor {}: stacked experts are not supported in compressed-tensors",
                               Quoted(stack.name)),
                   Place{module_, -1, projection}.Text(),
                   "expected tensors of each expert and projection"};
    }
    stack.nvfp4 = kStackedNames;
    stack.place = {module_, -1, projection};
    stack.stacked = true;
    stack.count = experts_;
    stack.halves = halves;
    stack.n = n;
    stack.k = k;
    NIBBLE_TRY(Weights weights, reader_.Read(stack));
    return std::optional<Weights>(std::move(weights));
  }

  const Checkpoint& checkpoint_;
  const std::string& module_;
  const SourceFormat format_;
  const ExpertNames& names_;
  const int experts_;
  WeightReader reader_;
};

}  // namespace

Result<CanonicalWeight> ReadLinear(const Checkpoint& checkpoint, const std::string& module,
                                   const ModuleScheme& scheme, int64_t n, int64_t k,
                                   CanonicalReport* report) {
  NIBBLE_CHECK(n > 0 && k > 0, "a linear without rows or columns");
  WeightStack stack;
  stack.name = module;
  stack.nvfp4 = NamesOf(scheme.source_format);
  stack.place = {module, -1, module.substr(module.rfind('.') + 1)};
  stack.n = n;
  stack.k = k;
  NIBBLE_TRY(Weights weights, WeightReader(checkpoint, scheme, report).Read(stack));
  return std::move(weights.front());
}

Result<CanonicalExperts> ReadExperts(const Checkpoint& checkpoint, const std::string& module,
                                     const ModuleScheme& scheme, int experts, int64_t hidden,
                                     int64_t intermediate, bool gated, CanonicalReport* report) {
  NIBBLE_CHECK(experts > 0 && hidden > 0 && intermediate > 0, "experts without weights");
  NIBBLE_TRY(const ExpertNames names, ExpertNames::Find(checkpoint, module, experts));
  ExpertsReader reader(checkpoint, module, scheme, names, experts, report);
  CanonicalExperts result;
  NIBBLE_CHECK_OK(reader.ReadW13(intermediate, hidden, gated, &result));
  NIBBLE_CHECK_OK(reader.ReadDown(hidden, intermediate, &result.down));
  return result;
}

Result<std::vector<std::string>> CheckAllTensorsUsed(const Checkpoint& checkpoint,
                                                     const CanonicalReport& report,
                                                     const PartsRun& parts) {
  const bool kv_scales = parts.kv_cache == KvCacheScheme::kFp8;
  std::vector<std::string> unread;
  const TensorInfo* stray = nullptr;
  size_t strays = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const std::string_view name = tensor.name;
    if (report.used.contains(name)) continue;
    const bool may_be_unread = name.starts_with("model.visual.") || name.starts_with("visual.") ||
                               (!parts.mtp && name.starts_with("mtp.")) ||
                               (!kv_scales && IsKvScaleName(name));
    if (may_be_unread) {
      unread.push_back(tensor.name);
    } else if (strays++ == 0) {
      stray = &tensor;
    }
  }
  if (!stray) return unread;
  const char* hint = IsKvScaleName(stray->name)
                         ? "the KV cache is declared FP8, but no attention layer reads this scale"
                         : "config.json describes another model than these files hold";
  return Error{
      ErrorCode::kCorruptFile,
      fmt::format("tensor {} ({} {}) belongs to no module of this model{}", Quoted(stray->name),
                  checkpoint::NameOf(stray->dtype), checkpoint::ShapeText(stray->shape),
                  strays == 1 ? std::string() : fmt::format(", nor do {} others", strays - 1)),
      checkpoint.FileOf(*stray), hint};
}

}  // namespace nibble::scheme
