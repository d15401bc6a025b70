#include "text/template.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/file.h"
#include "base/quoted.h"
#include "text/jinja/parser.h"
#include "text/jinja/render.h"
#include "text/utf8.h"

namespace nibble::text {
namespace {

constexpr uint64_t kMaxTemplateBytes = 1 << 20;
constexpr uint64_t kMaxConfigBytes = 64 << 20;

// What `transformers` calls the special tokens map.
constexpr std::array<std::string_view, 7> kTokenNames = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
constexpr std::array<std::string_view, 4> kOurs = {"messages", "tools", "documents",
                                                   "add_generation_prompt"};

Result<Json> ReadConfig(const std::string& path) {
  if (!FileExists(path)) return Json(Json::Object{});
  NIBBLE_TRY(const std::string text, ReadFile(path, kMaxConfigBytes));
  auto config = Json::Parse(text);
  if (!config) return std::move(config).error().At(path);
  return config;
}

Json::Object TokenVariables(const Json& config) {
  Json::Object variables;
  for (std::string_view name : kTokenNames) {
    const Json* token = config.FindSet(name);
    if (token && token->is_object()) token = token->FindSet("content");
    if (token && token->is_string()) variables.emplace_back(name, *token);
  }
  if (const Json* more = config.FindSet("additional_special_tokens"); more && more->is_array()) {
    variables.emplace_back("additional_special_tokens", *more);
  }
  return variables;
}

struct Sources {
  std::optional<std::string> usual;
  std::optional<std::string> with_tools;
};

Result<Sources> SourcesIn(const Json& config) {
  Sources sources;
  const Json* found = config.FindSet("chat_template");
  if (!found) return sources;
  if (found->is_string()) {
    sources.usual = found->string();
    return sources;
  }
  if (!found->is_array())
    return Err(ErrorCode::kCorruptFile, "\"chat_template\" is {}, expected a string or a list",
               found->TypeName());
  for (const Json& entry : found->array()) {
    NIBBLE_TRY(const auto name, entry.GetString("name"));
    NIBBLE_TRY(auto source, entry.GetString("template"));
    if (!name || !source)
      return Err(ErrorCode::kCorruptFile,
                 "an entry of \"chat_template\" lacks its name or template");
    if (*name == "default") sources.usual = std::move(source);
    if (*name == "tool_use") sources.with_tools = std::move(source);
  }
  return sources;
}

}  // namespace

struct ChatTemplate::Data {
  jinja::Ast usual;
  std::optional<jinja::Ast> with_tools;
  Json::Object variables;
};

Result<ChatTemplate> ChatTemplate::Parse(std::string source) {
  if (!IsValidUtf8(source)) return Err(ErrorCode::kCorruptFile, "the chat template is no UTF-8");
  auto data = std::make_shared<Data>();
  NIBBLE_TRY(data->usual, jinja::Parse(source));
  ChatTemplate result;
  result.data_ = std::move(data);
  return result;
}

Result<std::string> ChatTemplate::Render(const Json& messages, const Json& tools,
                                         bool add_generation_prompt,
                                         const Json::Object& extra) const {
  std::vector<std::pair<std::string, jinja::Value>> variables;
  const auto add = [&](std::string_view name, const Json& json) -> Result<void> {
    NIBBLE_TRY(jinja::Value value, jinja::FromJson(json));
    variables.emplace_back(name, std::move(value));
    return {};
  };
  for (const auto& [name, json] : extra) {
    if (std::find(kOurs.begin(), kOurs.end(), name) != kOurs.end() || jinja::IsGlobal(name)) {
      return Err(ErrorCode::kInvalidArgument, "the template variable {} may not be set",
                 Quoted(name));
    }
    NIBBLE_CHECK_OK(add(name, json));
  }
  // The first of a name is the one that is found.
  for (const auto& [name, json] : data_->variables) NIBBLE_CHECK_OK(add(name, json));
  NIBBLE_CHECK_OK(add("messages", messages));
  NIBBLE_CHECK_OK(add("tools", tools));
  NIBBLE_CHECK_OK(add("documents", nullptr));
  NIBBLE_CHECK_OK(add("add_generation_prompt", add_generation_prompt));
  const bool for_tools = data_->with_tools && !tools.is_null();
  auto text =
      jinja::Render(for_tools ? *data_->with_tools : data_->usual, std::move(variables), {});
  if (!text) return std::move(text).error().At("chat template");
  return text;
}

Result<ChatTemplate> LoadChatTemplate(const std::string& dir) {
  const std::string config_path = dir + "/tokenizer_config.json";
  const std::string file_path = dir + "/chat_template.jinja";
  NIBBLE_TRY(const Json config, ReadConfig(config_path));
  Sources sources;
  const bool has_file = FileExists(file_path);
  if (has_file) {
    NIBBLE_TRY(sources.usual, ReadFile(file_path, kMaxTemplateBytes));
  } else {
    auto found = SourcesIn(config);
    if (!found) return std::move(found).error().At(config_path);
    sources = *std::move(found);
  }
  if (!sources.usual) {
    Error error = Err(ErrorCode::kNotFound,
                      "no chat template: neither chat_template.jinja nor \"chat_template\" in "
                      "tokenizer_config.json")
                      .At(dir);
    error.hint = "this may be a base model; give it plain text to complete";
    return error;
  }
  const std::string& where = has_file ? file_path : config_path;
  auto data = std::make_shared<ChatTemplate::Data>();
  const auto parse = [&](const std::string& source) -> Result<jinja::Ast> {
    if (!IsValidUtf8(source))
      return Err(ErrorCode::kCorruptFile, "the chat template is no UTF-8").At(where);
    auto ast = jinja::Parse(source);
    if (!ast) return std::move(ast).error().At(where);
    return ast;
  };
  NIBBLE_TRY(data->usual, parse(*sources.usual));
  if (sources.with_tools) {
    NIBBLE_TRY(data->with_tools, parse(*sources.with_tools));
  }
  data->variables = TokenVariables(config);
  ChatTemplate result;
  result.data_ = std::move(data);
  return result;
}

}  // namespace nibble::text
