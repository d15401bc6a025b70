#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <sstream>

#include "base/file.h"
#include "base/json.h"
#include "text/byte_level.h"
#include "text/stream_decoder.h"
#include "text/utf8.h"

namespace nibble::text {
namespace {

constexpr char kSample[] = NIBBLE_SOURCE_DIR "/models/qwen3-moe-mini";

std::string FromBase64(std::string_view text) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (char c : text) {
    if (c == '=') break;
    bits = (bits << 6) | static_cast<uint32_t>(kDigits.find(c));
    count += 6;
    if (count >= 8) out += static_cast<char>(bits >> (count -= 8));
  }
  return out;
}

std::vector<int32_t> Numbers(const std::string& text) {
  std::istringstream in(text);
  std::vector<int32_t> ids;
  for (int32_t id; in >> id;) ids.push_back(id);
  return ids;
}

/// A tokenizer.json with another split pattern.
Json WithPattern(Json tokenizer, const std::string& pattern, bool whole_piece_first) {
  Json sequence = *tokenizer.Find("pre_tokenizer");
  Json::Array steps = sequence.Find("pretokenizers")->array();
  Json::Object regex;
  regex.emplace_back("Regex", pattern);
  steps[0].Set("pattern", Json(regex));
  sequence.Set("pretokenizers", Json(steps));
  tokenizer.Set("pre_tokenizer", sequence);
  Json model = *tokenizer.Find("model");
  model.Set("ignore_merges", whole_piece_first);
  tokenizer.Set("model", model);
  return tokenizer;
}

#if NIBBLE_HAVE_TEXT
constexpr bool kCanEncode = true;
#else
constexpr bool kCanEncode = false;
#endif

/// Encoding needs libraries that this build may lack.
class TokenizerEncode : public testing::Test {
  void SetUp() override {
    if (!kCanEncode) GTEST_SKIP() << "built without PCRE2 or utf8proc";
  }
};

TEST_F(TokenizerEncode, GivesTheReferencesIds) {
  const auto text = ReadFile(NIBBLE_SOURCE_DIR "/tests/golden/text/tokenizer.json", 16 << 20);
  ASSERT_TRUE(text.ok());
  const auto golden = Json::Parse(*text);
  ASSERT_TRUE(golden.ok()) << golden.error().Message();
  const auto sample_text = ReadFile(std::string(kSample) + "/tokenizer.json", 16 << 20);
  std::vector<std::string> texts;
  for (const Json& t : golden->Find("texts")->array()) texts.push_back(FromBase64(t.string()));
  size_t compared = 0;
  for (const Json& run : golden->Find("runs")->array()) {
    const bool sample = run.Find("vocabulary")->string() == "sample";
    if (sample && !sample_text) GTEST_SKIP() << "models/qwen3-moe-mini is not here";
    const Json base = sample ? *Json::Parse(*sample_text) : *golden->Find("trained");
    const Json json =
        WithPattern(base, run.Find("pattern")->string(), run.Find("whole_piece_first")->boolean());
    const auto tokenizer = Tokenizer::FromJson(WriteJson(json), "");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().Message();
    const auto step = static_cast<size_t>(run.Find("step")->integer());
    const auto& expected = run.Find("ids")->array();
    for (size_t i = 0; i < expected.size(); ++i, ++compared) {
      const std::string& input = texts[i * step];
      const auto ids = tokenizer->Encode(input);
      ASSERT_TRUE(ids.ok()) << ids.error().Message();
      ASSERT_EQ(*ids, Numbers(expected[i].string()))
          << "text " << i * step << ": " << LossyUtf8(input);
    }
    const auto first = Numbers(expected[0].string());
    EXPECT_EQ(tokenizer->Decode(first, true), run.Find("decoded")->string());
  }
  EXPECT_GE(compared, 3000u);
}

// --- A small tokenizer, written here, whose every token is known ---

Json::Object Component(const std::string& type) {
  Json::Object o;
  o.emplace_back("type", type);
  return o;
}

Json AddedTokenJson(int64_t id, const std::string& content, bool special) {
  Json::Object o;
  o.emplace_back("id", id);
  o.emplace_back("content", content);
  o.emplace_back("special", special);
  o.emplace_back("normalized", false);
  return Json(o);
}

/// Bytes are tokens 0..255; "he" is 256, "ll" 257, "hell" 258, "hello" 259; <s> 260 is special, <t>
/// 261 is not.
Json SmallTokenizer() {
  Json::Object vocab;
  for (int b = 0; b < 256; ++b) {
    std::string name;
    AppendUtf8(name, CharOfByte(static_cast<uint8_t>(b)));
    vocab.emplace_back(name, b);
  }
  int64_t next = 256;
  for (const char* token : {"he", "ll", "hell", "hello"}) vocab.emplace_back(token, next++);
  Json::Array merges = {Json("h e"), Json("l l"), Json(Json::Array{Json("he"), Json("ll")}),
                        Json("hell o")};
  Json::Object model = Component("BPE");
  model.emplace_back("vocab", vocab);
  model.emplace_back("merges", merges);
  Json::Object split = Component("Split");
  Json::Object regex;
  regex.emplace_back("Regex", "\\p{L}+|\\s+|[^\\s\\p{L}]+");
  split.emplace_back("pattern", regex);
  split.emplace_back("behavior", "Isolated");
  Json::Object bytes = Component("ByteLevel");
  bytes.emplace_back("add_prefix_space", false);
  bytes.emplace_back("use_regex", false);
  Json::Object sequence = Component("Sequence");
  sequence.emplace_back("pretokenizers", Json::Array{Json(split), Json(bytes)});
  Json::Object tokenizer;
  tokenizer.emplace_back("added_tokens", Json::Array{AddedTokenJson(260, "<s>", true),
                                                     AddedTokenJson(261, "<t>", false)});
  tokenizer.emplace_back("normalizer", Component("NFC"));
  tokenizer.emplace_back("pre_tokenizer", sequence);
  tokenizer.emplace_back("post_processor", nullptr);
  tokenizer.emplace_back("decoder", Component("ByteLevel"));
  tokenizer.emplace_back("model", model);
  return Json(tokenizer);
}

Tokenizer Small(const std::string& config = "") {
  auto tokenizer = Tokenizer::FromJson(WriteJson(SmallTokenizer()), config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().Message();
  return *std::move(tokenizer);
}

using Ids = std::vector<int32_t>;

TEST_F(TokenizerEncode, MergesByRankAndKeepsAddedTokensWhole) {
  const Tokenizer t = Small();
  EXPECT_EQ(*t.Encode("hello"), (Ids{259}));
  EXPECT_EQ(*t.Encode("helo lll"), (Ids{256, 'l', 'o', ' ', 257, 'l'}));
  EXPECT_EQ(*t.Encode("he<s>llo<t>"), (Ids{256, 260, 257, 'o', 261}));
  EXPECT_EQ(*t.Encode(""), (Ids{}));
  EXPECT_EQ(t.vocab_size(), 262);
  EXPECT_EQ(t.AddedTokenId("<s>"), 260);
  EXPECT_EQ(t.AddedTokenId("hello"), std::nullopt);
  EXPECT_TRUE(t.IsSpecial(260));
  EXPECT_FALSE(t.IsSpecial(261));
  EXPECT_FALSE(t.IsSpecial(-1));
  EXPECT_FALSE(t.IsSpecial(1 << 30));
}

TEST_F(TokenizerEncode, FindsNoAddedTokenInTextThatMayBeForged) {
  const auto ids = Small().Encode("<s>he<t>", {.parse_special = false});
  EXPECT_EQ(*ids, (Ids{'<', 's', '>', 256, '<', 't', '>'}));
}

TEST(Tokenizer, DecodesBytesAndSkipsSpecialTokens) {
  const Tokenizer t = Small();
  EXPECT_EQ(t.Decode(Ids{260, 259, 261}), "<s>hello<t>");
  EXPECT_EQ(t.Decode(Ids{260, 259, 261}, true), "hello<t>");
  EXPECT_EQ(t.Decode(Ids{-5, 259, 99999}), "hello");
  EXPECT_EQ(t.Decode(Ids{0xE2, 0x82, 'x', 0xFF}), "\uFFFDx\uFFFD");
  EXPECT_EQ(t.TokenBytes(0xE2), "\xE2");
  EXPECT_EQ(t.TokenBytes(-1), "");
}

TEST(Tokenizer, SaysWhyItCannotEncode) {
  const auto ids = Small().Encode("x");
  EXPECT_EQ(ids.ok(), kCanEncode);
  if (!ids) {
    EXPECT_EQ(ids.error().code, ErrorCode::kUnsupported);
  }
}

TEST(StreamDecoder, GivesWhatDecodingAllAtOnceGives) {
  const Tokenizer t = Small();
  std::mt19937 random(3);
  // Bytes that start, continue and break characters, so that every kind of invalid sequence comes
  // up.
  const Ids kinds = {'a',  0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80,
                     0xED, 0xA0, 0xFF, 0xF4, 0x90, 259,  260,  261,  -1};
  for (int round = 0; round < 5000; ++round) {
    Ids ids;
    for (int i = 0; i < 12; ++i) ids.push_back(kinds[random() % kinds.size()]);
    const bool skip = random() % 2;
    StreamDecoder stream(t, skip);
    std::string text;
    for (int32_t id : ids) {
      const std::string part = stream.Push(id);
      ASSERT_TRUE(IsValidUtf8(part));
      text += part;
    }
    text += stream.Finish();
    ASSERT_EQ(text, t.Decode(ids, skip));
  }
}

TEST(StreamDecoder, HoldsBackNoMoreThanAnUnfinishedCharacter) {
  StreamDecoder stream(Small());
  EXPECT_EQ(stream.Push('a'), "a");
  EXPECT_EQ(stream.Push(0xF0), "");
  EXPECT_EQ(stream.Push(0x9F), "");
  EXPECT_EQ(stream.Push(0x98), "");
  EXPECT_EQ(stream.Push(0x80), "\U0001F600");
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Push(260), "") << "a special token shows nothing";
  EXPECT_EQ(stream.Push('b'), "\uFFFDb");
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
  EXPECT_EQ(stream.Finish(), "");
}

TEST_F(TokenizerEncode, ReadsInvalidUtf8AsPythonsReplaceDoes) {
  const Tokenizer t = Small();
  const struct {
    std::string bytes;
    int replaced;  // by Python: len(bytes.decode("utf-8", "replace"))
  } kCases[] = {
      {"\xFF", 1},         {"\xE2\x82", 1},     {"\xE2\x82\xE2\x82", 2}, {"\xC0\x80", 2},
      {"\xED\xA0\x80", 3}, {"\xF0\x9F\x98", 1}, {"\xF4\x90\x80\x80", 4}, {"\xF0\x80\x80\x80", 4},
      {"\x80\xBF", 2}};
  for (const auto& c : kCases) {
    Ids expected;
    for (int i = 0; i < c.replaced; ++i) expected.insert(expected.end(), {0xEF, 0xBF, 0xBD});
    EXPECT_EQ(*t.Encode(c.bytes), expected);
  }
}

TEST_F(TokenizerEncode, ComposesBeforeItSplits) {
  EXPECT_EQ(*Small().Encode("e\u0301"), (Ids{0xC3, 0xA9}));
  // U+0897 came with Unicode 16: the reference's NFC does not know that it is a mark, and leaves
  // the order.
  EXPECT_EQ(Small().Decode(*Small().Encode("x\u0897\u0316")), "x\u0897\u0316");
  EXPECT_EQ(Small().Decode(*Small().Encode("x\u0301\u0316")), "x\u0316\u0301");
}

TEST_F(TokenizerEncode, EncodesLongRunsOfMarksAndLetters) {
  const Tokenizer t = Small();
  std::string marks, letters(1 << 20, 'l');
  for (int i = 0; i < 200'000; ++i) marks += "\u0301\u0316";
  EXPECT_EQ(t.Encode(marks)->size(), 800'000u);
  EXPECT_EQ(*t.Encode(letters), Ids(1 << 19, 257));
}

TEST_F(TokenizerEncode, TakesTokensThatOnlyTheConfigHas) {
  const Tokenizer t = Small(
      R"({"added_tokens_decoder": {"300": {"content": "<u>", "special": true, "normalized": false},
                                 "260": {"content": "<s>", "special": false}}})");
  EXPECT_EQ(*t.Encode("<u>he"), (Ids{300, 256}));
  EXPECT_TRUE(t.IsSpecial(300));
  EXPECT_TRUE(t.IsSpecial(260)) << "tokenizer.json's flag holds";
  EXPECT_EQ(t.vocab_size(), 301);
  EXPECT_EQ(t.TokenBytes(280), "");
}

TEST(Tokenizer, RefusesFilesThatMakeNoSenseOrAreNotKnown) {
  using Change = void (*)(Json & tokenizer);
  const auto model = [](Json& t, const char* key, Json value) {
    Json changed = *t.Find("model");
    changed.Set(key, std::move(value));
    t.Set("model", std::move(changed));
  };
  static const auto set_model = model;
  static const auto add_merge = [](Json& t, Json merge) {
    Json::Array merges = t.Find("model")->Find("merges")->array();
    merges.push_back(std::move(merge));
    set_model(t, "merges", Json(merges));
  };
  static const auto add_vocab = [](Json& t, const char* token, Json id) {
    Json::Object vocab = t.Find("model")->Find("vocab")->object();
    vocab.emplace_back(token, std::move(id));
    set_model(t, "vocab", Json(vocab));
  };
  static const auto set_split = [](Json& t, const char* key, Json value) {
    Json sequence = *t.Find("pre_tokenizer");
    Json::Array steps = sequence.Find("pretokenizers")->array();
    steps[0].Set(key, std::move(value));
    sequence.Set("pretokenizers", Json(steps));
    t.Set("pre_tokenizer", sequence);
  };
  static const auto added = [](Json& t, const char* key, Json value) {
    Json::Array list = t.Find("added_tokens")->array();
    list[1].Set(key, std::move(value));
    t.Set("added_tokens", Json(list));
  };
  const struct {
    const char* what;
    ErrorCode code;
    const char* named;
    Change change;
  } kCases[] = {
      {"no model", ErrorCode::kCorruptFile, "model", [](Json& t) { t.Set("model", nullptr); }},
      {"another model", ErrorCode::kUnsupported, "Unigram",
       [](Json& t) { set_model(t, "type", "Unigram"); }},
      {"dropout", ErrorCode::kUnsupported, "dropout",
       [](Json& t) { set_model(t, "dropout", 0.1); }},
      {"a suffix", ErrorCode::kUnsupported, "</w>",
       [](Json& t) { set_model(t, "end_of_word_suffix", "</w>"); }},
      {"no vocab", ErrorCode::kCorruptFile, "vocab",
       [](Json& t) { set_model(t, "vocab", nullptr); }},
      {"a byte missing", ErrorCode::kUnsupported, "byte",
       [](Json& t) { set_model(t, "vocab", Json(Json::Object{})); }},
      {"an id below zero", ErrorCode::kCorruptFile, "\"x\"\"",
       [](Json& t) { add_vocab(t, "x\"", -1); }},
      {"an id too large", ErrorCode::kCorruptFile, "xx",
       [](Json& t) { add_vocab(t, "xx", int64_t{1} << 40); }},
      {"an id that is text", ErrorCode::kCorruptFile, "xx",
       [](Json& t) { add_vocab(t, "xx", "1"); }},
      {"an id twice", ErrorCode::kCorruptFile, "share", [](Json& t) { add_vocab(t, "xx", 7); }},
      {"an unknown merge", ErrorCode::kCorruptFile, "merge 4",
       [](Json& t) { add_merge(t, "q x"); }},
      {"an unknown side", ErrorCode::kCorruptFile, "merge 4",
       [](Json& t) { add_merge(t, "qq x"); }},
      {"a merge of three", ErrorCode::kCorruptFile, "merge 4",
       [](Json& t) { add_merge(t, "h e l"); }},
      {"a merge of one", ErrorCode::kCorruptFile, "merge 4", [](Json& t) { add_merge(t, "h"); }},
      {"a merge of a number", ErrorCode::kCorruptFile, "merge 4", [](Json& t) { add_merge(t, 5); }},
      {"a merge of nothing", ErrorCode::kCorruptFile, "merge 4",
       [](Json& t) { add_merge(t, " h"); }},
      {"a merge twice", ErrorCode::kCorruptFile, "repeats", [](Json& t) { add_merge(t, "h e"); }},
      {"another normalizer", ErrorCode::kUnsupported, "NFKC",
       [](Json& t) { t.Set("normalizer", Json(Component("NFKC"))); }},
      {"no decoder", ErrorCode::kUnsupported, "decoder",
       [](Json& t) { t.Set("decoder", nullptr); }},
      {"another decoder", ErrorCode::kUnsupported, "Metaspace",
       [](Json& t) { t.Set("decoder", Json(Component("Metaspace"))); }},
      {"ids around", ErrorCode::kUnsupported, "TemplateProcessing",
       [](Json& t) { t.Set("post_processor", Json(Component("TemplateProcessing"))); }},
      {"no pre-tokenizer", ErrorCode::kUnsupported, "pre_tokenizer",
       [](Json& t) { t.Set("pre_tokenizer", nullptr); }},
      {"another pre-tokenizer", ErrorCode::kUnsupported, "Metaspace",
       [](Json& t) { t.Set("pre_tokenizer", Json(Component("Metaspace"))); }},
      {"another split", ErrorCode::kUnsupported, "Digits",
       [](Json& t) { set_split(t, "type", "Digits"); }},
      {"another behavior", ErrorCode::kUnsupported, "Removed",
       [](Json& t) { set_split(t, "behavior", "Removed"); }},
      {"an inverted split", ErrorCode::kUnsupported, "invert",
       [](Json& t) { set_split(t, "invert", true); }},
      {"a pattern that is none", ErrorCode::kUnsupported, "Regex",
       [](Json& t) { set_split(t, "pattern", "x"); }},
      {"a single word", ErrorCode::kUnsupported, "single_word",
       [](Json& t) { added(t, "single_word", true); }},
      {"an empty added token", ErrorCode::kCorruptFile, "content",
       [](Json& t) { added(t, "content", ""); }},
      {"a long added token", ErrorCode::kCorruptFile, "1024",
       [](Json& t) { added(t, "content", std::string(5000, 'x')); }},
      {"an added id below zero", ErrorCode::kCorruptFile, "id",
       [](Json& t) { added(t, "id", -1); }},
      {"an added id of another", ErrorCode::kCorruptFile, "share",
       [](Json& t) { added(t, "id", 5); }},
      {"an added token with two ids", ErrorCode::kCorruptFile, "\"<s>\"",
       [](Json& t) { added(t, "content", "<s>"); }},
      {"an added token that is another's", ErrorCode::kCorruptFile, "hello",
       [](Json& t) { added(t, "content", "hello"); }},
  };
  for (const auto& c : kCases) {
    Json json = SmallTokenizer();
    c.change(json);
    const auto tokenizer = Tokenizer::FromJson(WriteJson(json), "");
    ASSERT_FALSE(tokenizer.ok()) << c.what;
    EXPECT_EQ(tokenizer.error().code, c.code) << c.what << ": " << tokenizer.error().Message();
    if (std::string_view(c.what) != "an id below zero") {
      EXPECT_NE(tokenizer.error().Message().find(c.named), std::string::npos)
          << tokenizer.error().Message();
    }
  }
  EXPECT_FALSE(Tokenizer::FromJson("[]", "").ok());
  EXPECT_FALSE(Tokenizer::FromJson("{", "").ok());
  EXPECT_FALSE(
      Tokenizer::FromJson(WriteJson(SmallTokenizer()), R"({"added_tokens_decoder": {"x": {}}})")
          .ok());
  EXPECT_EQ(Tokenizer::Load("/nowhere").error().code, ErrorCode::kNotFound);
}

TEST_F(TokenizerEncode, HonoursStrippingAndNormalizedTokens) {
  Json json = SmallTokenizer();
  Json::Array list = json.Find("added_tokens")->array();
  Json left = AddedTokenJson(262, "<l>", false), right = AddedTokenJson(263, "<r>", false),
       composed = AddedTokenJson(264, "e\u0301", false);
  left.Set("lstrip", true);
  right.Set("rstrip", true);
  composed.Set("normalized", true);
  for (const Json& token : {left, right, composed}) list.push_back(token);
  json.Set("added_tokens", Json(list));
  const auto t = Tokenizer::FromJson(WriteJson(json), "");
  ASSERT_TRUE(t.ok()) << t.error().Message();
  EXPECT_EQ(*t->Encode("h \t<l> e"), (Ids{'h', 262, ' ', 'e'}));
  EXPECT_EQ(*t->Encode("h <r>\u3000\n e"), (Ids{'h', ' ', 263, 'e'}));
  EXPECT_EQ(*t->Encode("<r>  <l>"), (Ids{263, 262}));
  EXPECT_EQ(*t->Encode("h\u00e9h"), (Ids{'h', 264, 'h'}));
  EXPECT_EQ(*t->Encode("he\u0301h"), (Ids{'h', 264, 'h'}));
}

}  // namespace
}  // namespace nibble::text
