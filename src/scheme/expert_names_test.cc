#include "scheme/expert_names.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "scheme/test_weights.h"

namespace nibble::scheme {
namespace {

/// Renames the projections of the experts from `first` on.
Tensors Renamed(Tensors tensors, int first,
                const std::vector<std::pair<std::string, std::string>>& names) {
  for (TensorToWrite& t : tensors) {
    for (int e = first; e < kE; ++e) {
      for (const auto& [from, to] : names) {
        const std::string mark = "." + std::to_string(e) + "." + from + ".";
        const size_t at = t.name.find(mark);
        if (at == std::string::npos) continue;
        t.name.replace(at, mark.size(), "." + std::to_string(e) + "." + to + ".");
        break;
      }
    }
  }
  return tensors;
}
const std::vector<std::pair<std::string, std::string>> kShortNames = {
    {"gate_proj", "w1"}, {"up_proj", "w3"}, {"down_proj", "w2"}};

TEST_F(CanonicalTest, TakesBothFamiliesOfExpertNames) {
  for (const ModuleScheme& scheme : {kModeloptA4, kCtA4}) {
    for (const int first : {0, 1}) {  // all experts, and all but the first
      const Tensors tensors = Renamed(ExpertTensors(scheme.source_format), first, kShortNames);
      report_ = {};
      auto read = Experts(tensors, scheme);
      ASSERT_TRUE(read.ok()) << read.error().Message();
      int p = 0;
      for (auto* list : {&read->gate, &read->up, &read->down}) {
        for (int e = 0; e < kE; ++e) {
          const auto seed = static_cast<unsigned>(10 * e + p);
          EXPECT_TRUE(CodesOf((*list)[e]) == Fill(kI * kH / 2, seed, 0xFF)) << e << " " << p;
        }
        ++p;
      }
      EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
    }
  }
}

TEST_F(CanonicalTest, ReadsGateAndUpOfAnExpertInOneTensor) {
  for (const char* name : {"gate_up_proj", "w13"}) {
    const bool is_short = std::string(name) == "w13";
    // One global scale for both halves, or one each.
    for (const bool each_half : {false, true}) {
      Tensors parts = ExpertTensors(SourceFormat::kModelopt);
      Tensors tensors;
      for (int e = 0; e < kE; ++e) {
        const std::string at = std::string(kBlock) + "." + std::to_string(e) + ".";
        for (const char* end : {".weight", ".weight_scale"}) {
          TensorToWrite both = *Find(&parts, at + "gate_proj" + end);
          both.name = at + name + end;
          both.shape[0] = 2 * kI;
          both.bytes += Find(&parts, at + "up_proj" + end)->bytes;
          tensors.push_back(both);
        }
        for (const auto& [end, gate, up] :
             {std::tuple(".weight_scale_2", GlobalOf(e, 0), GlobalOf(e, 1)),
              std::tuple(".input_scale", InputOf(e, 0), InputOf(e, 1))}) {
          tensors.push_back({at + name + end, DType::kF32,
                             each_half ? std::vector<uint64_t>{2} : std::vector<uint64_t>{},
                             each_half ? F32({gate, up}) : F32({gate})});
        }
      }
      for (TensorToWrite& t : parts) {
        if (t.name.find("down_proj") != std::string::npos) tensors.push_back(t);
      }
      if (is_short) tensors = Renamed(tensors, 0, kShortNames);
      report_ = {};
      auto read = Experts(tensors, kModeloptA4);
      ASSERT_TRUE(read.ok()) << read.error().Message();
      for (int e = 0; e < kE; ++e) {
        for (int p = 0; p < 2; ++p) {
          const CanonicalWeight& w = (p == 0 ? read->gate : read->up)[e];
          EXPECT_TRUE(CodesOf(w) == Fill(kI * kH / 2, static_cast<unsigned>(10 * e + p), 0xFF));
          EXPECT_EQ(std::get<CanonicalNvfp4>(w).global, GlobalOf(e, each_half ? p : 0));
          EXPECT_EQ(std::get<CanonicalNvfp4>(w).input_scale, InputOf(e, each_half ? p : 0));
        }
        EXPECT_TRUE(CodesOf(read->down[e]) ==
                    Fill(kI * kH / 2, static_cast<unsigned>(10 * e + 2), 0xFF));
      }
      EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
    }
  }
}

TEST_F(CanonicalTest, RefusesAnExpertWithTwoKindsOfNames) {
  struct Case {
    const char* what;
    const char* extra;  // behind "experts.1."
    std::vector<const char*> says;
  };
  const Case cases[] = {
      {"another gate",
       "w1.weight",
       {"layer 5, expert 1: tensor \"model.layers.5.mlp.experts.1.w1.weight\"",
        "the expert also has gate_proj, up_proj, down_proj",
        "expected gate_proj, up_proj and down_proj, or w1, w3 and w2"}},
      {"only a scale of one", "w2.input_scale", {"1.w2.input_scale"}},
      {"a half beside the whole",
       "gate_up_proj.weight",
       {"experts.1.gate_up_proj.weight\"", "the expert also has gate_proj, another name"}},
  };
  for (const Case& c : cases) {
    Tensors tensors = ExpertTensors(SourceFormat::kModelopt);
    tensors.push_back({std::string(kBlock) + ".1." + c.extra, DType::kU8, {1}, "x"});
    auto read = Experts(tensors, kModeloptA4);
    ASSERT_FALSE(read.ok()) << c.what;
    EXPECT_EQ(read.error().code, ErrorCode::kCorruptFile);
    for (const char* part : c.says) {
      EXPECT_NE(read.error().Message().find(part), std::string::npos)
          << c.what << ": " << read.error().Message();
    }
  }
}

TEST_F(CanonicalTest, NamesAMissingExpertAsTheOthersAre) {
  Tensors tensors = Renamed(ExpertTensors(SourceFormat::kModelopt), 0, kShortNames);
  std::erase_if(tensors,
                [](const auto& t) { return t.name.find("experts.1.") != std::string::npos; });
  auto read = Experts(tensors, kModeloptA4);
  ASSERT_FALSE(read.ok());
  EXPECT_NE(read.error().Message().find("experts.1.w1.weight\" is missing"), std::string::npos)
      << read.error().Message();
}

}  // namespace
}  // namespace nibble::scheme
