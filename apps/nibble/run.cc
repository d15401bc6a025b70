#include <fmt/format.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>

#include "base/file.h"
#include "command.h"
#include "npy.h"

namespace nibble::app {
namespace {

constexpr uint64_t kMaxPromptBytes = uint64_t{1} << 31;

struct RunOptions {
  ModelOptions model;
  std::string prompt, file, ids, system, dump_logits;
  bool chat = false, ignore_eos = false;
  int64_t max_tokens = 0;
  std::vector<std::string> stop;
  // Set only where the person said so; otherwise the checkpoint's generation_config.json speaks.
  std::optional<double> temperature, top_p, min_p, repetition, presence, frequency;
  std::optional<int64_t> top_k;
  std::optional<uint64_t> seed;
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
    const auto say = [&](const char* role, const std::string& content) {
      messages.push_back(Json::Object{{"role", Json(role)}, {"content", Json(content)}});
    };
    if (!o.system.empty()) say("system", o.system);
    say("user", text);
    NIBBLE_TRY(text, chat->Render(Json(std::move(messages)), Json(), true, {}));
  }
  return engine.tokenizer()->Encode(text);
}

engine::SamplingParameters SamplingOf(const RunOptions& o, const engine::Engine& engine) {
  engine::SamplingParameters s = engine.default_sampling();
  s.temperature = o.temperature.value_or(s.temperature);
  s.top_k = o.top_k.value_or(s.top_k);
  s.top_p = o.top_p.value_or(s.top_p);
  s.min_p = o.min_p.value_or(s.min_p);
  s.repetition_penalty = o.repetition.value_or(s.repetition_penalty);
  s.presence_penalty = o.presence.value_or(s.presence_penalty);
  s.frequency_penalty = o.frequency.value_or(s.frequency_penalty);
  s.seed = o.seed ? *o.seed : std::random_device{}();
  return s;
}

Json IdsJson(std::span<const int32_t> ids) {
  Json::Array out;
  for (int32_t id : ids) out.push_back(Json(int{id}));
  return out;
}

double Rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

void Report(const RunOptions& o, const engine::Engine& engine, const engine::Request& request,
            const engine::Completion& c) {
  const double prompt = static_cast<double>(request.prompt.size()),
               decoded = static_cast<double>(c.ids.size()) - 1;
  const engine::Timings& t = c.timings;
  if (o.model.json) {
    const Json::Object timings = {
        {"load_s", Json(t.load_seconds)},
        {"prompt_tokens", Json(static_cast<int64_t>(request.prompt.size()))},
        {"prompt_tokens_per_s", Json(Rate(prompt, t.prompt_seconds))},
        {"ttft_s", Json(t.prompt_seconds)},
        {"decode_tokens", Json(static_cast<int64_t>(c.ids.size()))},
        {"decode_tokens_per_s", Json(Rate(decoded, t.decode_seconds))},
        {"bytes_per_token", Json(engine.BytesPerToken())},
    };
    Json::Object out = {{"prompt_ids", IdsJson(request.prompt)},
                        {"ids", IdsJson(c.ids)},
                        {"text", Json(c.text)},
                        {"finish_reason", Json(NameOf(c.finish_reason))},
                        {"seed", Json(request.sampling.seed)},
                        {"timings", Json(timings)}};
    if (c.speculation.draft_tokens > 0)
      out.emplace_back("speculation", SpeculationJson(c.speculation));
    PrintJson(Json(std::move(out)));
    return;
  }
  fmt::print("\n");
  std::fflush(stdout);
  fmt::print(stderr,
             "\nload {:.2f} s | prompt {} tokens, {:.0f} tok/s, TTFT {:.1f} ms | decode {} tokens, "
             "{:.0f} tok/s, {:.1f} GB/s of "
             "weights | {}\n",
             t.load_seconds, request.prompt.size(), Rate(prompt, t.prompt_seconds),
             1e3 * t.prompt_seconds, c.ids.size(), Rate(decoded, t.decode_seconds),
             1e-9 * Rate(decoded, t.decode_seconds) * static_cast<double>(engine.BytesPerToken()),
             NameOf(c.finish_reason));
  if (c.speculation.draft_tokens > 0) fmt::print(stderr, "{}\n", SpeculationText(c.speculation));
}

Result<int> Run(const RunOptions& o) {
  NIBBLE_TRY(const std::unique_ptr<engine::Engine> engine, OpenEngine(o.model));
  engine::Request request;
  NIBBLE_TRY(request.prompt, PromptIds(o, *engine));
  request.max_tokens = o.max_tokens;
  request.sampling = SamplingOf(o, *engine);
  request.stop = o.stop;
  request.ignore_eos = o.ignore_eos;
  const bool stream = !o.model.json;
  NIBBLE_TRY(const engine::Completion completion,
             engine->Generate(request, [&](std::string_view piece) {
               if (stream) {
                 std::fwrite(piece.data(), 1, piece.size(), stdout);
                 std::fflush(stdout);
               }
               return !Interrupted();
             }));
  if (!o.dump_logits.empty())
    NIBBLE_CHECK_OK(WriteFloatsNpy(o.dump_logits, completion.prompt_logits));
  if (stream && engine->tokenizer() == nullptr) fmt::print("{}", fmt::join(completion.ids, ","));
  Report(o, *engine, request, completion);
  return completion.finish_reason == engine::FinishReason::kCancelled
             ? ExitCodeOf(ErrorCode::kCancelled)
             : 0;
}

}  // namespace

Verb AddRun(CLI::App& app) {
  auto o = std::make_shared<RunOptions>();
  o->model.AddTo(app);
  CLI::Option* prompt =
      app.add_option("-p,--prompt", o->prompt, "the prompt; - or nothing: standard input");
  CLI::Option* file =
      app.add_option("-f,--file", o->file, "read the prompt from a file")->excludes(prompt);
  app.add_option("--prompt-ids", o->ids, "the prompt as token ids: 1,2,3")
      ->excludes(prompt)
      ->excludes(file);
  app.add_flag("--chat", o->chat, "the prompt is a user's message: apply the chat template");
  app.add_option("--system", o->system, "with --chat: a system message before it");
  app.add_option("-n,--max-tokens", o->max_tokens,
                 "tokens to generate at most (default: until the context is full)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  app.add_option("--temperature", o->temperature, "0: greedy");
  app.add_option("--top-k", o->top_k, "draw from the k likeliest; 0: all");
  app.add_option("--top-p", o->top_p, "draw from the smallest set of that probability");
  app.add_option("--min-p", o->min_p,
                 "drop tokens below that share of the likeliest's probability");
  app.add_option("--repetition-penalty", o->repetition, "divides the logits of tokens seen");
  app.add_option("--presence-penalty", o->presence,
                 "subtracted from the logits of tokens generated");
  app.add_option("--frequency-penalty", o->frequency, "the same, for each time");
  app.add_option("--seed", o->seed, "makes a run repeatable");
  app.add_option("--stop", o->stop, "text that ends the answer; may be given again")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", o->ignore_eos, "go on past the end-of-sequence token");
  app.add_option("--dump-logits", o->dump_logits,
                 "write the last prompt position's logits, float32 [V], as .npy");
  return [o] {
    auto done = Run(*o);
    return done ? *done : Fail(done.error(), o->model.json);
  };
}

}  // namespace nibble::app
