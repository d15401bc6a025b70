#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>

namespace nibble {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "nibble_file_XXXXXX").string();
    dir_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string Path(const char* name) const { return dir_ + "/" + name; }
  static std::span<const std::byte> Bytes(std::string_view text) {
    return std::as_bytes(std::span(text.data(), text.size()));
  }

  std::string dir_;
};

TEST_F(FileTest, WritesWholeFilesAndReadsThemBack) {
  const std::string content("a\0b\n", 4);
  ASSERT_TRUE(WriteFileAtomically(Path("f"), Bytes(content)));
  ASSERT_TRUE(WriteFileAtomically(Path("f"), Bytes(content + content)));
  EXPECT_EQ(*ReadFile(Path("f"), 8), content + content);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator()),
            1);  // no temporary left
  EXPECT_TRUE(FileExists(Path("f")));
  EXPECT_FALSE(FileExists(Path("g")));

  auto mapped = MappedFile::Open(Path("f"));
  ASSERT_TRUE(mapped);
  const MappedFile moved = *std::move(mapped);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(moved.bytes().data()), moved.bytes().size()),
            content + content);
  EXPECT_EQ(moved.path(), Path("f"));
}

TEST_F(FileTest, WhatAMappingForgetsIsReadAgain) {
  std::string content;
  while (content.size() < 200000) content += std::to_string(content.size()) + "\n";
  ASSERT_TRUE(WriteFileAtomically(Path("f"), Bytes(content)));
  const auto mapped = MappedFile::Open(Path("f"));
  ASSERT_TRUE(mapped);
  const auto text = [&] {
    return std::string_view(reinterpret_cast<const char*>(mapped->bytes().data()), content.size());
  };
  ASSERT_EQ(text(), content);
  // Any part: of no page, of some, of all.
  for (const auto& [first, size] : {std::pair<size_t, size_t>{5, 100},
                                    {4097, 4095},
                                    {1, 199990},
                                    {0, content.size()},
                                    {content.size(), 0}}) {
    mapped->Forget(mapped->bytes().subspan(first, size));
    EXPECT_EQ(text(), content) << first;
  }
}

TEST_F(FileTest, EmptyFilesAreFiles) {
  ASSERT_TRUE(WriteFileAtomically(Path("f"), {}));
  EXPECT_EQ(*ReadFile(Path("f"), 0), "");
  auto mapped = MappedFile::Open(Path("f"));
  ASSERT_TRUE(mapped);
  EXPECT_TRUE(mapped->bytes().empty());
}

TEST_F(FileTest, SaysWhatIsWrong) {
  ASSERT_TRUE(WriteFileAtomically(Path("f"), Bytes("123")));
  ASSERT_EQ(::mkfifo(Path("fifo").c_str(), 0600), 0);
  const struct {
    std::string path;
    ErrorCode code;
  } kCases[] = {
      {Path("absent"), ErrorCode::kNotFound},
      {Path("f/below"), ErrorCode::kNotFound},
      {dir_, ErrorCode::kCorruptFile},
      {Path("fifo"), ErrorCode::kCorruptFile},  // and does not wait for a writer
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.path);
    auto read = ReadFile(c.path, 100);
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, c.code);
    EXPECT_EQ(read.error().where, c.path);
    auto mapped = MappedFile::Open(c.path);
    ASSERT_FALSE(mapped);
    EXPECT_EQ(mapped.error().code, c.code);
  }
  auto large = ReadFile(Path("f"), 2);
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, ErrorCode::kCorruptFile);
  EXPECT_EQ(large.error().what, "3 bytes, expected at most 2");
  EXPECT_FALSE(WriteFileAtomically(Path("absent/f"), Bytes("1")));
}

}  // namespace
}  // namespace nibble
