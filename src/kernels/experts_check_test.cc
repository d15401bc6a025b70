#include "kernels/experts_check.h"

#include <gtest/gtest.h>

#include <functional>

namespace nibble::kernels {
namespace {

/// Two experts as the loader hands them over, of scheme W4A16 or W4A4.
PreparedExperts Good(bool w4a4) {
  PreparedExperts e;
  e.name = "model.layers.3.mlp.experts";
  e.backend = Backend::kCpu;
  e.kernel = w4a4 ? "scalar_nvfp4_nvfp4_experts" : "scalar_nvfp4_bf16_experts";
  e.n_experts = 2;
  e.gate = e.up = e.down = std::vector<PreparedWeight>(2, PackedMatrix{});
  e.quant.scheme = w4a4 ? kW4A4 : kW4A16;
  e.quant.source_format = SourceFormat::kCompressedTensors;
  e.quant.g1_alphas = {1, 1, 1, 1};
  e.quant.g2_alphas = {1, 1};
  if (w4a4) {
    e.quant.a1_gscale = {1, 1, 1, 1};
    e.quant.a2_gscale = {1, 1};
  }
  return e;
}

struct Case {
  const char* what;
  bool w4a4;
  std::function<void(PreparedExperts&)> spoil;
  const char* message;
};

TEST(ExpertsCheck, WhatContradictsItselfIsNeverBuilt) {
  EXPECT_TRUE(CheckExperts(Good(false)).ok());
  EXPECT_TRUE(CheckExperts(Good(true)).ok());
  const Case kCases[] = {
      {"an fp4 kernel for a W4A16 source", false,
       [](auto& e) { e.kernel = "scalar_nvfp4_nvfp4_experts"; },
       "does not run QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, "
       "col=16)),scale2(f32,static,per_tensor),symmetric)xNone "
       "from a compressed_tensors checkpoint"},
      {"a bf16 kernel for a W4A4 source", true,
       [](auto& e) { e.kernel = "scalar_nvfp4_bf16_experts"; }, "does not run"},
      {"a stale activation scale", false,
       [](auto& e) {
         e.quant.a1_gscale = {1, 1, 1, 1};
         e.quant.a2_gscale = {1, 1};
       },
       "activation_precision fp4 with source_format compressed_tensors, which declares W4A16"},
      {"the same from modelopt", false,
       [](auto& e) {
         e.quant.source_format = SourceFormat::kModelopt;
         e.quant.a1_gscale = {1, 1, 1, 1};
       },
       "activation_precision fp4 with source_format modelopt, which declares W4A16"},
      {"a second scale alone", false,
       [](auto& e) {
         e.quant.a2_gscale = {1, 1};
       },
       "activation_precision bf16 with source_format"},
      {"W4A4 without its scales", true, [](auto& e) { e.quant.a1_gscale.reset(); },
       "which declares W4A4"},
      {"another backend's kernel", false, [](auto& e) { e.backend = Backend::kReference; },
       "is not an expert kernel of backend REFERENCE"},
      {"a linear kernel", false, [](auto& e) { e.kernel = "scalar_nvfp4_bf16_linear"; },
       "is not an expert kernel"},
      {"an unknown kernel", false, [](auto& e) { e.kernel = "sm_42"; }, "is not in the catalogue"},
      {"bf16 weights under an NVFP4 label", false,
       [](auto& e) {
         e.up[1] = PackedMatrix{TileFormat::kBf16, 16, 64, nullptr};
       },
       "weights of another type"},
      {"canonical bf16 likewise", false,
       [](auto& e) { e.down[0] = CanonicalWeight(CanonicalBf16{}); }, "weights of another type"},
      {"a scale too few", true, [](auto& e) { e.quant.a1_gscale->pop_back(); },
       "do not count 2 experts"},
      {"an expert too few", false, [](auto& e) { e.down.pop_back(); }, "do not count 2 experts"},
      {"a quantized scheme from nowhere", false,
       [](auto& e) { e.quant.source_format = SourceFormat::kNone; }, "source_format none"},
  };
  for (const Case& c : kCases) {
    PreparedExperts e = Good(c.w4a4);
    c.spoil(e);
    const auto status = CheckExperts(e);
    ASSERT_FALSE(status.ok()) << c.what;
    EXPECT_NE(status.error().what.find(c.message), std::string::npos)
        << c.what << ": " << status.error().what;
    EXPECT_EQ(status.error().code, ErrorCode::kInternal);
  }
}

/// The same in FP8.
PreparedExperts GoodFp8(const QuantScheme& scheme) {
  PreparedExperts e = Good(false);
  e.kernel = "scalar_fp8_experts";
  PackedMatrix w;
  w.format = TileFormat::kFp8;
  w.group = scheme.weight->scale.group;
  e.gate = e.up = e.down = std::vector<PreparedWeight>(2, w);
  e.quant.scheme = scheme;
  if (scheme.activation && scheme.activation->scale.is_static) {
    e.quant.a1_scale = {1, 1, 1, 1};
    e.quant.a2_scale = {1, 1};
  }
  return e;
}

TEST(ExpertsCheck, Fp8IsHeldToItsScalesAndToWhatSharesThem) {
  for (const QuantScheme& scheme : kFp8Schemes) {
    const auto status = CheckExperts(GoodFp8(scheme));
    EXPECT_TRUE(status.ok()) << PairName(scheme) << ": " << status.error().what;
  }
  constexpr QuantScheme kStatic = {kFp8StaticTensor, kFp8StaticTensor};
  constexpr QuantScheme kDynamic = {kFp8StaticChannel, kFp8DynamicToken};
  struct Fp8Case {
    const char* what;
    QuantScheme scheme;
    std::function<void(PreparedExperts&)> spoil;
    const char* message;
  };
  const Fp8Case kCases[] = {
      {"static activations without scales", kStatic,
       [](auto& e) {
         e.quant.a1_scale.reset();
         e.quant.a2_scale.reset();
       },
       "no static activation scales"},
      {"one of two scales", kStatic, [](auto& e) { e.quant.a2_scale.reset(); },
       "static activation scales"},
      {"scales under dynamic activations", kDynamic,
       [](auto& e) {
         e.quant.a1_scale = {1, 1, 1, 1};
         e.quant.a2_scale = {1, 1};
       },
       "there are static activation scales"},
      {"FP4's scales", kStatic,
       [](auto& e) {
         e.quant.a1_gscale = {1, 1, 1, 1};
         e.quant.a2_gscale = {1, 1};
       },
       "which declares W8A8"},
      {"a scale too few", kStatic, [](auto& e) { e.quant.a1_scale->pop_back(); },
       "do not count 2 experts"},
      {"NVFP4 weights", kStatic, [](auto& e) { e.down[1] = PackedMatrix{}; },
       "weights of another type"},
      {"bf16 weights", kDynamic, [](auto& e) { e.up[0] = CanonicalWeight(CanonicalBf16{}); },
       "weights of another type"},
      {"one scale where there is one a channel", kDynamic,
       [](auto& e) { e.gate[0] = CanonicalWeight(CanonicalFp8{}); }, "weights of another type"},
      {"another format's kernel", kStatic, [](auto& e) { e.kernel = "scalar_nvfp4_bf16_experts"; },
       "does not run"},
  };
  for (const Fp8Case& c : kCases) {
    PreparedExperts e = GoodFp8(c.scheme);
    c.spoil(e);
    const auto status = CheckExperts(e);
    ASSERT_FALSE(status.ok()) << c.what;
    EXPECT_NE(status.error().what.find(c.message), std::string::npos)
        << c.what << ": " << status.error().what;
  }
}

}  // namespace
}  // namespace nibble::kernels
