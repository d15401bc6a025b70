#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "scheme/canonical.h"
#include "scheme/test_weights.h"

namespace nibble::scheme {
namespace {

/// The bytes of all experts' halves, one behind the other.
std::string Joined(const Tensors& parts, const std::vector<std::string>& ends) {
  std::string bytes;
  for (int e = 0; e < kE; ++e) {
    for (const std::string& end : ends) {
      Tensors copy = parts;
      bytes += Find(&copy, "." + std::to_string(e) + end)->bytes;
    }
  }
  return bytes;
}

/// The tensors of ExpertTensors stacked. The global scales of gate and up have the given shape: one
/// for all (the first), one an expert (its gate's), or one an expert and half.
Tensors StackedTensors(const std::vector<uint64_t>& global_shape) {
  const Tensors parts = ExpertTensors(SourceFormat::kModelopt);
  const std::string up = std::string(kBlock) + ".gate_up_proj";
  const std::string down = std::string(kBlock) + ".down_proj";
  const bool one = global_shape.empty() || global_shape[0] == 1;
  auto globals = [&](const std::string& end) {
    if (global_shape.size() == 2) return Joined(parts, {".gate_proj" + end, ".up_proj" + end});
    return Joined(parts, {".gate_proj" + end}).substr(0, (one ? 1 : kE) * sizeof(float));
  };
  return {
      {up,
       DType::kU8,
       {kE, 2 * kI, kH / 2},
       Joined(parts, {".gate_proj.weight", ".up_proj.weight"})},
      {up + "_weight_scale",
       DType::kF8E4m3,
       {kE, 2 * kI, kH / 16},
       Joined(parts, {".gate_proj.weight_scale", ".up_proj.weight_scale"})},
      {up + "_weight_scale_2", DType::kF32, global_shape, globals(".weight_scale_2")},
      {up + "_input_scale", DType::kF32, global_shape, globals(".input_scale")},
      {down, DType::kU8, {kE, kH, kI / 2}, Joined(parts, {".down_proj.weight"})},
      {down + "_weight_scale",
       DType::kF8E4m3,
       {kE, kH, kI / 16},
       Joined(parts, {".down_proj.weight_scale"})},
      {down + "_weight_scale_2", DType::kF32, {kE}, Joined(parts, {".down_proj.weight_scale_2"})},
      {down + "_input_scale", DType::kF32, {}, F32({InputOf(0, 2)})},
  };
}

TEST_F(CanonicalTest, ReadsStackedExpertsAsThoseOneByOne) {
  for (const std::vector<uint64_t>& shape :
       {std::vector<uint64_t>{}, std::vector<uint64_t>{1}, std::vector<uint64_t>{kE},
        std::vector<uint64_t>{kE, 2}}) {
    const bool one = shape.empty() || shape[0] == 1;
    auto read = Experts(StackedTensors(shape), kModeloptA4);
    ASSERT_TRUE(read.ok()) << read.error().Message();
    int p = 0;
    for (auto* list : {&read->gate, &read->up, &read->down}) {
      ASSERT_EQ(list->size(), size_t{kE});
      for (int e = 0; e < kE; ++e) {
        const auto seed = static_cast<unsigned>(10 * e + p);
        const auto& v = std::get<CanonicalNvfp4>((*list)[e]);
        EXPECT_TRUE(CodesOf((*list)[e]) == Fill(kI * kH / 2, seed, 0xFF)) << e << " " << p;
        EXPECT_TRUE(ScalesOf((*list)[e]) == Fill(kI * kH / 16, seed + 1, 0x3F)) << e << " " << p;
        if (p == 2) {
          EXPECT_EQ(v.global, GlobalOf(e, 2));
          EXPECT_EQ(v.input_scale, InputOf(0, 2));
        } else {
          const int of_expert = one ? 0 : e, of_half = shape.size() < 2 ? 0 : p;
          EXPECT_EQ(v.global, GlobalOf(of_expert, of_half)) << e << " " << p;
          EXPECT_EQ(v.input_scale, InputOf(of_expert, of_half)) << e << " " << p;
        }
      }
      ++p;
    }
    EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
  }
}

TEST_F(CanonicalTest, DecidesTensorByTensorWhetherExpertsAreStacked) {
  Tensors tensors = StackedTensors({kE, 2});
  std::erase_if(tensors,
                [](const auto& t) { return t.name.find(".down_proj") != std::string::npos; });
  for (const TensorToWrite& t : ExpertTensors(SourceFormat::kModelopt)) {
    if (t.name.find(".down_proj") != std::string::npos) tensors.push_back(t);
  }
  auto read = Experts(tensors, kModeloptA16);
  ASSERT_TRUE(read.ok()) << read.error().Message();
  EXPECT_TRUE(CodesOf(read->up[1]) == Fill(kI * kH / 2, 11, 0xFF));
  EXPECT_TRUE(CodesOf(read->down[1]) == Fill(kI * kH / 2, 12, 0xFF));
  EXPECT_FALSE(std::get<CanonicalNvfp4>(read->up[1]).input_scale.has_value());
  EXPECT_EQ(report_.ignored_tensors.size(), size_t{1 + kE});
}

TEST_F(CanonicalTest, RefusesBrokenStackedExpertsAndSaysWhere) {
  Tensors nan = StackedTensors({kE, 2});
  Find(&nan, "gate_up_proj_weight_scale")->bytes[(2 * kI + kI + 5) * kH / 16 + 1] = '\x7F';
  auto broken = Experts(nan, kModeloptA16);
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().Message().find(
                "layer 5, expert 1, up_proj: tensor \"model.layers.5.mlp.experts.gate_up_proj_"
                "weight_scale\": block scale at row 5, column 1 is 0x7F"),
            std::string::npos)
      << broken.error().Message();

  Tensors globals = StackedTensors({kE, 2});
  *Find(&globals, "gate_up_proj_weight_scale_2") = {
      std::string(kBlock) + ".gate_up_proj_weight_scale_2", DType::kF32, {2}, F32({1, 1})};
  auto shape = Experts(globals, kModeloptA16);
  ASSERT_FALSE(shape.ok());
  EXPECT_NE(shape.error().Message().find("shape [2], expected [] or [1] or [3] or [3,2]"),
            std::string::npos)
      << shape.error().Message();

  auto ct = Experts(StackedTensors({kE}), kCtA16);
  ASSERT_FALSE(ct.ok());
  EXPECT_EQ(ct.error().code, ErrorCode::kUnsupported);
  auto label = Experts(StackedTensors({kE}), kBf16);
  ASSERT_FALSE(label.ok());
  EXPECT_NE(label.error().Message().find("contradicts the label, which says BF16"),
            std::string::npos);
}

TEST_F(CanonicalTest, ReadsStackedBf16Experts) {
  const Tensors tensors = {{std::string(kBlock) + ".gate_up_proj",
                            DType::kBf16,
                            {kE, 2 * kI, kH},
                            Fill(kE * 2 * kI * kH * 2, 1, 0xFF)},
                           {std::string(kBlock) + ".down_proj",
                            DType::kBf16,
                            {kE, kH, kI},
                            Fill(kE * kH * kI * 2, 2, 0xFF)}};
  auto read = Experts(tensors, kBf16);
  ASSERT_TRUE(read.ok()) << read.error().Message();
  constexpr size_t kBytes = kI * kH * 2;
  for (size_t e = 0; e < kE; ++e) {
    const auto at = [](const CanonicalWeight& w) { return std::get<CanonicalBf16>(w).data; };
    EXPECT_EQ(std::memcmp(at(read->gate[e]), tensors[0].bytes.data() + 2 * e * kBytes, kBytes), 0);
    EXPECT_EQ(std::memcmp(at(read->up[e]), tensors[0].bytes.data() + (2 * e + 1) * kBytes, kBytes),
              0);
    EXPECT_EQ(std::memcmp(at(read->down[e]), tensors[1].bytes.data() + e * kBytes, kBytes), 0);
  }
}

}  // namespace
}  // namespace nibble::scheme
