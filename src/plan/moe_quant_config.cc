#include "plan/moe_quant_config.h"

#include <cmath>

namespace nibble::plan {
namespace {

Result<void> CheckScales(std::string_view name, std::span<const float> scales, size_t expected) {
  if (scales.size() != expected) {
    return Err(ErrorCode::kInvalidArgument, "{} has {} values, expected {}", name, scales.size(),
               expected);
  }
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!std::isfinite(scales[i]) || !(scales[i] > 0)) {
      return Err(ErrorCode::kInvalidArgument, "{}[{}] is {}, expected a finite number above 0",
                 name, i, scales[i]);
    }
  }
  return {};
}

std::vector<float> Reciprocals(std::span<const float> scales) {
  std::vector<float> out(scales.begin(), scales.end());
  for (float& v : out) v = 1.0f / v;
  return out;
}

}  // namespace

Result<MoeQuantConfig> MakeNvfp4MoeQuantConfig(Backend backend, SourceFormat source_format,
                                               std::span<const float> w13_scale_2,
                                               std::span<const float> w2_scale_2,
                                               std::optional<std::span<const float>> a13_scale,
                                               std::optional<std::span<const float>> a2_scale,
                                               const SwigluParameters& swiglu) {
  const size_t experts = w2_scale_2.size();
  const int shards = w13_scale_2.size() == 2 * experts ? 2 : 1;
  NIBBLE_CHECK_OK(CheckScales("w13_scale_2", w13_scale_2, experts * static_cast<size_t>(shards)));
  NIBBLE_CHECK_OK(CheckScales("w2_scale_2", w2_scale_2, experts));
  if (a13_scale.has_value() != a2_scale.has_value()) {
    return Err(ErrorCode::kInvalidArgument,
               "backend '{}' was given {} without {}: W4A4 needs both activation scales, W4A16 has "
               "neither",
               NameOf(backend), a13_scale ? "a13_scale" : "a2_scale",
               a13_scale ? "a2_scale" : "a13_scale");
  }

  MoeQuantConfig config;
  config.source_format = source_format;
  config.scheme = a13_scale ? kW4A4 : kW4A16;
  config.w13_shards = shards;
  config.g1_alphas.assign(w13_scale_2.begin(), w13_scale_2.end());
  config.g2_alphas.assign(w2_scale_2.begin(), w2_scale_2.end());
  config.clamp_limit = swiglu.clamp_limit;
  config.alpha = swiglu.alpha;
  config.beta = swiglu.beta;
  if (a13_scale) {
    NIBBLE_CHECK_OK(CheckScales("a13_scale", *a13_scale, w13_scale_2.size()));
    NIBBLE_CHECK_OK(CheckScales("a2_scale", *a2_scale, experts));
    config.a1_gscale = Reciprocals(*a13_scale);
    config.a2_gscale = Reciprocals(*a2_scale);
  }
  return config;
}

MoeQuantConfig MakeBf16MoeQuantConfig(int64_t n_experts, int shards,
                                      const SwigluParameters& swiglu) {
  MoeQuantConfig config;
  config.scheme = kBf16Scheme;
  config.w13_shards = shards;
  config.g1_alphas.assign(n_experts * shards, 1.0f);
  config.g2_alphas.assign(n_experts, 1.0f);
  config.clamp_limit = swiglu.clamp_limit;
  config.alpha = swiglu.alpha;
  config.beta = swiglu.beta;
  return config;
}

}  // namespace nibble::plan
