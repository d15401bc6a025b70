#include "generation.h"

#include <fmt/format.h>

#include <cstdio>
#include <random>

namespace nibble::app {
namespace {

Json IdsJson(std::span<const int32_t> ids) {
  Json::Array out;
  for (int32_t id : ids) out.push_back(Json(int{id}));
  return Json(std::move(out));
}

double Rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

}  // namespace

void GenerationOptions::AddTo(CLI::App& app) {
  model.AddTo(app);
  app.add_option("-n,--max-tokens", max_tokens,
                 "tokens to generate at most (default: until the context is full)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  app.add_option("--temperature", temperature, "0: greedy");
  app.add_option("--top-k", top_k, "draw from the k likeliest; 0: all");
  app.add_option("--top-p", top_p, "draw from the smallest set of that probability");
  app.add_option("--min-p", min_p, "drop tokens below that share of the likeliest's probability");
  app.add_option("--repetition-penalty", repetition, "divides the logits of tokens seen");
  app.add_option("--presence-penalty", presence, "subtracted from the logits of tokens generated");
  app.add_option("--frequency-penalty", frequency, "the same, for each time");
  app.add_option("--seed", seed, "makes a run repeatable");
  app.add_option("--stop", stop, "text that ends the answer; may be given again")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", ignore_eos, "go on past the end-of-sequence token");
}

engine::Request GenerationOptions::RequestFor(const engine::Engine& engine) const {
  engine::Request request;
  request.max_tokens = max_tokens;
  request.stop = stop;
  request.ignore_eos = ignore_eos;
  engine::SamplingParameters& s = request.sampling;
  s = engine.default_sampling();
  s.temperature = temperature.value_or(s.temperature);
  s.top_k = top_k.value_or(s.top_k);
  s.top_p = top_p.value_or(s.top_p);
  s.min_p = min_p.value_or(s.min_p);
  s.repetition_penalty = repetition.value_or(s.repetition_penalty);
  s.presence_penalty = presence.value_or(s.presence_penalty);
  s.frequency_penalty = frequency.value_or(s.frequency_penalty);
  s.seed = seed ? *seed : std::random_device{}();
  return request;
}

Json ChatMessage(const char* role, const std::string& content) {
  return Json::Object{{"role", Json(role)}, {"content", Json(content)}};
}

bool StreamPiece(std::string_view piece) {
  std::fwrite(piece.data(), 1, piece.size(), stdout);
  std::fflush(stdout);
  return !Interrupted();
}

std::string LoadText(const engine::Engine& engine) {
  const plan::MemoryBudget& m = engine.plan().memory;
  const auto gigabytes = [](uint64_t bytes) { return 1e-9 * static_cast<double>(bytes); };
  std::string packed = fmt::format("{:.2f} GB packed at {:.1f} GB/s", gigabytes(m.weights),
                                   Rate(gigabytes(m.weights), engine.load_seconds()));
  if (m.mapped == 0) return packed;
  std::string mapped = fmt::format("{:.2f} GB left in the file", gigabytes(m.mapped));
  return engine.plan().map_weights || m.weights == 0 ? mapped : packed + ", " + mapped;
}

double PromptRate(const engine::Request& request, const engine::Completion& completion) {
  return Rate(static_cast<double>(request.prompt.size()), completion.timings.prompt.seconds);
}

double DecodeRate(const engine::Completion& completion) {
  return Rate(static_cast<double>(completion.ids.size()) - 1, completion.timings.decode.seconds);
}

Json::Object CompletionJson(const engine::Engine& engine, const engine::Request& request,
                            const engine::Completion& completion) {
  const engine::Timings& t = completion.timings;
  const Json::Object timings = {
      {"load_s", Json(t.load_seconds)},
      {"prompt_tokens", Json(static_cast<int64_t>(request.prompt.size()))},
      {"prompt_tokens_per_s", Json(PromptRate(request, completion))},
      {"ttft_s", Json(t.first_token_seconds)},
      {"decode_tokens", Json(static_cast<int64_t>(completion.ids.size()))},
      {"decode_tokens_per_s", Json(DecodeRate(completion))},
      {"bytes_per_token", Json(engine.BytesPerToken())},
      {"repacked", Json(!engine.plan().map_weights)},
      {"packed_bytes", Json(engine.plan().memory.weights)},
      {"mapped_bytes", Json(engine.plan().memory.mapped)},
  };
  Json::Object out = {{"prompt_ids", IdsJson(request.prompt)},
                      {"ids", IdsJson(completion.ids)},
                      {"text", Json(completion.text)},
                      {"finish_reason", Json(NameOf(completion.finish_reason))},
                      {"seed", Json(request.sampling.seed)},
                      {"timings", Json(timings)}};
  if (completion.speculation.draft_tokens > 0)
    out.emplace_back("speculation", SpeculationJson(completion.speculation));
  return out;
}

}  // namespace nibble::app
