#include "scheme/canonical.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "scheme/test_weights.h"

namespace nibble::scheme {
namespace {

bool WithinOneUlp(float a, float b) { return a == b || std::nextafter(a, b) == b; }

TEST_F(CanonicalTest, ReadsALinearOfEitherDialect) {
  for (const ModuleScheme& scheme : {kModeloptA4, kCtA4}) {
    auto w = Linear(LinearTensors(scheme.source_format), scheme);
    ASSERT_TRUE(w.ok()) << w.error().Message();
    const auto& v = std::get<CanonicalNvfp4>(*w);
    EXPECT_EQ(v.n, kH);
    EXPECT_EQ(v.k, kI);
    EXPECT_TRUE(CodesOf(*w) == Fill(kH * kI / 2, 7, 0xFF));
    EXPECT_TRUE(ScalesOf(*w) == Fill(kH * kI / 16, 8, 0x3F));
    EXPECT_TRUE(WithinOneUlp(v.global, 1e-4f)) << v.global;
    ASSERT_TRUE(v.input_scale.has_value());
    EXPECT_TRUE(WithinOneUlp(*v.input_scale, 3e-3f)) << *v.input_scale;
  }
  EXPECT_TRUE(report_.ignored_tensors.empty());
}

TEST_F(CanonicalTest, ReadsBothDialectsOfTheSameExpertsAlike) {
  auto mo = Experts(ExpertTensors(SourceFormat::kModelopt), kModeloptA4);
  auto ct = Experts(ExpertTensors(SourceFormat::kCompressedTensors), kCtA4);
  ASSERT_TRUE(mo.ok()) << mo.error().Message();
  ASSERT_TRUE(ct.ok()) << ct.error().Message();
  int p = 0;
  for (auto list : {&CanonicalExperts::gate, &CanonicalExperts::up, &CanonicalExperts::down}) {
    ASSERT_EQ(((*mo).*list).size(), size_t{kE});
    ASSERT_EQ(((*ct).*list).size(), size_t{kE});
    for (int e = 0; e < kE; ++e) {
      const CanonicalWeight &a = ((*mo).*list)[e], &b = ((*ct).*list)[e];
      EXPECT_EQ(RowsOf(a), p == 2 ? kH : kI);
      EXPECT_EQ(ColumnsOf(a), p == 2 ? kI : kH);
      EXPECT_TRUE(CodesOf(a) == Fill(kI * kH / 2, static_cast<unsigned>(10 * e + p), 0xFF));
      EXPECT_TRUE(CodesOf(a) == CodesOf(b));
      EXPECT_TRUE(ScalesOf(a) == ScalesOf(b));
      const auto &va = std::get<CanonicalNvfp4>(a), &vb = std::get<CanonicalNvfp4>(b);
      EXPECT_EQ(va.global, GlobalOf(e, p));
      EXPECT_EQ(va.input_scale, InputOf(e, p));
      EXPECT_TRUE(WithinOneUlp(va.global, vb.global));
      EXPECT_TRUE(WithinOneUlp(*va.input_scale, *vb.input_scale));
    }
    ++p;
  }
}

TEST_F(CanonicalTest, NeverReadsAnActivationScaleOfAW4A16Module) {
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const float kInf = std::numeric_limits<float>::infinity();
  for (const ModuleScheme& scheme : {kModeloptA16, kCtA16}) {
    const bool ct = scheme.source_format == SourceFormat::kCompressedTensors;
    const std::string end = ct ? ".input_global_scale" : ".input_scale";
    report_ = {};
    Tensors without = LinearTensors(scheme.source_format);
    Remove(&without, end);
    auto clean = Linear(without, scheme);
    ASSERT_TRUE(clean.ok()) << clean.error().Message();
    EXPECT_TRUE(report_.ignored_tensors.empty());
    Tensors with = LinearTensors(scheme.source_format);
    for (const TensorToWrite& garbage :
         {TensorToWrite{"", DType::kF32, {}, F32({kNan})},
          TensorToWrite{"", DType::kF32, {1}, F32({kInf})},
          TensorToWrite{"", DType::kF32, {}, F32({0})},
          TensorToWrite{"", DType::kF32, {}, F32({-1})},
          TensorToWrite{"", DType::kF32, {}, F32({1e-45f})},
          TensorToWrite{"", DType::kBf16, {2, 2}, std::string(8, '\xFF')},
          TensorToWrite{"", DType::kF32, {}, F32({0.01f})}}) {
      TensorToWrite* input = Find(&with, end);
      const std::string name = input->name;
      *input = garbage;
      input->name = name;
      report_ = {};
      auto w = Linear(with, scheme);
      ASSERT_TRUE(w.ok()) << w.error().Message();
      EXPECT_FALSE(std::get<CanonicalNvfp4>(*w).input_scale.has_value());
      EXPECT_TRUE(CodesOf(*w) == CodesOf(*clean));
      EXPECT_TRUE(ScalesOf(*w) == ScalesOf(*clean));
      EXPECT_EQ(std::get<CanonicalNvfp4>(*w).global, std::get<CanonicalNvfp4>(*clean).global);
      EXPECT_EQ(report_.ignored_tensors, std::vector<std::string>{name});
      EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
    }
  }
}

struct BrokenCase {
  const char* what;
  const ModuleScheme* scheme;
  std::function<void(Tensors*)> edit;
  ErrorCode code;
  std::vector<const char*> says;
};

TEST_F(CanonicalTest, RefusesBrokenExpertsAndSaysWhere) {
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const float kInf = std::numeric_limits<float>::infinity();
  const auto removed = [](const char* end) { return [end](Tensors* t) { Remove(t, end); }; };
  const auto valued = [](const char* end, float value) {
    return [end, value](Tensors* t) { Find(t, end)->bytes = F32({value}); };
  };
  const auto scale_byte = [](size_t at, char byte) {
    return [at, byte](Tensors* t) { Find(t, ".2.down_proj.weight_scale")->bytes[at] = byte; };
  };
  const auto typed = [](const char* end, DType dtype) {
    return [end, dtype](Tensors* t) { Find(t, end)->dtype = dtype; };
  };
  const auto shaped = [](const char* end, std::vector<uint64_t> shape) {
    return [end, shape](Tensors* t) { Find(t, end)->shape = shape; };
  };
  const auto bf16 = [](const char* end) {
    return [end](Tensors* t) {
      *Find(t, end) = {
          std::string(kBlock) + end, DType::kBf16, {kI, kH}, std::string(kI * kH * 2, 0)};
    };
  };
  const char* const kPlace = "layer 5, expert 2, down_proj";
  const BrokenCase cases[] = {
      {"no codes",
       &kModeloptA4,
       removed(".2.down_proj.weight"),
       ErrorCode::kNotFound,
       {kPlace, "experts.2.down_proj.weight\" is missing, expected U8 [32,24]"}},
      {"no codes, compressed-tensors",
       &kCtA4,
       removed(".2.down_proj.weight_packed"),
       ErrorCode::kNotFound,
       {kPlace, "weight_packed\" is missing"}},
      {"no block scales",
       &kModeloptA16,
       removed(".2.down_proj.weight_scale"),
       ErrorCode::kNotFound,
       {kPlace, "weight_scale\" is missing, expected F8_E4M3 [32,3]"}},
      {"no global scale",
       &kModeloptA16,
       removed(".2.down_proj.weight_scale_2"),
       ErrorCode::kNotFound,
       {kPlace, "weight_scale_2\" is missing"}},
      {"no global scale, compressed-tensors",
       &kCtA16,
       removed(".2.down_proj.weight_global_scale"),
       ErrorCode::kNotFound,
       {kPlace, "weight_global_scale\" is missing"}},
      {"no activation scale in W4A4",
       &kModeloptA4,
       removed(".2.down_proj.input_scale"),
       ErrorCode::kNotFound,
       {kPlace,
        "input_scale\" is missing; the label says W4A4 (LABEL); the checkpoint is incomplete"}},
      {"no activation scale in W4A4, compressed-tensors",
       &kCtA4,
       removed(".2.down_proj.input_global_scale"),
       ErrorCode::kNotFound,
       {kPlace, "input_global_scale\" is missing"}},
      {"an activation scale of 0",
       &kModeloptA4,
       valued(".1.up_proj.input_scale", 0),
       ErrorCode::kCorruptFile,
       {"model.safetensors, layer 5, expert 1, up_proj", "input_scale\": value 0, expected"}},
      {"a NaN activation scale",
       &kCtA4,
       valued(".1.up_proj.input_global_scale", kNan),
       ErrorCode::kCorruptFile,
       {"expert 1, up_proj", "value nan"}},
      {"an infinite global scale",
       &kModeloptA16,
       valued(".1.up_proj.weight_scale_2", kInf),
       ErrorCode::kCorruptFile,
       {"value inf"}},
      {"a negative global scale",
       &kModeloptA16,
       valued(".1.up_proj.weight_scale_2", -1),
       ErrorCode::kCorruptFile,
       {"value -1"}},
      {"a global scale of -0",
       &kModeloptA16,
       valued(".1.up_proj.weight_scale_2", -0.0f),
       ErrorCode::kCorruptFile,
       {"value -0"}},
      {"a divisor of 0",
       &kCtA16,
       valued(".1.up_proj.weight_global_scale", 0),
       ErrorCode::kCorruptFile,
       {"value 0, expected a finite number above 0"}},
      {"a divisor so small that its reciprocal overflows",
       &kCtA16,
       valued(".1.up_proj.weight_global_scale", 1e-45f),
       ErrorCode::kCorruptFile,
       {"reciprocal"}},
      {"a divisor so large that its reciprocal is no normal float",
       &kCtA16,
       valued(".1.up_proj.weight_global_scale", 3e38f),
       ErrorCode::kCorruptFile,
       {"reciprocal"}},
      {"a NaN block scale",
       &kModeloptA16,
       scale_byte(94, '\x7F'),
       ErrorCode::kCorruptFile,
       {kPlace, "block scale at row 31, column 1 is 0x7F, a NaN"}},
      {"a negative NaN block scale",
       &kCtA16,
       scale_byte(0, '\xFF'),
       ErrorCode::kCorruptFile,
       {kPlace, "row 0, column 0 is 0xFF, a NaN"}},
      {"a negative block scale",
       &kModeloptA16,
       scale_byte(95, '\x81'),
       ErrorCode::kCorruptFile,
       {kPlace, "row 31, column 2 is 0x81, negative"}},
      {"a block scale of -0",
       &kModeloptA16,
       scale_byte(50, '\x80'),
       ErrorCode::kCorruptFile,
       {"row 16, column 2 is 0x80, negative"}},
      {"block scales of another type",
       &kModeloptA16,
       typed(".2.down_proj.weight_scale", DType::kU8),
       ErrorCode::kCorruptFile,
       {kPlace, "type U8, expected F8_E4M3"}},
      {"codes of another type",
       &kModeloptA16,
       typed(".2.down_proj.weight", DType::kI8),
       ErrorCode::kCorruptFile,
       {kPlace, "type I8, expected U8", "the label says W4A16 (LABEL)"}},
      {"block scales of another shape",
       &kModeloptA16,
       shaped(".2.down_proj.weight_scale", {3, 32}),
       ErrorCode::kCorruptFile,
       {kPlace, "shape [3,32], expected [32,3]"}},
      {"codes of another shape",
       &kModeloptA16,
       shaped(".2.down_proj.weight", {24, 32}),
       ErrorCode::kCorruptFile,
       {"shape [24,32], expected [32,24]"}},
      {"a global scale that is no scalar",
       &kModeloptA16,
       [](Tensors* t) {
         *Find(t, ".2.down_proj.weight_scale_2") = {
             std::string(kBlock) + ".2.down_proj.weight_scale_2", DType::kF32, {2}, F32({1, 1})};
       },
       ErrorCode::kCorruptFile,
       {kPlace, "shape [2], expected [] or [1]"}},
      {"a global scale of another type",
       &kModeloptA16,
       typed(".2.down_proj.weight_scale_2", DType::kI32),
       ErrorCode::kCorruptFile,
       {"type I32, expected F32"}},
      {"16-bit weights under an NVFP4 label",
       &kModeloptA16,
       bf16(".0.up_proj.weight"),
       ErrorCode::kCorruptFile,
       {"expert 0, up_proj", "type BF16 contradicts the label, which says W4A16 (LABEL)"}},
      {"16-bit weights under an NVFP4 label, compressed-tensors",
       &kCtA4,
       [](Tensors* t) {
         *Find(t, ".0.up_proj.weight_packed") = {std::string(kBlock) + ".0.up_proj.weight",
                                                 DType::kBf16,
                                                 {kI, kH},
                                                 std::string(kI * kH * 2, 0)};
       },
       ErrorCode::kCorruptFile,
       {"type BF16 contradicts the label, which says W4A4 (LABEL)"}},
      {"NVFP4 weights under a 16-bit label",
       &kBf16,
       [](Tensors*) {},
       ErrorCode::kCorruptFile,
       {"layer 5, expert 0, gate_proj", "contradicts the label, which says BF16 (LABEL)"}},
      {"a whole expert missing",
       &kModeloptA16,
       [](Tensors* t) {
         std::erase_if(
             *t, [](const auto& x) { return x.name.find("experts.2.") != std::string::npos; });
       },
       ErrorCode::kNotFound,
       {"layer 5, expert 2, gate_proj", "is missing"}},
      {"an expert that the config does not count",
       &kModeloptA16,
       [](Tensors* t) {
         AddNvfp4(t, SourceFormat::kModelopt, std::string(kBlock) + ".3.up_proj", kI, kH, 1, 1, 1);
       },
       ErrorCode::kCorruptFile,
       {"layer 5, expert 3", "the config counts 3 experts, 0 to 2"}},
      {"an expert of a number beyond any",
       &kModeloptA16,
       [](Tensors* t) {
         t->push_back({std::string(kBlock) + ".18446744073709551616.x", DType::kU8, {1}, "x"});
       },
       ErrorCode::kCorruptFile,
       {"the config counts 3 experts"}},
  };
  for (const BrokenCase& c : cases) {
    const SourceFormat format = c.scheme->source_format == SourceFormat::kNone
                                    ? SourceFormat::kModelopt
                                    : c.scheme->source_format;
    Tensors tensors = ExpertTensors(format);
    c.edit(&tensors);
    auto read = Experts(tensors, *c.scheme);
    ASSERT_FALSE(read.ok()) << c.what;
    EXPECT_EQ(read.error().code, c.code) << c.what;
    for (const char* part : c.says) {
      EXPECT_NE(read.error().Message().find(part), std::string::npos)
          << c.what << ": " << read.error().Message();
    }
    const Result<void> later = Deferred([&] { return Experts(tensors, *c.scheme); });
    ASSERT_FALSE(later.ok()) << c.what;
    EXPECT_EQ(later.error().what, read.error().what) << c.what;
    EXPECT_EQ(later.error().code, read.error().code) << c.what;
  }
}

TEST_F(CanonicalTest, LeavesScansToItsCallerWhereAsked) {
  report_.defers_scans = true;
  ASSERT_TRUE(Experts(ExpertTensors(SourceFormat::kModelopt), kModeloptA16).ok());
  ASSERT_EQ(report_.scans.size(), static_cast<size_t>(3 * kE));  // one a tensor of block scales
  for (const CanonicalReport::Scan& scan : report_.scans) {
    EXPECT_FALSE(scan.of_codes);
    EXPECT_TRUE(scan.check().ok());
  }
}

TEST_F(CanonicalTest, TakesWhatIsUnusualButLegal) {
  Tensors tensors = LinearTensors(SourceFormat::kModelopt);
  Find(&tensors, ".weight_scale")->bytes = std::string(kH * kI / 16, 0);  // all blocks zero
  Find(&tensors, ".weight_scale")->bytes[0] = 0x7E;                       // the largest
  Find(&tensors, ".weight_scale_2")->shape = {1};
  Find(&tensors, ".weight_scale_2")->bytes = F32({1e-45f});  // subnormal, but positive
  auto w = Linear(tensors, kModeloptA4);
  ASSERT_TRUE(w.ok()) << w.error().Message();
  EXPECT_EQ(std::get<CanonicalNvfp4>(*w).global, 1e-45f);
}

TEST_F(CanonicalTest, ReadsBf16AtAnyAddress) {
  Tensors tensors = {
      {"a", DType::kU8, {1}, "x"},  // pushes the rest to an odd address
      {std::string(kLinear) + ".weight", DType::kBf16, {kH, kI}, Fill(kH * kI * 2, 3, 0xFF)}};
  auto w = Linear(tensors, kBf16);
  ASSERT_TRUE(w.ok()) << w.error().Message();
  const auto& v = std::get<CanonicalBf16>(*w);
  EXPECT_EQ(v.n, kH);
  EXPECT_EQ(std::memcmp(v.data, tensors[1].bytes.data(), tensors[1].bytes.size()), 0);

  tensors[1].dtype = DType::kF16;
  auto half = Linear(tensors, kBf16);
  ASSERT_FALSE(half.ok());
  EXPECT_EQ(half.error().code, ErrorCode::kUnsupported);
  tensors[1] = {
      std::string(kLinear) + ".weight", DType::kF8E4m3, {kH, kI}, std::string(kH * kI, 0)};
  auto fp8 = Linear(tensors, kBf16);
  ASSERT_FALSE(fp8.ok());
  EXPECT_NE(fp8.error().Message().find("type F8_E4M3 contradicts the label"), std::string::npos);
}

TEST_F(CanonicalTest, ReadsExpertsWithoutAGate) {
  Tensors tensors = ExpertTensors(SourceFormat::kModelopt);
  std::erase_if(tensors,
                [](const auto& t) { return t.name.find("gate_proj") != std::string::npos; });
  auto read = ReadExperts(Open(tensors), kBlock, kModeloptA4, kE, kH, kI, false, &report_);
  ASSERT_TRUE(read.ok()) << read.error().Message();
  EXPECT_TRUE(read->gate.empty());
  EXPECT_TRUE(CodesOf(read->up[2]) == Fill(kI * kH / 2, 21, 0xFF));
}

TEST_F(CanonicalTest, RefusesColumnsThatAreNoBlocks) {
  const Checkpoint& checkpoint = Open(LinearTensors(SourceFormat::kModelopt));
  auto w = ReadLinear(checkpoint, kLinear, kModeloptA16, kH, 24, &report_);
  ASSERT_FALSE(w.ok());
  EXPECT_EQ(w.error().code, ErrorCode::kUnsupported);
}

/// NVFP4 tensors of a linear under any name, scalars of that shape.
Tensors Named(SourceFormat format, const std::string& module, const std::vector<uint64_t>& scalar) {
  Tensors tensors;
  AddNvfp4(&tensors, format, module, kH, kI, 7, 1.0f / 8192, 1.0f / 256);
  for (TensorToWrite& t : tensors) {
    if (t.dtype == DType::kF32) t.shape = scalar;
  }
  return tensors;
}

TEST_F(CanonicalTest, ReadsAnLmHeadOfEitherDialect) {
  for (const char* name : {"lm_head", "language_model.lm_head"}) {
    for (const ModuleScheme& scheme : {kModeloptA4, kModeloptA16, kCtA4, kCtA16}) {
      for (const std::vector<uint64_t>& scalar :
           {std::vector<uint64_t>{}, std::vector<uint64_t>{1}}) {
        report_ = {};
        auto w = ReadLinear(Open(Named(scheme.source_format, name, scalar)), name, scheme, kH, kI,
                            &report_);
        ASSERT_TRUE(w.ok()) << w.error().Message();
        EXPECT_EQ(std::get<CanonicalNvfp4>(*w).global, 1.0f / 8192);
        const bool a4 = scheme.scheme == kW4A4;
        EXPECT_EQ(std::get<CanonicalNvfp4>(*w).input_scale,
                  a4 ? std::optional(1.0f / 256) : std::nullopt);
        EXPECT_EQ(report_.ignored_tensors.size(), a4 ? 0u : 1u);
        EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
      }
    }
  }
}

TEST_F(CanonicalTest, RefusesPackedWeightsUnderALabelOf16Bits) {
  struct Case {
    SourceFormat format;
    const char* module;
    bool codes_alone;
    const char* says;
  };
  const Case cases[] = {
      {SourceFormat::kModelopt, "lm_head", false,
       "model.safetensors, lm_head: tensor \"lm_head.weight_scale\": type F8_E4M3 contradicts the "
       "label, which says BF16 (LABEL)"},
      {SourceFormat::kModelopt, "lm_head", true,
       "model.safetensors, lm_head: tensor \"lm_head.weight\": type U8 contradicts the label"},
      {SourceFormat::kCompressedTensors, "lm_head", false,
       "tensor \"lm_head.weight_packed\": type U8 contradicts the label"},
      {SourceFormat::kModelopt, "mtp.fc", true,
       "mtp.fc: tensor \"mtp.fc.weight\": type U8 contradicts the label"},
      {SourceFormat::kModelopt, "mtp.layers.0.self_attn.o_proj", true,
       "mtp layer 0, o_proj: tensor"},
  };
  for (const Case& c : cases) {
    Tensors tensors = Named(c.format, c.module, {});
    if (c.codes_alone) tensors.resize(1);
    auto w = ReadLinear(Open(tensors), c.module, kBf16, kH, kI, &report_);
    ASSERT_FALSE(w.ok()) << c.module;
    EXPECT_EQ(w.error().code, ErrorCode::kCorruptFile);
    EXPECT_NE(w.error().Message().find(c.says), std::string::npos) << w.error().Message();
  }
}

TEST_F(CanonicalTest, FindsTensorsThatNobodyReads) {
  Tensors tensors = LinearTensors(SourceFormat::kModelopt);
  for (const char* known : {"model.visual.a", "visual.b", "mtp.fc.weight", "x.k_proj.k_scale",
                            "x.self_attn.v_scale", "model.norm.weight"}) {
    tensors.push_back({known, DType::kU8, {1}, "x"});
  }
  ASSERT_TRUE(Linear(tensors, kModeloptA4).ok());
  const Checkpoint& checkpoint = *checkpoints_.back();
  auto stray = CheckAllTensorsUsed(checkpoint, report_);
  ASSERT_FALSE(stray.ok());
  EXPECT_EQ(stray.error().Message(),
            "model.safetensors: tensor \"model.norm.weight\" (U8 [1]) belongs to no module of this "
            "model; config.json describes another model than these files hold");
  report_.used.insert("model.norm.weight");
  auto rest = CheckAllTensorsUsed(checkpoint, report_);
  ASSERT_TRUE(rest.ok());
  EXPECT_EQ(*rest, (std::vector<std::string>{"model.visual.a", "mtp.fc.weight", "visual.b",
                                             "x.k_proj.k_scale", "x.self_attn.v_scale"}));

  auto mtp = CheckAllTensorsUsed(checkpoint, report_, {true, KvCacheScheme::kBf16});
  ASSERT_FALSE(mtp.ok());
  EXPECT_NE(mtp.error().Message().find("\"mtp.fc.weight\" (U8 [1]) belongs to no module"),
            std::string::npos);
  auto kv = CheckAllTensorsUsed(checkpoint, report_, {false, KvCacheScheme::kFp8});
  ASSERT_FALSE(kv.ok());
  EXPECT_NE(
      kv.error().Message().find(
          "\"x.k_proj.k_scale\" (U8 [1]) belongs to no module of this model, nor do 1 others; "
          "the KV cache is declared FP8, but no attention layer reads this scale"),
      std::string::npos)
      << kv.error().Message();
  report_.used.insert({"mtp.fc.weight", "x.k_proj.k_scale", "x.self_attn.v_scale"});
  EXPECT_TRUE(CheckAllTensorsUsed(checkpoint, report_, {true, KvCacheScheme::kFp8}).ok());
}

}  // namespace
}  // namespace nibble::scheme
