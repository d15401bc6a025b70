#include "text/template.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/file.h"

namespace nibble::text {
namespace {

Json ReadGolden() {
  auto text = ReadFile(NIBBLE_SOURCE_DIR "/tests/golden/text/templates.json", 16 << 20);
  EXPECT_TRUE(text.ok());
  auto json = Json::Parse(*text);
  EXPECT_TRUE(json.ok());
  return *std::move(json);
}

Result<std::string> RenderText(const std::string& source, const Json::Object& extra = {}) {
  NIBBLE_TRY(const ChatTemplate chat, ChatTemplate::Parse(source));
  return chat.Render(Json(Json::Array{}), nullptr, true, extra);
}

TEST(ChatTemplate, RendersWhatJinja2Renders) {
  const Json golden = ReadGolden();
  int compared = 0, refused = 0;
  for (const auto& [name, source] : golden.Find("templates")->object()) {
    auto chat = ChatTemplate::Parse(source.string());
    ASSERT_TRUE(chat.ok()) << name << ": " << chat.error().Message();
    for (const Json& c : golden.Find("cases")->array()) {
      if (c.Find("template")->string() != name) continue;
      const Json& talk = golden.Find("conversations")->array()[c.Find("conversation")->integer()];
      const auto text =
          chat->Render(*talk.Find("messages"), *talk.Find("tools"),
                       talk.Find("add_generation_prompt")->boolean(), talk.Find("extra")->object());
      const std::string where = name + " / " + talk.Find("name")->string();
      if (c.Find("text")->is_null()) {
        EXPECT_FALSE(text.ok()) << where << " gave " << *text;
        ++refused;
      } else if (!text.ok()) {
        ADD_FAILURE() << where << ": " << text.error().Message();
      } else {
        EXPECT_EQ(*text, c.Find("text")->string()) << where;
        ++compared;
      }
    }
  }
  EXPECT_GE(compared, 200);
  EXPECT_GE(refused, 5);
}

TEST(ChatTemplate, RefusesWhatJinja2Refuses) {
  const Json golden = ReadGolden();
  for (const auto& [name, source] : golden.Find("refused")->object()) {
    const auto text = RenderText(source.string());
    ASSERT_FALSE(text.ok()) << name << " gave " << *text;
    EXPECT_NE(text.error().where.find("line 1"), std::string::npos)
        << name << ": " << text.error().Message();
  }
}

TEST(ChatTemplate, NamesWhatItDoesNotKnow) {
  const struct {
    const char* source;
    const char* named;
  } kCases[] = {
      {"{% include 'x' %}", "include"},
      {"{% call m() %}{% endcall %}", "call"},
      {"{% for x in y recursive %}{% endfor %}", "recursive"},
      {"\n{{ 1 | urlencode }}", "urlencode"},
      {"{{ 1 is sameas(1) }}", "sameas"},
      {"{{ 'x'.encode() }}", "encode"},
      {"{{ 'x %s' % 1 }}", "%"},
      {"{{ ''.__class__ }}", "__class__"},
      {"{{ 0x10 }}", "decimal"},
      {"{{ 'é'.upper() }}", "ASCII"},
      {"{% for i in [1] %}{% macro m() %}{% endmacro %}{% endfor %}", "macro"},
      {"{{ dict(*[1]) }}", "arguments"},
      {"{{ [1] | map('map', 'map') | list }}", "map"},
  };
  for (const auto& c : kCases) {
    const auto text = RenderText(c.source);
    ASSERT_FALSE(text.ok()) << c.source;
    EXPECT_EQ(text.error().code, ErrorCode::kUnsupported) << text.error().Message();
    EXPECT_NE(text.error().Message().find(c.named), std::string::npos) << text.error().Message();
  }
}

TEST(ChatTemplate, BoundsWhatAHostileTemplateCosts) {
  const std::string open(5000, '('), close(5000, ')');
  std::string chain = "{{ 1", dots = "{{ x", blocks,
              minus = "{{ " + std::string(5000, '-') + "1 }}";
  for (int i = 0; i < 5000; ++i) {
    chain += " + 1";
    dots += ".a";
    blocks += "{% if 1 %}";
  }
  const struct {
    const char* what;
    std::string source;
  } kCases[] = {
      {"brackets", "{{ " + open + "1" + close + " }}"},
      {"a chain of sums", chain + " }}"},
      {"a chain of attributes", dots + " }}"},
      {"signs", minus},
      {"blocks", blocks},
      {"not not", "{{ " +
                      [] {
                        std::string s;
                        for (int i = 0; i < 5000; ++i) s += "not ";
                        return s;
                      }() +
                      "1 }}"},
      {"a doubling list",
       "{% set ns = namespace(l=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}{% "
       "endfor %}{{ ns.l }}"},
      {"a list in a list",
       "{% set ns = namespace(l=[1]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor "
       "%}"},
      {"output", "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"},
      {"a repetition", "{{ 'x' * 9999999999 }}"},
      {"a huge range", "{{ range(9999999999) | length }}"},
      {"a replacement", "{% set s = 'x' * 100000 %}{{ s.replace('x', s) | length }}"},
      {"an overflow", "{{ 9223372036854775807 + 1 }}"},
      {"a power", "{{ 2 ** 99999999 }}"},
      {"steps", "{% for i in range(90000) %}{% set x = i %}{% endfor %}"},
      {"work",
       "{% set s = 'x' * 1000000 %}{% for i in range(9999) %}{% set x = 'y' in s %}{% endfor %}"},
      {"two macros",
       "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}"},
      {"an indent", "{{ [[[1]]] | tojson(indent=100000) }}"},
  };
  for (const auto& c : kCases) EXPECT_FALSE(RenderText(c.source).ok()) << c.what;
}

TEST(ChatTemplate, FreesWhatPointsAtItself) {
  EXPECT_EQ(*RenderText("{% set ns = namespace() %}{% set ns.me = ns %}{% set ns.l = [ns] %}{{ "
                        "ns.l[0].me == ns }}"),
            "True");
}

TEST(ChatTemplate, ForbidsVariablesThatAreNotTheCallersToSet) {
  for (const char* name : {"messages", "tools", "add_generation_prompt", "documents", "namespace",
                           "range", "raise_exception"}) {
    Json::Object extra;
    extra.emplace_back(name, 1);
    const auto text = RenderText("x", extra);
    ASSERT_FALSE(text.ok()) << name;
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  }
  Json::Object extra;
  extra.emplace_back("enable_thinking", false);
  EXPECT_EQ(*RenderText("{{ enable_thinking }}", extra), "False");
}

TEST(ChatTemplate, SaysWhatTheTemplateRefused) {
  const auto text = RenderText("a\n{{ raise_exception('no system message') }}");
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(text.error().Message().find("no system message"), std::string::npos);
  EXPECT_NE(text.error().Message().find("line 2"), std::string::npos);
}

class LoadChatTemplateTest : public testing::Test {
 protected:
  LoadChatTemplateTest()
      : dir_(testing::TempDir() + "nibble_chat_template_" + std::to_string(getpid())) {
    std::filesystem::create_directories(dir_);
  }
  ~LoadChatTemplateTest() override { std::filesystem::remove_all(dir_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name) << text;
  }
  std::string Load(const Json& tools = nullptr) {
    const auto chat = LoadChatTemplate(dir_);
    if (!chat) return "error: " + chat.error().Message();
    const auto text = chat->Render(Json(Json::Array{}), tools, false);
    return text ? *text : "error: " + text.error().Message();
  }

  std::string dir_;
};

TEST_F(LoadChatTemplateTest, SaysWhenThereIsNone) {
  EXPECT_NE(Load().find("no chat template"), std::string::npos);
}

TEST_F(LoadChatTemplateTest, TakesTheConfigsAndItsTokens) {
  Write(
      "tokenizer_config.json",
      R"({"chat_template": "{{ eos_token }}{{ bos_token is defined }}{{ pad_token }}", "eos_token": "<e>", "bos_token": null,
            "pad_token": {"content": "<p>", "special": true}})");
  EXPECT_EQ(Load(), "<e>False<p>");
}

TEST_F(LoadChatTemplateTest, PrefersTheFile) {
  Write("tokenizer_config.json", R"({"chat_template": "config", "eos_token": "<e>"})");
  Write("chat_template.jinja", "file{{ eos_token }}\n");
  EXPECT_EQ(Load(), "file<e>");
}

TEST_F(LoadChatTemplateTest, ChoosesFromAList) {
  Write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]})");
  EXPECT_EQ(Load(), "D");
  EXPECT_EQ(Load(Json(Json::Array{})), "T");
}

}  // namespace
}  // namespace nibble::text
