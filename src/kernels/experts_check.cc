#include "kernels/experts_check.h"

#include <algorithm>

#include "kernels/catalogue.h"

namespace nibble::kernels {
namespace {

const CatalogueRow* FindRow(std::string_view id) {
  for (const CatalogueRow& row : Catalogue()) {
    if (row.id == id) return &row;
  }
  return nullptr;
}

/// Whether a weight is stored as `key` says, FP8 with its scales shared as that says.
bool IsOf(const std::optional<QuantKey>& key, const PreparedWeight& w) {
  TileFormat format = TileFormat::kBf16;
  GroupShape group;
  if (const auto* packed = std::get_if<PackedMatrix>(&w)) {
    format = packed->format;
    group = packed->group;
  } else {
    const auto& canonical = std::get<CanonicalWeight>(w);
    if (std::holds_alternative<CanonicalNvfp4>(canonical)) format = TileFormat::kNvfp4;
    if (const auto* fp8 = std::get_if<CanonicalFp8>(&canonical)) {
      format = TileFormat::kFp8;
      group = fp8->group;
    }
  }
  if (!key) return format == TileFormat::kBf16;
  if (key->dtype == ScalarType::kU8) return format == TileFormat::kNvfp4;
  return format == TileFormat::kFp8 && group == key->scale.group;
}

Result<void> CheckScheme(const PreparedExperts& e, const CatalogueRow& row) {
  const MoeQuantConfig& q = e.quant;
  if (row.backend != e.backend || row.operation != Operation::kExperts) {
    return Err(ErrorCode::kInternal, "{}: kernel {} is not an expert kernel of backend {}", e.name,
               e.kernel, NameOf(e.backend));
  }
  if (std::find(row.schemes.begin(), row.schemes.end(), q.scheme) == row.schemes.end()) {
    return Err(ErrorCode::kInternal, "{}: kernel {} does not run {} from a {} checkpoint", e.name,
               e.kernel, PairName(q.scheme), NameOf(q.source_format));
  }
  const bool fp4 = q.scheme.activation && q.scheme.activation->dtype == ScalarType::kU8;
  if (fp4 != q.a1_gscale.has_value() || fp4 != q.a2_gscale.has_value()) {
    return Err(ErrorCode::kInternal,
               "{}: activation_precision {} with source_format {}, which declares {}", e.name,
               NameOf(q.activation_precision()), NameOf(q.source_format), ShortName(q.scheme));
  }
  const bool static_fp8 = q.scheme.activation && q.scheme.activation->scale.is_static;
  if (static_fp8 != q.a1_scale.has_value() || static_fp8 != q.a2_scale.has_value()) {
    return Err(ErrorCode::kInternal, "{}: {} static activation scales under {}", e.name,
               q.a1_scale || q.a2_scale ? "there are" : "there are no", PairName(q.scheme));
  }
  if (q.scheme.weight.has_value() == (q.source_format == SourceFormat::kNone)) {
    return Err(ErrorCode::kInternal, "{}: scheme {} with source_format {}", e.name,
               ShortName(q.scheme), NameOf(q.source_format));
  }
  return {};
}

Result<void> CheckCounts(const PreparedExperts& e) {
  const MoeQuantConfig& q = e.quant;
  const size_t n = static_cast<size_t>(e.n_experts), shards = static_cast<size_t>(q.w13_shards);
  const bool gated = e.activation != Activation::kRelu2NoMul;
  const bool nvfp4 = q.scheme.weight && q.scheme.weight->dtype == ScalarType::kU8;
  const ExpertScaleRule rule = ExpertScaleRuleOf(e.backend);
  const size_t alphas = n * static_cast<size_t>(rule.alpha_columns(q.w13_shards));
  const size_t gscales = n * static_cast<size_t>(rule.activation_columns(q.w13_shards));
  const bool counts = shards == (gated ? 2u : 1u) && q.g2_alphas.size() == n &&
                      q.g1_alphas.size() == (nvfp4 ? alphas : n * shards) &&
                      (!q.a1_gscale || q.a1_gscale->size() == gscales) &&
                      (!q.a2_gscale || q.a2_gscale->size() == n) &&
                      (!q.a1_scale || q.a1_scale->size() == n * shards) &&
                      (!q.a2_scale || q.a2_scale->size() == n) &&
                      e.gate.size() == (gated ? n : 0u) && e.up.size() == n && e.down.size() == n;
  if (counts) return {};
  return Err(ErrorCode::kInternal, "{}: weights and scales do not count {} experts", e.name, n);
}

}  // namespace

Result<void> CheckExperts(const PreparedExperts& e) {
  const CatalogueRow* row = FindRow(e.kernel);
  if (row == nullptr)
    return Err(ErrorCode::kInternal, "{}: kernel {} is not in the catalogue", e.name, e.kernel);
  NIBBLE_CHECK_OK(CheckScheme(e, *row));
  NIBBLE_CHECK_OK(CheckCounts(e));
  for (const auto* list : {&e.gate, &e.up, &e.down}) {
    for (const PreparedWeight& w : *list) {
      if (!IsOf(e.quant.scheme.weight, w)) {
        return Err(ErrorCode::kInternal, "{}: kernel {} was given weights of another type than {}",
                   e.name, e.kernel, PairName(e.quant.scheme));
      }
    }
  }
  return {};
}

}  // namespace nibble::kernels
