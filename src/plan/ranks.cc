#include "plan/ranks.h"

#include <algorithm>
#include <string_view>

namespace nibble::plan {
namespace {

using checkpoint::ModuleKind;
using checkpoint::ModuleSpec;

int64_t Part(int64_t whole, int ranks) { return (whole + ranks - 1) / ranks; }

bool EndsWithAny(std::string_view name, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(),
                     [&](std::string_view end) { return name.ends_with(end); });
}

Result<void> CheckHeads(std::string_view what, int64_t heads, int tp) {
  if (heads % tp == 0) return {};
  return Err(ErrorCode::kUnsupported, "{} {} heads cannot be shared by {} tensor parallel ranks",
             heads, what, tp);
}

}  // namespace

Split SplitOf(const ModuleSpec& spec) {
  if (spec.kind == ModuleKind::kLmHead) return Split::kPadded;
  if (spec.kind != ModuleKind::kLinear) return Split::kNone;
  return EndsWithAny(spec.name, {".o_proj", ".down_proj", ".out_proj"}) ? Split::kInput
                                                                        : Split::kOutput;
}

Result<void> CheckRanks(const checkpoint::ModelConfig& model, const Ranks& ranks) {
  if (ranks.tp < 1 || ranks.ep < 1) {
    return Err(ErrorCode::kInvalidArgument,
               "tensor parallel size {} and expert parallel size {}, expected at least 1 each",
               ranks.tp, ranks.ep);
  }
  NIBBLE_CHECK_OK(CheckHeads("query", model.n_heads, ranks.tp));
  if (ranks.tp % model.n_kv_heads != 0) {
    NIBBLE_CHECK_OK(CheckHeads("key-value", model.n_kv_heads, ranks.tp));
  }
  NIBBLE_CHECK_OK(CheckHeads("recurrent key", model.delta_k_heads, ranks.tp));
  return CheckHeads("recurrent value", model.delta_v_heads, ranks.tp);
}

ModuleSpec ShareOf(const ModuleSpec& spec, const checkpoint::ModelConfig& model,
                   const Ranks& ranks) {
  ModuleSpec share = spec;
  if (spec.kind == ModuleKind::kExperts) {
    share.experts = static_cast<int>(Part(spec.experts, ranks.ep));
    share.moe_intermediate = Part(spec.moe_intermediate, ranks.tp);
    return share;
  }
  switch (SplitOf(spec)) {
    case Split::kNone:
      break;
    case Split::kInput:
      share.k = Part(spec.k, ranks.tp);
      break;
    case Split::kOutput:
    case Split::kPadded:
      share.n = Part(spec.n, ranks.tp);
      break;
  }
  if (EndsWithAny(spec.name, {".self_attn.k_proj", ".self_attn.v_proj"}))
    share.n = KvHeadsOf(model, ranks) * model.head_dim;
  return share;
}

int64_t KvHeadsOf(const checkpoint::ModelConfig& model, const Ranks& ranks) {
  return Part(model.n_kv_heads, ranks.tp);
}

}  // namespace nibble::plan
