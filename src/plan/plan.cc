#include "plan/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "layout/cpu_tile.h"
#include "layout/hopper_tile.h"
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
    case ModuleKind::kConv:
      break;
  }
  return Operation::kGlue;
}

Ranks RanksOf(const Wishes& wishes) { return {wishes.tp_size, wishes.ep_size}; }

/// What every module of a plan is planned for.
struct Deployment {
  const checkpoint::ModelConfig& model;
  const DeviceInfo& device;
  const Wishes& wishes;
  // wishes.any has kernels for the weights of some of the quantized experts.
  bool any_serves_experts = false;
};

/// The backend that a person forced on modules of this scheme. A bare name binds the quantized
/// experts whose weights it has kernels for, whatever their activations (it never falls back
/// there), or all of them where it has kernels for none: the refusal must be said. Elsewhere it
/// binds what the backend could serve on some device.
std::optional<Backend> ForcedFor(const Deployment& to, const Need& need) {
  std::optional<Backend> own = to.wishes.bf16;
  if (need.scheme.weight)
    own = need.scheme.weight->dtype == ScalarType::kU8 ? to.wishes.nvfp4 : to.wishes.fp8;
  // Few backends have norms and attention of their own: bf16=hopper is about weights.
  if (own && (need.operation != Operation::kGlue || CanEverServe(*own, need))) return own;
  const std::optional<Backend> any = to.wishes.any;
  if (!any) return {};
  const bool quantized_experts = need.operation == Operation::kExperts && need.scheme.weight;
  const bool binds = quantized_experts ? !to.any_serves_experts || CanEverServeWeight(*any, need)
                                       : CanEverServe(*any, need);
  return binds ? any : std::nullopt;
}

/// Bytes of a [n,k] weight: held as the module's kernel wants them, and read from the file's pages.
struct WeightBytes {
  uint64_t held = 0, mapped = 0;
};

/// HOPPER's and MARLIN's kernels read one packed form.
bool ReadsHopperTiles(const PlannedModule& m) {
  return m.kernel->backend == Backend::kHopper || m.kernel->backend == Backend::kMarlin;
}

HopperFormat HopperFormatOf(const PlannedModule& m) {
  if (!m.effective.weight) return HopperFormat::kBf16;
  return m.effective.weight->dtype == ScalarType::kU8 ? HopperFormat::kNvfp4 : HopperFormat::kFp8;
}

WeightBytes MatrixBytes(const PlannedModule& m, bool map_weights, int64_t n, int64_t k) {
  const bool nvfp4 = m.effective.weight && m.effective.weight->dtype == ScalarType::kU8;
  const uint64_t elements = static_cast<uint64_t>(n) * static_cast<uint64_t>(k);
  const uint64_t in_file = nvfp4 ? elements * 9 / 16 : m.effective.weight ? elements : 2 * elements;
  if (m.kernel->backend == Backend::kReference) return {0, in_file};
  const bool fp8 = m.effective.weight && !nvfp4;
  const GroupShape group = fp8 ? m.effective.weight->scale.group : GroupShape{};
  if (ReadsHopperTiles(m)) {
    return {
        static_cast<uint64_t>(HopperLinearBytes(HopperFormatOf(m), n, k) + ScaleBytes(group, n, k)),
        0};
  }
  if (m.kernel->backend != Backend::kCpu) return {in_file, 0};
  if (map_weights) return {static_cast<uint64_t>(ScaleBytes(group, n, k)), in_file};
  const TileFormat format = fp8 ? TileFormat::kFp8 : nvfp4 ? TileFormat::kNvfp4 : TileFormat::kBf16;
  return {static_cast<uint64_t>(PackedBytes(format, n, k, group)), 0};
}

/// Of one rank.
WeightBytes PreparedWeightBytes(const PlannedModule& m, const Deployment& to) {
  const ModuleSpec s = ShareOf(m.spec, to.model, RanksOf(to.wishes));
  switch (m.kernel->operation) {
    case Operation::kLinear:
      return MatrixBytes(m, to.wishes.map_weights, s.n, s.k);
    case Operation::kExperts: {
      const auto experts = static_cast<uint64_t>(s.experts);
      if (ReadsHopperTiles(m)) {
        const HopperFormat format = HopperFormatOf(m);
        int64_t bytes = HopperW13Layout(s.k, s.moe_intermediate).bytes(format) +
                        HopperW2Layout(s.n, s.moe_intermediate).bytes(format);
        if (format == HopperFormat::kFp8) {
          const GroupShape group = m.effective.weight->scale.group;
          bytes += 2 * ScaleBytes(group, s.moe_intermediate, s.k) +
                   ScaleBytes(group, s.n, s.moe_intermediate);
        }
        return {experts * static_cast<uint64_t>(bytes), 0};
      }
      const WeightBytes half = MatrixBytes(m, to.wishes.map_weights, s.moe_intermediate, s.k);
      const WeightBytes down = MatrixBytes(m, to.wishes.map_weights, s.n, s.moe_intermediate);
      return {experts * (2 * half.held + down.held), experts * (2 * half.mapped + down.mapped)};
    }
    case Operation::kGlue:
      if (to.device.kind == DeviceKind::kCpu) break;  // where it stays in the file
      if (s.kind == ModuleKind::kEmbedding || s.kind == ModuleKind::kRouter)
        return {2 * static_cast<uint64_t>(s.n) * static_cast<uint64_t>(s.k), 0};
      break;
  }
  return {};
}

/// Activations of one batch: the residual and its two temporaries, the widest mixer's, the dense or
/// shared MLP's halves, the experts' x and h, logits.
uint64_t WorkspaceBytes(const checkpoint::ModelConfig& c, DeviceKind device, int64_t context) {
  const int64_t rows = std::min(MaxBatchTokens(device), context);
  const int64_t queries = static_cast<int64_t>(c.n_heads) * c.head_dim;
  const int64_t attention =
      queries * (c.attention_gate ? 3 : 2) + 2 * static_cast<int64_t>(c.n_kv_heads) * c.head_dim;
  const int64_t values = static_cast<int64_t>(c.delta_v_heads) * c.delta_v_dim;
  const int64_t delta = 2 * c.DeltaChannels() + 3 * values;
  const int64_t dense = 3 * static_cast<int64_t>(std::max(c.intermediate, c.shared_intermediate));
  const int64_t experts = c.hidden + 2 * static_cast<int64_t>(c.top_k) * c.moe_intermediate;
  return 4 * static_cast<uint64_t>(
                 rows * (3 * static_cast<int64_t>(c.hidden) + attention + delta + dense + experts) +
                 c.vocab);
}

/// Keys and values of one rank in the layers that have a cache, the MTP module's own among them.
uint64_t KvBytes(const Plan& plan, const Ranks& ranks) {
  const checkpoint::ModelConfig& c = plan.model;
  const int layers = c.LayersOf(checkpoint::Mixer::kAttention) + (plan.draft_tokens > 0 ? 1 : 0);
  return static_cast<uint64_t>(KvBytes(plan.kv_dtype) * layers * plan.sequences) *
         static_cast<uint64_t>(plan.context) * static_cast<uint64_t>(KvHeadsOf(c, ranks)) *
         static_cast<uint64_t>(c.head_dim);
}

/// One sequence's recurrent state, fp32, and what its convolutions remember.
uint64_t StateBytes(const checkpoint::ModelConfig& c) {
  const int64_t layers = c.LayersOf(checkpoint::Mixer::kDeltaNet);
  if (layers == 0) return 0;
  const int64_t state = static_cast<int64_t>(c.delta_v_heads) * c.delta_v_dim * c.delta_k_dim;
  return 4 * static_cast<uint64_t>(layers * (state + (c.delta_conv - 1) * c.DeltaChannels()));
}

/// What a CPU alone can be asked for.
Result<void> CheckDeviceWishes(const DeviceInfo& device, const Wishes& wishes) {
  if (device.kind == DeviceKind::kCpu) return {};
  if (wishes.batch_invariant) {
    return Err(
        ErrorCode::kUnsupported,
        "--batch-invariant on {}: kernels of few and of many tokens round differently there, "
        "expected a CPU",
        device.name);
  }
  if (wishes.map_weights) {
    return Err(ErrorCode::kUnsupported,
               "--no-repack on {}: weights go to its memory, expected a CPU", device.name);
  }
  if (wishes.kv_dtype == KvDtype::kF32) {
    return Err(ErrorCode::kUnsupported,
               "--kv-cache-dtype f32 on {}: expected bf16 or fp8 there, or a CPU", device.name);
  }
  return {};
}

Result<void> PlanSpeculation(const Wishes& wishes, Plan* plan) {
  plan->draft_tokens = wishes.draft_tokens;
  if (wishes.draft_tokens == 0) return {};
  const checkpoint::ModelConfig& c = plan->model;
  constexpr int kCudaDraftTokens = 7;  // with the token before them, what a decode launch takes
  if (plan->device.kind == DeviceKind::kCuda && wishes.draft_tokens > kCudaDraftTokens) {
    return Err(ErrorCode::kUnsupported, "{} draft tokens a step on a GPU, expected at most {}",
               wishes.draft_tokens, kCudaDraftTokens);
  }
  if (c.mtp_layers == 1 && !c.mtp_own_embeddings) return {};
  Error error = Err(ErrorCode::kUnsupported,
                    "speculation by MTP: the model has {} MTP layers{}, expected 1{}", c.mtp_layers,
                    c.mtp_own_embeddings ? " with embeddings of their own" : "",
                    c.mtp_own_embeddings ? " that shares the model's" : "");
  error.hint = "leave --spec out";
  return error;
}

/// A cache holds what a person asked for or the checkpoint declares; else what attention multiplies:
/// bf16 on a GPU, fp32 on a CPU. A CPU that multiplies bf16 keeps values so, whose rounding is
/// averaged over positions, but not keys, whose rounding goes into an exponential (it doubles the
/// distance to the float32 reference); and not where attention's output becomes FP4, of which a
/// rounding before turns codes that the label's own arithmetic does not.
void PlanKvCache(const Wishes& wishes, const scheme::QuantConfig& quant, Plan* plan) {
  const auto to_fp4 = [](const PlannedModule& m) {
    return m.activation_precision() == ActivationPrecision::kFp4;
  };
  if (wishes.kv_dtype) {
    plan->kv_dtype = *wishes.kv_dtype;
    plan->kv_evidence = "--kv-cache-dtype";
  } else if (quant.kv_cache() == scheme::KvCacheScheme::kFp8) {
    plan->kv_dtype = KvDtype::kFp8;
    plan->kv_evidence = quant.kv_cache_evidence();
  } else {
    const bool values_in_bf16 = plan->glue == Backend::kCpu &&
                                plan->device.isa == CpuIsa::kAvx512Bf16 &&
                                std::none_of(plan->modules.begin(), plan->modules.end(), to_fp4);
    plan->kv_dtype = plan->device.kind != DeviceKind::kCpu ? KvDtype::kBf16
                     : values_in_bf16                      ? KvDtype::kF32Bf16
                                                           : KvDtype::kF32;
    plan->kv_evidence = "the device's default";
  }
}

Need NeedOf(const ModuleSpec& spec, const QuantScheme& scheme, const checkpoint::ModelConfig& model,
            const Wishes& wishes) {
  Need need;
  need.operation = OperationOf(spec.kind);
  need.scheme = scheme;
  need.bias = spec.has_bias;
  if (need.operation == Operation::kGlue) return need;
  need.input = spec.k;
  need.output = spec.n;
  need.split = SplitOf(spec);
  need.tp_size = wishes.tp_size;
  if (need.operation == Operation::kExperts) {
    need.experts = spec.experts;
    need.intermediate = spec.moe_intermediate;
    need.top_k = model.top_k;
    need.ep_size = wishes.ep_size;
  }
  return need;
}

Result<PlannedModule> PlanModule(const ModuleSpec& spec, scheme::ModuleScheme declared,
                                 const Deployment& to) {
  PlannedModule m;
  m.spec = spec;
  m.declared = std::move(declared);
  m.effective = m.declared.scheme;
  if (to.wishes.bf16_activations && m.effective.weight == kNvfp4Static)
    m.effective.activation.reset();
  const Need need = NeedOf(spec, m.effective, to.model, to.wishes);
  if (need.operation == Operation::kGlue && need.scheme != kBf16Scheme) {
    return Err(ErrorCode::kUnsupported,
               "{} \"{}\" is declared {}, but only 16 bits are computed there", NameOf(spec.kind),
               spec.name, PairName(need.scheme))
        .At(m.declared.evidence);
  }
  std::optional<Backend> forced = ForcedFor(to, need);
  const bool draft = spec.name.starts_with("mtp.") && need.operation != Operation::kGlue;
  if (draft && to.wishes.draft) forced = to.wishes.draft;
  auto choice = Choose(need, to.device, forced);
  if (!choice) return std::move(choice).error().At(spec.name);
  m.kernel = choice->row;
  m.refused = std::move(choice->refused);
  return m;
}

/// A backend that was asked for by name and runs nothing: upstream refuses such a name where
/// experts are in 16 bits (its "moe_backend='…' is not supported for unquantized MoE"); here what
/// the name cannot serve is left to others, and that must be seen.
void WarnOfUnbound(const Wishes& wishes, Plan* plan) {
  const auto runs = [&](Backend backend, auto&& where) {
    return std::any_of(plan->modules.begin(), plan->modules.end(), [&](const PlannedModule& m) {
      return m.kernel->backend == backend && where(m);
    });
  };
  const auto warn = [&](std::string_view name, Backend backend, std::string_view why) {
    plan->warnings.push_back(
        fmt::format("--moe-backend {}{} binds nothing: {}", name, NameOf(backend), why));
  };
  const auto experts = [](const PlannedModule& m) { return m.spec.kind == ModuleKind::kExperts; };
  const auto first = std::find_if(plan->modules.begin(), plan->modules.end(), experts);
  if (wishes.any && !wishes.bf16 && first != plan->modules.end() && !runs(*wishes.any, experts)) {
    warn("", *wishes.any,
         fmt::format("moe_backend='{}' is not supported for unquantized MoE, which {} runs",
                     NameOf(*wishes.any), first->kernel->id));
  }
  const auto holds = [](std::optional<ScalarType> type) {
    return [type](const PlannedModule& m) {
      const auto& key = m.declared.scheme.weight;
      return key ? key->dtype == type : !type;
    };
  };
  const struct {
    const char *name, *modules;
    std::optional<Backend> backend;
    std::optional<ScalarType> type;
  } slots[] = {{"nvfp4=", "NVFP4", wishes.nvfp4, ScalarType::kU8},
               {"fp8=", "FP8", wishes.fp8, ScalarType::kF8E4M3},
               {"bf16=", "16-bit", wishes.bf16, {}}};
  for (const auto& slot : slots) {
    if (!slot.backend || runs(*slot.backend, holds(slot.type))) continue;
    warn(slot.name, *slot.backend, fmt::format("the checkpoint has no {} module", slot.modules));
  }
  if (wishes.draft && plan->draft_tokens == 0)
    warn("draft=", *wishes.draft, "nothing drafts (--spec mtp:K)");
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
  plan.batch_invariant = wishes.batch_invariant;
  plan.map_weights = wishes.map_weights;
  NIBBLE_TRY(plan.model,
             checkpoint::ParseModelConfig(checkpoint.config(), checkpoint.generation_config()));
  plan.model.prefix = checkpoint::ResolvePrefix(plan.model, checkpoint);
  NIBBLE_CHECK_OK(CheckRanks(plan.model, RanksOf(wishes)));
  NIBBLE_CHECK_OK(CheckDeviceWishes(device, wishes));
  NIBBLE_CHECK_OK(PlanSpeculation(wishes, &plan));
  NIBBLE_TRY(const scheme::QuantConfig quant,
             scheme::ReadQuantConfig(checkpoint.config(), checkpoint.hf_quant_config()));
  plan.source_format = quant.source_format();
  plan.warnings = quant.warnings();

  std::vector<ModuleSpec> specs = checkpoint::ListModules(plan.model, plan.draft_tokens > 0);
  std::vector<scheme::ModuleQuery> queries;
  for (const ModuleSpec& spec : specs) queries.push_back(scheme::QueryOf(spec));
  NIBBLE_TRY(std::vector<scheme::ModuleScheme> schemes, quant.SchemesOf(queries));
  if (plan.model.tie_embeddings) {
    specs.push_back(
        {"lm_head", ModuleKind::kLmHead, -1, plan.model.vocab, plan.model.hidden, 0, 0, false});
    schemes.push_back({kBf16Scheme, SourceFormat::kNone, "config.json: tie_word_embeddings"});
  }
  Deployment to{plan.model, device, wishes};
  for (size_t i = 0; wishes.any && i < specs.size(); ++i) {
    const Need need = NeedOf(specs[i], schemes[i].scheme, plan.model, wishes);
    to.any_serves_experts |= need.operation == Operation::kExperts && need.scheme.weight &&
                             CanEverServeWeight(*wishes.any, need);
  }
  // Experts are planned first: where several modules fit nowhere, their refusal is the one that
  // matters.
  plan.modules.resize(specs.size());
  for (const Operation operation : {Operation::kExperts, Operation::kLinear, Operation::kGlue}) {
    for (size_t i = 0; i < specs.size(); ++i) {
      if (OperationOf(specs[i].kind) != operation) continue;
      NIBBLE_TRY(plan.modules[i], PlanModule(specs[i], std::move(schemes[i]), to));
      const WeightBytes bytes = PreparedWeightBytes(plan.modules[i], to);
      plan.memory.weights += bytes.held;
      plan.memory.mapped += bytes.mapped;
      if (operation == Operation::kGlue) plan.glue = plan.modules[i].kernel->backend;
    }
  }
  const auto raised = [](const PlannedModule& m) { return m.effective != m.declared.scheme; };
  if (std::any_of(plan.modules.begin(), plan.modules.end(), raised)) {
    plan.warnings.push_back(
        "activations are kept in bf16 where the checkpoint says FP4 (--activation-precision bf16)");
  }

  WarnOfUnbound(wishes, &plan);

  constexpr int64_t kDefaultContext = 32768;
  plan.context =
      wishes.context > 0 ? wishes.context : std::min(plan.model.max_positions, kDefaultContext);
  plan.sequences = wishes.sequences;
  PlanKvCache(wishes, quant, &plan);
  plan.memory.kv = KvBytes(plan, RanksOf(wishes));
  plan.memory.state = StateBytes(plan.model) * static_cast<uint64_t>(plan.sequences);
  plan.memory.workspace = WorkspaceBytes(plan.model, device.kind, plan.context);
  return plan;
}

}  // namespace nibble::plan
