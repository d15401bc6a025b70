#include "synth/write_checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "checkpoint/test_shard.h"
#include "synth/synthesize.h"

namespace nibble::synth {
namespace {

using checkpoint::Checkpoint;
using checkpoint::CheckpointParts;
using checkpoint::TestDir;

CheckpointParts Mini() {
  Options options;
  options.layers = 1;
  auto parts = Synthesize(std::string(NIBBLE_SOURCE_DIR) + "/models/configs/qwen3.6-mini", options);
  EXPECT_TRUE(parts.ok()) << parts.error().Message();
  return *std::move(parts);
}

std::set<std::string> FilesIn(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir))
    names.insert(entry.path().filename().string());
  return names;
}

void ExpectHolds(const std::string& dir, const CheckpointParts& parts) {
  const auto read = Checkpoint::Open(dir);
  ASSERT_TRUE(read.ok()) << read.error().Message();
  EXPECT_EQ(read->config(), parts.config);
  ASSERT_NE(read->hf_quant_config(), nullptr);
  EXPECT_EQ(*read->hf_quant_config(), *parts.hf_quant_config);
  EXPECT_EQ(*read->generation_config(), *parts.generation_config);
  ASSERT_EQ(read->tensors().size(), parts.tensors.size());
  for (const auto& made : parts.tensors) {
    const auto* found = read->Find(made.name);
    ASSERT_NE(found, nullptr) << made.name;
    EXPECT_EQ(found->dtype, made.dtype);
    EXPECT_EQ(found->shape, made.shape);
    EXPECT_TRUE(
        std::equal(found->data.begin(), found->data.end(), made.data.begin(), made.data.end()))
        << made.name;
  }
}

TEST(WriteCheckpoint, OneFile) {
  const TestDir dir;
  const CheckpointParts parts = Mini();
  const std::string out = dir.path() + "/a/b";
  uint64_t done = 0, total = 0, calls = 0;
  const auto written = WriteCheckpoint(parts, out, {}, [&](uint64_t d, uint64_t t) {
    EXPECT_GE(d, done);
    done = d;
    total = t;
    ++calls;
  });
  ASSERT_TRUE(written.ok()) << written.error().Message();
  EXPECT_EQ(FilesIn(out), (std::set<std::string>{"config.json", "generation_config.json",
                                                 "hf_quant_config.json", "model.safetensors"}));
  EXPECT_EQ(done, total);
  EXPECT_GT(calls, 1u);
  ExpectHolds(out, parts);
}

TEST(WriteCheckpoint, ShardsAndTheirIndex) {
  const TestDir dir;
  const CheckpointParts parts = Mini();
  ASSERT_TRUE(WriteCheckpoint(parts, dir.path(), {.shard_bytes = 1'000'000}).ok());
  const auto files = FilesIn(dir.path());
  EXPECT_TRUE(files.contains("model.safetensors.index.json"));
  EXPECT_FALSE(files.contains("model.safetensors"));
  size_t shards = 0;
  for (const std::string& name : files) {
    if (!name.ends_with(".safetensors")) continue;
    ++shards;
    // A tensor may be larger than a file should be; then it has one to itself.
    const auto size = std::filesystem::file_size(dir.path() + "/" + name);
    EXPECT_LT(size, 17'000'000u) << name;
  }
  EXPECT_GT(shards, 2u);
  EXPECT_TRUE(files.contains(fmt::format("model-00001-of-{:05}.safetensors", shards)));
  ExpectHolds(dir.path(), parts);
}

TEST(WriteCheckpoint, DoesNotOverwriteUnlessForced) {
  TestDir dir;
  const CheckpointParts parts = Mini();
  dir.Write("notes.txt", "mine");
  ASSERT_TRUE(WriteCheckpoint(parts, dir.path(), {.shard_bytes = 1'000'000}).ok());
  const auto before = FilesIn(dir.path());
  const auto again = WriteCheckpoint(parts, dir.path());
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(FilesIn(dir.path()), before);
  // Forced: the old shards go, or a reader would meet two checkpoints.
  ASSERT_TRUE(WriteCheckpoint(parts, dir.path(), {.force = true}).ok());
  EXPECT_EQ(FilesIn(dir.path()),
            (std::set<std::string>{"config.json", "generation_config.json", "hf_quant_config.json",
                                   "model.safetensors", "notes.txt"}));
  ExpectHolds(dir.path(), parts);
}

TEST(WriteCheckpoint, WhatCannotBeWrittenLeavesNothing) {
  TestDir dir;
  dir.Write("file", "not a directory");
  const auto written = WriteCheckpoint(Mini(), dir.path() + "/file");
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().code, ErrorCode::kIo);
  EXPECT_EQ(FilesIn(dir.path()), std::set<std::string>{"file"});
}

}  // namespace
}  // namespace nibble::synth
