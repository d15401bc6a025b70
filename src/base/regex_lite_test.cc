#include "base/regex_lite.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

constexpr const char* kTexts[] = {
    "",
    "a",
    "b",
    "ab",
    "abc",
    "abcabc",
    "aaac",
    "aaab",
    "ababc",
    "cde",
    "abcde",
    "c",
    "ax",
    "bcx",
    "dx",
    "]b",
    "cb",
    "]c",
    "-b",
    "12_3",
    "a.b",
    ".",
    "  x",
    "x",
    "ac",
    "bd",
    "aaaa",
    "lm_head",
    "model.lm_head",
    "model.layers.3.mlp.gate",
    "model.layers.3.mlp.gate_proj",
    "model.layers.1.mlp.gate",
    "model.layers.12.mlp.gate",
    "model.layers.0.mlp.experts.17.gate_proj",
    "model.layers.0.mlp.experts.17.gate_up",
    "model.layers.0.self_attn.q_proj",
    ".a",
    "xa",
    "}a",
    "a|b",
    "xab",
};

// One digit a text of kTexts: what Python 3's re.match says.
struct MatchCase {
  const char* pattern;
  const char* hits;
};
constexpr MatchCase kMatches[] = {
    {R"re()re", "11111111111111111111111111111111111111111"},
    {R"re(a)re", "01011111101010000000100010100000000000010"},
    {R"re(abc)re", "00001100001000000000000000000000000000000"},
    {R"re(a.c)re", "00001100001000000000000000000000000000000"},
    {R"re(^model\.layers\.\d+\.mlp\.gate$)re", "00000000000000000000000000000101100000000"},
    {R"re(.*mlp.gate$)re", "00000000000000000000000000000101100000000"},
    {R"re(.*mlp.gate)re", "00000000000000000000000000000111100000000"},
    {R"re(model.layers.1)re", "00000000000000000000000000000001100000000"},
    {R"re(a*)re", "11111111111111111111111111111111111111111"},
    {R"re(a*b)re", "00111101101001000000000001000000000000000"},
    {R"re((ab)+c)re", "00001100101000000000000000000000000000000"},
    {R"re((?:ab|cd)*e)re", "00000000011000000000000000000000000000000"},
    {R"re(a?b?c)re", "00001100011101001000000010000000000000000"},
    {R"re([a-c]+x)re", "00000000000011000000000000000000000000000"},
    {R"re([^a-c]x)re", "00000000000000100000000000000000000000000"},
    {R"re([]a]b)re", "00011100101000010000000000000000000000000"},
    {R"re([^]a]b)re", "00000000000000001010000000000000000000000"},
    {R"re([a\]b]c)re", "00000000000001000100000010000000000000000"},
    {R"re([a-]b)re", "00011100101000000010000000000000000000000"},
    {R"re([-a]b)re", "00011100101000000010000000000000000000000"},
    {R"re([\d_]+$)re", "00000000000000000001000000000000000000000"},
    {R"re(\w+\.\w+$)re", "00000000000000000000100000001000000000000"},
    {R"re(\W)re", "00000000000000010110011000000000000010100"},
    {R"re(\s*x)re", "00000000000000000000001100000000000001001"},
    {R"re(a|b|)re", "11111111111111111111111111111111111111111"},
    {R"re((a|b)(c|d)$)re", "00000000000000000000000011000000000000000"},
    {R"re((a*)*b)re", "00111101101001000000000001000000000000000"},
    {R"re((a|aa)+$)re", "01000000000000000000000000100000000000000"},
    {R"re((^a))re", "01011111101010000000100010100000000000010"},
    {R"re(a$b)re", "00000000000000000000000000000000000000000"},
    {R"re(x*^a)re", "01011111101010000000100010100000000000010"},
    {R"re(.*?lm_head)re", "00000000000000000000000000011000000000000"},
    {R"re((|a)b)re", "00111100101001000000000001000000000000000"},
    {R"re(a+?b)re", "00011101101000000000000000000000000000000"},
    {R"re(.*\.experts\.\d+\.(gate|up|down)_proj$)re", "00000000000000000000000000000000010000000"},
    {R"re(((a)))re", "01011111101010000000100010100000000000010"},
    {R"re((^|x)a)re", "01011111101010000000100010100000000001011"},
    {R"re([.]a)re", "00000000000000000000000000000000000010000"},
    {R"re(\.a)re", "00000000000000000000000000000000000010000"},
    {R"re([a-z0-9_]+(\.[a-z0-9_]+)*$)re", "01111111111111101001100111111111111101001"},
    {R"re(}a)re", "00000000000000000000000000000000000000100"},
    {R"re(a\|b)re", "00000000000000000000000000000000000000010"},
    {R"re([\w.]+$)re", "01111111111111101001110111111111111111001"},
    {R"re(\D\S)re", "00011111111011111110100011111111111111111"},
    {R"re(()*a)re", "01011111101010000000100010100000000000010"},
    {R"re((a?)+$)re", "11000000000000000000000000100000000000000"},
    {R"re((?:.*self_attn.(q|k|v|o)_proj)$)re", "00000000000000000000000000000000000100000"},
};

TEST(RegexLite, MatchesAsPythonDoes) {
  for (const MatchCase& c : kMatches) {
    auto regex = RegexLite::Compile(c.pattern);
    ASSERT_TRUE(regex.ok()) << regex.error().Message();
    std::string hits;
    for (const char* text : kTexts) hits += regex->MatchesPrefix(text) ? '1' : '0';
    EXPECT_EQ(hits, c.hits) << c.pattern;
  }
}

struct RefusedCase {
  const char* pattern;
  ErrorCode code;
  const char* says;
};
constexpr RefusedCase kRefused[] = {
    {"a{2,3}", ErrorCode::kUnsupported, "a counted repeat {} at byte 1"},
    {"^(?!.*mlp)", ErrorCode::kUnsupported, "a look-around group at byte 1"},
    {"(?<=a)b", ErrorCode::kUnsupported, "a look-around group"},
    {"(?i)abc", ErrorCode::kUnsupported, "a group that begins with (?"},
    {"(?P<n>a)", ErrorCode::kUnsupported, "a group that begins with (?"},
    {"(a)\\1", ErrorCode::kUnsupported, "the escape \\1"},
    {"a\\b", ErrorCode::kUnsupported, "the escape \\b"},
    {"a*+", ErrorCode::kUnsupported, "a possessive repeat"},
    {"^*a", ErrorCode::kUnsupported, "a repeated anchor"},
    {"\xC3\xA9", ErrorCode::kUnsupported, "a byte outside ASCII"},
    {"\\\xC3\xA9", ErrorCode::kUnsupported, "a byte outside ASCII"},
    {"[\\\xC3\xA9]", ErrorCode::kUnsupported, "a byte outside ASCII"},
    {"a**", ErrorCode::kCorruptFile, "a repeat of a repeat"},
    {"*a", ErrorCode::kCorruptFile, "a repeat of nothing"},
    {"a)", ErrorCode::kCorruptFile, "an unmatched ')'"},
    {"(a", ErrorCode::kCorruptFile, "a group without ')'"},
    {"[a", ErrorCode::kCorruptFile, "a set without ']'"},
    {"[", ErrorCode::kCorruptFile, "a set without ']'"},
    {"[z-a]", ErrorCode::kCorruptFile, "a range that is none"},
    {"[a-\\d]", ErrorCode::kCorruptFile, "a range that is none"},
    {"a\\", ErrorCode::kCorruptFile, "a lone backslash"},
};

TEST(RegexLite, RefusesWhatItDoesNotTakeByName) {
  for (const RefusedCase& c : kRefused) {
    auto regex = RegexLite::Compile(c.pattern);
    ASSERT_FALSE(regex.ok()) << c.pattern;
    EXPECT_EQ(regex.error().code, c.code) << c.pattern;
    EXPECT_NE(regex.error().what.find(c.says), std::string::npos) << regex.error().Message();
  }
}

TEST(RegexLite, BoundsPatterns) {
  EXPECT_TRUE(RegexLite::Compile(std::string(1024, 'a')).ok());
  EXPECT_FALSE(RegexLite::Compile(std::string(1025, 'a')).ok());
  EXPECT_TRUE(RegexLite::Compile(std::string(32, '(') + std::string(32, ')')).ok());
  EXPECT_FALSE(RegexLite::Compile(std::string(33, '(') + std::string(33, ')')).ok());
}

TEST(RegexLite, TakesLinearTimeWhereBacktrackingWouldNotEnd) {
  const std::string text(1000, 'a');
  for (const char* pattern : {"(a*)*b", "(a|aa)+b", "(a|a)*b", "((a+)+)+b", "(.*)(.*)(.*)(.*)b"}) {
    auto regex = RegexLite::Compile(pattern);
    ASSERT_TRUE(regex.ok());
    uint64_t steps = 0;
    EXPECT_FALSE(regex->MatchesPrefix(text, &steps)) << pattern;
    EXPECT_EQ(steps, text.size() + 1) << pattern;
  }
}

TEST(RegexLite, WalksItsStatesWhereATableWouldBeTooLarge) {
  // The table would have to remember which of the last 20 bytes were an a: 2^20 rows.
  std::string pattern = ".*a";
  for (int i = 0; i < 20; ++i) pattern += "[ab]";
  auto regex = RegexLite::Compile(pattern + "$");
  ASSERT_TRUE(regex.ok());
  const std::string bs(500, 'b');
  uint64_t steps = 0;
  for (size_t place = 0; place < 60; ++place) {
    std::string text = bs;
    text[text.size() - 1 - place] = 'a';
    EXPECT_EQ(regex->MatchesPrefix(text, &steps), place == 20) << place;
  }
  EXPECT_GT(steps, 60 * bs.size());
  EXPECT_LE(steps, 60 * (2 * pattern.size() + 3) * (bs.size() + 1));
  EXPECT_FALSE(regex->MatchesPrefix("", nullptr));
}

}  // namespace
}  // namespace nibble
