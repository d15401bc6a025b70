#include "base/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "base/quoted.h"

namespace nibble {
namespace {

using namespace std::string_literals;

TEST(Json, AcceptsWhatRfc8259Accepts) {
  // text, what Python's json.dumps(json.loads(text), ensure_ascii=False) prints
  const struct {
    std::string text, printed;
  } kCases[] = {
      {"null", "null"},
      {" \t\r\n true \n", "true"},
      {"false", "false"},
      {"0", "0"},
      {"-0", "0"},
      {"-0.0", "-0.0"},
      {"9223372036854775807", "9223372036854775807"},
      {"-9223372036854775808", "-9223372036854775808"},
      {"1e5", "100000.0"},
      {"1E+2", "100.0"},
      {"12.5e-1", "1.25"},
      {"0.1", "0.1"},
      {"1e15", "1000000000000000.0"},
      {"1e16", "1e+16"},
      {"123456789012345680.0", "1.2345678901234568e+17"},
      {"9999999999999998.0", "9999999999999998.0"},
      {"1234560000000.0", "1234560000000.0"},
      {"0.0001", "0.0001"},
      {"0.00012345", "0.00012345"},
      {"0.00001", "1e-05"},
      {"1e-6", "1e-06"},
      {"5e-324", "5e-324"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"0.30000000000000004", "0.30000000000000004"},
      {"\"\"", "\"\""},
      {R"("a\"\\\/\b\f\n\r\t")", R"("a\"\\/\b\f\n\r\t")"},
      {R"("\u0000\u001F\u007f")", "\"\\u0000\\u001f\x7f\""},
      {R"("\u00e9\u20AC\ud83d\ude00")", "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\""},
      {"\"\xC3\xA9\xE2\x82\xAC\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF\"",
       "\"\xC3\xA9\xE2\x82\xAC\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF\""},
      {"[]", "[]"},
      {"{}", "{}"},
      {"[ 1 ,[ ] , { } ]", "[1, [], {}]"},
      {R"({"b":1,"a":[true,null,{"c":"d"}],"":-7})",
       R"({"b": 1, "a": [true, null, {"c": "d"}], "": -7})"},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.text);
    auto json = Json::Parse(c.text);
    ASSERT_TRUE(json) << json.error().Message();
    EXPECT_EQ(WriteJson(*json), c.printed);
    auto again = Json::Parse(WriteJson(*json));
    ASSERT_TRUE(again) << again.error().Message();
    EXPECT_TRUE(*again == *json);
  }
}

TEST(Json, RefusesWhatIsNoJsonAndSaysWhere) {
  const struct {
    std::string text;
    size_t byte;
    const char* what;  // part of the message
  } kCases[] = {
      {"", 0, "text ends"},
      {"   ", 3, "text ends"},
      {"\xEF\xBB\xBF{}", 0, "0xef"},
      {"{}x", 2, "found 'x'"},
      {"{} {}", 3, "found '{'"},
      {"{}\0"s, 2, "0x00"},
      {"\0"s, 0, "0x00"},
      {"[1,]", 3, "expected a value"},
      {"[,1]", 1, "expected a value"},
      {"[1 2]", 3, "expected ',' or ']'"},
      {"[1}", 2, "expected ',' or ']'"},
      {"[", 1, "expected a value"},
      {"[1", 2, "text ends"},
      {"{\"a\":1", 6, "text ends"},
      {"{\"a\":1,}", 7, "expected a key"},
      {"{,}", 1, "expected a key or '}'"},
      {"{a:1}", 1, "expected a key"},
      {"{\"a\" 1}", 5, "expected ':'"},
      {"{\"a\":}", 5, "expected a value"},
      {"{\"a\":1]", 6, "expected ',' or '}'"},
      {"{1:2}", 1, "expected a key"},
      {"}", 0, "expected a value"},
      {"// a\n1", 0, "found '/'"},
      {"[1/**/]", 2, "found '/'"},
      {"NaN", 0, "found 'N'"},
      {"Infinity", 0, "found 'I'"},
      {"-Infinity", 1, "expected a digit"},
      {"tru", 0, "expected a value"},
      {"nullx", 4, "found 'x'"},
      {"TRUE", 0, "expected a value"},
      {"'a'", 0, "found '''"},
      {"01", 1, "found '1'"},
      {"-", 1, "expected a digit"},
      {"-a", 1, "expected a digit"},
      {"+1", 0, "found '+'"},
      {".5", 0, "found '.'"},
      {"1.", 2, "expected a digit"},
      {"1.e5", 2, "expected a digit"},
      {"1e", 2, "expected a digit"},
      {"1e+", 3, "expected a digit"},
      {"0x10", 1, "found 'x'"},
      {"1_000", 1, "found '_'"},
      {"1e999", 5, "does not fit a double"},
      {"-1e999", 6, "does not fit a double"},
      {"1e-999", 6, "does not fit a double"},
      {"\"abc", 0, "no end"},
      {"\"abc\\\"", 0, "no end"},
      {"\"a\nb\"", 2, "0x0a in a string"},
      {"\"a\0b\""s, 2, "0x00 in a string"},
      {"\"12345678\x1F\"", 9, "0x1f in a string"},
      {"\"\\x41\"", 1, "escape"},
      {"\"\\u12G4\"", 1, "escape"},
      {"\"\\u123\"", 1, "escape"},
      {"\"\\\"", 0, "no end"},
      {"\"\\ud800\"", 1, "escape"},
      {"\"\\udc00\"", 1, "escape"},
      {"\"\\ud800\\u0041\"", 1, "escape"},
      {"\"\\ud800\\n\"", 1, "escape"},
      {"\"\x80\"", 1, "not UTF-8"},
      {"\"\xC0\xAF\"", 1, "not UTF-8"},
      {"\"\xC1\xBF\"", 1, "not UTF-8"},
      {"\"\xC3\"", 1, "not UTF-8"},
      {"\"\xE0\x9F\xBF\"", 1, "not UTF-8"},
      {"\"\xED\xA0\x80\"", 1, "not UTF-8"},
      {"\"\xF0\x8F\xBF\xBF\"", 1, "not UTF-8"},
      {"\"\xF4\x90\x80\x80\"", 1, "not UTF-8"},
      {"\"\xF5\x80\x80\x80\"", 1, "not UTF-8"},
      {"\"\xF0\x9F\x98", 1, "not UTF-8"},
      {"\"1234567\xFF\"", 8, "not UTF-8"},
      {R"({"a":1,"a":1})", 13, "\"a\" twice"},
      {R"({"x":{"a":1,"b":2,"a":3}})", 24, "\"a\" twice"},
      {R"({"a":1,"\u0061":1})", 18, "\"a\" twice"},
      {R"({"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"e":1})", 61, "\"e\" twice"},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.text);
    auto json = Json::Parse(c.text);
    ASSERT_FALSE(json) << WriteJson(*json);
    EXPECT_EQ(json.error().code, ErrorCode::kCorruptFile);
    EXPECT_EQ(json.error().where, "byte " + std::to_string(c.byte)) << json.error().what;
    EXPECT_NE(json.error().what.find(c.what), std::string::npos) << json.error().what;
  }
}

TEST(Json, KeepsToItsLimits) {
  const JsonLimits limits{.max_depth = 3, .max_values = 6, .max_string_bytes = 5};
  for (std::string text :
       {"[[[1]]]", R"({"a":{"b":{"c":1}}})", "[1,2,3,4,5]", R"("12345")", R"("\u0061bcde")"}) {
    EXPECT_TRUE(Json::Parse(text, limits)) << text;
  }
  for (std::string text : {"[[[[]]]]", R"({"a":[[{}]]})", "[1,2,3,4,5,6]", "[[[],[],[],[],[]]]",
                           R"("123456")", R"(["\u0061bcdef"])", R"({"123456":1})"}) {
    EXPECT_FALSE(Json::Parse(text, limits)) << text;
  }
}

TEST(Json, DeepNestingIsRefusedWithoutDeepRecursion) {
  const std::string brackets(1'000'000, '[');
  EXPECT_FALSE(Json::Parse(brackets));
  std::string objects;
  for (int i = 0; i < 200'000; ++i) objects += "{\"a\":";
  EXPECT_FALSE(Json::Parse(objects));
}

TEST(Json, IntegersBeyond64BitsBecomeDoubles) {
  auto json =
      Json::Parse("[9223372036854775808, -9223372036854775809, 1000000000000000019884624838656]");
  ASSERT_TRUE(json);
  EXPECT_EQ(WriteJson(*json), "[9.223372036854776e+18, -9.223372036854776e+18, 1e+30]");
  EXPECT_TRUE(json->array()[0].is_double());
  EXPECT_TRUE(Json(uint64_t{1} << 63).is_double());
  EXPECT_TRUE(Json((uint64_t{1} << 63) - 1).is_int());
}

TEST(Json, WritesAsPythonDoes) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(WriteJson(Json(Json::Array{Json(inf), Json(-inf), Json(std::nan(""))})),
            "[Infinity, -Infinity, NaN]");
  auto json = Json::Parse(R"({"a": [1, {"b": []}], "c": {}})");
  ASSERT_TRUE(json);
  EXPECT_EQ(WriteJson(*json, {.comma = ",", .colon = ":"}), R"({"a":[1,{"b":[]}],"c":{}})");
  EXPECT_EQ(WriteJson(*json, {.indent = 2}), R"({
  "a": [
    1,
    {
      "b": []
    }
  ],
  "c": {}
})");
}

TEST(Json, FindsAndSetsMembers) {
  auto json = Json::Parse(R"({"a": 1, "n": null})");
  ASSERT_TRUE(json);
  ASSERT_NE(json->Find("a"), nullptr);
  EXPECT_EQ(json->Find("a")->integer(), 1);
  EXPECT_NE(json->Find("n"), nullptr);
  EXPECT_EQ(json->FindSet("n"), nullptr);
  EXPECT_EQ(json->Find("x"), nullptr);
  EXPECT_EQ(Json(3).Find("x"), nullptr);
  json->Set("a", "two");
  json->Set("z", Json(Json::Array{1, true, 2.5}));
  EXPECT_EQ(WriteJson(*json), R"({"a": "two", "n": null, "z": [1, true, 2.5]})");
  Json made;
  made.Set("k", nullptr);
  EXPECT_EQ(WriteJson(made), R"({"k": null})");
}

TEST(Json, TypedMembersNameWhatIsWrong) {
  auto json = Json::Parse(R"({"i": 7, "d": 0.5, "b": true, "s": "x", "n": null, "a": []})");
  ASSERT_TRUE(json);
  EXPECT_EQ(*json->GetInt("i", 0, 7), 7);
  EXPECT_EQ(*json->GetDouble("i"), 7.0);
  EXPECT_EQ(*json->GetDouble("d"), 0.5);
  EXPECT_EQ(*json->GetBool("b"), true);
  EXPECT_EQ(*json->GetString("s"), "x");
  EXPECT_FALSE(json->GetInt("n", 0, 1)->has_value());
  EXPECT_FALSE(json->GetString("absent")->has_value());

  auto what = [](const auto& result) {
    EXPECT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kCorruptFile);
    return result.error().what;
  };
  EXPECT_EQ(what(json->GetInt("i", 8, 9)), "\"i\" is integer 7, expected an integer in [8, 9]");
  EXPECT_EQ(what(json->GetInt("d", 0, 9)), "\"d\" is number 0.5, expected an integer in [0, 9]");
  EXPECT_EQ(what(json->GetInt("b", 0, 9)), "\"b\" is bool true, expected an integer in [0, 9]");
  EXPECT_EQ(what(json->GetDouble("s")), "\"s\" is string \"x\", expected a number");
  EXPECT_EQ(what(json->GetBool("i")), "\"i\" is integer 7, expected true or false");
  EXPECT_EQ(what(json->GetString("a")), "\"a\" is array, expected a string");
}

TEST(Quoted, EscapesAndCutsAtACharacter) {
  EXPECT_EQ(Quoted("a\"\n\x1b"), R"("a\"\n\u001b")");
  EXPECT_EQ(Quoted("abcdef", 6), "\"abcdef\"");
  EXPECT_EQ(Quoted("abcdefg", 6), "\"abcdef\"...");
  EXPECT_EQ(Quoted("ab\xE2\x82\xAC", 4), "\"ab\"...");
  EXPECT_EQ(Quoted("\x80\x80", 1), "\"\"...");
}

TEST(JsonReader, GivesTokensInOrderAndViewsIntoTheText) {
  const std::string text = R"({"key":[12,-3.5e1,"plain","es\tc"],"o":{}})";
  using T = JsonReader::Token;
  const struct {
    T token;
    std::string_view shown;
    int depth;
  } kExpected[] = {
      {T::kBeginObject, "", 1}, {T::kKey, "key", 1},       {T::kBeginArray, "", 2},
      {T::kNumber, "12", 2},    {T::kNumber, "-3.5e1", 2}, {T::kString, "plain", 2},
      {T::kString, "es\tc", 2}, {T::kEndArray, "", 1},     {T::kKey, "o", 1},
      {T::kBeginObject, "", 2}, {T::kEndObject, "", 1},    {T::kEndObject, "", 0},
      {T::kEnd, "", 0},         {T::kEnd, "", 0},
  };
  JsonReader reader(text);
  for (const auto& e : kExpected) {
    auto token = reader.Next();
    ASSERT_TRUE(token);
    EXPECT_EQ(*token, e.token);
    EXPECT_EQ(reader.depth(), e.depth);
    if (!e.shown.empty()) {
      EXPECT_EQ(reader.text(), e.shown);
    }
    if (e.shown == "plain") {
      EXPECT_EQ(reader.text().data(), text.data() + text.find("plain"));
    }
  }
}

TEST(JsonReader, AsUintTakesPlainDigitsOnly) {
  const struct {
    const char* text;
    std::optional<uint64_t> value;
  } kCases[] = {
      {"0", 0},
      {"18446744073709551615", 18446744073709551615u},
      {"18446744073709551616", {}},
      {"99999999999999999999999", {}},
      {"-1", {}},
      {"-0", {}},
      {"1.0", {}},
      {"1e0", {}},
  };
  for (const auto& c : kCases) {
    JsonReader reader(c.text);
    ASSERT_TRUE(reader.Next());
    EXPECT_EQ(reader.AsUint(), c.value) << c.text;
  }
}

TEST(JsonReader, SkipsWholeValuesAndRepeatsItsError) {
  JsonReader reader(R"({"skip":{"a":[1,{"b":2}]},"s":"x","keep":7,)");
  ASSERT_TRUE(reader.Next());
  for (const char* key : {"skip", "s"}) {
    ASSERT_TRUE(reader.Next());
    EXPECT_EQ(reader.text(), key);
    ASSERT_TRUE(reader.SkipValue());
    EXPECT_EQ(reader.depth(), 1);
  }
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.text(), "keep");
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.AsUint(), 7u);
  auto failed = reader.Next();
  ASSERT_FALSE(failed);
  auto again = reader.Next();
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().Message(), failed.error().Message());
}

}  // namespace
}  // namespace nibble
