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

// A layer's experts, of one row and one group each, whose scales alone matter.
struct Layer {
  std::vector<Nvfp4Matrix> storage;  // gate, up of every expert
  std::vector<CanonicalNvfp4> gate, up, down;

  explicit Layer(size_t experts) : storage(2 * experts, Nvfp4Matrix(1, 16)) {
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
      EXPECT_EQ(scales->g1_alphas, FloatsOf(want, "g1"));
      EXPECT_EQ(scales->g2_alphas, FloatsOf(want, "g2"));
      ExpectGolden(scales->a1_scales, want, "a1");
      ExpectGolden(scales->a2_scales, want, "a2");
      ExpectGolden(scales->fc2_input_scales, want, "fc2");
      EXPECT_EQ(scales->widened, IntegerOf(want, "widened"));
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
    EXPECT_EQ(scales->g1_alphas, (std::vector<float>{1e-4f, 1e-4f, 1e-4f, 1e-4f, 3e-4f, 1e-4f}));
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
        EXPECT_EQ(ValueAt(after.View(scales->g1_alphas[e]), 0, k), ValueAt(before[half], 0, k));
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
    EXPECT_EQ(scales->a1_scales,
              cutlass ? std::vector<float>({1.5f, 1.5f}) : std::vector<float>({0.5f, 1.5f}));
    EXPECT_EQ(scales->g1_alphas, cutlass ? std::vector<float>({5e-5f * 1.5f, 1e-4f * 1.5f})
                                         : std::vector<float>({5e-5f, 1e-4f}));
    EXPECT_TRUE(scales->common.empty());
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

// Grouped GEMMs that keep the label's scales apart: no backend of ours yet.
TEST(ExpertScales, FoldingTakesTheScaleOfTheSameExpertAndShard) {
  const std::vector<float> g1 = {0.5f, 0.25f, 2.0f, 1.0f}, g2 = {4.0f, 8.0f};
  const std::vector<float> a1 = {3.0f, 5.0f, 9.0f, 7.0f}, a2 = {11.0f, 13.0f};
  const Layer layer = MakeLayer(g1, g2, &a1, &a2);
  const struct {
    ActivationRule activation;
    std::vector<float> g1;
  } kCases[] = {{ActivationRule::kPerShard, {1.5f, 1.25f, 18.0f, 7.0f}},
                {ActivationRule::kPerExpert, {2.5f, 1.25f, 18.0f, 9.0f}}};
  for (const auto& c : kCases) {
    const auto scales = MakeExpertScales({AlphaRule::kPerShard, c.activation, true, false},
                                         layer.gate, layer.up, layer.down);
    ASSERT_TRUE(scales.ok()) << scales.error().Message();
    EXPECT_EQ(scales->g1_alphas, c.g1);
    EXPECT_EQ(scales->g2_alphas, (std::vector<float>{44.0f, 104.0f}));
  }
}

TEST(ExpertScales, AnAlphaThatVanishesInFp32IsRefused) {
  const std::vector<float> g1(2, 1e-20f), g2(1, 1e-20f), a1(2, 1e-19f), a2(1, 1e-3f);
  const Layer layer = MakeLayer(g1, g2, &a1, &a2);
  const auto folded = Make(Backend::kCutlass, layer);
  ASSERT_FALSE(folded.ok());
  EXPECT_EQ(folded.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(folded.error().what.substr(0, 12), "g1_alphas[0]");
  EXPECT_TRUE(Make(Backend::kHopper, layer).ok());
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
      for (const float alpha : scales->g1_alphas) {
        EXPECT_EQ(ValueAt(w13.View(alpha), 0, 0), 0.5 * exact);
        EXPECT_EQ(ValueAt(w13.View(alpha), 16, 1), exact);
      }
      EXPECT_EQ(scales->g2_alphas[0], global);
    }
  }
  EXPECT_EQ(lost, 4);
}

}  // namespace
}  // namespace nibble::weights
