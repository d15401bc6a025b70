#include <gtest/gtest.h>

#include <random>

#include "text/stop_strings.h"
#include "text/utf8.h"

namespace nibble::text {
namespace {

StopStrings Stops(std::vector<std::string> stops, bool keep = false) {
  auto made = StopStrings::Make(std::move(stops), keep);
  EXPECT_TRUE(made.ok());
  return *std::move(made);
}

/// All the text that comes out when `pieces` go in.
std::string Through(StopStrings stops, const std::vector<std::string>& pieces,
                    std::optional<size_t>* matched = nullptr) {
  std::string text;
  for (const std::string& piece : pieces) {
    const auto out = stops.Push(piece);
    EXPECT_TRUE(IsValidUtf8(out.text));
    text += out.text;
    if (out.matched) {
      if (matched) *matched = out.matched;
      return text;
    }
  }
  return text + stops.Finish();
}

TEST(StopStrings, CutsBeforeTheMatch) {
  const struct {
    const char* what;
    std::vector<std::string> stops, pieces;
    std::string text;
    std::optional<size_t> matched;
  } kCases[] = {
      {"none", {}, {"a", "b"}, "ab", std::nullopt},
      {"no match", {"xyz"}, {"ab", "xy", "c"}, "abxyc", std::nullopt},
      {"in one piece", {"stop"}, {"go stop go"}, "go ", 0},
      {"over pieces", {"stop"}, {"go s", "t", "op go"}, "go ", 0},
      {"at once", {"stop"}, {"stop"}, "", 0},
      {"the earlier of two", {"bc", "ab"}, {"xabc"}, "x", 1},
      {"the first listed of equals", {"ab", "a"}, {"xab"}, "x", 0},
      {"a false start", {"aab"}, {"a", "a", "a", "b", "c"}, "a", 0},
      {"across characters", {"é!"}, {"x", "é", "!"}, "x", 0},
      {"one byte", {"\n"}, {"a", "b\n", "c"}, "ab", 0},
  };
  for (const auto& c : kCases) {
    std::optional<size_t> matched;
    EXPECT_EQ(Through(Stops(c.stops), c.pieces, &matched), c.text) << c.what;
    EXPECT_EQ(matched, c.matched) << c.what;
  }
}

TEST(StopStrings, WithholdsNoMoreThanAMatchMayNeed) {
  StopStrings stops = Stops({"abcd"});
  EXPECT_EQ(stops.Push("12345").text, "12");
  EXPECT_EQ(stops.Push("6").text, "3");
  EXPECT_EQ(stops.Finish(), "456");
  StopStrings wide = Stops({"abc"});
  EXPECT_EQ(wide.Push("€€").text, "€") << "the border inside a character moves before it";
}

TEST(StopStrings, KeepsTheMatchIfAskedTo) {
  StopStrings stops = Stops({"stop"}, true);
  EXPECT_EQ(stops.Push("go st").text, "go st");
  const auto out = stops.Push("op go");
  EXPECT_EQ(out.text, "op");
  EXPECT_EQ(out.matched, 0u);
}

TEST(StopStrings, RefusesWhatCannotBeFound) {
  EXPECT_FALSE(StopStrings::Make({""}).ok());
  EXPECT_FALSE(StopStrings::Make({"\xFF"}).ok());
  EXPECT_FALSE(StopStrings::Make({std::string(5000, 'x')}).ok());
  EXPECT_FALSE(StopStrings::Make(std::vector<std::string>(65, "x")).ok());
}

TEST(StopStrings, DoNotDependOnWhereTextIsCut) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += random() % 4 == 0 ? "€" : random() % 2 ? "a" : "b";
    const std::vector<std::string> stops = {"abab", "b€a", "aaaaa"};
    size_t first = std::string::npos;
    for (const std::string& stop : stops) first = std::min(first, text.find(stop));
    std::vector<std::string> pieces;
    for (size_t pos = 0; pos < text.size();) {
      size_t end = std::min(text.size(), pos + 1 + random() % 4);
      while (end < text.size() && !IsCharStart(text[end])) ++end;
      pieces.push_back(text.substr(pos, end - pos));
      pos = end;
    }
    // Pieces come one by one, so a match that completes earlier wins even if another starts before
    // it.
    std::string expected = text, seen;
    for (const std::string& piece : pieces) {
      seen += piece;
      size_t at = std::string::npos;
      for (const std::string& stop : stops) at = std::min(at, seen.find(stop));
      if (at != std::string::npos) {
        expected = text.substr(0, at);
        break;
      }
    }
    ASSERT_EQ(Through(Stops(stops), pieces), expected) << text;
  }
}

}  // namespace
}  // namespace nibble::text
