// The 68 checkpoints that make_broken.py derives from the genuine tiny ones: 59 must be refused,
// before any compute and with an error that a person can act on; 9 must be accepted and compute
// what their base does.
#include <gtest/gtest.h>

#include <iostream>

#include "base/file.h"
#include "base/json.h"
#include "rig.h"

namespace nibble::golden {
namespace {

struct Case {
  std::string name, base, same_base, same_mode;
  bool accept = false;
};

std::vector<Case> Cases() {
  std::vector<Case> out;
  auto text = ReadFile(std::string(NIBBLE_BROKEN_DIR) + "/cases.json", 1 << 20);
  if (!text) return out;
  auto json = Json::Parse(*text);
  if (!json) return out;
  for (const auto& [name, c] : json->object()) {
    Case one{name, c.Find("base")->string(), "", "", c.Find("expect")->string() == "accept"};
    if (const Json* same = c.Find("same_as")) {
      one.same_base = same->array()[0].string();
      one.same_mode = same->array()[1].string();
    }
    out.push_back(std::move(one));
  }
  return out;
}

TEST(Broken, EveryCaseGetsItsVerdict) {
  const auto cases = Cases();
  ASSERT_EQ(cases.size(), 68u) << "run tests/golden/make_broken.py tests/golden/tiny "
                               << NIBBLE_BROKEN_DIR;
  for (const Case& c : cases) {
    auto rig = Rig::Open(std::string(NIBBLE_BROKEN_DIR) + "/" + c.name, {}, IsasHere().back());
    EXPECT_EQ(rig.ok(), c.accept) << c.name << ": "
                                  << (rig.ok() ? "accepted" : rig.error().Message());
    if (rig.ok()) continue;
    const Error& error = rig.error();
    const std::string message = error.Message();
    std::cout << c.name << ": " << NameOf(error.code) << ": " << message << "\n";
    EXPECT_NE(error.code, ErrorCode::kInternal) << c.name;
    EXPECT_FALSE(error.what.empty()) << c.name;
    EXPECT_TRUE(!error.where.empty() || message.find("config.json") != std::string::npos)
        << c.name << " says not where: " << message;
  }
}

struct Named {
  const char* name;
  ErrorCode code;
  std::vector<const char*> parts;  // what the message must hold
};

void ExpectNamed(std::span<const Named> cases) {
  for (const Named& n : cases) {
    auto rig = Rig::Open(std::string(NIBBLE_BROKEN_DIR) + "/" + n.name, {}, IsasHere().back());
    ASSERT_FALSE(rig.ok()) << n.name;
    EXPECT_EQ(NameOf(rig.error().code), NameOf(n.code)) << n.name << ": " << rig.error().Message();
    for (const char* part : n.parts) {
      EXPECT_NE(rig.error().Message().find(part), std::string::npos)
          << n.name << ": " << rig.error().Message() << " lacks " << part;
    }
  }
}

TEST(Broken, ErrorsNameLayerExpertAndTensor) {
  using enum ErrorCode;
  const Named kNamed[] = {
      {"mo_missing_input_scale_w4a4", kNotFound, {"layer 1", "expert 2", "down_proj.input_scale"}},
      {"mo_missing_weight_scale_2", kNotFound, {"layer 1", "expert 2", "gate_proj.weight_scale_2"}},
      {"mo_scale_is_nan_e4m3",
       kCorruptFile,
       {"layer 1", "expert 2", "gate_proj.weight_scale", "NaN"}},
      {"mo_weight_scale_2_inf", kCorruptFile, {"gate_proj.weight_scale_2", "inf"}},
      {"mo_scale_transposed", kCorruptFile, {"gate_proj.weight_scale", "[", "]"}},
      {"ct_global_scale_zero", kCorruptFile, {"gate_proj.weight_global_scale"}},
      {"mo_unknown_algo", kUnsupported, {"NVFP4_XYZ"}},
      {"unknown_quant_method", kUnsupported, {"awq"}},
  };
  ExpectNamed(kNamed);
}

TEST(Broken, ErrorsOfFp8NameTensorPlaceAndValue) {
  using enum ErrorCode;
  const char kFile[] = "model.safetensors", kExpert[] = "layer 0, expert 2, ",
             kLinear[] = "model.layers.1.self_attn.q_proj";
  const Named kNamed[] = {
      {"fp8_weight_nan_code",
       kCorruptFile,
       {kFile, kExpert, "up_proj.weight\"", "row 3, column 5 is 0x7F, a NaN"}},
      {"fp8_weight_negative_nan_code",
       kCorruptFile,
       {kFile, kLinear, "row 63, column 63 is 0xFF, a NaN"}},
      {"fp8_missing_weight_scale", kNotFound, {kExpert, "gate_proj.weight_scale"}},
      {"fp8_linear_missing_weight_scale", kNotFound, {kLinear, "q_proj.weight_scale"}},
      {"fp8_missing_input_scale", kNotFound, {kExpert, "down_proj.input_scale"}},
      {"fp8_linear_missing_input_scale", kNotFound, {kLinear, "q_proj.input_scale"}},
      {"fp8_weight_scale_zero", kCorruptFile, {kFile, kExpert, "down_proj.weight_scale", " 0"}},
      {"fp8_weight_scale_negative",
       kCorruptFile,
       {kFile, kExpert, "down_proj.weight_scale", "-0.01"}},
      {"fp8_weight_scale_nan", kCorruptFile, {kFile, kExpert, "down_proj.weight_scale", "nan"}},
      {"fp8_weight_scale_inf", kCorruptFile, {kFile, kExpert, "down_proj.weight_scale", "inf"}},
      {"fp8_input_scale_zero", kCorruptFile, {kFile, kLinear, "q_proj.input_scale", " 0"}},
      {"fp8_input_scale_negative", kCorruptFile, {kFile, kLinear, "q_proj.input_scale", "-0.01"}},
      {"fp8_input_scale_nan", kCorruptFile, {kFile, kLinear, "q_proj.input_scale", "nan"}},
      {"fp8_input_scale_inf", kCorruptFile, {kFile, kLinear, "q_proj.input_scale", "inf"}},
      {"fp8_weight_wrong_dtype",
       kCorruptFile,
       {kFile, kExpert, "gate_proj.weight\"", "I8", "F8_E4M3"}},
      {"fp8_weight_e5m2", kCorruptFile, {kFile, kLinear, "q_proj.weight\"", "F8_E5M2", "F8_E4M3"}},
      {"fp8_weight_left_in_bf16",
       kCorruptFile,
       {kFile, kLinear, "q_proj.weight\"", "BF16 contradicts", "W8A8"}},
      {"fp8_weight_transposed",
       kCorruptFile,
       {kFile, "model.layers.0.self_attn.k_proj", "shape [64,32], expected [32,64]"}},
      {"fp8_weight_scale_per_row", kCorruptFile, {kFile, kLinear, "q_proj.weight_scale", "[64]"}},
      {"fp8_weight_scale_wrong_dtype",
       kCorruptFile,
       {kFile, kExpert, "up_proj.weight_scale", "I32", "F32"}},
      {"fp8_input_scale_wrong_shape", kCorruptFile, {kFile, kExpert, "up_proj.input_scale", "[2]"}},
  };
  ExpectNamed(kNamed);
}

/// The contract's heart: an activation scale in a W4A16 file, calibrated, NaN or garbage, changes
/// no bit of the output; and every other accepted case computes exactly what its base does.
TEST(Broken, AcceptedCasesAreBitForBitTheirBase) {
  for (const Case& c : Cases()) {
    if (!c.accept) continue;
    const Reference want(fmt::format("{}/tests/golden/references/tiny-{}.{}.safetensors",
                                     NIBBLE_SOURCE_DIR, c.same_base, c.same_mode));
    for (const plan::Wishes& wishes : {plan::Wishes{}, Reference64()}) {
      auto rig =
          Rig::Open(std::string(NIBBLE_BROKEN_DIR) + "/" + c.name, wishes, IsasHere().back());
      auto base = Rig::Open(fmt::format("{}/tests/golden/tiny/{}", NIBBLE_SOURCE_DIR, c.base),
                            wishes, IsasHere().back());
      ASSERT_TRUE(rig.ok() && base.ok()) << c.name;
      if (c.name.find("input") != std::string::npos) {
        EXPECT_FALSE((*rig)->weights.ignored_tensors.empty())
            << c.name << ": what is ignored is told";
        EXPECT_TRUE((*base)->weights.ignored_tensors.empty());
      }
      for (int p = 0; p < want.prompts(); ++p) {
        const auto prompt = want.Ints(fmt::format("p{}.ids", p));
        const int64_t last = static_cast<int64_t>(prompt.size()) - 1;
        const auto got = (*rig)->Logits(prompt, last).back();
        EXPECT_EQ(got, (*base)->Logits(prompt, last).back()) << c.name << " prompt " << p;
        const double limit = wishes.any ? 1e-4 : 0.05;
        EXPECT_LE(RelativeL2(got, want.Floats(fmt::format("p{}.logits", p))), limit)
            << c.name << " prompt " << p;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::golden
