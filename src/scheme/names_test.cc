#include "scheme/names.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>

namespace nibble::scheme {
namespace {

constexpr const char* kTexts[] = {
    "",
    "a",
    "ab",
    "abc",
    "aXc",
    "ax",
    "bx",
    "dx",
    "]x",
    "-x",
    "[a",
    "a[",
    "model.layers.0.mlp.experts",
    "model.layers.0.mlp.experts.3.up_proj",
    "mtp.layers.0.mlp.experts",
    "mtp.fc",
    "model.layers.1.mlp.gate",
    "model.layers.1.mlp.gate_proj",
    "model.layers.11.mlp.gate",
    "aabbcc",
    "acb",
    "x[",
};

// One digit a text of kTexts: what Python 3's fnmatch.fnmatchcase says.
struct GlobCase {
  const char* pattern;
  const char* hits;
};
constexpr GlobCase kGlobs[] = {
    {"*", "1111111111111111111111"},
    {"a*", "0111110000010000000110"},
    {"*a", "0100000000100000000000"},
    {"a?c", "0001100000000000000000"},
    {"[abc]x", "0000011000000000000000"},
    {"[!abc]x", "0000000111000000000000"},
    {"[a-c]x", "0000011000000000000000"},
    {"[]a]x", "0000010010000000000000"},
    {"[!]a]x", "0000001101000000000000"},
    {"[a", "0000000000100000000000"},
    {"a[", "0000000000010000000000"},
    {"*.experts.*", "0000000000000100000000"},
    {"*.experts", "0000000000001010000000"},
    {"mtp*", "0000000000000011000000"},
    {"*.mlp.gate", "0000000000000000101000"},
    {"model.layers.?.mlp*", "0000000000001100110000"},
    {"**a**", "0111110000111110111110"},
    {"a*b*c", "0001000000000000000100"},
    {"", "1000000000000000000000"},
    {"?", "0100000000000000000000"},
    {"[a-]x", "0000010001000000000000"},
    {"[-a]x", "0000010001000000000000"},
    {"[!-a]x", "0000001110000000000000"},
    {"x[", "0000000000000000000001"},
    {"*[0-9]*.gate", "0000000000000000101000"},
};

TEST(Globs, MatchAsPythonDoes) {
  for (const GlobCase& c : kGlobs) {
    std::string hits;
    uint64_t steps = 0;
    for (const char* text : kTexts) hits += GlobMatches(c.pattern, text, &steps) ? '1' : '0';
    EXPECT_EQ(hits, c.hits) << c.pattern;
  }
}

TEST(Globs, TakeAtMostPatternTimesText) {
  std::string pattern;
  for (int i = 0; i < 100; ++i) pattern += "*a";
  pattern += "*b";
  const std::string text(1000, 'a');
  uint64_t steps = 0;
  EXPECT_FALSE(GlobMatches(pattern, text, &steps));
  EXPECT_LE(steps, pattern.size() * text.size());
}

struct SpellingCase {
  const char* name;
  Spellings spellings;
};

TEST(Names, AreKnownInEverySpelling) {
  const SpellingCase cases[] = {
      {"lm_head", {"lm_head", "language_model.lm_head"}},
      {"model.lm_head",
       {"model.lm_head", "model.language_model.lm_head", "language_model.model.lm_head",
        "lm_head"}},
      {"mtp.fc", {"mtp.fc"}},
      {"model.layers.0.x",
       {"model.layers.0.x", "model.language_model.layers.0.x", "language_model.model.layers.0.x"}},
      {"model.language_model.layers.0.x",
       {"model.language_model.layers.0.x", "model.layers.0.x", "language_model.model.layers.0.x"}},
      {"language_model.model.layers.0.x",
       {"language_model.model.layers.0.x", "model.layers.0.x", "model.language_model.layers.0.x"}},
  };
  for (const SpellingCase& c : cases) EXPECT_EQ(SpellingsOf(c.name), c.spellings) << c.name;
}

struct ExpertCase {
  const char* name;
  const char* stack;  // the first spelling; empty: none
  const char* block;
};
constexpr ExpertCase kExperts[] = {
    {"m.experts.7.gate_proj", "m.experts.gate_up_proj", "m.experts"},
    {"m.experts.12.up_proj", "m.experts.gate_up_proj", "m.experts"},
    {"m.experts.0.down_proj", "m.experts.down_proj", "m.experts"},
    {"m.experts", "", ""},
    {"m.experts.7", "", ""},
    {"m.experts.gate_up_proj", "", ""},
    {"m.shared_expert.up_proj", "m.shared_expert.gate_up_proj", ""},
    {"m.self_attn.v_proj", "m.self_attn.qkv_proj", ""},
    {"m.self_attn.o_proj", "", ""},
    {"m.linear_attn.in_proj_qkv", "", ""},
    {"q_proj", "", ""},
};

TEST(Names, OfExpertsHaveTwoFamilies) {
  for (const auto& [name, other] : {std::pair("model.experts.3.gate_proj", "model.experts.3.w1"),
                                    std::pair("model.experts.3.up_proj", "model.experts.3.w3"),
                                    std::pair("model.experts.3.down_proj", "model.experts.3.w2")}) {
    const Spellings own = ModuleNameOf(name).own;
    EXPECT_EQ(own.front(), name);
    EXPECT_EQ(std::count(own.begin(), own.end(), other), 1) << name;
    EXPECT_EQ(own.size(), 6u) << name;  // each in three spellings
  }
  EXPECT_EQ(ModuleNameOf("model.mlp.up_proj").own.size(), 3u);
}

TEST(Names, KnowTheirStackAndBlock) {
  for (const ExpertCase& c : kExperts) {
    const ModuleName name = ModuleNameOf(c.name);
    EXPECT_EQ(name.own.front(), c.name);
    EXPECT_EQ(name.stack.empty() ? "" : name.stack.front(), c.stack) << c.name;
    EXPECT_EQ(name.block.empty() ? "" : name.block.front(), c.block) << c.name;
  }
}

}  // namespace
}  // namespace nibble::scheme
