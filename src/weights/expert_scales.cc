#include "weights/expert_scales.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "numerics/nvfp4.h"

namespace nibble::weights {
namespace {

struct Experts {
  std::span<const CanonicalNvfp4> gate, up, down;

  bool gated() const { return !gate.empty(); }
  size_t count() const { return down.size(); }
  size_t shards() const { return gated() ? 2 : 1; }
};

/// Does the layer carry activation scales? All of its projections do, or none.
Result<bool> HasActivationScales(const Experts& experts) {
  const bool expected = experts.down[0].input_scale.has_value();
  const std::pair<const char*, std::span<const CanonicalNvfp4>> projections[] = {
      {"gate", experts.gate}, {"up", experts.up}, {"down", experts.down}};
  for (const auto& [name, weights] : projections) {
    for (size_t e = 0; e < weights.size(); ++e) {
      if (weights[e].input_scale.has_value() == expected) continue;
      return Err(
          ErrorCode::kInvalidArgument,
          "expert {}'s {} projection has {} activation scale, expert 0's down projection {}: "
          "W4A4 needs all of them, W4A16 has none",
          e, name, expected ? "no" : "an", expected ? "has one" : "has none");
    }
  }
  return expected;
}

/// [E, shards], the canonical numbers.
std::vector<float> InputScalesOfW13(const Experts& experts) {
  std::vector<float> scales;
  for (size_t e = 0; e < experts.count(); ++e) {
    if (experts.gated()) scales.push_back(*experts.gate[e].input_scale);
    scales.push_back(*experts.up[e].input_scale);
  }
  return scales;
}

/// What kernels quantize by instead of `own`, [E, columns], under `rule`: [E, columns] or [E].
std::vector<float> Widen(const std::vector<float>& own, size_t columns, ActivationRule rule,
                         int64_t* widened) {
  if (rule == ActivationRule::kPerShard) return own;
  std::vector<float> out;
  for (auto row = own.begin(); row != own.end(); row += static_cast<ptrdiff_t>(columns)) {
    out.push_back(*std::max_element(row, row + static_cast<ptrdiff_t>(columns)));
  }
  if (rule == ActivationRule::kMaxOverExperts) {
    out.assign(out.size(), *std::max_element(out.begin(), out.end()));
  }
  for (size_t i = 0; i < own.size(); ++i) *widened += out[i / columns] > own[i];
  return out;
}

Result<void> AddAlphas(AlphaRule rule, const Experts& experts, ExpertScales* out) {
  for (size_t e = 0; e < experts.count(); ++e) {
    out->w2_scale_2.push_back(experts.down[e].global);
    if (!experts.gated()) {
      out->w13_scale_2.push_back(experts.up[e].global);
    } else if (rule == AlphaRule::kPerShard) {
      out->w13_scale_2.insert(out->w13_scale_2.end(),
                              {experts.gate[e].global, experts.up[e].global});
    } else {
      auto common = FindCommonAlpha(experts.gate[e], experts.up[e]);
      if (!common) return std::move(common).error().At(fmt::format("expert {}", e));
      out->w13_scale_2.push_back(common->alpha);
      out->common.push_back(*common);
    }
  }
  return {};
}

plan::ExpertScalars Scalars(const std::vector<float>& values, int64_t experts) {
  return {values, experts, static_cast<int>(static_cast<int64_t>(values.size()) / experts)};
}

std::optional<plan::ExpertScalars> Scalars(const std::optional<std::vector<float>>& values,
                                           int64_t experts) {
  if (!values) return {};
  return Scalars(*values, experts);
}

template <class Weight>
std::vector<Weight> All(std::span<const CanonicalWeight> weights) {
  std::vector<Weight> out;
  for (const CanonicalWeight& w : weights) out.push_back(std::get<Weight>(w));
  return out;
}

/// One number a projection, gate before up; absent where `of` gives none for any of them.
template <class Of>
std::optional<std::vector<float>> Gather(std::span<const CanonicalWeight> first,
                                         std::span<const CanonicalWeight> second, size_t experts,
                                         Of of) {
  std::vector<float> out;
  for (size_t e = 0; e < experts; ++e) {
    for (const std::span<const CanonicalWeight> half : {first, second}) {
      if (half.empty()) continue;
      const std::optional<float> value = of(std::get<CanonicalFp8>(half[e]));
      if (value) out.push_back(*value);
    }
  }
  if (out.empty()) return {};
  return out;
}

Result<ExpertQuant> Nvfp4Quant(Backend backend, SourceFormat source_format,
                               std::span<const CanonicalWeight> gate,
                               std::span<const CanonicalWeight> up,
                               std::span<const CanonicalWeight> down,
                               const plan::SwigluParameters& swiglu) {
  const ExpertScaleRule rule = ExpertScaleRuleOf(backend);
  NIBBLE_TRY(ExpertScales scales,
             MakeExpertScales(rule, All<CanonicalNvfp4>(gate), All<CanonicalNvfp4>(up),
                              All<CanonicalNvfp4>(down)));
  const auto experts = static_cast<int64_t>(down.size());
  const int shards = gate.empty() ? 1 : 2;
  const int64_t intermediate = RowsOf(up[0]), hidden = ColumnsOf(up[0]);
  const ExpertBlockScales w13 = {experts, shards * intermediate, hidden / kNvfp4Group, shards,
                                 rule.block_scales};
  const ExpertBlockScales w2 = {experts, hidden, intermediate / kNvfp4Group, 1, rule.block_scales};
  NIBBLE_TRY(MoeQuantConfig config,
             plan::MakeNvfp4MoeQuantConfig(
                 backend, w13, w2, Scalars(scales.w13_scale_2, experts),
                 Scalars(scales.w2_scale_2, experts), Scalars(scales.a13_scale, experts),
                 Scalars(scales.a2_scale, experts), source_format, swiglu));
  return ExpertQuant{std::move(config), std::move(scales.common), scales.widened};
}

Result<ExpertQuant> Fp8Quant(const QuantScheme& scheme, SourceFormat source_format,
                             std::span<const CanonicalWeight> gate,
                             std::span<const CanonicalWeight> up,
                             std::span<const CanonicalWeight> down,
                             const plan::SwigluParameters& swiglu) {
  const auto experts = static_cast<int64_t>(down.size());
  const auto weight_scale = [](const CanonicalFp8& w) {
    return w.group == GroupShape::PerTensor() ? std::optional(w.scales[0]) : std::nullopt;
  };
  const auto input_scale = [](const CanonicalFp8& w) { return w.input_scale; };
  const auto w13 = Gather(gate, up, down.size(), weight_scale);
  const auto w2 = Gather(down, {}, down.size(), weight_scale);
  const auto a13 = Gather(gate, up, down.size(), input_scale);
  const auto a2 = Gather(down, {}, down.size(), input_scale);
  const int shards = gate.empty() ? 1 : 2;
  NIBBLE_TRY(MoeQuantConfig config,
             plan::MakeFp8MoeQuantConfig(scheme, experts, shards, Scalars(w13, experts),
                                         Scalars(w2, experts), Scalars(a13, experts),
                                         Scalars(a2, experts), source_format, swiglu));
  return ExpertQuant{std::move(config), {}, 0};
}

}  // namespace

Result<ExpertScales> MakeExpertScales(const ExpertScaleRule& rule,
                                      std::span<const CanonicalNvfp4> gate,
                                      std::span<const CanonicalNvfp4> up,
                                      std::span<const CanonicalNvfp4> down) {
  const Experts experts{gate, up, down};
  NIBBLE_CHECK(
      !down.empty() && up.size() == down.size() && (gate.empty() || gate.size() == down.size()),
      "a layer has as many gate, up and down projections as experts");
  ExpertScales out;
  NIBBLE_CHECK_OK(AddAlphas(rule.alpha, experts, &out));
  NIBBLE_TRY(const bool w4a4, HasActivationScales(experts));
  if (!w4a4) return out;
  std::vector<float> a2;
  for (const CanonicalNvfp4& w : down) a2.push_back(*w.input_scale);
  out.a13_scale = Widen(InputScalesOfW13(experts), experts.shards(), rule.activation, &out.widened);
  out.a2_scale = Widen(a2, 1, rule.activation, &out.widened);
  return out;
}

Result<ExpertQuant> MakeExpertQuant(Backend backend, const QuantScheme& scheme,
                                    SourceFormat source_format,
                                    std::span<const CanonicalWeight> gate,
                                    std::span<const CanonicalWeight> up,
                                    std::span<const CanonicalWeight> down,
                                    const plan::SwigluParameters& swiglu) {
  if (!scheme.weight) {
    return ExpertQuant{plan::MakeBf16MoeQuantConfig(static_cast<int64_t>(down.size()),
                                                    gate.empty() ? 1 : 2, swiglu),
                       {},
                       0};
  }
  if (scheme.weight->dtype == ScalarType::kF8E4M3) {
    return Fp8Quant(scheme, source_format, gate, up, down, swiglu);
  }
  NIBBLE_TRY(ExpertQuant quant, Nvfp4Quant(backend, source_format, gate, up, down, swiglu));
  if (quant.config.scheme == scheme) return quant;
  return Err(ErrorCode::kInvalidArgument,
             "the activation scales of the weights make {}, declared is {}",
             PairName(quant.config.scheme), PairName(scheme));
}

}  // namespace nibble::weights
