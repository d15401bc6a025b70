#include "plan/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "layout/cpu_tile.h"
#include "scheme/detect.h"

namespace nibble::plan {
namespace {

using checkpoint::ModuleKind;
using checkpoint::ModuleSpec;
using kernels::Operation;

Operation OperationOf(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kExperts:
      return Operation::kExperts;
    case ModuleKind::kLinear:
    case ModuleKind::kLmHead:
      return Operation::kLinear;
    case ModuleKind::kEmbedding:
    case ModuleKind::kNorm:
    case ModuleKind::kRouter:
      break;
  }
  return Operation::kGlue;
}

/// The backend that a person forced on modules of this scheme. A bare name always binds the quantized experts (it never falls back
/// there), and everything else that the backend could serve on some device.
std::optional<Backend> ForcedFor(const Wishes& wishes, const Need& need) {
  std::optional<Backend> own = wishes.bf16;
  if (need.scheme.weight)
    own = need.scheme.weight->dtype == ScalarType::kU8 ? wishes.nvfp4 : wishes.fp8;
  if (own) return own;
  const bool quantized_experts = need.operation == Operation::kExperts && need.scheme.weight;
  if (wishes.any && (quantized_experts || CanEverServe(*wishes.any, need))) return wishes.any;
  return {};
}

uint64_t PackedWeightBytes(const PlannedModule& m) {
  if (m.kernel->backend != Backend::kCpu || m.kernel->operation == Operation::kGlue) return 0;
  const TileFormat format = m.effective.weight ? TileFormat::kNvfp4 : TileFormat::kBf16;
  const ModuleSpec& s = m.spec;
  if (m.kernel->operation == Operation::kLinear)
    return static_cast<uint64_t>(PackedBytes(format, s.n, s.k));
  return static_cast<uint64_t>(s.experts) *
         static_cast<uint64_t>(2 * PackedBytes(format, s.moe_intermediate, s.k) +
                               PackedBytes(format, s.n, s.moe_intermediate));
}

/// Activations of one batch: the residual and its two temporaries, q|k|v, the dense MLP's halves, the experts' intermediates, logits.
uint64_t WorkspaceBytes(const checkpoint::ModelConfig& c) {
  const int64_t qkv = static_cast<int64_t>(c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
  const int64_t dense = 3 * static_cast<int64_t>(c.intermediate);
  const int64_t experts =
      static_cast<int64_t>(c.top_k) * (3 * static_cast<int64_t>(c.moe_intermediate) + c.hidden);
  return 4 * static_cast<uint64_t>(
                 kMaxBatchTokens * (3 * static_cast<int64_t>(c.hidden) + qkv + dense + experts) +
                 c.vocab);
}

Result<PlannedModule> PlanModule(const ModuleSpec& spec, scheme::ModuleScheme declared,
                                 const DeviceInfo& device, const Wishes& wishes) {
  PlannedModule m;
  m.spec = spec;
  m.declared = std::move(declared);
  m.effective = m.declared.scheme;
  if (wishes.bf16_activations && m.effective.weight == kNvfp4Static) m.effective.activation.reset();
  Need need{OperationOf(spec.kind), m.effective, Activation::kSilu, spec.has_bias};
  if (need.operation == Operation::kGlue && need.scheme != kBf16Scheme) {
    return Err(ErrorCode::kUnsupported,
               "{} \"{}\" is declared {}, but only 16 bits are computed there", NameOf(spec.kind),
               spec.name, PairName(need.scheme))
        .At(m.declared.evidence);
  }
  auto choice = Choose(need, device, ForcedFor(wishes, need));
  if (!choice) return std::move(choice).error().At(spec.name);
  m.kernel = choice->row;
  m.refused = std::move(choice->refused);
  return m;
}

}  // namespace

ActivationPrecision PlannedModule::activation_precision() const {
  if (!effective.activation) return ActivationPrecision::kBf16;
  return effective.activation->dtype == ScalarType::kU8 ? ActivationPrecision::kFp4
                                                        : ActivationPrecision::kFp8;
}

const PlannedModule& Plan::Find(std::string_view name) const {
  for (const PlannedModule& m : modules) {
    if (m.spec.name == name) return m;
  }
  NIBBLE_CHECK(false, "a module that the plan does not know");
}

Result<Plan> MakePlan(const checkpoint::Checkpoint& checkpoint, const DeviceInfo& device,
                      const Wishes& wishes) {
  Plan plan;
  plan.device = device;
  NIBBLE_TRY(plan.model,
             checkpoint::ParseModelConfig(checkpoint.config(), checkpoint.generation_config()));
  NIBBLE_TRY(const scheme::QuantConfig quant,
             scheme::ReadQuantConfig(checkpoint.config(), checkpoint.hf_quant_config()));
  plan.source_format = quant.source_format();
  plan.warnings = quant.warnings();

  std::vector<ModuleSpec> specs = checkpoint::ListModules(plan.model);
  std::vector<scheme::ModuleQuery> queries;
  for (const ModuleSpec& spec : specs) queries.push_back(scheme::QueryOf(spec));
  NIBBLE_TRY(std::vector<scheme::ModuleScheme> schemes, quant.SchemesOf(queries));
  if (plan.model.tie_embeddings) {
    specs.push_back(
        {"lm_head", ModuleKind::kLmHead, -1, plan.model.vocab, plan.model.hidden, 0, 0, false});
    schemes.push_back({kBf16Scheme, SourceFormat::kNone, "config.json: tie_word_embeddings"});
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    NIBBLE_TRY(PlannedModule module, PlanModule(specs[i], std::move(schemes[i]), device, wishes));
    plan.memory.weights += PackedWeightBytes(module);
    if (module.kernel->operation == Operation::kGlue) plan.glue = module.kernel->backend;
    plan.modules.push_back(std::move(module));
  }
  if (wishes.bf16_activations) {
    plan.warnings.push_back(
        "activations are kept in bf16 where the checkpoint says FP4 (--activation-precision bf16)");
  }

  constexpr int64_t kDefaultContext = 32768;
  plan.context =
      wishes.context > 0 ? wishes.context : std::min(plan.model.max_positions, kDefaultContext);
  constexpr uint64_t element = 4;  // fp32 on a CPU
  plan.memory.kv = 2 * element * static_cast<uint64_t>(plan.model.n_layers) *
                   static_cast<uint64_t>(plan.context) *
                   static_cast<uint64_t>(plan.model.n_kv_heads) *
                   static_cast<uint64_t>(plan.model.head_dim);
  plan.memory.workspace = WorkspaceBytes(plan.model);
  return plan;
}

}  // namespace nibble::plan
