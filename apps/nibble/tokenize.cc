#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "command.h"
#include "text/tokenizer.h"

namespace nibble::app {
namespace {

struct TokenizeOptions {
  std::string dir, text, ids;
  bool given = false, json = false, no_special = false, skip_special = false;
};

std::string StandardInput() { return {std::istreambuf_iterator<char>(std::cin), {}}; }

Result<void> Tokenize(const TokenizeOptions& o) {
  NIBBLE_TRY(const text::Tokenizer tokenizer, text::Tokenizer::Load(o.dir));
  const std::string text = o.text.empty() || o.text == "-" ? StandardInput() : o.text;
  NIBBLE_TRY(const std::vector<int32_t> ids, tokenizer.Encode(text, {!o.no_special}));
  if (!o.json) {
    fmt::print("{}\n", fmt::join(ids, ","));
    return {};
  }
  Json::Array list;
  for (int32_t id : ids) list.push_back(Json(int{id}));
  PrintJson(Json::Object{{"count", Json(static_cast<int64_t>(ids.size()))},
                         {"ids", Json(std::move(list))}});
  return {};
}

Result<void> Detokenize(const TokenizeOptions& o) {
  NIBBLE_TRY(const text::Tokenizer tokenizer, text::Tokenizer::Load(o.dir));
  const std::string text = o.ids.empty() || o.ids == "-" ? StandardInput() : o.ids;
  NIBBLE_TRY(const std::vector<int32_t> ids, ParseIds(text));
  const std::string decoded = tokenizer.Decode(ids, o.skip_special);
  if (o.json) {
    PrintJson(Json::Object{{"text", Json(decoded)}});
  } else {
    std::fwrite(decoded.data(), 1, decoded.size(), stdout);
    fmt::print("\n");
  }
  return {};
}

Verb Finish(std::shared_ptr<TokenizeOptions> o, Result<void> (*verb)(const TokenizeOptions&)) {
  return [o, verb] {
    auto done = verb(*o);
    return done ? 0 : Fail(done.error(), o->json);
  };
}

}  // namespace

Verb AddTokenize(CLI::App& app) {
  auto o = std::make_shared<TokenizeOptions>();
  app.add_option("DIR", o->dir, "checkpoint directory")->required();
  app.add_option("TEXT", o->text, "the text; - or nothing: standard input");
  app.add_flag("--no-special", o->no_special,
               "take text that looks like a special token for what it is: text");
  app.add_flag("--json", o->json, "one JSON object: count, ids");
  return Finish(o, Tokenize);
}

Verb AddDetokenize(CLI::App& app) {
  auto o = std::make_shared<TokenizeOptions>();
  app.add_option("DIR", o->dir, "checkpoint directory")->required();
  app.add_option("IDS", o->ids, "token ids: 1,2,3; - or nothing: standard input");
  app.add_flag("--skip-special", o->skip_special, "leave special tokens out");
  app.add_flag("--json", o->json, "one JSON object: text");
  return Finish(o, Detokenize);
}

}  // namespace nibble::app
