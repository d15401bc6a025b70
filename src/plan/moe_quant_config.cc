#include "plan/moe_quant_config.h"

#include <algorithm>
#include <cmath>
#include <string_view>

namespace nibble::plan {
namespace {

enum class Zero : uint8_t { kRefused, kAllowed };

Result<void> CheckScalars(std::string_view name, const ExpertScalars& scalars, int64_t experts,
                          int columns, Zero zero = Zero::kRefused) {
  if (scalars.experts != experts || scalars.columns != columns ||
      scalars.values.size() != static_cast<size_t>(experts * columns)) {
    return Err(ErrorCode::kInvalidArgument, "{} is [{}, {}] of {} values, expected [{}, {}]", name,
               scalars.experts, scalars.columns, scalars.values.size(), experts, columns);
  }
  for (size_t i = 0; i < scalars.values.size(); ++i) {
    const float value = scalars.values[i];
    if (std::isfinite(value) && (value > 0 || (value == 0 && zero == Zero::kAllowed))) continue;
    return Err(ErrorCode::kInvalidArgument, "{}[{}] is {}, expected a finite number {} 0", name, i,
               value, zero == Zero::kAllowed ? "not below" : "above");
  }
  return {};
}

Result<void> CheckLayout(std::string_view name, Backend backend, const ExpertBlockScales& scales) {
  const BlockScaleLayout wanted = ExpertScaleRuleOf(backend).block_scales;
  if (scales.layout == wanted) return {};
  return Err(ErrorCode::kInvalidArgument, "{} is {}, backend '{}' reads {}", name,
             NameOf(scales.layout), NameOf(backend), NameOf(wanted));
}

Result<void> CheckBlockScales(Backend backend, const ExpertBlockScales& w13,
                              const ExpertBlockScales& w2) {
  NIBBLE_CHECK_OK(CheckLayout("w13_scale", backend, w13));
  NIBBLE_CHECK_OK(CheckLayout("w2_scale", backend, w2));
  const bool shards = (w13.shards == 1 || w13.shards == 2) && w2.shards == 1;
  if (shards && w13.experts > 0 && w13.experts == w2.experts && w13.rows > 0 &&
      w13.rows == w13.shards * 16 * w2.groups && w2.rows == 16 * w13.groups) {
    return {};
  }
  return Err(ErrorCode::kInvalidArgument,
             "w13_scale [{}, {}, {}] of {} shards and w2_scale [{}, {}, {}] are not those of the "
             "same experts: expected [E, shards * I, H/16] and [E, H, I/16]",
             w13.experts, w13.rows, w13.groups, w13.shards, w2.experts, w2.rows, w2.groups);
}

Result<void> CheckBothOrNeither(std::string_view whose, const std::optional<ExpertScalars>& a13,
                                const std::optional<ExpertScalars>& a2) {
  if (a13.has_value() == a2.has_value()) return {};
  return Err(ErrorCode::kInvalidArgument,
             "{} was given {} without {}: activations are quantized with both scales or with "
             "neither",
             whose, a13 ? "a13_scale" : "a2_scale", a13 ? "a2_scale" : "a13_scale");
}

std::vector<float> Copy(const ExpertScalars& scalars) {
  return {scalars.values.begin(), scalars.values.end()};
}

std::vector<float> Reciprocals(const ExpertScalars& scalars) {
  std::vector<float> out = Copy(scalars);
  for (float& v : out) v = 1.0f / v;
  return out;
}

/// alphas may have more columns than scales, not fewer: one accumulator has one activation scale.
Result<void> Fold(std::string_view name, const ExpertScalars& scales, std::vector<float>* alphas) {
  NIBBLE_CHECK(alphas->size() % scales.values.size() == 0, "an alpha folds one activation scale");
  const size_t columns = alphas->size() / scales.values.size();
  for (size_t i = 0; i < alphas->size(); ++i) {
    const float alpha = (*alphas)[i], scale = scales.values[i / columns];
    (*alphas)[i] = alpha * scale;
    if (std::isnormal((*alphas)[i])) continue;
    return Err(ErrorCode::kUnsupported,
               "{}[{}]: weight scale {} times activation scale {} is outside fp32's normal range",
               name, i, alpha, scale);
  }
  return {};
}

void SetSwiglu(const SwigluParameters& swiglu, MoeQuantConfig* config) {
  config->clamp_limit = swiglu.clamp_limit;
  config->alpha = swiglu.alpha;
  config->beta = swiglu.beta;
}

}  // namespace

Result<MoeQuantConfig> MakeNvfp4W4A16MoeQuantConfig(
    Backend backend, const ExpertBlockScales& w13_scale, const ExpertBlockScales& w2_scale,
    const ExpertScalars& w13_scale_2, const ExpertScalars& w2_scale_2, SourceFormat source_format,
    const SwigluParameters& swiglu) {
  const ExpertScaleRule rule = ExpertScaleRuleOf(backend);
  const int shards = w13_scale.shards;
  const int64_t experts = w13_scale.experts;
  NIBBLE_CHECK_OK(CheckBlockScales(backend, w13_scale, w2_scale));
  NIBBLE_CHECK_OK(CheckScalars("w13_scale_2", w13_scale_2, experts, rule.alpha_columns(shards)));
  NIBBLE_CHECK_OK(CheckScalars("w2_scale_2", w2_scale_2, experts, 1));

  MoeQuantConfig config;
  config.scheme = kW4A16;
  config.source_format = source_format;
  config.w13_shards = shards;
  config.g1_alphas = Copy(w13_scale_2);
  config.g2_alphas = Copy(w2_scale_2);
  config.w13_scale = w13_scale;
  config.w2_scale = w2_scale;
  if (rule.fc2_input_scale) config.fc2_input_scale.emplace(experts, 1.0f);
  SetSwiglu(swiglu, &config);
  return config;
}

Result<MoeQuantConfig> MakeNvfp4MoeQuantConfig(
    Backend backend, const ExpertBlockScales& w13_scale, const ExpertBlockScales& w2_scale,
    const ExpertScalars& w13_scale_2, const ExpertScalars& w2_scale_2,
    const std::optional<ExpertScalars>& a13_scale, const std::optional<ExpertScalars>& a2_scale,
    SourceFormat source_format, const SwigluParameters& swiglu) {
  NIBBLE_CHECK_OK(
      CheckBothOrNeither(fmt::format("backend '{}'", NameOf(backend)), a13_scale, a2_scale));
  NIBBLE_TRY(MoeQuantConfig config,
             MakeNvfp4W4A16MoeQuantConfig(backend, w13_scale, w2_scale, w13_scale_2, w2_scale_2,
                                          source_format, swiglu));
  if (!a13_scale) return config;

  const ExpertScaleRule rule = ExpertScaleRuleOf(backend);
  NIBBLE_CHECK_OK(CheckScalars("a13_scale", *a13_scale, w13_scale.experts,
                               rule.activation_columns(w13_scale.shards)));
  NIBBLE_CHECK_OK(CheckScalars("a2_scale", *a2_scale, w13_scale.experts, 1));
  config.scheme = kW4A4;
  config.a1_gscale = Reciprocals(*a13_scale);
  config.a2_gscale = Reciprocals(*a2_scale);
  if (rule.fc2_input_scale) config.fc2_input_scale = Copy(*a2_scale);
  if (rule.fold_activation) {
    NIBBLE_CHECK_OK(Fold("g1_alphas", *a13_scale, &config.g1_alphas));
    NIBBLE_CHECK_OK(Fold("g2_alphas", *a2_scale, &config.g2_alphas));
    config.activation_folded = true;
  }
  return config;
}

Result<MoeQuantConfig> MakeFp8MoeQuantConfig(const QuantScheme& scheme, int64_t experts, int shards,
                                             const std::optional<ExpertScalars>& w13_scale,
                                             const std::optional<ExpertScalars>& w2_scale,
                                             const std::optional<ExpertScalars>& a13_scale,
                                             const std::optional<ExpertScalars>& a2_scale,
                                             SourceFormat source_format,
                                             const SwigluParameters& swiglu) {
  const std::string pair = PairName(scheme);
  if (std::find(std::begin(kFp8Schemes), std::end(kFp8Schemes), scheme) == std::end(kFp8Schemes)) {
    return Err(ErrorCode::kInvalidArgument, "{} is no FP8 scheme", pair);
  }
  const bool per_tensor = scheme.weight == kFp8StaticTensor;
  if (w13_scale.has_value() != per_tensor || w2_scale.has_value() != per_tensor) {
    return Err(ErrorCode::kInvalidArgument, "{} {} one weight scale a tensor", pair,
               per_tensor ? "needs" : "does not have");
  }
  NIBBLE_CHECK_OK(CheckBothOrNeither(pair, a13_scale, a2_scale));
  const bool is_static = scheme.activation && scheme.activation->scale.is_static;
  if (a13_scale.has_value() != is_static) {
    return Err(ErrorCode::kInvalidArgument, "{} {} activation scales", pair,
               is_static ? "needs" : "has no static");
  }

  MoeQuantConfig config = MakeBf16MoeQuantConfig(experts, shards, swiglu);
  config.scheme = scheme;
  config.source_format = source_format;
  if (per_tensor) {
    NIBBLE_CHECK_OK(CheckScalars("w13_scale", *w13_scale, experts, shards, Zero::kAllowed));
    NIBBLE_CHECK_OK(CheckScalars("w2_scale", *w2_scale, experts, 1, Zero::kAllowed));
    config.g1_alphas = Copy(*w13_scale);
    config.g2_alphas = Copy(*w2_scale);
  }
  if (is_static) {
    NIBBLE_CHECK_OK(CheckScalars("a13_scale", *a13_scale, experts, shards));
    NIBBLE_CHECK_OK(CheckScalars("a2_scale", *a2_scale, experts, 1));
    config.a1_scale = Copy(*a13_scale);
    config.a2_scale = Copy(*a2_scale);
  }
  return config;
}

MoeQuantConfig MakeBf16MoeQuantConfig(int64_t experts, int shards, const SwigluParameters& swiglu) {
  MoeQuantConfig config;
  config.scheme = kBf16Scheme;
  config.w13_shards = shards;
  config.g1_alphas.assign(experts * shards, 1.0f);
  config.g2_alphas.assign(experts, 1.0f);
  SetSwiglu(swiglu, &config);
  return config;
}

}  // namespace nibble::plan
