#include "synth/synthesize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "checkpoint/model_config.h"
#include "checkpoint/modules.h"
#include "checkpoint/test_shard.h"
#include "scheme/detect.h"
#include "synth/declare.h"

namespace nibble::synth {
namespace {

using checkpoint::Checkpoint;
using checkpoint::CheckpointParts;
using checkpoint::ShapeText;
using checkpoint::TensorInfo;

const std::string kSource = NIBBLE_SOURCE_DIR;
const std::string kConfigs = kSource + "/models/configs/";

CheckpointParts Make(const std::string& dir, const Options& options = {}) {
  auto parts = Synthesize(dir, options);
  EXPECT_TRUE(parts.ok()) << dir << ": " << parts.error().Message();
  return parts ? *std::move(parts) : CheckpointParts{};
}

/// "name BF16 [4,8]" of each, sorted.
std::set<std::string> Lines(std::span<const TensorInfo> tensors) {
  std::set<std::string> lines;
  for (const TensorInfo& t : tensors)
    lines.insert(fmt::format("{} {} {}", t.name, NameOf(t.dtype), ShapeText(t.shape)));
  return lines;
}

/// A JSON value whose objects and lists are sorted: for what has no order.
Json Sorted(const Json& json) {
  if (json.is_object()) {
    Json::Object members;
    for (const auto& [key, value] : json.object()) members.emplace_back(key, Sorted(value));
    std::sort(members.begin(), members.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    return members;
  }
  if (!json.is_array()) return json;
  Json::Array items;
  for (const Json& item : json.array()) items.push_back(Sorted(item));
  std::sort(items.begin(), items.end(),
            [](const Json& a, const Json& b) { return WriteJson(a) < WriteJson(b); });
  return items;
}

/// Real exports, by directory: those in the tree, and those of NIBBLE_TEST_DATA.
std::vector<std::string> RealCheckpoints() {
  std::vector<std::string> dirs = {kSource + "/models/qwen3-moe-mini"};
  for (const char* name :
       {"modelopt-w4a16", "modelopt-nvfp4", "modelopt-mixed", "ct-nvfp4", "ct-nvfp4a16"})
    dirs.push_back(kSource + "/tests/golden/tiny/" + name);
  if (const char* data = std::getenv("NIBBLE_TEST_DATA")) {
    for (const char* name :
         {"qwen3.6-moe-mini-modelopt-W4A16_NVFP4", "qwen3.6-moe-mini-modelopt-mixed",
          "qwen3.6-moe-mini-ct-NVFP4A16", "qwen3-moe-mini-ct-NVFP4"})
      dirs.push_back(std::string(data) + "/checkpoints/" + name);
  }
  return dirs;
}

TEST(Synthesize, HasTheTensorsThatExportersWrite) {
  for (const std::string& dir : RealCheckpoints()) {
    auto real = Checkpoint::Open(dir);
    ASSERT_TRUE(real.ok()) << real.error().Message();
    Options options;
    options.vision = true;
    EXPECT_EQ(Lines(Make(dir, options).tensors), Lines(real->tensors())) << dir;
  }
}

/// What recipes leave to their authors: how a vision tower is named as left alone.
void DropVisionEntries(Json* config) {
  for (auto& [key, value] : config->object()) {
    if (key != "ignore") continue;
    std::erase_if(value.array(), [](const Json& entry) {
      return entry.string().find("visual") != std::string::npos;
    });
  }
}

TEST(Synthesize, DeclaresAsExportersDo) {
  for (const std::string& dir : RealCheckpoints()) {
    auto real = Checkpoint::Open(dir, {.config_only = true});
    ASSERT_TRUE(real.ok()) << real.error().Message();
    const CheckpointParts made = Make(dir);
    Json theirs = *real->config().Find("quantization_config"),
         ours = *made.config.Find("quantization_config");
    DropVisionEntries(&theirs);
    DropVisionEntries(&ours);
    EXPECT_EQ(WriteJson(Sorted(ours)), WriteJson(Sorted(theirs))) << dir;
    ASSERT_EQ(made.hf_quant_config.has_value(), real->hf_quant_config() != nullptr) << dir;
    if (!made.hf_quant_config) continue;
    EXPECT_EQ(WriteJson(Sorted(*made.hf_quant_config)), WriteJson(Sorted(*real->hf_quant_config())))
        << dir;
  }
}

TEST(Synthesize, TheShippedConfigsAreWhatItWouldWrite) {
  for (const char* name : {"qwen3-30b-a3b", "qwen3-mini", "qwen3.6-mini",
                           "qwen3.6-mini-fp8-experts", "qwen3.6-35b-a3b-fp8-experts"}) {
    auto shipped = Checkpoint::Open(kConfigs + name, {.config_only = true});
    ASSERT_TRUE(shipped.ok()) << shipped.error().Message();
    Options options;
    if (std::string_view(name).find("b-a3b") != std::string_view::npos) options.layers = 0;
    const CheckpointParts made = Make(kConfigs + name, options);
    EXPECT_EQ(WriteJson(Sorted(made.config)), WriteJson(Sorted(shipped->config()))) << name;
    ASSERT_TRUE(made.hf_quant_config);
    EXPECT_EQ(WriteJson(Sorted(*made.hf_quant_config)),
              WriteJson(Sorted(*shipped->hf_quant_config())))
        << name;
  }
}

TEST(Synthesize, CountsOf35B) {
  Options options;
  options.vision = true;
  const CheckpointParts parts = Make(kConfigs + "qwen3.6-35b-a3b", options);
  std::map<std::string, int> counts;
  for (const TensorInfo& t : parts.tensors) {
    const std::string layers = "model.language_model.layers.";
    std::string part = "globals";
    if (t.name.starts_with(layers))
      part = t.name.substr(layers.size(), t.name.find('.', layers.size()) - layers.size());
    if (t.name.starts_with("model.visual.")) part = "vision";
    if (t.name.starts_with("mtp.layers.")) part = "mtp layer";
    ++counts[part];
  }
  // The published file's own figures: 333 + 30 x 3103 + 10 x 3102 + 15 + 10.
  EXPECT_EQ(parts.tensors.size(), 124468u);
  EXPECT_EQ(counts["vision"], 333);
  EXPECT_EQ(counts["mtp layer"], 15);
  EXPECT_EQ(counts["globals"], 10);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(counts[std::to_string(i)], i % 4 == 3 ? 3102 : 3103) << i;
  EXPECT_EQ(counts.size(), 43u);
  const auto find = [&](std::string_view name) -> const TensorInfo& {
    for (const TensorInfo& t : parts.tensors) {
      if (t.name == name) return t;
    }
    ADD_FAILURE() << name;
    return parts.tensors.front();
  };
  const std::string layer = "model.language_model.layers.0.";
  EXPECT_EQ(ShapeText(find("lm_head.weight").shape), "[248320,1024]");
  EXPECT_EQ(ShapeText(find(layer + "linear_attn.in_proj_qkv.weight").shape), "[8192,2048]");
  EXPECT_EQ(ShapeText(find("mtp.layers.0.mlp.experts.gate_up_proj").shape), "[256,1024,2048]");
  EXPECT_EQ(ShapeText(find(layer + "mlp.experts.255.down_proj.weight_scale").shape), "[2048,32]");
}

TEST(Synthesize, SameSeedSameBytes) {
  const auto digest = [](const CheckpointParts& parts) {
    uint64_t hash = 0;
    for (const TensorInfo& t : parts.tensors) {
      hash = Hash(hash, t.name);
      hash = Hash(hash, {reinterpret_cast<const char*>(t.data.data()), t.data.size()});
    }
    return hash;
  };
  Options options;
  options.layers = 1;
  const std::string dir = kConfigs + "qwen3.6-mini";
  const uint64_t first = digest(Make(dir, options));
  EXPECT_EQ(first, digest(Make(dir, options)));
  // What every machine gives; a change here changes everyone's synthetic checkpoints.
  EXPECT_EQ(first, 10819240314351663391u);
  options.seed = 1;
  EXPECT_NE(first, digest(Make(dir, options)));
}

TEST(Synthesize, TheDialectsSayTheSame) {
  const std::optional<QuantScheme> schemes[] = {
      std::nullopt, kW4A16, kW4A4, QuantScheme{kFp8StaticTensor, kFp8StaticTensor}, kBf16Scheme};
  for (const char* name : {"qwen3-mini", "qwen3.6-mini", "qwen3.6-mini-fp8-experts"}) {
    for (const auto& scheme : schemes) {
      std::vector<QuantScheme> said[2];
      for (const SourceFormat format :
           {SourceFormat::kModelopt, SourceFormat::kCompressedTensors}) {
        Options options;
        options.scheme = scheme;
        options.format = format;
        const CheckpointParts parts = Make(kConfigs + name, options);
        const auto config = checkpoint::ParseModelConfig(parts.config, nullptr);
        const auto quant = scheme::ReadQuantConfig(
            parts.config, parts.hf_quant_config ? &*parts.hf_quant_config : nullptr);
        ASSERT_TRUE(quant.ok()) << quant.error().Message();
        const bool bf16 = scheme == kBf16Scheme;
        EXPECT_EQ(quant->source_format(), bf16 ? SourceFormat::kNone : format);
        EXPECT_EQ(quant->kv_cache() == scheme::KvCacheScheme::kFp8, !bf16);
        auto& list = said[format == SourceFormat::kModelopt ? 0 : 1];
        for (const auto& module : checkpoint::ListModules(*config, config->mtp_layers > 0)) {
          const auto of = quant->SchemeOf(scheme::QueryOf(module));
          ASSERT_TRUE(of.ok()) << of.error().Message();
          list.push_back(of->scheme);
          const bool router = module.kind == checkpoint::ModuleKind::kRouter;
          const bool attention = module.name.ends_with("layers.0.linear_attn.out_proj") ||
                                 module.name.ends_with("layers.0.self_attn.o_proj");
          if (router || module.name.starts_with("mtp.")) {
            EXPECT_EQ(of->scheme, kBf16Scheme) << module.name;
          } else if (scheme && attention) {
            EXPECT_EQ(of->scheme, *scheme) << module.name;
          }
        }
      }
      EXPECT_EQ(said[0], said[1]) << name;
    }
  }
}

TEST(Synthesize, TheFirstLayersOfAHybridKeepTheirKinds) {
  Options options;
  options.layers = 3;
  const CheckpointParts parts = Make(kConfigs + "qwen3.6-mini", options);
  const auto config = checkpoint::ParseModelConfig(parts.config, nullptr);
  ASSERT_TRUE(config.ok()) << config.error().Message();
  EXPECT_EQ(config->n_layers, 3);
  EXPECT_EQ(config->LayersOf(checkpoint::Mixer::kAttention), 0);
  options.layers = 4;
  const auto four =
      checkpoint::ParseModelConfig(Make(kConfigs + "qwen3.6-mini", options).config, nullptr);
  EXPECT_EQ(four->LayersOf(checkpoint::Mixer::kAttention), 1);
  options.layers = 5;
  const auto five = Synthesize(kConfigs + "qwen3.6-mini", options);
  ASSERT_FALSE(five.ok());
  EXPECT_EQ(five.error().code, ErrorCode::kInvalidArgument);
}

TEST(Synthesize, KvScalesOnlyWhereAUniformExportCalibratesThem) {
  const auto scales = [](const char* name, SourceFormat format) {
    Options options;
    options.format = format;
    std::vector<std::string> found;
    for (const TensorInfo& t : Make(kConfigs + name, options).tensors) {
      if (t.name.ends_with(".k_scale")) found.push_back(t.name);
    }
    return found;
  };
  EXPECT_EQ(scales("qwen3-mini", SourceFormat::kModelopt),
            (std::vector<std::string>{"model.layers.0.self_attn.k_proj.k_scale",
                                      "model.layers.1.self_attn.k_proj.k_scale"}));
  EXPECT_EQ(scales("qwen3-mini", SourceFormat::kCompressedTensors).front(),
            "model.layers.0.self_attn.k_scale");
  EXPECT_TRUE(scales("qwen3.6-mini", SourceFormat::kModelopt).empty());
}

TEST(Synthesize, WordsOfTheCommandLine) {
  EXPECT_EQ(**ParseScheme("W4A4"), kW4A4);
  EXPECT_EQ(**ParseScheme("BF16"), kBf16Scheme);
  EXPECT_FALSE(ParseScheme("recipe")->has_value());
  EXPECT_EQ(*ParseFormat("compressed-tensors"), SourceFormat::kCompressedTensors);
  for (const char* text : {"", "w4a16", "INT4"}) EXPECT_FALSE(ParseScheme(text).ok()) << text;
  for (const char* text : {"", "gguf"}) EXPECT_FALSE(ParseFormat(text).ok()) << text;
}

TEST(Synthesize, AConfigThatIsNotThereOrNotKnown) {
  checkpoint::TestDir dir;
  auto none = Synthesize(dir.path(), {});
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::kNotFound);
  dir.Write("config.json", R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})");
  auto unknown = Synthesize(dir.path(), {});
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace nibble::synth
