#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/log.h"
#include "checkpoint/test_shard.h"

namespace nibble::checkpoint {
namespace {

constexpr char kIndex[] = "model.safetensors.index.json";

/// A shard of U8 vectors: names and their sizes.
std::string Shard(const std::vector<std::pair<std::string, int>>& tensors) {
  std::string header;
  int at = 0;
  for (const auto& [name, size] : tensors) {
    header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}})",
                          header.empty() ? "{" : ",", name, size, at, at + size);
    at += size;
  }
  return MakeShard(header + "}", static_cast<size_t>(at));
}

TEST(Checkpoint, OpensASingleFile) {
  TestDir dir;
  dir.Write("config.json", R"({"model_type":"x","text_config":{"a":1}})")
      .Write("model.safetensors", Shard({{"b", 3}, {"c", 0}, {"a", 4}}));
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().Message();
  const Checkpoint moved = *std::move(checkpoint);
  ASSERT_EQ(moved.tensors().size(), 3u);
  EXPECT_EQ(moved.tensors()[0].name, "a");
  EXPECT_EQ(moved.tensors()[2].name, "c");
  ASSERT_NE(moved.Find("a"), nullptr);
  EXPECT_EQ(moved.Find("a")->data.size(), 4u);
  EXPECT_EQ(moved.Find("a")->data[0], std::byte{3});  // the fourth byte of the data
  EXPECT_EQ(moved.FileOf(*moved.Find("a")), "model.safetensors");
  for (const char* absent : {"", "aa", "d", "B"}) EXPECT_EQ(moved.Find(absent), nullptr) << absent;
  EXPECT_EQ(moved.total_bytes(), 7u);
  EXPECT_EQ(moved.config().Find("model_type")->string(), "x");
  EXPECT_EQ(moved.text_config().Find("a")->integer(), 1);
  EXPECT_EQ(moved.hf_quant_config(), nullptr);
  EXPECT_EQ(moved.generation_config(), nullptr);
  EXPECT_FALSE(moved.config_only());
}

TEST(Checkpoint, OpensOnlyTheConfigsWhenAsked) {
  TestDir dir;
  dir.Write("config.json", "{}")
      .Write("hf_quant_config.json", R"({"q":1})")
      .Write("generation_config.json", R"({"g":2})");
  auto checkpoint = Checkpoint::Open(dir.path() + "//", {.config_only = true});
  ASSERT_TRUE(checkpoint) << checkpoint.error().Message();
  EXPECT_EQ(checkpoint->dir(), dir.path());
  EXPECT_TRUE(checkpoint->config_only());
  EXPECT_TRUE(checkpoint->tensors().empty());
  EXPECT_EQ(&checkpoint->text_config(), &checkpoint->config());
  ASSERT_NE(checkpoint->hf_quant_config(), nullptr);
  EXPECT_EQ(checkpoint->hf_quant_config()->Find("q")->integer(), 1);
  ASSERT_NE(checkpoint->generation_config(), nullptr);
  EXPECT_EQ(checkpoint->generation_config()->Find("g")->integer(), 2);
  EXPECT_FALSE(Checkpoint::Open(dir.path()));
}

TEST(Checkpoint, OpensShardsAlsoThroughLinks) {
  TestDir blobs, dir;
  blobs.Write("9f2c", Shard({{"b", 2}, {"d", 1}}));
  dir.Write("config.json", "{}")
      .Write("model-1.safetensors", Shard({{"a", 1}, {"c", 5}}))
      .Link("model-2.safetensors", blobs.path() + "/9f2c")
      .Write(
          kIndex,
          R"({"metadata":{"total_size":9},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors",
                         "c":"model-1.safetensors","d":"model-2.safetensors"}})");
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().Message();
  std::string names;
  for (const TensorInfo& tensor : checkpoint->tensors())
    names += tensor.name + "@" + checkpoint->FileOf(tensor) + " ";
  EXPECT_EQ(
      names,
      "a@model-1.safetensors b@model-2.safetensors c@model-1.safetensors d@model-2.safetensors ");
  EXPECT_EQ(checkpoint->total_bytes(), 9u);
}

struct IndexCase {
  const char* what;
  std::string index;
  const char* refusal;  // part of the message; null: accepted
};

/// Put beside one.safetensors {a: 2 bytes, b: 3} and two.safetensors {c: 4}, 5 and 4 bytes of
/// tensors.
TEST(Checkpoint, HoldsTheIndexToItsShards) {
  const std::string one = Shard({{"a", 2}, {"b", 3}});
  const std::string two = Shard({{"c", 4}});
  const std::string map =
      R"("weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"})";
  const size_t file_bytes = one.size() + two.size();
  auto with_total = [&](std::string total) {
    return R"({"metadata":{"total_size":)" + total + "}," + map + "}";
  };
  const std::vector<IndexCase> cases = {
      {"no metadata", "{" + map + "}", nullptr},
      {"empty metadata", R"({"metadata":{},)" + map + "}", nullptr},
      {"total of the tensors", with_total("9"), nullptr},
      {"total as a float", with_total("9.0"), nullptr},
      {"total of the files (llm-compressor)", with_total(std::to_string(file_bytes)), nullptr},
      {"another total", with_total("10"), "metadata.total_size is 10, expected the tensors' 9"},
      {"total -1", with_total("-1"), "no number of bytes"},
      {"total \"9\"", with_total("\"9\""), "no number of bytes"},
      {"total 9.5", with_total("9.5"), "no number of bytes"},
      {"total 1e300", with_total("1e300"), "no number of bytes"},
      {"metadata is a list", R"({"metadata":[],)" + map + "}", "is no object"},
      {"no JSON", "{", "not valid JSON"},
      {"a list", "[]", "expected an object"},
      {"no weight_map", "{}", "weight_map"},
      {"empty weight_map", R"({"weight_map":{}})", "weight_map"},
      {"weight_map is a list", R"({"weight_map":[]})", "weight_map"},
      {"a tensor twice", R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})",
       "twice"},
      {"a tensor not named", R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})",
       "tensor \"b\": the index does not name it"},
      {"a file that no tensor is in is not opened",
       R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors"}})", nullptr},
      {"the last tensor not named", R"({"weight_map":{"a":"one.safetensors"}})",
       "tensor \"b\": the index does not name it"},
      {"a tensor in no shard",
       R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","bb":"two.safetensors","c":"two.safetensors"}})",
       "tensor \"bb\": not in this shard"},
      {"the last in no shard",
       R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors","d":"two.safetensors"}})",
       "tensor \"d\": not in this shard"},
      {"a tensor in the other shard",
       R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})",
       "tensor \"b\": the index names it in \"two.safetensors\""},
      {"a shard that is not there",
       R"({"weight_map":{"a":"one.safetensors","b":"three.safetensors"}})", "cannot open"},
      {"a shard above", R"({"weight_map":{"a":"../one.safetensors"}})", "plain"},
      {"a shard below", R"({"weight_map":{"a":"x/one.safetensors"}})", "plain"},
      {"an absolute shard", R"({"weight_map":{"a":"/one.safetensors"}})", "plain"},
      {"a shard with a backslash", R"({"weight_map":{"a":"x\\one.safetensors"}})", "plain"},
      {"a shard named ..", R"({"weight_map":{"a":".."}})", "plain"},
      {"a hidden shard", R"({"weight_map":{"a":".safetensors"}})", "plain"},
      {"an empty shard", R"({"weight_map":{"a":""}})", "plain"},
      {"a shard with NUL", R"({"weight_map":{"a":"one\u0000.safetensors"}})", "plain"},
      {"a shard of another kind", R"({"weight_map":{"a":"config.json"}})", "plain"},
      {"a shard that is a number", R"({"weight_map":{"a":1}})", "plain"},
  };
  for (const IndexCase& c : cases) {
    SCOPED_TRACE(c.what);
    TestDir dir;
    dir.Write("config.json", "{}")
        .Write("one.safetensors", one)
        .Write("two.safetensors", two)
        .Write(kIndex, c.index);
    auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_EQ(checkpoint.ok(), c.refusal == nullptr)
        << (checkpoint ? "accepted" : checkpoint.error().Message());
    if (checkpoint) continue;
    EXPECT_NE(checkpoint.error().what.find(c.refusal), std::string::npos)
        << checkpoint.error().Message();
    EXPECT_TRUE(checkpoint.error().where.starts_with(dir.path() + "/"))
        << checkpoint.error().Message();
  }
}

TEST(Checkpoint, RefusesANameInTwoShards) {
  TestDir dir;
  dir.Write("config.json", "{}")
      .Write("one.safetensors", Shard({{"a", 2}, {"b", 3}}))
      .Write("two.safetensors", Shard({{"b", 3}}))
      .Write(kIndex, R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_FALSE(checkpoint);
  EXPECT_EQ(checkpoint.error().what, "tensor \"b\": also in \"one.safetensors\"");
}

TEST(Checkpoint, RefusesASingleFileThatTheIndexDoesNotName) {
  const std::string shard = Shard({{"a", 1}});
  TestDir dir;
  dir.Write("config.json", "{}")
      .Write("model.safetensors", shard)
      .Write("other.safetensors", shard);
  dir.Write(kIndex, R"({"weight_map":{"a":"other.safetensors"}})");
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_FALSE(checkpoint);
  EXPECT_NE(checkpoint.error().what.find("does not name model.safetensors"), std::string::npos);
  dir.Write(kIndex, R"({"weight_map":{"a":"model.safetensors"}})");
  EXPECT_TRUE(Checkpoint::Open(dir.path()));
}

TEST(Checkpoint, LenientWarnsOfAnotherTotalSize) {
  TestDir dir;
  dir.Write("config.json", "{}").Write("model.safetensors", Shard({{"a", 1}}));
  dir.Write(kIndex, R"({"metadata":{"total_size":7},"weight_map":{"a":"model.safetensors"}})");
  EXPECT_FALSE(Checkpoint::Open(dir.path()));
  int lines = 0;
  SetLogSink([&](LogLevel, std::string_view) { ++lines; }, LogLevel::kWarning);
  EXPECT_TRUE(Checkpoint::Open(dir.path(), {.lenient = true}));
  SetLogSink(nullptr, LogLevel::kError);
  EXPECT_EQ(lines, 1);
}

TEST(Checkpoint, RefusesBadConfigs) {
  const struct {
    const char* file;
    std::string content;
    const char* refusal;
  } kCases[] = {
      {"config.json", "", "not valid JSON"},
      {"config.json", "[]", "a JSON array, expected an object"},
      {"config.json", "{\"a\":1", "not valid JSON"},
      {"config.json", "{\"a\":1,\"a\":2}", "twice"},
      {"config.json", "{\"text_config\":[]}", "text_config"},
      {"config.json", std::string((size_t{16} << 20) + 1, ' '), "expected at most 16777216"},
      {"hf_quant_config.json", "7", "expected an object"},
      {"generation_config.json", "{", "not valid JSON"},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.refusal);
    TestDir dir;
    dir.Write("config.json", "{}").Write(c.file, c.content);
    auto checkpoint = Checkpoint::Open(dir.path(), {.config_only = true});
    ASSERT_FALSE(checkpoint);
    EXPECT_EQ(checkpoint.error().code, ErrorCode::kCorruptFile);
    EXPECT_NE(checkpoint.error().what.find(c.refusal), std::string::npos)
        << checkpoint.error().Message();
    EXPECT_TRUE(checkpoint.error().where.starts_with(dir.path() + "/" + c.file))
        << checkpoint.error().Message();
  }
  TestDir empty;
  for (const std::string& path : {empty.path(), empty.path() + "/absent"}) {
    auto checkpoint = Checkpoint::Open(path);
    ASSERT_FALSE(checkpoint);
    EXPECT_EQ(checkpoint.error().code, ErrorCode::kNotFound);
    EXPECT_NE(checkpoint.error().hint.find("directory of a Hugging Face checkpoint"),
              std::string::npos);
  }
}

CheckpointParts PartsOf(std::vector<TensorInfo> tensors, std::shared_ptr<const void> owner = {}) {
  CheckpointParts parts;
  parts.dir = "nowhere";
  parts.config = Json::Object{{"text_config", Json::Object{{"a", 1}}}};
  parts.tensors = std::move(tensors);
  parts.owner = std::move(owner);
  return parts;
}

TEST(CheckpointFromParts, IsOneLikeAnyOther) {
  auto bytes = std::make_shared<std::vector<std::byte>>(24);
  const std::span<const std::byte> all(*bytes);
  const std::weak_ptr<const void> watch = bytes;
  {
    const Checkpoint checkpoint = Checkpoint::FromParts(PartsOf(
        {{"b", DType::kF32, 7, {}, all.first(4)}, {"a", DType::kBf16, 0, {5, 2}, all.subspan(4)}},
        std::move(bytes)));
    EXPECT_FALSE(watch.expired());  // the checkpoint keeps the tensors' memory
    ASSERT_EQ(checkpoint.tensors().size(), 2u);
    EXPECT_EQ(checkpoint.tensors()[0].name, "a");
    ASSERT_NE(checkpoint.Find("b"), nullptr);
    EXPECT_EQ(checkpoint.Find("b")->data.data(), all.data());
    EXPECT_EQ(checkpoint.FileOf(*checkpoint.Find("b")), "(in memory)");
    EXPECT_EQ(checkpoint.total_bytes(), 24u);
    EXPECT_EQ(checkpoint.dir(), "nowhere");
    EXPECT_EQ(checkpoint.text_config(), Json(Json::Object{{"a", 1}}));
    EXPECT_EQ(checkpoint.hf_quant_config(), nullptr);
  }
  EXPECT_TRUE(watch.expired());
}

TEST(CheckpointFromParts, ForgetsNothing) {
  constexpr size_t kBytes = 64 << 10;  // whole pages are among them
  const std::vector<std::byte> bytes(kBytes, std::byte{0x5A});
  const Checkpoint checkpoint =
      Checkpoint::FromParts(PartsOf({{"a", DType::kU8, 0, {kBytes}, bytes}}));
  checkpoint.Forget(checkpoint.Find("a")->data);
  EXPECT_EQ(bytes, std::vector<std::byte>(kBytes, std::byte{0x5A}));
}

TEST(CheckpointFromParts, EndsOnWhatIsNoTensor) {
  const std::vector<std::byte> bytes(8);
  EXPECT_DEATH(Checkpoint::FromParts(PartsOf({{"a", DType::kF32, 0, {3}, bytes}})), "shape");
  EXPECT_DEATH(Checkpoint::FromParts(
                   PartsOf({{"a", DType::kF32, 0, {2}, bytes}, {"a", DType::kU8, 0, {8}, bytes}})),
               "one name");
}

}  // namespace
}  // namespace nibble::checkpoint
