#include "text/utf8.h"

#include <gtest/gtest.h>

namespace nibble::text {
namespace {

TEST(Utf8, GroupsInvalidBytesAsPythonDoes) {
  const struct {
    std::string bytes;
    std::string text;  // Python: bytes.decode("utf-8", "replace")
  } kCases[] = {{"a\xC3\xA9", "aé"},
                {"\xE2\x82", "\uFFFD"},
                {"\xE2\x28\xA1", "\uFFFD(\uFFFD"},
                {"\xF0\x9F\x98\xE2\x82\xAC", "\uFFFD€"},
                {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
                {"\xE0\x80", "\uFFFD\uFFFD"},
                {"\xF4\x90", "\uFFFD\uFFFD"},
                {"\xC1\xBF", "\uFFFD\uFFFD"},
                {"\xF8\x88", "\uFFFD\uFFFD"},
                {"\xF0\x90\x80", "\uFFFD"},
                {std::string("\0x", 2), std::string("\0x", 2)}};
  for (const auto& c : kCases) EXPECT_EQ(LossyUtf8(c.bytes), c.text);
}

TEST(Utf8, WritesWhatItReads) {
  for (char32_t c : {U'\0', U'a', U'\u007F', U'\u0080', U'\u07FF', U'\u0800', U'\uFFFF',
                     U'\U00010000', U'\U0010FFFF'}) {
    std::string text;
    AppendUtf8(text, c);
    const Utf8Step step = DecodeUtf8(text, 0);
    EXPECT_TRUE(step.valid);
    EXPECT_EQ(step.code_point, c);
    EXPECT_EQ(step.length, text.size());
    EXPECT_EQ(CountCodePoints(text), 1u);
  }
}

TEST(Utf8, KnowsTheWhiteSpaceOfUnicodeAndOfPython) {
  int unicode = 0, python = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    unicode += IsWhiteSpace(c);
    python += IsPythonSpace(c);
  }
  EXPECT_EQ(unicode, 25);  // PropList.txt
  EXPECT_EQ(python, 29);   // sum(chr(c).isspace() for c in range(0x110000))
}

}  // namespace
}  // namespace nibble::text
