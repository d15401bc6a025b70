#include "bench_requests.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/stopwatch.h"
#include "command.h"

namespace nibble::app {
namespace {

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// The columns of the table, and the names of their fields.
constexpr struct {
  const char* name;
  double percentile;
} kColumns[] = {{"min", 0}, {"p50", 50}, {"p90", 90}, {"p99", 99}, {"max", 100}};

Json Milliseconds(const std::vector<double>& seconds) {
  Json::Object out = {{"mean", 1e3 * Mean(seconds)}};
  for (const auto& column : kColumns)
    out.emplace_back(column.name, 1e3 * Percentile(seconds, column.percentile));
  return out;
}

std::string SpeculationOf(const BenchModel& model, const RequestBench& bench) {
  if (model.draft_tokens == 0) return {};
  return bench.acceptance > 0
             ? fmt::format(
                   ", mtp:{} with SYNTHETIC acceptance: {} tokens a round, whatever the "
                   "drafts",
                   model.draft_tokens, bench.acceptance)
             : fmt::format(", mtp:{}", model.draft_tokens);
}

}  // namespace

double Percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  const double at = p / 100 * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(std::floor(at));
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - std::floor(at)) * (values[above] - values[below]);
}

Result<RequestFigures> RunRequests(
    engine::Engine& engine, const RequestBench& bench,
    const std::function<std::vector<int32_t>(int64_t, int64_t)>& ids) {
  RequestFigures out;
  ProgressBar bar("requests");
  if (bench.prefix > 0) {
    const Stopwatch watch;
    NIBBLE_CHECK_OK(engine.KeepPrefix(ids(bench.prefix, -1)));
    out.prefix_seconds = watch.Seconds();
  }
  engine::Request request;
  request.max_tokens = bench.output;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  request.after_prefix = bench.prefix > 0;
  request.synthetic_acceptance = bench.acceptance;
  Stopwatch counted;
  for (int64_t i = 0; i < bench.warmup + bench.requests; ++i) {
    if (i == bench.warmup) counted = Stopwatch();
    request.prompt = ids(bench.input, i);
    NIBBLE_TRY(const engine::Completion c, engine.Generate(request));
    const auto tokens = static_cast<int64_t>(c.ids.size());
    if (tokens != bench.output) {
      return Err(ErrorCode::kInternal, "request {} gave {} tokens, expected {}", i, tokens,
                 bench.output);
    }
    bar.Update(static_cast<uint64_t>(i) + 1, static_cast<uint64_t>(bench.warmup + bench.requests),
               "requests");
    if (i < bench.warmup) continue;
    const double first = c.timings.first_token_seconds;
    const double latency = c.timings.prompt.seconds + c.timings.decode.seconds;
    out.first_token.push_back(first);
    out.latency.push_back(latency);
    if (tokens > 1) out.inter_token.push_back((latency - first) / static_cast<double>(tokens - 1));
    out.tokens += tokens;
    out.speculation.draft_tokens = c.speculation.draft_tokens;
    auto& rounds = out.speculation.rounds;
    rounds.insert(rounds.end(), c.speculation.rounds.begin(), c.speculation.rounds.end());
  }
  out.seconds = counted.Seconds();
  return out;
}

void PrintRequests(const BenchModel& model, const RequestBench& bench, const RequestFigures& f) {
  fmt::print("{} on {}, {}{}\n", model.name, model.device, model.backends,
             SpeculationOf(model, bench));
  fmt::print(
      "{} requests one after the other, after {} that do not count: {} tokens in, {} out{}\n\n",
      bench.requests, bench.warmup, bench.input, bench.output,
      bench.prefix > 0
          ? fmt::format(", behind a prefix of {} that was prefilled once ({:.3f} s) and is "
                        "copied for each",
                        bench.prefix, f.prefix_seconds)
          : "");
  fmt::print("| {:<28} | {:>9}", "", "mean");
  for (const auto& column : kColumns) fmt::print(" | {:>9}", column.name);
  fmt::print(" |\n| {:-<28} | --------:", "");
  for (size_t i = 0; i < std::size(kColumns); ++i) fmt::print(" | --------:");
  fmt::print(" |\n");
  const auto row = [](const char* name, const std::vector<double>& values) {
    if (values.empty()) return;
    fmt::print("| {:<28} | {:>9.3f}", name, 1e3 * Mean(values));
    for (const auto& column : kColumns)
      fmt::print(" | {:>9.3f}", 1e3 * Percentile(values, column.percentile));
    fmt::print(" |\n");
  };
  row("time to first token, ms", f.first_token);
  row("inter token latency, ms", f.inter_token);
  row("request latency, ms", f.latency);
  fmt::print("\noutput {:.2f} tok/s, {:.3f} requests/s", static_cast<double>(f.tokens) / f.seconds,
             static_cast<double>(bench.requests) / f.seconds);
  if (!f.speculation.rounds.empty())
    fmt::print(", {:.3f} tokens a round", f.speculation.MeanLength());
  fmt::print("\n");
}

Json RequestsJson(const BenchModel& model, const RequestBench& bench, const RequestFigures& f) {
  Json::Object out = {
      {"model", model.name},
      {"synthetic", model.synthetic},
      {"device", model.device},
      {"backends", model.backends},
      {"requests", bench.requests},
      {"warmup", bench.warmup},
      {"prefix_len", bench.prefix},
      {"input_len", bench.input},
      {"output_len", bench.output},
      {"draft_tokens", model.draft_tokens},
      {"synthetic_acceptance", bench.acceptance > 0 ? Json(bench.acceptance) : Json()},
      {"acceptance_length",
       f.speculation.rounds.empty() ? Json() : Json(f.speculation.MeanLength())},
      {"prefix_s", f.prefix_seconds},
      {"duration_s", f.seconds},
      {"output_tokens", f.tokens},
      {"output_throughput", static_cast<double>(f.tokens) / f.seconds},
      {"request_throughput", static_cast<double>(bench.requests) / f.seconds},
      {"ttft_ms", Milliseconds(f.first_token)},
      {"itl_ms", f.inter_token.empty() ? Json() : Milliseconds(f.inter_token)},
      {"latency_ms", Milliseconds(f.latency)}};
  return out;
}

}  // namespace nibble::app
