#include "plan/moe_quant_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nibble::plan {
namespace {

using Span = std::optional<std::span<const float>>;

constexpr Backend kEvery[] = {Backend::kReference, Backend::kCpu,  Backend::kMarlin,
                              Backend::kHopper,    Backend::kB12x, Backend::kCutlass};
const std::vector<float> kW13 = {0.5f, 0.25f, 0.125f, 1.0f}, kW2 = {2.0f, 3.0f};
const std::vector<float> kA13 = {0.5f, 0.25f, 0.1f, 4.0f}, kA2 = {8.0f, 0.5f};

TEST(MoeQuantConfig, WithoutActivationScalesItIsW4A16ForEveryBackend) {
  for (Backend backend : kEvery) {
    auto config = MakeNvfp4MoeQuantConfig(backend, SourceFormat::kModelopt, kW13, kW2, {}, {},
                                          {7.0f, 1.702f, 1.0f});
    ASSERT_TRUE(config.ok()) << NameOf(backend);
    EXPECT_EQ(config->scheme, kW4A16);
    EXPECT_EQ(config->a1_gscale, std::nullopt) << "absent, not zero";
    EXPECT_EQ(config->a2_gscale, std::nullopt);
    EXPECT_EQ(config->activation_precision(), ActivationPrecision::kBf16);
    EXPECT_EQ(config->g1_alphas, kW13) << "gate's and up's global scale, each its own";
    EXPECT_EQ(config->g2_alphas, kW2);
    EXPECT_EQ(config->source_format, SourceFormat::kModelopt);
    EXPECT_EQ(config->clamp_limit, 7.0f) << "the clamp reaches the W4A16 config too";
    EXPECT_EQ(config->alpha, 1.702f);
    EXPECT_EQ(config->beta, 1.0f);
  }
}

TEST(MoeQuantConfig, WithBothItIsW4A4AndHoldsReciprocals) {
  for (Backend backend : kEvery) {
    auto config = MakeNvfp4MoeQuantConfig(backend, SourceFormat::kCompressedTensors, kW13, kW2,
                                          Span(kA13), Span(kA2));
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->scheme, kW4A4);
    EXPECT_EQ(config->activation_precision(), ActivationPrecision::kFp4);
    EXPECT_EQ(*config->a1_gscale, (std::vector<float>{2.0f, 4.0f, 10.0f, 0.25f}));
    EXPECT_EQ(*config->a2_gscale, (std::vector<float>{0.125f, 2.0f}));
  }
}

TEST(MoeQuantConfig, OneWithoutTheOtherIsAnError) {
  EXPECT_FALSE(
      MakeNvfp4MoeQuantConfig(Backend::kCpu, SourceFormat::kModelopt, kW13, kW2, Span(kA13), {})
          .ok());
  auto config =
      MakeNvfp4MoeQuantConfig(Backend::kCpu, SourceFormat::kModelopt, kW13, kW2, {}, Span(kA2));
  ASSERT_FALSE(config.ok());
  EXPECT_NE(config.error().what.find("a2_scale without a13_scale"), std::string::npos)
      << config.error().what;
}

TEST(MoeQuantConfig, BadScalesAreNamed) {
  for (float bad : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity()}) {
    for (int which = 0; which < 4; ++which) {
      std::vector<float> lists[4] = {kW13, kW2, kA13, kA2};
      lists[which][1] = bad;
      auto config = MakeNvfp4MoeQuantConfig(Backend::kCpu, SourceFormat::kModelopt, lists[0],
                                            lists[1], Span(lists[2]), Span(lists[3]));
      ASSERT_FALSE(config.ok()) << which << " " << bad;
      const char* names[] = {"w13_scale_2[1]", "w2_scale_2[1]", "a13_scale[1]", "a2_scale[1]"};
      EXPECT_NE(config.error().what.find(names[which]), std::string::npos) << config.error().what;
    }
  }
}

TEST(MoeQuantConfig, LengthsMustMatch) {
  const std::vector<float> three = {1, 1, 1};
  EXPECT_FALSE(
      MakeNvfp4MoeQuantConfig(Backend::kCpu, SourceFormat::kModelopt, three, kW2, {}, {}).ok());
  EXPECT_FALSE(MakeNvfp4MoeQuantConfig(Backend::kCpu, SourceFormat::kModelopt, kW13, kW2,
                                       Span(three), Span(kA2))
                   .ok());
  auto ungated = MakeNvfp4MoeQuantConfig(Backend::kCpu, SourceFormat::kModelopt, kW2, kW2, {}, {});
  ASSERT_TRUE(ungated.ok());
  EXPECT_EQ(ungated->w13_shards, 1);
}

}  // namespace
}  // namespace nibble::plan
