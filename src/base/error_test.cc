#include "base/error.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace nibble {
namespace {

Result<std::unique_ptr<int>> Halve(int v) {
  if (v % 2 != 0) return Err(ErrorCode::kInvalidArgument, "{} is odd", v);
  return std::make_unique<int>(v / 2);
}

Result<int> Quarter(int v) {
  NIBBLE_TRY(std::unique_ptr<int> half, Halve(v));
  NIBBLE_TRY(std::unique_ptr<int> quarter, Halve(*half));
  return *quarter;
}

Result<void> Divisible(int v) {
  NIBBLE_TRY([[maybe_unused]] int quarter, Quarter(v));
  return {};
}

Result<std::string> Words(int v) {
  NIBBLE_CHECK_OK(Divisible(v));
  return std::string("fine");
}

TEST(Result, CarriesMoveOnlyValuesAndTheFirstError) {
  ASSERT_TRUE(Quarter(12));
  EXPECT_EQ(*Quarter(12), 3);
  auto failed = Quarter(6);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(failed.error().what, "3 is odd");
  EXPECT_EQ(*Words(8), "fine");
  EXPECT_EQ(Words(7).error().what, "7 is odd");
}

TEST(Error, MessageIsWhereWhatHint) {
  EXPECT_EQ((Error{ErrorCode::kIo, "what", {}, {}}).Message(), "what");
  EXPECT_EQ((Error{ErrorCode::kIo, "what", "where", "hint"}).Message(), "where: what; hint");
  EXPECT_EQ((Error{ErrorCode::kIo, "what", "byte 3", {}}).At("a.json").Message(),
            "a.json: byte 3: what");
  EXPECT_EQ((Error{ErrorCode::kIo, "what", {}, {}}).At("a.json").Message(), "a.json: what");
}

TEST(Error, CodesHaveNamesAndExitCodes) {
  const struct {
    ErrorCode code;
    const char* name;
    int exit_code;
  } kCases[] = {
      {ErrorCode::kInvalidArgument, "InvalidArgument", 2},
      {ErrorCode::kNotFound, "NotFound", 3},
      {ErrorCode::kCorruptFile, "CorruptFile", 3},
      {ErrorCode::kUnsupported, "Unsupported", 5},
      {ErrorCode::kOutOfMemory, "OutOfMemory", 6},
      {ErrorCode::kIo, "Io", 3},
      {ErrorCode::kDevice, "Device", 7},
      {ErrorCode::kCancelled, "Cancelled", 130},
      {ErrorCode::kInternal, "Internal", 1},
  };
  for (const auto& c : kCases) {
    EXPECT_EQ(NameOf(c.code), c.name);
    EXPECT_EQ(ExitCodeOf(c.code), c.exit_code) << c.name;
  }
}

TEST(CheckDeathTest, EndsTheProcessWithItsPlace) {
  EXPECT_DEATH(NIBBLE_CHECK(1 + 1 == 3, "arithmetic is broken"),
               "error_test.cc:[0-9]+: arithmetic is broken");
}

}  // namespace
}  // namespace nibble
