#include "bench_tests.h"

#include <gtest/gtest.h>

namespace nibble::app {
namespace {

using Numbers = std::vector<int64_t>;

TEST(BenchTests, NumbersListsAndRanges) {
  const struct {
    const char* text;
    Numbers expected;
  } cases[] = {
      {"512", {512}},
      {"0", {0}},
      {"512,1024", {512, 1024}},
      {"1-4", {1, 2, 3, 4}},
      {"1-4+1", {1, 2, 3, 4}},
      {"1-9+3", {1, 4, 7}},
      {"128-512*2", {128, 256, 512}},
      {"128-1000*2", {128, 256, 512}},
      {"7-7*2", {7}},
      {"16,1-3,8-64*4", {16, 1, 2, 3, 8, 32}},
  };
  for (const auto& c : cases) {
    const auto numbers = ParseNumbers(c.text, 0, 4096);
    ASSERT_TRUE(numbers.ok()) << c.text << ": " << numbers.error().Message();
    EXPECT_EQ(*numbers, c.expected) << c.text;
  }
}

TEST(BenchTests, WhatIsNoRangeIsRefused) {
  const char* cases[] = {"",     ",",    "5,",     "a",     "-1",     "5-",
                         "5-3",  "1-4+", "1-4+0",  "1-4*1", "0-8*2",  "1-4/2",
                         "1.5",  "1 2",  "1-4*2x", "4097",  "1-4097", "99999999999999999999",
                         "1-2-3"};
  for (const char* text : cases) {
    const auto numbers = ParseNumbers(text, 0, 4096);
    ASSERT_FALSE(numbers.ok()) << text;
    EXPECT_EQ(numbers.error().code, ErrorCode::kInvalidArgument) << text;
  }
  EXPECT_FALSE(ParseNumbers("0-4000", 0, 4096).ok());  // more rows than anyone reads
  EXPECT_TRUE(ParseNumbers("1-1024", 0, 4096).ok());
}

TEST(BenchTests, RowsInOrder) {
  const auto tests = ParseBenchTests({"512,64", "32"}, {"128"}, {"256,16", "8,0"}, {"0"});
  ASSERT_TRUE(tests.ok());
  const std::vector<BenchTest> expected = {{512, 0, 0}, {64, 0, 0},   {32, 0, 0},
                                           {0, 128, 0}, {256, 16, 0}, {8, 0, 0}};
  EXPECT_EQ(*tests, expected);
}

TEST(BenchTests, DepthsAreThoseOfDecoding) {
  const auto tests = ParseBenchTests({"16"}, {"4,8"}, {"2,1"}, {"0,64", "128"});
  ASSERT_TRUE(tests.ok());
  const std::vector<BenchTest> expected = {{16, 0, 0}, {0, 4, 0},  {0, 4, 64},  {0, 4, 128},
                                           {0, 8, 0},  {0, 8, 64}, {0, 8, 128}, {2, 1, 0}};
  EXPECT_EQ(*tests, expected);
  EXPECT_EQ(expected[2].Name(), "tg4 @ d64");
  EXPECT_FALSE(ParseBenchTests({"16"}, {}, {}, {"x"}).ok());
}

TEST(BenchTests, ZeroAsksForNothing) {
  const auto tests = ParseBenchTests({"0"}, {"0,4"}, {}, {});
  ASSERT_TRUE(tests.ok());
  EXPECT_EQ(*tests, std::vector<BenchTest>({{0, 4, 0}}));
  EXPECT_FALSE(ParseBenchTests({"0"}, {"0"}, {"0,0"}, {"8"}).ok());
  for (const char* pair : {"512", "1,2,3", "1-2"})
    EXPECT_FALSE(ParseBenchTests({}, {}, {pair}, {}).ok());
}

TEST(BenchTests, Names) {
  EXPECT_EQ((BenchTest{512, 0}.Name()), "pp512");
  EXPECT_EQ((BenchTest{0, 128}.Name()), "tg128");
  EXPECT_EQ((BenchTest{512, 128}.Name()), "pp512+tg128");
}

}  // namespace
}  // namespace nibble::app
