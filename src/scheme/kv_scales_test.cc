#include "scheme/kv_scales.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "scheme/test_weights.h"

namespace nibble::scheme {
namespace {

const char* const kAttention = "model.layers.5.self_attn";

TensorToWrite Scale(const std::string& end, float value, const std::vector<uint64_t>& shape = {}) {
  return {std::string(kAttention) + end, DType::kF32, shape, F32({value})};
}
/// 1.5 in bf16
TensorToWrite Half(const std::string& end, const std::vector<uint64_t>& shape) {
  return {std::string(kAttention) + end, DType::kBf16, shape, std::string("\xC0\x3F", 2)};
}
/// Something for a file that would be empty otherwise.
TensorToWrite Other() { return {"visual.x", DType::kU8, {1}, "x"}; }

TEST_F(CanonicalTest, ReadsKvScalesByEitherName) {
  struct Case {
    const char* what;
    Tensors tensors;
    std::optional<KvScales> scales;
  };
  const Case cases[] = {
      {"none", {Other()}, std::nullopt},
      {"another layer's",
       {{"model.layers.55.self_attn.k_scale", DType::kF32, {}, F32({2})}},
       std::nullopt},
      {"of the attention", {Scale(".k_scale", 0.5f), Scale(".v_scale", 2)}, KvScales{0.5f, 2}},
      {"of the projections",
       {Scale(".k_proj.k_scale", 0.5f), Scale(".v_proj.v_scale", 2, {1})},
       KvScales{0.5f, 2}},
      {"bf16", {Half(".k_scale", {1}), Half(".v_scale", {})}, KvScales{1.5f, 1.5f}},
      {"one name each", {Scale(".k_scale", 0.5f), Scale(".v_proj.v_scale", 2)}, KvScales{0.5f, 2}},
      {"both names of the same",
       {Half(".k_scale", {1}), Scale(".k_proj.k_scale", 1.5f), Scale(".v_scale", 3),
        Scale(".v_proj.v_scale", 3)},
       KvScales{1.5f, 3}},
  };
  for (const Case& c : cases) {
    report_ = {};
    const Checkpoint& checkpoint = Open(c.tensors);
    auto read = ReadKvScales(checkpoint, kAttention, &report_);
    ASSERT_TRUE(read.ok()) << c.what << ": " << read.error().Message();
    EXPECT_EQ(*read, c.scales) << c.what;
    EXPECT_EQ(report_.used.size(), c.scales ? c.tensors.size() : 0) << c.what;
    if (c.scales) {
      EXPECT_TRUE(CheckAllTensorsUsed(checkpoint, report_, {false, KvCacheScheme::kFp8}).ok());
    }
  }
}

TEST_F(CanonicalTest, RefusesBrokenKvScales) {
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const float kInf = std::numeric_limits<float>::infinity();
  struct Case {
    const char* what;
    Tensors tensors;
    std::string says;
  };
  const Case cases[] = {
      {"k alone",
       {Scale(".k_scale", 1)},
       "model.safetensors, layer 5: tensor \"model.layers.5.self_attn.k_scale\": there is no "
       "v_scale beside it, expected \"model.layers.5.self_attn.v_scale\" or "
       "\"model.layers.5.self_attn.v_proj.v_scale\""},
      {"v alone", {Scale(".v_proj.v_scale", 1)}, "there is no k_scale beside it"},
      {"two names, two values",
       {Scale(".k_scale", 1), Scale(".k_proj.k_scale", 2), Scale(".v_scale", 1)},
       "k_proj.k_scale\": value 2, but \"model.layers.5.self_attn.k_scale\" says 1 of the same"},
      {"0", {Scale(".k_scale", 0), Scale(".v_scale", 1)}, "k_scale\": value 0, expected a finite"},
      {"upstream's mark of absence", {Scale(".k_scale", 1), Scale(".v_scale", -1)}, "value -1"},
      {"NaN", {Scale(".k_scale", kNan), Scale(".v_scale", 1)}, "value nan"},
      {"infinite", {Scale(".k_scale", 1), Scale(".v_scale", kInf)}, "value inf"},
      {"one a head",
       {{std::string(kAttention) + ".k_scale", DType::kF32, {2}, F32({1, 1})}},
       "shape [2], expected [] or [1]"},
      {"another type",
       {{std::string(kAttention) + ".k_scale", DType::kF16, {}, "xx"}},
       "type F16, expected F32 or BF16"},
  };
  for (const Case& c : cases) {
    auto read = ReadKvScales(Open(c.tensors), kAttention, &report_);
    ASSERT_FALSE(read.ok()) << c.what;
    EXPECT_EQ(read.error().code, ErrorCode::kCorruptFile) << c.what;
    EXPECT_NE(read.error().Message().find(c.says), std::string::npos)
        << c.what << ": " << read.error().Message();
  }
}

}  // namespace
}  // namespace nibble::scheme
