// batch_decode DIR [TOKENS] [ROUNDS]: tokens a second of 1, 2 and 4 sequences decoded together,
// end to end, one JSON object a line: "same" where all sequences hold the same tokens and so share
// their experts, which is what speculation and the kernels' figures see, and "different". The batch
// sizes take turns within a round; ratios are medians over rounds.

#include <fmt/core.h>

#include <vector>

#include "base/stopwatch.h"
#include "engine/engine.h"
#include "on_threads.h"

namespace nibble {
namespace {

using bench::Median;

constexpr int kSizes[] = {1, 2, 4};
constexpr int64_t kPrompt = 16;

/// Tokens a second of `batch` sequences, each `tokens` long behind a short prompt.
Result<double> Rate(model::QwenMoe& model, int batch, bool same, int64_t tokens) {
  const int vocab = model.config().vocab;
  const auto token = [&](int sequence, int64_t position) {
    const int64_t n = same ? position : position + 1009 * (sequence + 1);
    return static_cast<int32_t>(n * 2654435761 % vocab);
  };
  std::vector<float> logits(static_cast<size_t>(batch) * vocab);
  std::vector<int64_t> rows;
  std::vector<int32_t> ids(batch);
  std::vector<kernels::SequenceRows> sequences(batch);
  for (int s = 0; s < batch; ++s) {
    rows.push_back(s);
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < kPrompt; ++i) prompt.push_back(token(s, i));
    const kernels::SequenceRows all{s, 0, kPrompt, 0};
    model.Forward(prompt, {&all, 1});
  }
  const Stopwatch watch;
  for (int64_t position = kPrompt; position < kPrompt + tokens; ++position) {
    for (int s = 0; s < batch; ++s) {
      ids[s] = token(s, position);
      sequences[s] = {s, s, 1, position};
    }
    model.Forward(ids, sequences);
    NIBBLE_CHECK_OK(model.Logits(rows, logits));
  }
  return static_cast<double>(batch * tokens) / watch.Seconds();
}

Result<void> Measure(const std::string& dir, int threads, int64_t tokens, int rounds) {
  engine::EngineOptions options;
  options.threads = threads;
  options.wishes.context = 16;
  options.wishes.bf16_activations = true;
  NIBBLE_TRY(const auto engine, engine::Engine::Open(dir, options));
  const plan::Plan& plan = engine->plan();
  kernels::HostOperators operators(plan.glue, plan.device.isa, engine->pool());
  NIBBLE_TRY(model::QwenMoe model, model::QwenMoe::Create(plan.model, engine->weights(), operators,
                                                          {4, kPrompt + tokens, plan.kv_dtype, 0}));
  for (const bool same : {true, false}) {
    std::vector<std::vector<double>> rates(std::size(kSizes)), ratios(std::size(kSizes));
    for (int round = -1; round < rounds; ++round) {  // the first is not counted
      for (size_t i = 0; i < std::size(kSizes); ++i) {
        NIBBLE_TRY(const double rate, Rate(model, kSizes[i], same, tokens));
        if (round < 0) continue;
        rates[i].push_back(rate);
        ratios[i].push_back(rate / rates[0].back());
      }
    }
    for (size_t i = 0; i < std::size(kSizes); ++i) {
      fmt::print(
          "{{\"what\":\"batch decode\",\"threads\":{},\"batch\":{},\"tokens\":\"{}\","
          "\"tokens_per_s\":{:.1f},\"ratio\":{:.2f},\"rounds\":{}}}\n",
          threads, kSizes[i], same ? "same" : "different", Median(rates[i]), Median(ratios[i]),
          rounds);
    }
  }
  return {};
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  return nibble::bench::OnThreads("batch_decode", argc, argv, 64, nibble::Measure);
}
