#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "kernels/catalogue.h"
#include "plan/moe_quant_config.h"

// The silent failure that the precision contract exists for: a checkpoint labelled W4A16 whose
// calibrated activation scales reach the config of a backend that has just learned to accept it,
// which then runs W4A4. Upstream's regression test has three cases (its file:
// test_w4a16_propagation); here they are, and the same for every backend.

namespace nibble::plan {
namespace {

using Scales = std::optional<std::span<const float>>;

// Upstream's case: 8 experts of intermediate size 64 over a width of 128. Of those, a config holds
// only what is per expert.
constexpr int kExperts = 8;
const std::vector<float> kOnes13(2 * kExperts, 1.0f), kOnes2(kExperts, 1.0f);
const std::vector<float> kHalves13(2 * kExperts, 0.5f), kHalves2(kExperts, 0.5f);

Result<MoeQuantConfig> Make(Backend backend, Scales a13, Scales a2,
                            const SwigluParameters& swiglu = {},
                            SourceFormat format = SourceFormat::kModelopt) {
  return MakeNvfp4MoeQuantConfig(backend, format, kOnes13, kOnes2, a13, a2, swiglu);
}

void ExpectNoActivationScale(const Result<MoeQuantConfig>& config) {
  ASSERT_TRUE(config.ok()) << config.error().Message();
  EXPECT_FALSE(config->a1_gscale.has_value()) << "absent: neither zero nor one nor empty";
  EXPECT_FALSE(config->a2_gscale.has_value());
  EXPECT_FALSE(config->use_w4a4());
  EXPECT_EQ(config->activation_precision(), ActivationPrecision::kBf16);
  EXPECT_EQ(config->scheme.weight, kNvfp4Static);
  EXPECT_FALSE(config->scheme.activation.has_value());
  // Nor does one hide in the alphas: they are the weights' global scales and nothing else.
  EXPECT_EQ(config->g1_alphas, kOnes13);
  EXPECT_EQ(config->g2_alphas, kOnes2);
}

void ExpectBothActivationScales(const Result<MoeQuantConfig>& config) {
  ASSERT_TRUE(config.ok()) << config.error().Message();
  EXPECT_TRUE(config->use_w4a4());
  EXPECT_EQ(config->activation_precision(), ActivationPrecision::kFp4);
  EXPECT_EQ(config->scheme.weight, kNvfp4Static);
  EXPECT_EQ(config->scheme.activation, kNvfp4Dynamic);
  ASSERT_TRUE(config->a1_gscale.has_value());
  ASSERT_TRUE(config->a2_gscale.has_value());
  EXPECT_EQ(*config->a1_gscale, std::vector<float>(2 * kExperts, 2.0f)) << "1 / 0.5";
  EXPECT_EQ(*config->a2_gscale, std::vector<float>(kExperts, 2.0f));
  EXPECT_EQ(config->g1_alphas, kOnes13);
  EXPECT_EQ(config->g2_alphas, kOnes2);
}

TEST(W4A16Propagation, W4A16OnB12x) { ExpectNoActivationScale(Make(Backend::kB12x, {}, {})); }

TEST(W4A16Propagation, W4A4OnB12x) {
  ExpectBothActivationScales(Make(Backend::kB12x, Scales(kHalves13), Scales(kHalves2)));
}

TEST(W4A16Propagation, W4A16OnMarlin) { ExpectNoActivationScale(Make(Backend::kMarlin, {}, {})); }

/// The backends that have any kernel for NVFP4 experts.
std::set<Backend> ExpertBackends() {
  std::set<Backend> out;
  for (const kernels::CatalogueRow& row : kernels::Catalogue()) {
    if (row.operation != kernels::Operation::kExperts) continue;
    for (const QuantScheme& scheme : row.schemes) {
      if (scheme.weight == kNvfp4Static) out.insert(row.backend);
    }
  }
  return out;
}

class EveryBackend : public testing::TestWithParam<Backend> {};

TEST(W4A16Propagation, CoversTheSixBackendsOfTheContract) {
  EXPECT_EQ(ExpertBackends(),
            (std::set<Backend>{Backend::kReference, Backend::kCpu, Backend::kMarlin,
                               Backend::kHopper, Backend::kB12x, Backend::kCutlass}));
}

TEST_P(EveryBackend, W4A16HoldsNoActivationScaleOfAnyKind) {
  for (const SourceFormat format : {SourceFormat::kModelopt, SourceFormat::kCompressedTensors}) {
    const auto config = Make(GetParam(), {}, {}, {}, format);
    ExpectNoActivationScale(config);
    EXPECT_EQ(config->source_format, format);
  }
}

// The contract's rule 4: upstream's MARLIN drops them; ours has no weight-only backend.
TEST_P(EveryBackend, W4A4HoldsBoth) {
  ExpectBothActivationScales(Make(GetParam(), Scales(kHalves13), Scales(kHalves2)));
}

TEST_P(EveryBackend, OneWithoutTheOtherIsRefusedByName) {
  const auto only13 = Make(GetParam(), Scales(kHalves13), {});
  ASSERT_FALSE(only13.ok());
  EXPECT_EQ(only13.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(only13.error().what.find("a13_scale without a2_scale"), std::string::npos)
      << only13.error().what;
  const auto only2 = Make(GetParam(), {}, Scales(kHalves2));
  ASSERT_FALSE(only2.ok());
  EXPECT_EQ(only2.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(only2.error().what.find("a2_scale without a13_scale"), std::string::npos)
      << only2.error().what;
}

// An empty list is not an absent one: it is W4A4 with its scales lost.
TEST_P(EveryBackend, EmptyScalesAreNotAbsentScales) {
  const std::vector<float> empty;
  EXPECT_FALSE(Make(GetParam(), Scales(empty), Scales(empty)).ok());
  EXPECT_FALSE(Make(GetParam(), Scales(kHalves13), Scales(empty)).ok());
}

// What upstream's uninitialised memory held (its issues 54189 and 45212): zeros, infinities, NaN.
// In W4A4 they are errors.
TEST_P(EveryBackend, GarbageInAScaleIsNeverTaken) {
  for (const float garbage : {0.0f, -0.5f, INFINITY, -INFINITY, NAN}) {
    for (const bool first : {true, false}) {
      std::vector<float> a13 = kHalves13, a2 = kHalves2;
      (first ? a13 : a2).back() = garbage;
      const auto config = Make(GetParam(), Scales(a13), Scales(a2));
      ASSERT_FALSE(config.ok()) << garbage;
      const char* named = first ? "a13_scale[15]" : "a2_scale[7]";
      EXPECT_NE(config.error().what.find(named), std::string::npos) << config.error().what;
    }
  }
}

// Upstream's make function once forgot them in W4A16 (contract, rule 4): the clamp was silently not
// applied.
TEST_P(EveryBackend, ClampAlphaAndBetaReachBoth) {
  const SwigluParameters swiglu = {7.0f, 1.702f, 1.0f};
  for (const bool w4a4 : {false, true}) {
    const auto config = w4a4 ? Make(GetParam(), Scales(kHalves13), Scales(kHalves2), swiglu)
                             : Make(GetParam(), {}, {}, swiglu);
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->use_w4a4(), w4a4);
    EXPECT_EQ(config->clamp_limit, 7.0f);
    EXPECT_EQ(config->alpha, 1.702f);
    EXPECT_EQ(config->beta, 1.0f);
    const auto without =
        w4a4 ? Make(GetParam(), Scales(kHalves13), Scales(kHalves2)) : Make(GetParam(), {}, {});
    ASSERT_TRUE(without.ok());
    EXPECT_FALSE(without->clamp_limit || without->alpha || without->beta) << "absent stays absent";
  }
}

INSTANTIATE_TEST_SUITE_P(W4A16Propagation, EveryBackend, testing::ValuesIn(ExpertBackends()),
                         [](const testing::TestParamInfo<Backend>& tested) {
                           return std::string(NameOf(tested.param));
                         });

}  // namespace
}  // namespace nibble::plan
