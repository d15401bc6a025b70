#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "numerics/bf16.h"
#include "scheme/canonical.h"
#include "scheme/test_weights.h"

namespace nibble::scheme {
namespace {

constexpr SourceFormat kMo = SourceFormat::kModelopt;
constexpr SourceFormat kCt = SourceFormat::kCompressedTensors;

ModuleScheme Label(const QuantKey& weight, std::optional<QuantKey> activation,
                   SourceFormat format = kMo) {
  return {{weight, activation}, format, "LABEL"};
}
const ModuleScheme kTensorStatic = Label(kFp8StaticTensor, kFp8StaticTensor);
const ModuleScheme kTensorOnly = Label(kFp8StaticTensor, std::nullopt);
const ModuleScheme kChannel = Label(kFp8StaticChannel, kFp8DynamicToken);
const ModuleScheme kBlock = Label(kFp8StaticBlock128, kFp8Dynamic128);

/// Numbers of which each is another, exact in bf16.
std::vector<float> Numbers(size_t count, float first) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = RoundToBf16(first * (1 + static_cast<float>(i) / 128));
  }
  return values;
}
std::string Bytes(DType dtype, const std::vector<float>& values) {
  std::string bytes;
  for (const float v : values) {
    const uint16_t half = ToBf16(v).bits;
    if (dtype == DType::kBf16) {
      bytes.append(reinterpret_cast<const char*>(&half), sizeof half);
    } else {
      bytes.append(reinterpret_cast<const char*>(&v), sizeof v);
    }
  }
  return bytes;
}
TensorToWrite Codes(const std::string& name, std::vector<uint64_t> shape, unsigned seed) {
  size_t count = 1;
  for (const uint64_t dim : shape) count *= dim;
  return {name, DType::kF8E4m3, std::move(shape), Fill(count, seed, 0xBF)};  // no NaN among them
}

// Rows and columns that end inside a block: 2 x 3 blocks, all counts different.
constexpr int64_t kN = 200, kK = 300;

Tensors Fp8Linear(const std::string& scale_name, std::vector<uint64_t> shape, DType dtype,
                  const std::vector<float>& scales) {
  return {Codes(std::string(kLinear) + ".weight", {kN, kK}, 3),
          {std::string(kLinear) + scale_name, dtype, std::move(shape), Bytes(dtype, scales)}};
}
TensorToWrite InputScale(std::vector<uint64_t> shape, DType dtype, float value) {
  return {std::string(kLinear) + ".input_scale", dtype, std::move(shape), Bytes(dtype, {value})};
}

class Fp8Test : public CanonicalTest {
 protected:
  Result<CanonicalWeight> ReadFp8(const Tensors& tensors, const ModuleScheme& scheme) {
    if (!report_.defers_scans) report_ = {};
    return ReadLinear(Open(tensors), kLinear, scheme, kN, kK, &report_);
  }
};

struct LegalCase {
  const char* what;
  ModuleScheme scheme;
  const char* name;
  std::vector<uint64_t> shape;
  DType dtype;
  size_t scales;
};

TEST_F(Fp8Test, ReadsEveryShapeOfScales) {
  const LegalCase cases[] = {
      {"modelopt FP8", kTensorOnly, ".weight_scale", {}, DType::kF32, 1},
      {"one element", kTensorOnly, ".weight_scale", {1}, DType::kF32, 1},
      {"compressed-tensors, tensor",
       Label(kFp8StaticTensor, std::nullopt, kCt),
       ".weight_scale",
       {1},
       DType::kBf16,
       1},
      {"modelopt FP8_PER_CHANNEL_PER_TOKEN", kChannel, ".weight_scale", {kN}, DType::kF32, kN},
      {"a column", kChannel, ".weight_scale", {kN, 1}, DType::kF32, kN},
      {"compressed-tensors, channel",
       Label(kFp8StaticChannel, kFp8DynamicToken, kCt),
       ".weight_scale",
       {kN, 1},
       DType::kBf16,
       kN},
      {"Qwen's blocks", kBlock, ".weight_scale_inv", {2, 3}, DType::kBf16, 6},
      {"DeepSeek's blocks", kBlock, ".weight_scale_inv", {2, 3}, DType::kF32, 6},
      {"modelopt FP8_PB_WO",
       Label(kFp8StaticBlock128, std::nullopt),
       ".weight_scale",
       {2, 1, 3, 1},
       DType::kF32,
       6},
      {"compressed-tensors, block",
       Label(kFp8StaticBlock128, kFp8Dynamic128, kCt),
       ".weight_scale",
       {2, 3},
       DType::kBf16,
       6},
  };
  for (const LegalCase& c : cases) {
    const std::vector<float> scales = Numbers(c.scales, 3e-3f);
    const Tensors tensors = Fp8Linear(c.name, c.shape, c.dtype, scales);
    auto w = ReadFp8(tensors, c.scheme);
    ASSERT_TRUE(w.ok()) << c.what << ": " << w.error().Message();
    const auto& v = std::get<CanonicalFp8>(*w);
    EXPECT_EQ(v.n, kN) << c.what;
    EXPECT_EQ(v.k, kK) << c.what;
    EXPECT_EQ(v.group, c.scheme.scheme.weight->scale.group) << c.what;
    EXPECT_EQ(v.scales, scales) << c.what;  // multipliers: none is inverted
    EXPECT_FALSE(v.input_scale.has_value()) << c.what;
    EXPECT_EQ(std::memcmp(v.codes, tensors[0].bytes.data(), kN * kK), 0) << c.what;
    EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok()) << c.what;
    EXPECT_TRUE(report_.ignored_tensors.empty()) << c.what;
  }
}

TEST_F(Fp8Test, ReadsTheScaleOfStaticActivations) {
  struct Case {
    ModuleScheme scheme;
    std::vector<uint64_t> shape;
    DType dtype;
  };
  const Case cases[] = {
      {kTensorStatic, {}, DType::kF32},
      {kTensorStatic, {1}, DType::kF32},
      {Label(kFp8StaticTensor, kFp8StaticTensor, kCt), {1}, DType::kBf16},
      {Label(kFp8StaticTensor, kFp8StaticTensor, kCt), {}, DType::kF32},
  };
  for (const Case& c : cases) {
    Tensors tensors = Fp8Linear(".weight_scale", {}, DType::kF32, {0.5f});
    tensors.push_back(InputScale(c.shape, c.dtype, 0.03125f));
    auto w = ReadFp8(tensors, c.scheme);
    ASSERT_TRUE(w.ok()) << w.error().Message();
    EXPECT_EQ(std::get<CanonicalFp8>(*w).input_scale, 0.03125f);
    EXPECT_TRUE(report_.ignored_tensors.empty());
    EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
  }
  Tensors channel = Fp8Linear(".weight_scale", {kN, 1}, DType::kF32, Numbers(kN, 1));
  channel.push_back(InputScale({1}, DType::kF32, 2));
  auto w = ReadFp8(channel, Label(kFp8StaticChannel, kFp8StaticTensor, kCt));
  ASSERT_TRUE(w.ok()) << w.error().Message();
  EXPECT_EQ(std::get<CanonicalFp8>(*w).input_scale, 2);
}

TEST_F(Fp8Test, NeverReadsAScaleOfActivationsThatNeedNone) {
  for (const ModuleScheme& scheme :
       {kTensorOnly, kChannel, kBlock, Label(kFp8StaticTensor, kFp8DynamicToken),
        Label(kFp8StaticBlock128, std::nullopt)}) {
    const bool block = scheme.scheme.weight == kFp8StaticBlock128;
    const bool channel = scheme.scheme.weight == kFp8StaticChannel;
    const std::vector<uint64_t> shape = block     ? std::vector<uint64_t>{2, 3}
                                        : channel ? std::vector<uint64_t>{kN}
                                                  : std::vector<uint64_t>{};
    const std::vector<float> scales = Numbers(block ? 6 : channel ? kN : 1, 1);
    for (const TensorToWrite& garbage :
         {InputScale({}, DType::kF32, std::numeric_limits<float>::quiet_NaN()),
          InputScale({1}, DType::kF32, 0), InputScale({}, DType::kBf16, -1),
          InputScale({}, DType::kF32, 0.01f)}) {
      Tensors tensors = Fp8Linear(".weight_scale", shape, DType::kF32, scales);
      tensors.push_back(garbage);
      auto w = ReadFp8(tensors, scheme);
      ASSERT_TRUE(w.ok()) << w.error().Message();
      EXPECT_FALSE(std::get<CanonicalFp8>(*w).input_scale.has_value());
      EXPECT_EQ(std::get<CanonicalFp8>(*w).scales, scales);
      EXPECT_EQ(report_.ignored_tensors, std::vector<std::string>{garbage.name});
      EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
    }
  }
}

struct BrokenCase {
  const char* what;
  const ModuleScheme* scheme;  // kTensorStatic, kChannel or kBlock
  std::function<void(Tensors*)> edit;
  ErrorCode code;
  std::vector<const char*> says;
};

TEST_F(Fp8Test, RefusesBrokenLinearsAndSaysWhere) {
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const float kInf = std::numeric_limits<float>::infinity();
  const auto code = [](size_t at, char byte) {
    return [at, byte](Tensors* t) { Find(t, ".weight")->bytes[at] = byte; };
  };
  const auto scale = [](size_t at, float value) {
    return [at, value](Tensors* t) {
      std::memcpy(Find(t, ".weight_scale")->bytes.data() + 4 * at, &value, 4);
    };
  };
  const auto input = [](float value) {
    return [value](Tensors* t) { Find(t, ".input_scale")->bytes = F32({value}); };
  };
  const auto removed = [](const char* end) { return [end](Tensors* t) { Remove(t, end); }; };
  const auto shaped = [](const char* end, std::vector<uint64_t> shape) {
    return [end, shape](Tensors* t) { Find(t, end)->shape = shape; };
  };
  const char* const kPlace = "model.safetensors, layer 5, o_proj: tensor";
  const BrokenCase cases[] = {
      {"a NaN code",
       &kTensorStatic,
       code(3 * kK + 7, '\x7F'),
       ErrorCode::kCorruptFile,
       {kPlace, "o_proj.weight\": the code at row 3, column 7 is 0x7F, a NaN"}},
      {"a negative NaN code, the last",
       &kBlock,
       code(kN * kK - 1, '\xFF'),
       ErrorCode::kCorruptFile,
       {"row 199, column 299 is 0xFF, a NaN"}},
      {"no codes",
       &kChannel,
       removed(".weight"),
       ErrorCode::kNotFound,
       {"o_proj.weight\" is missing, expected F8_E4M3 [200,300]; the label says W8A8 (LABEL)"}},
      {"NVFP4's codes",
       &kTensorStatic,
       [](Tensors* t) { Find(t, ".weight")->dtype = DType::kU8; },
       ErrorCode::kCorruptFile,
       {kPlace, "type U8, expected F8_E4M3; the label says W8A8 (LABEL)"}},
      {"16-bit weights",
       &kTensorStatic,
       [](Tensors* t) {
         *Find(t, ".weight") = {
             std::string(kLinear) + ".weight", DType::kBf16, {kN, kK}, std::string(kN * kK * 2, 0)};
       },
       ErrorCode::kCorruptFile,
       {kPlace, "type BF16 contradicts the label, which says W8A8 (LABEL)"}},
      {"codes of another shape",
       &kTensorStatic,
       shaped(".weight", {kK, kN}),
       ErrorCode::kCorruptFile,
       {"shape [300,200], expected [200,300]"}},
      {"no scale",
       &kTensorStatic,
       removed(".weight_scale"),
       ErrorCode::kNotFound,
       {"layer 5, o_proj: tensor", "weight_scale\" is missing", "the checkpoint is incomplete"}},
      {"no scale of blocks",
       &kBlock,
       removed(".weight_scale"),
       ErrorCode::kNotFound,
       {"weight_scale\" is missing"}},
      {"a tensor's scale of 0",
       &kTensorStatic,
       scale(0, 0),
       ErrorCode::kCorruptFile,
       {kPlace, "weight_scale\": value 0, expected a finite number above 0"}},
      {"a negative scale", &kTensorStatic, scale(0, -1), ErrorCode::kCorruptFile, {"value -1"}},
      {"an infinite scale", &kTensorStatic, scale(0, kInf), ErrorCode::kCorruptFile, {"value inf"}},
      {"a row's NaN scale",
       &kChannel,
       scale(kN - 1, kNan),
       ErrorCode::kCorruptFile,
       {kPlace, "scale at row 199, column 0 is nan; expected a finite number, not negative"}},
      {"a row's negative scale", &kChannel, scale(7, -2), ErrorCode::kCorruptFile, {"row 7", "-2"}},
      {"a row's scale of -0", &kChannel, scale(7, -0.0f), ErrorCode::kCorruptFile, {"row 7", "-0"}},
      {"a block's infinite scale",
       &kBlock,
       scale(5, kInf),
       ErrorCode::kCorruptFile,
       {"scale at row 1, column 2 is inf"}},
      {"one scale under a label of rows",
       &kChannel,
       [](Tensors* t) {
         Find(t, ".weight_scale")->shape = {};
         Find(t, ".weight_scale")->bytes = F32({1});
       },
       ErrorCode::kCorruptFile,
       {"shape [], expected [200] or [200,1]; the label says W8A8 (LABEL)"}},
      {"blocks the other way round",
       &kBlock,
       shaped(".weight_scale", {3, 2}),
       ErrorCode::kCorruptFile,
       {"shape [3,2], expected [2,3] or [2,1,3,1]"}},
      {"rows under a label of one tensor",
       &kTensorStatic,
       [](Tensors* t) {
         Find(t, ".weight_scale")->shape = {kN};
         Find(t, ".weight_scale")->bytes = Bytes(DType::kF32, Numbers(kN, 1));
       },
       ErrorCode::kCorruptFile,
       {"shape [200], expected [] or [1]"}},
      {"scales of another type",
       &kChannel,
       [](Tensors* t) {
         Find(t, ".weight_scale")->dtype = DType::kF16;
         Find(t, ".weight_scale")->bytes.resize(2 * kN);
       },
       ErrorCode::kCorruptFile,
       {"type F16, expected F32 or BF16"}},
      {"both names of the blocks' scales",
       &kBlock,
       [](Tensors* t) {
         TensorToWrite copy = *Find(t, ".weight_scale");
         copy.name += "_inv";
         t->push_back(copy);
       },
       ErrorCode::kCorruptFile,
       {"weight_scale_inv\": \"model.layers.5.self_attn.o_proj.weight_scale\" is there too"}},
      {"no scale of static activations",
       &kTensorStatic,
       removed(".input_scale"),
       ErrorCode::kNotFound,
       {"layer 5, o_proj",
        "input_scale\" is missing; the label says W8A8 (LABEL); the checkpoint"}},
      {"one of 0", &kTensorStatic, input(0), ErrorCode::kCorruptFile, {"input_scale\": value 0"}},
      {"a NaN one", &kTensorStatic, input(kNan), ErrorCode::kCorruptFile, {"value nan"}},
      {"an infinite one", &kTensorStatic, input(kInf), ErrorCode::kCorruptFile, {"value inf"}},
      {"one of no scalar",
       &kTensorStatic,
       [](Tensors* t) {
         Find(t, ".input_scale")->shape = {2};
         Find(t, ".input_scale")->bytes = F32({1, 1});
       },
       ErrorCode::kCorruptFile,
       {"shape [2], expected [] or [1]"}},
  };
  for (const BrokenCase& c : cases) {
    const bool rows = c.scheme == &kChannel, blocks = c.scheme == &kBlock;
    const std::vector<uint64_t> shape = blocks ? std::vector<uint64_t>{2, 3}
                                        : rows ? std::vector<uint64_t>{kN}
                                               : std::vector<uint64_t>{};
    Tensors tensors = Fp8Linear(".weight_scale", shape, DType::kF32,
                                Numbers(blocks ? 6
                                        : rows ? kN
                                               : 1,
                                        1));
    tensors.push_back(InputScale({}, DType::kF32, 1));
    ASSERT_TRUE(ReadFp8(tensors, *c.scheme).ok()) << c.what;
    c.edit(&tensors);
    auto read = ReadFp8(tensors, *c.scheme);
    ASSERT_FALSE(read.ok()) << c.what;
    EXPECT_EQ(read.error().code, c.code) << c.what;
    for (const char* part : c.says) {
      EXPECT_NE(read.error().Message().find(part), std::string::npos)
          << c.what << ": " << read.error().Message();
    }
    const Result<void> later = Deferred([&] { return ReadFp8(tensors, *c.scheme); });
    ASSERT_FALSE(later.ok()) << c.what;
    EXPECT_EQ(later.error().code, read.error().code) << c.what;
    if (read.error().what.find("a NaN; expected a number") != std::string::npos) {
      EXPECT_EQ(later.error().what, read.error().what) << c.what;
    }
  }
}

TEST_F(Fp8Test, TakesARowOrABlockOfScaleZero) {
  std::vector<float> scales = Numbers(kN, 1);
  scales[11] = 0;
  auto rows = ReadFp8(Fp8Linear(".weight_scale", {kN}, DType::kF32, scales), kChannel);
  ASSERT_TRUE(rows.ok()) << rows.error().Message();
  EXPECT_EQ(std::get<CanonicalFp8>(*rows).scales[11], 0);
  auto blocks =
      ReadFp8(Fp8Linear(".weight_scale_inv", {2, 3}, DType::kBf16, {0, 1, 1, 1, 1, 0}), kBlock);
  ASSERT_TRUE(blocks.ok()) << blocks.error().Message();
}

TEST_F(Fp8Test, RefusesOtherKeysByName) {
  QuantKey blocks64 = kFp8StaticBlock128;
  blocks64.scale.group = {64, 64};
  auto w = ReadFp8(Fp8Linear(".weight_scale", {}, DType::kF32, {1}), Label(blocks64, std::nullopt));
  ASSERT_FALSE(w.ok());
  EXPECT_EQ(w.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(w.error().Message().find("QuantKey(f8e4m3fn,scale(f32,static,GroupShape(row=64, "
                                     "col=64)),symmetric)xNone"),
            std::string::npos)
      << w.error().Message();
}

TEST_F(Fp8Test, RefusesFp8WeightsUnderOtherLabels) {
  const Tensors tensors = Fp8Linear(".weight_scale_inv", {2, 3}, DType::kF32, Numbers(6, 1));
  auto bf16 = ReadFp8(tensors, kBf16);
  ASSERT_FALSE(bf16.ok());
  EXPECT_NE(bf16.error().Message().find("weight_scale_inv\": type F32 contradicts the label, which "
                                        "says BF16 (LABEL)"),
            std::string::npos)
      << bf16.error().Message();
  report_ = {};
  auto fp4 = ReadLinear(Open(tensors), kLinear, kModeloptA16, kN, 320, &report_);
  ASSERT_FALSE(fp4.ok());
  EXPECT_NE(fp4.error().Message().find("type F8_E4M3, expected U8; the label says W4A16 (LABEL)"),
            std::string::npos)
      << fp4.error().Message();
}

// Experts of three kinds of scales, one by one and stacked. Two blocks of rows a projection, so
// that the halves of a stacked tensor have blocks of their own.
constexpr int kCount = 2;
constexpr int64_t kHidden = 160, kInner = 256;

size_t ScalesOf(const GroupShape& group, int64_t n, int64_t k) {
  if (group == GroupShape::PerTensor()) return 1;
  if (group == GroupShape::PerChannel()) return static_cast<size_t>(n);
  return static_cast<size_t>((n + 127) / 128 * ((k + 127) / 128));
}

struct ExpertFile {
  Tensors tensors;
  std::vector<CanonicalFp8> expected[3];  // gate, up, down; codes unset
  std::vector<std::string> codes[3];
};

/// Adds one projection's data to the file, in tensors of its own.
void AddProjection(ExpertFile* file, const std::string& module, const GroupShape& group, int p,
                   int64_t n, int64_t k, unsigned seed) {
  const bool blocks = group == kFp8StaticBlock128.scale.group;
  CanonicalFp8 w;
  w.n = n;
  w.k = k;
  w.group = group;
  w.scales = Numbers(ScalesOf(group, n, k), 0.25f * static_cast<float>(seed + 1));
  w.input_scale = 0.5f * static_cast<float>(seed + 1);
  const TensorToWrite codes =
      Codes(module + ".weight", {static_cast<uint64_t>(n), static_cast<uint64_t>(k)}, seed);
  std::vector<uint64_t> shape;
  if (group == GroupShape::PerChannel()) shape = {static_cast<uint64_t>(n), 1};
  if (blocks)
    shape = {static_cast<uint64_t>((n + 127) / 128), static_cast<uint64_t>((k + 127) / 128)};
  file->tensors.push_back(codes);
  file->tensors.push_back({module + (blocks ? ".weight_scale_inv" : ".weight_scale"), DType::kBf16,
                           shape, Bytes(DType::kBf16, w.scales)});
  file->tensors.push_back({module + ".input_scale", DType::kF32, {}, F32({*w.input_scale})});
  file->codes[p].push_back(codes.bytes);
  file->expected[p].push_back(std::move(w));
}

ExpertFile Fp8Experts(const GroupShape& group, bool short_names) {
  static const char* const kShort[] = {"w1", "w3", "w2"};
  ExpertFile file;
  for (int e = 0; e < kCount; ++e) {
    for (int p = 0; p < 3; ++p) {
      const std::string module = "model.layers.5.mlp.experts." + std::to_string(e) + "." +
                                 (short_names ? kShort[p] : kProjections[p]);
      AddProjection(&file, module, group, p, p == 2 ? kHidden : kInner, p == 2 ? kInner : kHidden,
                    static_cast<unsigned>(3 * e + p));
    }
  }
  return file;
}

/// The tensors of Fp8Experts stacked, each kind of scales in the shape with the most dimensions.
Tensors Stacked(const ExpertFile& file, const GroupShape& group) {
  Tensors out;
  for (const bool is_down : {false, true}) {
    const std::string name =
        std::string("model.layers.5.mlp.experts.") + (is_down ? "down_proj" : "gate_up_proj");
    const uint64_t rows = is_down ? kHidden : 2 * kInner, columns = is_down ? kInner : kHidden;
    std::string codes;
    std::vector<float> scales, inputs;
    for (int e = 0; e < kCount; ++e) {
      for (int p = is_down ? 2 : 0; p < (is_down ? 3 : 2); ++p) {
        const CanonicalFp8& w = file.expected[p][static_cast<size_t>(e)];
        codes += file.codes[p][static_cast<size_t>(e)];
        scales.insert(scales.end(), w.scales.begin(), w.scales.end());
        inputs.push_back(*w.input_scale);
      }
    }
    const std::vector<uint64_t> each =
        is_down ? std::vector<uint64_t>{kCount} : std::vector<uint64_t>{kCount, 2};
    std::vector<uint64_t> shape = each;
    if (group == GroupShape::PerChannel()) shape = {kCount, rows, 1};
    const bool blocks = group == kFp8StaticBlock128.scale.group;
    if (blocks) shape = {kCount, (rows + 127) / 128, (columns + 127) / 128};
    out.push_back({name, DType::kF8E4m3, {kCount, rows, columns}, codes});
    out.push_back({name + "_weight_scale" + (blocks ? "_inv" : ""), DType::kF32, shape,
                   Bytes(DType::kF32, scales)});
    out.push_back({name + "_input_scale", DType::kF32, each, Bytes(DType::kF32, inputs)});
  }
  return out;
}

TEST_F(Fp8Test, ReadsExpertsOneByOneAndStackedAlike) {
  for (const QuantKey& key : {kFp8StaticTensor, kFp8StaticChannel, kFp8StaticBlock128}) {
    const GroupShape group = key.scale.group;
    const ExpertFile file = Fp8Experts(group, false);
    for (const Tensors& tensors :
         {file.tensors, Fp8Experts(group, true).tensors, Stacked(file, group)}) {
      report_ = {};
      auto read =
          ReadExperts(Open(tensors), "model.layers.5.mlp.experts", Label(key, kFp8StaticTensor),
                      kCount, kHidden, kInner, true, &report_);
      ASSERT_TRUE(read.ok()) << read.error().Message();
      int p = 0;
      for (auto* list : {&read->gate, &read->up, &read->down}) {
        ASSERT_EQ(list->size(), size_t{kCount});
        for (size_t e = 0; e < kCount; ++e) {
          const auto& v = std::get<CanonicalFp8>((*list)[e]);
          const CanonicalFp8& expected = file.expected[p][e];
          EXPECT_EQ(v.n, expected.n);
          EXPECT_EQ(v.k, expected.k);
          EXPECT_EQ(v.group, group);
          EXPECT_EQ(v.scales, expected.scales) << tensors[0].name << " " << e << " " << p;
          EXPECT_EQ(v.input_scale, expected.input_scale);
          EXPECT_EQ(std::memcmp(v.codes, file.codes[p][e].data(), file.codes[p][e].size()), 0);
        }
        ++p;
      }
      EXPECT_TRUE(CheckAllTensorsUsed(*checkpoints_.back(), report_).ok());
      EXPECT_TRUE(report_.ignored_tensors.empty());
    }
  }
}

TEST_F(Fp8Test, SaysWhichExpertIsBroken) {
  const GroupShape blocks = kFp8StaticBlock128.scale.group;
  const auto refused = [this](const Tensors& tensors, const QuantKey& key, int64_t inner) {
    auto read = ReadExperts(Open(tensors), "model.layers.5.mlp.experts", Label(key, std::nullopt),
                            kCount, kHidden, inner, true, &report_);
    EXPECT_FALSE(read.ok());
    return read.ok() ? std::string() : read.error().Message();
  };
  Tensors one_by_one = Fp8Experts(blocks, false).tensors;
  Find(&one_by_one, ".1.up_proj.weight")->bytes[kHidden + 2] = '\x7F';
  EXPECT_NE(refused(one_by_one, kFp8StaticBlock128, kInner)
                .find("layer 5, expert 1, up_proj: tensor \"model.layers.5.mlp.experts.1.up_proj."
                      "weight\": the code at row 1, column 2 is 0x7F"),
            std::string::npos);

  Tensors code = Stacked(Fp8Experts(blocks, false), blocks);
  Find(&code, "gate_up_proj")->bytes[(2 * kInner + kInner + 4) * kHidden + 9] = '\xFF';
  EXPECT_NE(refused(code, kFp8StaticBlock128, kInner)
                .find("layer 5, expert 1, up_proj: tensor \"model.layers.5.mlp.experts.gate_up_proj"
                      "\": the code at row 4, column 9 is 0xFF"),
            std::string::npos);

  Tensors scale = Stacked(Fp8Experts(blocks, false), blocks);
  const float kMinus = -1;  // 2 x 2 blocks a projection: the second expert's gate, row 1, column 0
  std::memcpy(Find(&scale, "gate_up_proj_weight_scale_inv")->bytes.data() + 4 * (4 * 2 + 2),
              &kMinus, 4);
  EXPECT_NE(refused(scale, kFp8StaticBlock128, kInner)
                .find("layer 5, expert 1, gate_proj: tensor \"model.layers.5.mlp.experts."
                      "gate_up_proj_weight_scale_inv\": scale at row 1, column 0 is -1"),
            std::string::npos);

  const Tensors halves = {
      Codes("model.layers.5.mlp.experts.gate_up_proj", {kCount, 400, kHidden}, 1)};
  EXPECT_NE(refused(halves, kFp8StaticBlock128, 200)
                .find("200 rows of gate_proj and as many of up_proj lie in one tensor"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble::scheme
