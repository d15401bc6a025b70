#include "plan/moe_quant_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nibble::plan {
namespace {

using Floats = std::vector<float>;

constexpr Backend kEvery[] = {Backend::kReference, Backend::kCpu,  Backend::kMarlin,
                              Backend::kHopper,    Backend::kB12x, Backend::kCutlass};

/// What a builder is given: two experts of 48 over 32, whose every number differs where the backend
/// keeps it apart.
struct Given {
  Backend backend;
  ExpertBlockScales w13_scale, w2_scale;
  Floats w13, w2, a13, a2;
  int w13_columns, a13_columns;

  explicit Given(Backend of) : backend(of), w2{2.0f, 3.0f}, a2{8.0f, 0.5f} {
    const ExpertScaleRule rule = ExpertScaleRuleOf(of);
    w13_scale = {2, 96, 2, 2, rule.block_scales};
    w2_scale = {2, 32, 3, 1, rule.block_scales};
    w13_columns = of == Backend::kCutlass ? 1 : 2;
    a13_columns = of == Backend::kCutlass || of == Backend::kB12x ? 1 : 2;
    w13 = w13_columns == 2 ? Floats{0.5f, 0.25f, 0.125f, 1.0f} : Floats{0.5f, 0.125f};
    a13 = a13_columns == 2 ? Floats{0.5f, 0.25f, 0.1f, 4.0f} : Floats{0.5f, 4.0f};
  }
  Result<MoeQuantConfig> Make(bool with_a13, bool with_a2, const SwigluParameters& swiglu = {},
                              SourceFormat format = SourceFormat::kModelopt) const {
    std::optional<ExpertScalars> first, second;
    if (with_a13) first = {a13, 2, a13_columns};
    if (with_a2) second = {a2, 2, 1};
    return MakeNvfp4MoeQuantConfig(backend, w13_scale, w2_scale, {w13, 2, w13_columns}, {w2, 2, 1},
                                   first, second, format, swiglu);
  }
};

TEST(MoeQuantConfig, WithoutActivationScalesItIsW4A16ForEveryBackend) {
  for (Backend backend : kEvery) {
    SCOPED_TRACE(NameOf(backend));
    const Given given(backend);
    const auto config = given.Make(false, false, {7.0f, 1.702f, 1.0f});
    ASSERT_TRUE(config.ok()) << config.error().Message();
    EXPECT_EQ(config->scheme, kW4A16);
    EXPECT_EQ(config->a1_gscale, std::nullopt) << "absent, not zero";
    EXPECT_EQ(config->a2_gscale, std::nullopt);
    EXPECT_EQ(config->activation_precision(), ActivationPrecision::kBf16);
    EXPECT_EQ(config->g1_alphas, given.w13) << "gate's and up's global scale, each its own";
    EXPECT_EQ(config->g1_columns(), backend == Backend::kCutlass ? 1u : 2u);
    EXPECT_EQ(config->g2_alphas, given.w2);
    EXPECT_EQ(config->w13_shards, 2);
    EXPECT_EQ(config->source_format, SourceFormat::kModelopt);
    EXPECT_EQ(config->w13_scale, given.w13_scale);
    EXPECT_EQ(config->w2_scale, given.w2_scale);
    EXPECT_EQ(config->fc2_input_scale,
              backend == Backend::kB12x ? std::optional(Floats{1.0f, 1.0f}) : std::nullopt);
    EXPECT_EQ(config->clamp_limit, 7.0f) << "the clamp reaches the W4A16 config too";
    EXPECT_EQ(config->alpha, 1.702f);
    EXPECT_EQ(config->beta, 1.0f);
  }
}

TEST(MoeQuantConfig, WithBothItIsW4A4AndHoldsReciprocals) {
  for (Backend backend : kEvery) {
    SCOPED_TRACE(NameOf(backend));
    const Given given(backend);
    const auto config = given.Make(true, true, {}, SourceFormat::kCompressedTensors);
    ASSERT_TRUE(config.ok()) << config.error().Message();
    const bool cutlass = backend == Backend::kCutlass, b12x = backend == Backend::kB12x;
    EXPECT_EQ(config->scheme, kW4A4);
    EXPECT_EQ(config->activation_precision(), ActivationPrecision::kFp4);
    EXPECT_EQ(*config->a1_gscale,
              cutlass || b12x ? Floats({2.0f, 0.25f}) : Floats({2.0f, 4.0f, 10.0f, 0.25f}));
    EXPECT_EQ(config->a1_columns(), cutlass || b12x ? 1u : 2u);
    EXPECT_EQ(*config->a2_gscale, (Floats{0.125f, 2.0f}));
    EXPECT_EQ(config->source_format, SourceFormat::kCompressedTensors);
    // CUTLASS's grouped GEMM knows one number a group: weight scale times activation scale.
    EXPECT_EQ(config->activation_folded, cutlass);
    EXPECT_EQ(config->g1_alphas, cutlass ? Floats({0.25f, 0.5f}) : given.w13);
    EXPECT_EQ(config->g2_alphas, cutlass ? Floats({16.0f, 1.5f}) : given.w2);
    EXPECT_EQ(config->fc2_input_scale, b12x ? std::optional(given.a2) : std::nullopt);
  }
}

TEST(MoeQuantConfig, OneWithoutTheOtherIsAnError) {
  EXPECT_FALSE(Given(Backend::kCpu).Make(true, false).ok());
  const auto config = Given(Backend::kCpu).Make(false, true);
  ASSERT_FALSE(config.ok());
  EXPECT_NE(config.error().what.find("a2_scale without a13_scale"), std::string::npos)
      << config.error().what;
}

TEST(MoeQuantConfig, BadScalesAreNamed) {
  for (float bad : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity()}) {
    for (int which = 0; which < 4; ++which) {
      Given given(Backend::kCpu);
      Floats* lists[] = {&given.w13, &given.w2, &given.a13, &given.a2};
      (*lists[which])[1] = bad;
      const auto config = given.Make(true, true);
      ASSERT_FALSE(config.ok()) << which << " " << bad;
      const char* names[] = {"w13_scale_2[1]", "w2_scale_2[1]", "a13_scale[1]", "a2_scale[1]"};
      EXPECT_NE(config.error().what.find(names[which]), std::string::npos) << config.error().what;
    }
  }
}

// Shapes are said, never guessed from lengths: four numbers of two experts are not those of four.
TEST(MoeQuantConfig, ShapesThatABackendDoesNotReadAreRefused) {
  struct Case {
    Backend backend;
    void (*spoil)(Given&);
    const char* message;
  };
  const Case cases[] = {
      {Backend::kCpu, [](Given& g) { g.w13.pop_back(); },
       "w13_scale_2 is [2, 2] of 3 values, expected [2, 2]"},
      {Backend::kCpu, [](Given& g) { g.w13_columns = 1; },
       "w13_scale_2 is [2, 1] of 4 values, expected [2, 2]"},
      {Backend::kCutlass, [](Given& g) { g.w13_columns = 2; },
       "w13_scale_2 is [2, 2] of 2 values, expected [2, 1]"},
      {Backend::kHopper, [](Given& g) { g.w2.push_back(1); },
       "w2_scale_2 is [2, 1] of 3 values, expected [2, 1]"},
      {Backend::kB12x, [](Given& g) { g.a13_columns = 2; },
       "a13_scale is [2, 2] of 2 values, expected [2, 1]"},
      {Backend::kReference, [](Given& g) { g.a13.resize(2), g.a13_columns = 1; },
       "a13_scale is [2, 1] of 2 values, expected [2, 2]"},
      {Backend::kMarlin, [](Given& g) { g.a2.clear(); },
       "a2_scale is [2, 1] of 0 values, expected [2, 1]"},
      {Backend::kB12x, [](Given& g) { g.w13_scale.layout = BlockScaleLayout::kRowMajor; },
       "w13_scale is row_major, backend 'B12X' reads interleaved_128x4"},
      {Backend::kCpu, [](Given& g) { g.w2_scale.layout = BlockScaleLayout::kInterleaved128x4; },
       "w2_scale is interleaved_128x4, backend 'CPU' reads in_tiles"},
      {Backend::kCpu, [](Given& g) { g.w13_scale.shards = 1; }, "not those of the same experts"},
      {Backend::kCpu, [](Given& g) { g.w13_scale.experts = 4; }, "not those of the same experts"},
      {Backend::kCpu, [](Given& g) { g.w2_scale.rows = 48; }, "not those of the same experts"},
  };
  for (const Case& c : cases) {
    Given given(c.backend);
    c.spoil(given);
    const auto config = given.Make(true, true);
    ASSERT_FALSE(config.ok()) << c.message;
    EXPECT_EQ(config.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(config.error().what.find(c.message), std::string::npos) << config.error().what;
  }
}

TEST(MoeQuantConfig, WithoutAGateThereIsOneNumberAnExpert) {
  for (Backend backend : kEvery) {
    Given given(backend);
    given.w13_scale.rows = 48;
    given.w13_scale.shards = 1;
    given.w13 = {0.5f, 0.25f};
    given.a13 = {4.0f, 4.0f};
    given.w13_columns = given.a13_columns = 1;
    const auto config = given.Make(true, true);
    ASSERT_TRUE(config.ok()) << NameOf(backend) << config.error().Message();
    EXPECT_EQ(config->w13_shards, 1);
    EXPECT_EQ(config->g1_columns(), 1u);
    EXPECT_EQ(config->a1_columns(), 1u);
  }
}

TEST(MoeQuantConfig, AnAlphaThatVanishesInFp32IsRefused) {
  Given given(Backend::kCutlass);
  given.w13 = {1e-20f, 1e-20f};
  given.a13 = {1e-19f, 1e-19f};
  const auto folded = given.Make(true, true);
  ASSERT_FALSE(folded.ok());
  EXPECT_EQ(folded.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(folded.error().what.substr(0, 12), "g1_alphas[0]");
  EXPECT_TRUE(given.Make(false, false).ok()) << "nothing is folded in W4A16";
}

// ---- FP8

const Floats kW13 = {0.5f, 0.25f, 0.0f, 1.0f}, kW2 = {2.0f, 3.0f};
const Floats kA13 = {0.5f, 0.25f, 0.1f, 4.0f}, kA2 = {8.0f, 0.5f};

Result<MoeQuantConfig> Fp8(const QuantScheme& scheme, bool weight_scales, bool activation_scales,
                           const Floats& a13 = kA13) {
  std::optional<ExpertScalars> w13, w2, first, second;
  if (weight_scales) w13 = {kW13, 2, 2}, w2 = {kW2, 2, 1};
  if (activation_scales) first = {a13, 2, 2}, second = {kA2, 2, 1};
  return MakeFp8MoeQuantConfig(scheme, 2, 2, w13, w2, first, second, SourceFormat::kModelopt,
                               {7.0f, {}, {}});
}

TEST(Fp8MoeQuantConfig, HoldsWhatEachSchemeHas) {
  for (const QuantScheme& scheme : kFp8Schemes) {
    SCOPED_TRACE(PairName(scheme));
    const bool tensor = scheme.weight == kFp8StaticTensor;
    const bool is_static = scheme.activation == kFp8StaticTensor;
    const auto config = Fp8(scheme, tensor, is_static);
    ASSERT_TRUE(config.ok()) << config.error().Message();
    EXPECT_EQ(config->scheme, scheme);
    EXPECT_EQ(config->source_format, SourceFormat::kModelopt);
    EXPECT_EQ(config->g1_alphas, tensor ? kW13 : Floats(4, 1.0f));
    EXPECT_EQ(config->g2_alphas, tensor ? kW2 : Floats(2, 1.0f));
    EXPECT_EQ(config->a1_scale, is_static ? std::optional(kA13) : std::nullopt);
    EXPECT_EQ(config->a2_scale, is_static ? std::optional(kA2) : std::nullopt);
    EXPECT_FALSE(config->a1_gscale || config->a2_gscale || config->use_w4a4());
    EXPECT_EQ(config->activation_precision(),
              scheme.activation ? ActivationPrecision::kFp8 : ActivationPrecision::kBf16);
    EXPECT_EQ(config->clamp_limit, 7.0f);
    // What the scheme has no use for, or lacks, contradicts it.
    EXPECT_FALSE(Fp8(scheme, !tensor, is_static).ok());
    EXPECT_FALSE(Fp8(scheme, tensor, !is_static).ok());
  }
}

TEST(Fp8MoeQuantConfig, RefusesOtherSchemesAndBadScales) {
  EXPECT_FALSE(Fp8(kW4A16, true, false).ok());
  EXPECT_FALSE(Fp8({}, true, false).ok());
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    Floats a13 = kA13;
    a13[3] = bad;
    const auto config = Fp8(kFp8Schemes[0], true, true, a13);
    ASSERT_FALSE(config.ok()) << bad;
    EXPECT_NE(config.error().what.find("a13_scale[3]"), std::string::npos) << config.error().what;
  }
}

}  // namespace
}  // namespace nibble::plan
