#include "weights/expert_scales.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

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
    out->g2_alphas.push_back(experts.down[e].global);
    if (!experts.gated()) {
      out->g1_alphas.push_back(experts.up[e].global);
    } else if (rule == AlphaRule::kPerShard) {
      out->g1_alphas.insert(out->g1_alphas.end(), {experts.gate[e].global, experts.up[e].global});
    } else {
      auto common = FindCommonAlpha(experts.gate[e], experts.up[e]);
      if (!common) return std::move(common).error().At(fmt::format("expert {}", e));
      out->g1_alphas.push_back(common->alpha);
      out->common.push_back(*common);
    }
  }
  return {};
}

// alphas may have more columns than scales, not fewer: one accumulator has one activation scale.
Result<void> Fold(std::string_view name, const std::vector<float>& scales,
                  std::vector<float>* alphas) {
  NIBBLE_CHECK(alphas->size() % scales.size() == 0, "an alpha folds one activation scale");
  const size_t columns = alphas->size() / scales.size();
  for (size_t i = 0; i < alphas->size(); ++i) {
    const float alpha = (*alphas)[i], scale = scales[i / columns];
    (*alphas)[i] = alpha * scale;
    if (std::isnormal((*alphas)[i])) continue;
    return Err(ErrorCode::kUnsupported,
               "{}[{}]: weight scale {} times activation scale {} is outside fp32's normal range",
               name, i, alpha, scale);
  }
  return {};
}

}  // namespace

ExpertScaleRule ExpertScaleRuleOf(Backend backend) {
  switch (backend) {
    case Backend::kReference:
    case Backend::kCpu:
    case Backend::kMarlin:
    case Backend::kHopper:
      break;
    case Backend::kB12x:
      return {AlphaRule::kPerShard, ActivationRule::kPerExpert, false, true};
    case Backend::kCutlass:
      return {AlphaRule::kPerExpert, ActivationRule::kMaxOverExperts, true, false};
  }
  return {};
}

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
  if (w4a4) {
    std::vector<float> a2;
    for (const CanonicalNvfp4& w : down) a2.push_back(*w.input_scale);
    out.a1_scales =
        Widen(InputScalesOfW13(experts), experts.shards(), rule.activation, &out.widened);
    out.a2_scales = Widen(a2, 1, rule.activation, &out.widened);
    if (rule.fold_activation) {
      NIBBLE_CHECK_OK(Fold("g1_alphas", *out.a1_scales, &out.g1_alphas));
      NIBBLE_CHECK_OK(Fold("g2_alphas", *out.a2_scales, &out.g2_alphas));
    }
  }
  if (rule.fc2_input_scale) {
    out.fc2_input_scales = w4a4 ? *out.a2_scales : std::vector<float>(experts.count(), 1.0f);
  }
  return out;
}

}  // namespace nibble::weights
