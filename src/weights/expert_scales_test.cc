#include "weights/expert_scales.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "weights/test_golden.h"
#include "weights/w13.h"

namespace nibble::weights {
namespace {

constexpr Backend kBackends[] = {Backend::kReference, Backend::kCpu,  Backend::kMarlin,
                                 Backend::kHopper,    Backend::kB12x, Backend::kCutlass};

// A layer's experts, of 16 rows and one group each, whose scales alone matter.
struct Layer {
  std::vector<Nvfp4Matrix> storage;  // gate, up of every expert
  std::vector<CanonicalNvfp4> gate, up, down;

  explicit Layer(size_t experts) : storage(2 * experts, Nvfp4Matrix(16, 16)) {
    for (size_t e = 0; e < experts; ++e) {
      storage[2 * e].scales[0] = storage[2 * e + 1].scales[0] = 0x38;
      gate.push_back(storage[2 * e].View(1e-4f));
      up.push_back(storage[2 * e + 1].View(1e-4f));
      down.push_back(storage[2 * e].View(2e-4f));
    }
  }
};

// g1 and a1 are [E, 2].
Layer MakeLayer(const std::vector<float>& g1, const std::vector<float>& g2,
                const std::vector<float>* a1, const std::vector<float>* a2) {
  Layer layer(g2.size());
  for (size_t e = 0; e < g2.size(); ++e) {
    layer.gate[e].global = g1[2 * e];
    layer.up[e].global = g1[2 * e + 1];
    layer.down[e].global = g2[e];
    if (a1 == nullptr) continue;
    layer.gate[e].input_scale = (*a1)[2 * e];
    layer.up[e].input_scale = (*a1)[2 * e + 1];
    layer.down[e].input_scale = (*a2)[e];
  }
  return layer;
}

Result<ExpertScales> Make(Backend backend, const Layer& layer) {
  return MakeExpertScales(ExpertScaleRuleOf(backend), layer.gate, layer.up, layer.down);
}

std::vector<CanonicalWeight> Any(const std::vector<CanonicalNvfp4>& weights) {
  return {weights.begin(), weights.end()};
}

Result<ExpertQuant> MakeQuant(Backend backend, const Layer& layer) {
  const bool w4a4 = layer.down[0].input_scale.has_value();
  return MakeExpertQuant(backend, w4a4 ? kW4A4 : kW4A16, SourceFormat::kModelopt, Any(layer.gate),
                         Any(layer.up), Any(layer.down));
}

void ExpectReciprocals(const std::optional<std::vector<float>>& got,
                       const std::optional<std::vector<float>>& of) {
  ASSERT_EQ(got.has_value(), of.has_value());
  for (size_t i = 0; got && i < of->size(); ++i) EXPECT_EQ((*got)[i], 1.0f / (*of)[i]) << i;
}

void ExpectGolden(const std::optional<std::vector<float>>& got, const Json& want,
                  std::string_view key) {
  if (want.Find(key)->is_null()) {
    EXPECT_FALSE(got.has_value()) << key;
    return;
  }
  ASSERT_TRUE(got.has_value()) << key;
  EXPECT_EQ(*got, FloatsOf(want, key)) << key;
}

TEST(ExpertScales, AreTheGoldenOnesOfEveryBackendInBothSchemes) {
  const Json golden = ReadGolden("scales");
  const Json& given = *golden.Find("given");
  const std::vector<float> a1 = FloatsOf(given, "a1"), a2 = FloatsOf(given, "a2");
  for (const bool w4a4 : {true, false}) {
    const Layer layer = MakeLayer(FloatsOf(given, "g1"), FloatsOf(given, "g2"),
                                  w4a4 ? &a1 : nullptr, w4a4 ? &a2 : nullptr);
    for (const Backend backend : kBackends) {
      SCOPED_TRACE(std::string(NameOf(backend)) + (w4a4 ? " W4A4" : " W4A16"));
      const Json& want = *golden.Find(w4a4 ? "w4a4" : "w4a16")->Find(NameOf(backend));
      const auto scales = Make(backend, layer);
      ASSERT_TRUE(scales.ok()) << scales.error().Message();
      ExpectGolden(scales->a13_scale, want, "a1");
      ExpectGolden(scales->a2_scale, want, "a2");
      EXPECT_EQ(scales->widened, IntegerOf(want, "widened"));
      const auto quant = MakeQuant(backend, layer);
      ASSERT_TRUE(quant.ok()) << quant.error().Message();
      EXPECT_EQ(quant->widened, scales->widened);
      const MoeQuantConfig& config = quant->config;
      EXPECT_EQ(config.scheme, w4a4 ? kW4A4 : kW4A16);
      EXPECT_EQ(config.g1_alphas, FloatsOf(want, "g1"));
      EXPECT_EQ(config.g2_alphas, FloatsOf(want, "g2"));
      ExpectGolden(config.fc2_input_scale, want, "fc2");
      ExpectReciprocals(config.a1_gscale, scales->a13_scale);
      ExpectReciprocals(config.a2_gscale, scales->a2_scale);
    }
  }
}

TEST(ExpertScales, DifferentScalesOfGateAndUpAreKeptApartOrRefused) {
  Layer layer(3);
  layer.gate[2].global = 3e-4f;
  layer.up[2].global = 1e-4f;
  for (const Backend backend : kBackends) {
    SCOPED_TRACE(NameOf(backend));
    const auto scales = Make(backend, layer);
    if (backend == Backend::kCutlass) {
      ASSERT_FALSE(scales.ok());
      EXPECT_EQ(scales.error().code, ErrorCode::kUnsupported);
      EXPECT_EQ(scales.error().where, "expert 2");
      EXPECT_NE(scales.error().what.find("0.0003 and 0.0001"), std::string::npos)
          << scales.error().what;
      continue;
    }
    ASSERT_TRUE(scales.ok()) << scales.error().Message();
    EXPECT_EQ(scales->w13_scale_2, (std::vector<float>{1e-4f, 1e-4f, 1e-4f, 1e-4f, 3e-4f, 1e-4f}));
    EXPECT_TRUE(scales->common.empty());
  }
}

TEST(ExpertScales, OneAlphaAndItsShiftsGiveTheSameWeights) {
  Layer layer(2);
  layer.storage[2].scales[0] = 0x7E;  // expert 1's gate: 448, which cannot grow
  layer.storage[3].scales[0] = 0x51;
  layer.storage[2].codes[0] = 0x7F;
  layer.storage[3].codes[0] = 0x5B;
  layer.gate[1].global = 8e-4f;
  layer.up[1].global = 1e-4f;
  const auto scales = Make(Backend::kCutlass, layer);
  ASSERT_TRUE(scales.ok()) << scales.error().Message();
  ASSERT_EQ(scales->common.size(), 2u);
  for (size_t e = 0; e < 2; ++e) {
    const CanonicalNvfp4 before[] = {layer.gate[e], layer.up[e]};
    const int shifts[] = {scales->common[e].gate_shift, scales->common[e].up_shift};
    for (int half = 0; half < 2; ++half) {
      Nvfp4Matrix after = layer.storage[2 * e + static_cast<size_t>(half)];
      MultiplyByPowerOfTwo(after.scales, shifts[half]);
      for (int64_t k = 0; k < 16; ++k) {
        EXPECT_EQ(ValueAt(after.View(scales->w13_scale_2[e]), 0, k), ValueAt(before[half], 0, k));
      }
    }
  }
}

TEST(ExpertScales, WithoutAGateThereIsOneNumberAnExpert) {
  Layer layer(2);
  layer.gate.clear();
  layer.up[0].global = 5e-5f;
  for (size_t e = 0; e < 2; ++e) {
    layer.up[e].input_scale = 0.5f + static_cast<float>(e);
    layer.down[e].input_scale = 0.25f;
  }
  for (const Backend backend : kBackends) {
    SCOPED_TRACE(NameOf(backend));
    const bool cutlass = backend == Backend::kCutlass;
    const auto scales = Make(backend, layer);
    ASSERT_TRUE(scales.ok()) << scales.error().Message();
    EXPECT_EQ(scales->a13_scale,
              cutlass ? std::vector<float>({1.5f, 1.5f}) : std::vector<float>({0.5f, 1.5f}));
    EXPECT_EQ(scales->w13_scale_2, std::vector<float>({5e-5f, 1e-4f}));
    EXPECT_TRUE(scales->common.empty());
    const auto quant = MakeQuant(backend, layer);
    ASSERT_TRUE(quant.ok()) << quant.error().Message();
    EXPECT_EQ(quant->config.w13_shards, 1);
    EXPECT_EQ(quant->config.g1_alphas, cutlass ? std::vector<float>({5e-5f * 1.5f, 1e-4f * 1.5f})
                                               : std::vector<float>({5e-5f, 1e-4f}));
  }
}

TEST(ExpertScales, SomeActivationScalesAreNeitherW4A4NorW4A16) {
  const struct {
    const char* what;
    bool all;  // else none
    std::vector<CanonicalNvfp4> Layer::*which;
    size_t expert;
  } kCases[] = {{"expert 1's gate projection has no activation scale", true, &Layer::gate, 1},
                {"expert 0's up projection has no activation scale", true, &Layer::up, 0},
                {"expert 1's down projection has no activation scale", true, &Layer::down, 1},
                {"expert 1's up projection has an activation scale", false, &Layer::up, 1},
                {"expert 1's down projection has an activation scale", false, &Layer::down, 1}};
  const std::vector<float> g1(4, 1e-4f), g2(2, 1e-4f), a1(4, 0.5f), a2(2, 0.5f);
  for (const auto& c : kCases) {
    Layer layer = MakeLayer(g1, g2, c.all ? &a1 : nullptr, c.all ? &a2 : nullptr);
    auto& scale = (layer.*c.which)[c.expert].input_scale;
    scale = c.all ? std::nullopt : std::optional(0.5f);
    for (const Backend backend : kBackends) {
      const auto scales = Make(backend, layer);
      ASSERT_FALSE(scales.ok()) << c.what;
      EXPECT_EQ(scales.error().code, ErrorCode::kInvalidArgument);
      EXPECT_EQ(scales.error().what.substr(0, std::string(c.what).size()), c.what);
    }
  }
}

TEST(ExpertScales, WeightsThatContradictTheDeclaredSchemeAreRefused) {
  const std::vector<float> g1(2, 1e-4f), g2(1, 1e-4f), a1(2, 0.5f), a2(1, 0.5f);
  for (const bool w4a4 : {false, true}) {
    const Layer layer = MakeLayer(g1, g2, w4a4 ? &a1 : nullptr, w4a4 ? &a2 : nullptr);
    for (const Backend backend : kBackends) {
      const auto quant = MakeExpertQuant(backend, w4a4 ? kW4A16 : kW4A4, SourceFormat::kModelopt,
                                         Any(layer.gate), Any(layer.up), Any(layer.down));
      ASSERT_FALSE(quant.ok()) << NameOf(backend);
      EXPECT_NE(quant.error().what.find("declared is QuantKey"), std::string::npos)
          << quant.error().what;
    }
  }
}

// ---- FP8 and 16 bits

CanonicalFp8 Fp8Of(GroupShape group, float scale, std::optional<float> input_scale) {
  CanonicalFp8 w;
  w.n = w.k = 16;
  w.group = group;
  w.scales = {scale};
  w.input_scale = input_scale;
  return w;
}

TEST(ExpertScales, Fp8ScalesGoWhereTheirSchemeSays) {
  for (const QuantScheme& scheme : kFp8Schemes) {
    SCOPED_TRACE(PairName(scheme));
    const bool tensor = scheme.weight == kFp8StaticTensor;
    const bool is_static = scheme.activation == kFp8StaticTensor;
    std::vector<CanonicalWeight> gate, up, down;
    for (int e = 0; e < 2; ++e) {
      const auto make = [&](float value) {
        return Fp8Of(scheme.weight->scale.group, value,
                     is_static ? std::optional(10 * value) : std::nullopt);
      };
      gate.push_back(make(1.0f + static_cast<float>(e)));
      up.push_back(make(3.0f + static_cast<float>(e)));
      down.push_back(make(5.0f + static_cast<float>(e)));
    }
    const auto quant =
        MakeExpertQuant(Backend::kCpu, scheme, SourceFormat::kCompressedTensors, gate, up, down);
    ASSERT_TRUE(quant.ok()) << quant.error().Message();
    const MoeQuantConfig& config = quant->config;
    using Floats = std::vector<float>;
    EXPECT_EQ(config.scheme, scheme);
    EXPECT_EQ(config.source_format, SourceFormat::kCompressedTensors);
    EXPECT_EQ(config.g1_alphas, tensor ? Floats({1, 3, 2, 4}) : Floats(4, 1.0f));
    EXPECT_EQ(config.g2_alphas, tensor ? Floats({5, 6}) : Floats(2, 1.0f));
    EXPECT_EQ(config.a1_scale, is_static ? std::optional(Floats{10, 30, 20, 40}) : std::nullopt);
    EXPECT_EQ(config.a2_scale, is_static ? std::optional(Floats{50, 60}) : std::nullopt);

    // A scale that one projection lacks, or has alone.
    auto& odd = std::get<CanonicalFp8>(up[1]);
    odd.input_scale = is_static ? std::nullopt : std::optional(1.0f);
    EXPECT_FALSE(
        MakeExpertQuant(Backend::kCpu, scheme, SourceFormat::kModelopt, gate, up, down).ok());
  }
}

TEST(ExpertScales, SixteenBitExpertsHaveOnes) {
  const std::vector<CanonicalWeight> three(3, CanonicalBf16{16, 16, nullptr});
  const auto quant =
      MakeExpertQuant(Backend::kCpu, kBf16Scheme, SourceFormat::kNone, three, three, three);
  ASSERT_TRUE(quant.ok());
  EXPECT_EQ(quant->config.scheme, kBf16Scheme);
  EXPECT_EQ(quant->config.g1_alphas, std::vector<float>(6, 1.0f));
  EXPECT_EQ(quant->config.g2_alphas, std::vector<float>(3, 1.0f));
}

// Multiplying the global scale into the block scales (vLLM's FLASHINFER_B12X does; its PR 48536)
// loses most of them: 448 * 2e-5 becomes 0x05, 9 % too much, 96 * 2e-5 becomes 0x01, and from
// 48 * 2e-5 down all are zero.
TEST(ExpertScales, TheGlobalScaleNeverEntersABlockScale) {
  const Json golden = ReadGolden("bake");
  ASSERT_GE(golden.array().size(), 7u);
  int lost = 0;
  for (const Json& c : golden.array()) {
    const uint8_t scale = static_cast<uint8_t>(IntegerOf(c, "scale"));
    const float global = FloatOf(c, "global");
    const uint8_t baked = static_cast<uint8_t>(IntegerOf(c, "baked"));
    const double exact = double{DecodeE4m3(scale)} * double{global};
    EXPECT_EQ(EncodeE4m3(exact), baked);
    EXPECT_NE(double{DecodeE4m3(baked)}, exact);
    lost += baked == 0;

    Layer layer(1);
    for (Nvfp4Matrix& m : layer.storage) {
      m.scales[0] = scale;
      std::fill(m.codes.begin(), m.codes.end(), uint8_t{0x21});  // 0.5 and 1
    }
    layer.gate[0].global = layer.up[0].global = layer.down[0].global = global;
    for (const Backend backend : kBackends) {
      SCOPED_TRACE(NameOf(backend));
      const auto scales = Make(backend, layer);
      ASSERT_TRUE(scales.ok()) << scales.error().Message();
      Nvfp4Matrix w13 = PrepareW13(layer.gate[0], layer.up[0], W13Order::kUpGate, 16);
      for (const CommonAlpha& common : scales->common) {
        EXPECT_EQ(common.gate_shift, 0);
        EXPECT_EQ(common.up_shift, 0);
      }
      EXPECT_EQ(w13.scales[0], scale);
      EXPECT_EQ(w13.scales[16], scale);
      for (const float alpha : scales->w13_scale_2) {
        EXPECT_EQ(ValueAt(w13.View(alpha), 0, 0), 0.5 * exact);
        EXPECT_EQ(ValueAt(w13.View(alpha), 16, 1), exact);
      }
      EXPECT_EQ(scales->w2_scale_2[0], global);
    }
  }
  EXPECT_EQ(lost, 4);
}

}  // namespace
}  // namespace nibble::weights
