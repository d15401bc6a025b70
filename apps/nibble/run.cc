#include <fmt/format.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "base/file.h"
#include "generation.h"
#include "npy.h"

namespace nibble::app {
namespace {

constexpr uint64_t kMaxPromptBytes = uint64_t{1} << 31;

struct RunOptions {
  GenerationOptions generation;
  std::string prompt, file, ids, system, dump_logits;
  bool chat = false;
};

Result<std::string> PromptText(const RunOptions& o) {
  if (!o.file.empty() && o.file != "-") return ReadFile(o.file, kMaxPromptBytes);
  if (o.file == "-" || o.prompt == "-" || o.prompt.empty()) {
    return std::string(std::istreambuf_iterator<char>(std::cin), {});
  }
  return o.prompt;
}

Result<std::vector<int32_t>> PromptIds(const RunOptions& o, const engine::Engine& engine) {
  if (!o.ids.empty()) return ParseIds(o.ids);
  if (engine.tokenizer() == nullptr) {
    Error error = engine.tokenizer_error();
    error.hint = "give the prompt as ids with --prompt-ids";
    return error;
  }
  NIBBLE_TRY(std::string text, PromptText(o));
  if (o.chat) {
    NIBBLE_TRY(const text::ChatTemplate* chat, engine.chat_template());
    Json::Array messages;
    if (!o.system.empty()) messages.push_back(ChatMessage("system", o.system));
    messages.push_back(ChatMessage("user", text));
    NIBBLE_TRY(text, chat->Render(Json(std::move(messages)), Json(), true, {}));
  }
  return engine.tokenizer()->Encode(text);
}

void Report(const engine::Engine& engine, const engine::Request& request,
            const engine::Completion& c) {
  fmt::print("\n");
  std::fflush(stdout);
  const double decode = DecodeRate(c);
  // With speculation a token is no pass over the weights.
  const bool passes = c.speculation.draft_tokens == 0;
  const double gigabytes = 1e-9 * decode * static_cast<double>(engine.BytesPerToken());
  fmt::print(
      stderr,
      "\nload {:.2f} s, {} | prompt {} tokens, {:.0f} tok/s, TTFT {:.1f} ms | decode {} tokens, "
      "{:.0f} tok/s{}{} | {}\n",
      c.timings.load_seconds, LoadText(engine), request.prompt.size(), PromptRate(request, c),
      1e3 * c.timings.first_token_seconds, c.ids.size(), decode,
      passes ? fmt::format(", {:.1f} GB/s of weights", gigabytes) : "",
      engine.plan().map_weights ? ", packed at every use (--no-repack)" : "",
      NameOf(c.finish_reason));
  if (c.speculation.draft_tokens > 0) fmt::print(stderr, "{}\n", SpeculationText(c.speculation));
}

Result<int> Run(const RunOptions& o) {
  const bool json = o.generation.model.json;
  NIBBLE_TRY(const std::unique_ptr<engine::Engine> engine, OpenEngine(o.generation.model));
  engine::Request request = o.generation.RequestFor(*engine);
  NIBBLE_TRY(request.prompt, PromptIds(o, *engine));
  NIBBLE_TRY(const engine::Completion completion,
             engine->Generate(request, [&](std::string_view piece) {
               return json ? !Interrupted() : StreamPiece(piece);
             }));
  if (!o.dump_logits.empty())
    NIBBLE_CHECK_OK(WriteFloatsNpy(o.dump_logits, completion.prompt_logits));
  if (json) {
    PrintJson(Json(CompletionJson(*engine, request, completion)));
  } else {
    if (engine->tokenizer() == nullptr) fmt::print("{}", fmt::join(completion.ids, ","));
    Report(*engine, request, completion);
  }
  return completion.finish_reason == engine::FinishReason::kCancelled
             ? ExitCodeOf(ErrorCode::kCancelled)
             : 0;
}

}  // namespace

Verb AddRun(CLI::App& app) {
  auto o = std::make_shared<RunOptions>();
  o->generation.AddTo(app);
  CLI::Option* prompt =
      app.add_option("-p,--prompt", o->prompt, "the prompt; - or nothing: standard input");
  CLI::Option* file =
      app.add_option("-f,--file", o->file, "read the prompt from a file")->excludes(prompt);
  app.add_option("--prompt-ids", o->ids, "the prompt as token ids: 1,2,3")
      ->excludes(prompt)
      ->excludes(file);
  app.add_flag("--chat", o->chat, "the prompt is a user's message: apply the chat template");
  app.add_option("--system", o->system, "with --chat: a system message before it");
  app.add_option("--dump-logits", o->dump_logits,
                 "write the last prompt position's logits, float32 [V], as .npy");
  return [o] {
    auto done = Run(*o);
    return done ? *done : Fail(done.error(), o->generation.model.json);
  };
}

}  // namespace nibble::app
