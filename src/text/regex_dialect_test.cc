#include "text/regex_dialect.h"

#include <gtest/gtest.h>

#include "text/splitter.h"

namespace nibble::text {
namespace {

TEST(RegexDialect, TakesThePatternsOfRealTokenizers) {
  for (
      const char* pattern : {
          R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
          R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
          R"(\p{N}{1,3})",
          R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)",
          R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?)",
          "[一-龥぀-ゟ゠-ヿ]+",
          R"((?<=a)b++(?>c)(?<!d)e{2,3}f{2}g{2,}\.)",
      }) {
    const auto literals = CheckRegexDialect(pattern);
    EXPECT_TRUE(literals.ok()) << pattern << ": " << literals.error().Message();
  }
}

TEST(RegexDialect, RefusesWhatTheTwoEnginesReadDifferently) {
  for (const char* pattern :
       {R"(\w+)",     R"(\bx)",    R"(\h)",       R"(\R)",      R"(\X)",
        R"(\v)",      R"(\1)",     R"(\K)",       R"(\u0041)",  R"(\Qx\E)",
        "^a",         "a$",        "[[:alpha:]]", "[a[bc]]",    "[a-z&&b]",
        "[]a]",       R"([\s-z])", "[z-a]",       "(?i)a",      "(?m:a)",
        "(?<n>a)",    "(*ACCEPT)", "(?#x)",       R"(\p{Han})", R"(\p{Alpha})",
        R"(\pL)",     "(?i:ss)",   "(?i:ﬁ)",      "(?i:é)",     R"((?i:\p{Lu}))",
        "(?i:[à-ü])", "a{2}?",     "a{2}+",       "a{,3}",      "a{",
        "a{2,1}",     "a{9999}",   "*a",          "a|*",        "(a+)+",
        "(a*b){2,}",  "((a{2}))*", "(",           ")",          "a)",
        "[a",         "]",         "}",           "\\",         R"(\p{L)"}) {
    const auto literals = CheckRegexDialect(pattern);
    ASSERT_FALSE(literals.ok()) << pattern;
    EXPECT_EQ(literals.error().code, ErrorCode::kUnsupported) << pattern;
  }
  EXPECT_FALSE(CheckRegexDialect("").ok());
  EXPECT_FALSE(CheckRegexDialect(std::string(100'000, 'a')).ok());
  EXPECT_FALSE(CheckRegexDialect(std::string(5000, '(')).ok());
}

#if NIBBLE_HAVE_TEXT

std::vector<std::string> Split(const std::string& pattern, std::string_view text) {
  const auto splitter = Splitter::Make(pattern);
  EXPECT_TRUE(splitter.ok()) << splitter.error().Message();
  std::vector<Piece> pieces;
  if (!splitter || !splitter->Split(text, pieces)) return {"error"};
  std::vector<std::string> out;
  for (const Piece& p : pieces) out.emplace_back(text.substr(p.begin, p.end - p.begin));
  return out;
}

using Pieces = std::vector<std::string>;

TEST(Splitter, KeepsWhatLiesBetweenMatches) {
  EXPECT_EQ(Split(R"(\p{N})", "ab12c"), (Pieces{"ab", "1", "2", "c"}));
  EXPECT_EQ(Split(R"(\p{N})", ""), Pieces{});
  EXPECT_EQ(Split(R"(\p{N})", "ab"), Pieces{"ab"});
}

TEST(Splitter, ClassesCharactersAsTheReferenceDoes) {
  EXPECT_EQ(Split(R"((?i:'s))", "'\u017Fx"), (Pieces{"'\u017F", "x"})) << "long s folds to s";
  EXPECT_EQ(Split(R"(\s+)", "a\u180Eb"), (Pieces{"a\u180Eb"}))
      << "no white space since Unicode 6.3";
  EXPECT_EQ(Split(R"(\s+)", "a\u00A0\u3000b"), (Pieces{"a", "\u00A0\u3000", "b"}));
  EXPECT_EQ(Split(R"(\p{L}+)", "1\u1C89\U00016D43\U0002EBF0 "),
            (Pieces{"1", "\u1C89\U00016D43\U0002EBF0", " "}))
      << "Unicode 15.1 and 16";
  EXPECT_EQ(Split(R"(\p{M}+)", "a\u0897b"), (Pieces{"a", "\u0897", "b"}));
  EXPECT_EQ(Split(R"(\p{Nd}+)", "a\U00010D40b"), (Pieces{"a", "\U00010D40", "b"}));
}

TEST(Splitter, RefusesPatternsThatMatchNothingOrAreNone) {
  EXPECT_FALSE(Splitter::Make("a*").ok());
  EXPECT_FALSE(Splitter::Make("(?=a)").ok());
  EXPECT_FALSE(Splitter::Make("[\u1C80-\u1C89]").ok())
      << "names some of what PCRE2 is too old to know";
}

TEST(Splitter, GivesUpOnAPatternThatBacktracksTooMuch) {
  const auto splitter = Splitter::Make("a*a*a*a*a*a*a*[bd]");
  ASSERT_TRUE(splitter.ok()) << splitter.error().Message();
  std::vector<Piece> pieces;
  const auto done = splitter->Split(std::string(3000, 'a') + "c", pieces);
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, ErrorCode::kUnsupported);
}

#endif

}  // namespace
}  // namespace nibble::text
