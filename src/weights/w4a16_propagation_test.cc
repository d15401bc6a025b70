#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "kernels/catalogue.h"
#include "plan/moe_quant_config.h"
#include "scheme/test_weights.h"
#include "weights/expert_scales.h"

// The silent failure that the precision contract exists for: a checkpoint labelled W4A16 whose
// calibrated activation scales reach the config of a backend that has just learned to accept it,
// which then runs W4A4. Upstream's regression test has three cases (its file:
// test_w4a16_propagation); here they are, and the same for every backend, both dialects, at weight
// preparation and at config time.

namespace nibble::weights {
namespace {

using plan::ExpertScalars;
using Scales = std::optional<std::vector<float>>;

// Upstream's case: 8 experts of intermediate size 64 over a width of 128.
constexpr int kExperts = 8;
const float kOne = 1.0f, kHalf = 0.5f;

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

std::vector<float> W13(Backend backend, float value) {
  return std::vector<float>(kExperts * ExpertScaleRuleOf(backend).alpha_columns(2), value);
}
std::vector<float> A13(Backend backend, float value) {
  return std::vector<float>(kExperts * ExpertScaleRuleOf(backend).activation_columns(2), value);
}

Result<MoeQuantConfig> Make(Backend backend, const Scales& a13, const Scales& a2,
                            const plan::SwigluParameters& swiglu = {},
                            SourceFormat format = SourceFormat::kModelopt) {
  const ExpertScaleRule rule = ExpertScaleRuleOf(backend);
  const std::vector<float> w13 = W13(backend, kOne), w2(kExperts, kOne);
  std::optional<ExpertScalars> a13_scale, a2_scale;
  if (a13) a13_scale = {*a13, kExperts, rule.activation_columns(2)};
  if (a2) a2_scale = {*a2, kExperts, 1};
  return plan::MakeNvfp4MoeQuantConfig(backend, {kExperts, 2 * 64, 128 / 16, 2, rule.block_scales},
                                       {kExperts, 128, 64 / 16, 1, rule.block_scales},
                                       {w13, kExperts, rule.alpha_columns(2)}, {w2, kExperts, 1},
                                       a13_scale, a2_scale, format, swiglu);
}

/// `fc2_slot`: the backend has one. In W4A16 it holds ones, by which nothing is quantized.
void ExpectNoActivationScale(const MoeQuantConfig& config, bool fc2_slot) {
  EXPECT_FALSE(config.a1_gscale.has_value()) << "absent: neither zero nor one nor empty";
  EXPECT_FALSE(config.a2_gscale.has_value());
  EXPECT_FALSE(config.a1_scale.has_value());
  EXPECT_FALSE(config.a2_scale.has_value());
  EXPECT_FALSE(config.activation_folded);
  EXPECT_FALSE(config.use_w4a4());
  EXPECT_EQ(config.activation_precision(), ActivationPrecision::kBf16);
  EXPECT_EQ(config.scheme.weight, kNvfp4Static);
  EXPECT_FALSE(config.scheme.activation.has_value());
  ASSERT_EQ(config.fc2_input_scale.has_value(), fc2_slot);
  if (fc2_slot) {
    EXPECT_EQ(*config.fc2_input_scale, std::vector<float>(config.g2_alphas.size(), 1.0f));
  }
}

void ExpectW4A16(const Result<MoeQuantConfig>& config, Backend backend) {
  ASSERT_TRUE(config.ok()) << config.error().Message();
  ExpectNoActivationScale(*config, backend == Backend::kB12x);
  // Nor does one hide in the alphas: they are the weights' global scales and nothing else.
  EXPECT_EQ(config->g1_alphas, W13(backend, kOne));
  EXPECT_EQ(config->g2_alphas, std::vector<float>(kExperts, kOne));
}

void ExpectW4A4(const Result<MoeQuantConfig>& config, Backend backend) {
  ASSERT_TRUE(config.ok()) << config.error().Message();
  EXPECT_TRUE(config->use_w4a4());
  EXPECT_EQ(config->activation_precision(), ActivationPrecision::kFp4);
  EXPECT_EQ(config->scheme.weight, kNvfp4Static);
  EXPECT_EQ(config->scheme.activation, kNvfp4Dynamic);
  ASSERT_TRUE(config->a1_gscale.has_value());
  ASSERT_TRUE(config->a2_gscale.has_value());
  EXPECT_EQ(*config->a1_gscale, A13(backend, 2.0f)) << "1 / 0.5";
  EXPECT_EQ(*config->a2_gscale, std::vector<float>(kExperts, 2.0f));
  const bool folded = backend == Backend::kCutlass;
  EXPECT_EQ(config->activation_folded, folded);
  EXPECT_EQ(config->g1_alphas, W13(backend, folded ? kHalf : kOne));
  EXPECT_EQ(config->g2_alphas, std::vector<float>(kExperts, folded ? kHalf : kOne));
}

TEST(W4A16Propagation, W4A16OnB12x) { ExpectW4A16(Make(Backend::kB12x, {}, {}), Backend::kB12x); }

TEST(W4A16Propagation, W4A4OnB12x) {
  ExpectW4A4(Make(Backend::kB12x, A13(Backend::kB12x, kHalf), std::vector<float>(kExperts, kHalf)),
             Backend::kB12x);
}

TEST(W4A16Propagation, W4A16OnMarlin) {
  ExpectW4A16(Make(Backend::kMarlin, {}, {}), Backend::kMarlin);
}

TEST(W4A16Propagation, CoversTheSixBackendsOfTheContract) {
  EXPECT_EQ(ExpertBackends(),
            (std::set<Backend>{Backend::kReference, Backend::kCpu, Backend::kMarlin,
                               Backend::kHopper, Backend::kB12x, Backend::kCutlass}));
}

// ---- At config time.

class EveryBackend : public testing::TestWithParam<Backend> {
 protected:
  std::vector<float> halves13() const { return A13(GetParam(), kHalf); }
  const std::vector<float> halves2_ = std::vector<float>(kExperts, kHalf);
};

TEST_P(EveryBackend, W4A16HoldsNoActivationScaleOfAnyKind) {
  for (const SourceFormat format : {SourceFormat::kModelopt, SourceFormat::kCompressedTensors}) {
    const auto config = Make(GetParam(), {}, {}, {}, format);
    ExpectW4A16(config, GetParam());
    EXPECT_EQ(config->source_format, format);
  }
}

// The contract's rule 4: upstream's MARLIN drops them; ours has no weight-only backend.
TEST_P(EveryBackend, W4A4HoldsBoth) {
  ExpectW4A4(Make(GetParam(), halves13(), halves2_), GetParam());
}

TEST_P(EveryBackend, OneWithoutTheOtherIsRefusedByName) {
  const auto only13 = Make(GetParam(), halves13(), {});
  ASSERT_FALSE(only13.ok());
  EXPECT_EQ(only13.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(only13.error().what.find("a13_scale without a2_scale"), std::string::npos)
      << only13.error().what;
  const auto only2 = Make(GetParam(), {}, halves2_);
  ASSERT_FALSE(only2.ok());
  EXPECT_EQ(only2.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(only2.error().what.find("a2_scale without a13_scale"), std::string::npos)
      << only2.error().what;
}

// An empty list is not an absent one: it is W4A4 with its scales lost.
TEST_P(EveryBackend, EmptyScalesAreNotAbsentScales) {
  const std::vector<float> empty;
  EXPECT_FALSE(Make(GetParam(), empty, empty).ok());
  EXPECT_FALSE(Make(GetParam(), halves13(), empty).ok());
}

// What upstream's uninitialised memory held (its issues 54189 and 45212): zeros, infinities, NaN.
// In W4A4 they are errors.
TEST_P(EveryBackend, GarbageInAScaleIsNeverTaken) {
  for (const float garbage : {0.0f, -0.5f, INFINITY, -INFINITY, NAN}) {
    for (const bool first : {true, false}) {
      std::vector<float> a13 = halves13(), a2 = halves2_;
      (first ? a13 : a2).back() = garbage;
      const auto config = Make(GetParam(), a13, a2);
      ASSERT_FALSE(config.ok()) << garbage;
      const std::string named =
          first ? "a13_scale[" + std::to_string(a13.size() - 1) + "]" : "a2_scale[7]";
      EXPECT_NE(config.error().what.find(named), std::string::npos) << config.error().what;
    }
  }
}

// Upstream's make function once forgot them in W4A16 (contract, rule 4): the clamp was silently not
// applied.
TEST_P(EveryBackend, ClampAlphaAndBetaReachBoth) {
  const plan::SwigluParameters swiglu = {7.0f, 1.702f, 1.0f};
  for (const bool w4a4 : {false, true}) {
    const auto config =
        w4a4 ? Make(GetParam(), halves13(), halves2_, swiglu) : Make(GetParam(), {}, {}, swiglu);
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->use_w4a4(), w4a4);
    EXPECT_EQ(config->clamp_limit, 7.0f);
    EXPECT_EQ(config->alpha, 1.702f);
    EXPECT_EQ(config->beta, 1.0f);
    const auto without = w4a4 ? Make(GetParam(), halves13(), halves2_) : Make(GetParam(), {}, {});
    ASSERT_TRUE(without.ok());
    EXPECT_FALSE(without->clamp_limit || without->alpha || without->beta) << "absent stays absent";
  }
}

// ---- From a checkpoint's tensors through weight preparation.

using scheme::kE, scheme::kH, scheme::kI;

/// The experts' tensors, each of which has an activation scale of value `input`; gate and up have
/// one global scale, for the backends that must fold them.
scheme::Tensors TensorsWithInputScales(SourceFormat format, float input) {
  scheme::Tensors tensors = scheme::ExpertTensors(format);
  for (scheme::TensorToWrite& t : tensors) {
    const bool global = t.name.ends_with("global_scale") || t.name.ends_with("weight_scale_2");
    if (t.name.find(".input_") != t.name.npos) {
      t.bytes = scheme::F32({input});
    } else if (global) {
      t.bytes = scheme::F32({0.25f});
    }
  }
  return tensors;
}

class EveryBackendAndDialect
    : public scheme::CanonicalTest,
      public testing::WithParamInterface<std::tuple<Backend, SourceFormat>> {
 protected:
  Backend backend() const { return std::get<0>(GetParam()); }
  SourceFormat format() const { return std::get<1>(GetParam()); }
  /// What multiplies: modelopt stores it, compressed-tensors its reciprocal.
  float Meant(float stored) const {
    return format() == SourceFormat::kCompressedTensors ? 1 / stored : stored;
  }
  Result<ExpertQuant> Prepare(float stored_input, const QuantScheme& declared) {
    NIBBLE_TRY(
        const scheme::CanonicalExperts read,
        Experts(TensorsWithInputScales(format(), stored_input), {declared, format(), "LABEL"}));
    return MakeExpertQuant(backend(), declared, format(), read.gate, read.up, read.down);
  }
};

TEST_P(EveryBackendAndDialect, AW4A16FilesActivationScalesReachNothingWhateverTheyHold) {
  for (const float stale : {0.5f, 1.0f, 0.0f, -1.0f, NAN, INFINITY, 1e-30f}) {
    SCOPED_TRACE(stale);
    const auto quant = Prepare(stale, kW4A16);
    ASSERT_TRUE(quant.ok()) << quant.error().Message();
    ExpectNoActivationScale(quant->config, backend() == Backend::kB12x);
    EXPECT_EQ(quant->config.source_format, format());
    EXPECT_EQ(quant->widened, 0);
    const int columns = ExpertScaleRuleOf(backend()).alpha_columns(2);
    EXPECT_EQ(quant->config.g1_alphas, std::vector<float>(kE * columns, Meant(0.25f)));
    EXPECT_EQ(quant->config.g2_alphas, std::vector<float>(kE, Meant(0.25f)));
    EXPECT_EQ(report_.ignored_tensors.size() % (3 * kE), 0u) << "all of them are reported";
    EXPECT_FALSE(report_.ignored_tensors.empty());
  }
}

TEST_P(EveryBackendAndDialect, PreparationLeavesAbsentScalesAbsent) {
  const auto read = Experts(TensorsWithInputScales(format(), 0.5f), {kW4A16, format(), "LABEL"});
  ASSERT_TRUE(read.ok()) << read.error().Message();
  const auto all = [](const std::vector<CanonicalWeight>& weights) {
    std::vector<CanonicalNvfp4> out;
    for (const CanonicalWeight& w : weights) out.push_back(std::get<CanonicalNvfp4>(w));
    return out;
  };
  const auto scales = MakeExpertScales(ExpertScaleRuleOf(backend()), all(read->gate), all(read->up),
                                       all(read->down));
  ASSERT_TRUE(scales.ok()) << scales.error().Message();
  EXPECT_FALSE(scales->a13_scale.has_value()) << "no maximum of nothing, no default";
  EXPECT_FALSE(scales->a2_scale.has_value());
}

TEST_P(EveryBackendAndDialect, AW4A4FilesScalesReachTheConfig) {
  const auto quant = Prepare(0.5f, kW4A4);
  ASSERT_TRUE(quant.ok()) << quant.error().Message();
  const MoeQuantConfig& config = quant->config;
  EXPECT_EQ(config.scheme, kW4A4);
  EXPECT_EQ(config.activation_precision(), ActivationPrecision::kFp4);
  ASSERT_TRUE(config.a1_gscale && config.a2_gscale);
  const int columns = ExpertScaleRuleOf(backend()).activation_columns(2);
  EXPECT_EQ(*config.a1_gscale, std::vector<float>(kE * columns, 1 / Meant(0.5f)));
  EXPECT_EQ(*config.a2_gscale, std::vector<float>(kE, 1 / Meant(0.5f)));
  if (backend() == Backend::kB12x) {
    EXPECT_EQ(*config.fc2_input_scale, std::vector<float>(kE, Meant(0.5f)));
  } else {
    EXPECT_FALSE(config.fc2_input_scale.has_value());
  }
}

// The shapes and the order in which block scales lie are the backend's.
TEST_P(EveryBackendAndDialect, BlockScalesAreDescribedAsTheBackendReadsThem) {
  const auto quant = Prepare(0.5f, kW4A16);
  ASSERT_TRUE(quant.ok()) << quant.error().Message();
  const bool swizzled = backend() == Backend::kB12x || backend() == Backend::kCutlass;
  const BlockScaleLayout layout = swizzled ? BlockScaleLayout::kInterleaved128x4
                                  : backend() == Backend::kReference ? BlockScaleLayout::kRowMajor
                                                                     : BlockScaleLayout::kInTiles;
  EXPECT_EQ(quant->config.is_scale_swizzled(), swizzled);
  EXPECT_EQ(quant->config.w13_scale, (ExpertBlockScales{kE, 2 * kI, kH / 16, 2, layout}));
  EXPECT_EQ(quant->config.w2_scale, (ExpertBlockScales{kE, kH, kI / 16, 1, layout}));
}

INSTANTIATE_TEST_SUITE_P(W4A16Propagation, EveryBackend, testing::ValuesIn(ExpertBackends()),
                         [](const testing::TestParamInfo<Backend>& tested) {
                           return std::string(NameOf(tested.param));
                         });
INSTANTIATE_TEST_SUITE_P(W4A16Propagation, EveryBackendAndDialect,
                         testing::Combine(testing::ValuesIn(ExpertBackends()),
                                          testing::Values(SourceFormat::kModelopt,
                                                          SourceFormat::kCompressedTensors)),
                         [](const auto& tested) {
                           return std::string(NameOf(std::get<0>(tested.param))) + "_" +
                                  std::string(NameOf(std::get<1>(tested.param)));
                         });

}  // namespace
}  // namespace nibble::weights
