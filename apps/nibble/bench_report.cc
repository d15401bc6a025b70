#include "bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "base/quoted.h"
#include "command.h"

namespace nibble::app {
namespace {

constexpr double kGiB = 1 << 30;

double Gib(uint64_t bytes) { return static_cast<double>(bytes) / kGiB; }

template <class T>
Json JsonOr(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// Everything of a row, in the words of llama-bench where it has them.
Json::Object Fields(const BenchModel& m, const BenchResult& r) {
  Json::Array nanoseconds, rates, cpu_nanoseconds, operators;
  for (size_t i = 0; i < r.seconds.size(); ++i) {
    nanoseconds.emplace_back(static_cast<int64_t>(std::llround(1e9 * r.seconds[i])));
    rates.emplace_back(r.Rate(i));
    cpu_nanoseconds.emplace_back(static_cast<int64_t>(std::llround(1e9 * r.cpu_seconds[i])));
  }
  for (const kernels::OperatorTime& t : r.operators) {
    operators.emplace_back(
        Json::Object{{"name", t.name}, {"calls", t.calls}, {"seconds", t.seconds}});
  }
  const auto throughput = r.Throughput(m);
  std::optional<double> gigabytes, share, read;
  if (m.bandwidth > 0) read = m.bandwidth * 1e-9;
  if (throughput) gigabytes = *throughput * 1e-9;
  if (throughput && m.bandwidth > 0) share = *throughput / m.bandwidth;
  return {{"model", m.name},
          {"model_path", m.path},
          {"synthetic", m.synthetic},
          {"layers", m.layers},
          {"model_size", m.bytes},
          {"model_n_params", m.parameters},
          {"device", m.device},
          {"backends", m.backends},
          {"isa", m.isa},
          {"n_threads", m.threads},
          {"test", r.test.Name()},
          {"n_prompt", r.test.prompt},
          {"n_gen", r.test.generated},
          {"n_depth", r.test.depth},
          {"avg_ts", r.MeanRate()},
          {"stddev_ts", r.RateDeviation()},
          {"median_ts", r.MedianRate()},
          {"median_cpu_s", r.MedianCpuSeconds()},
          {"bytes_per_token", m.per_token},
          {"gb_per_s", JsonOr(gigabytes)},
          {"read_gb_per_s", JsonOr(read)},
          {"share_of_read", JsonOr(share)},
          {"draft_tokens", m.draft_tokens},
          {"acceptance_length", JsonOr(r.AcceptanceLength())},
          {"load_s", m.load_seconds},
          {"packed_bytes", m.packed},
          {"mapped_bytes", m.mapped},
          {"peak_anonymous_bytes", m.peak_anonymous},
          {"peak_resident_bytes", m.peak_resident},
          {"samples_ns", std::move(nanoseconds)},
          {"samples_cpu_ns", std::move(cpu_nanoseconds)},
          {"samples_ts", std::move(rates)},
          {"operators", std::move(operators)}};
}

/// A field of RFC 4180.
std::string CsvField(const Json& value) {
  if (value.is_null()) return {};
  std::string text = value.is_string() ? value.string() : WriteJson(value);
  if (text.find_first_of(",\"\n") == text.npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string Parameters(int64_t n) {
  const auto count = static_cast<double>(n);
  return n >= 1'000'000'000 ? fmt::format("{:.2f} B", count * 1e-9)
                            : fmt::format("{:.2f} M", count * 1e-6);
}

std::string Size(uint64_t bytes) {
  return Gib(bytes) >= 1 ? fmt::format("{:.2f} GiB", Gib(bytes))
                         : fmt::format("{:.2f} MiB", 1024 * Gib(bytes));
}

}  // namespace

double BenchResult::MeanRate() const {
  double sum = 0;
  for (size_t i = 0; i < seconds.size(); ++i) sum += Rate(i);
  return sum / static_cast<double>(seconds.size());
}

double BenchResult::RateDeviation() const {
  if (seconds.size() < 2) return 0;
  const double mean = MeanRate();
  double squares = 0;
  for (size_t i = 0; i < seconds.size(); ++i) squares += (Rate(i) - mean) * (Rate(i) - mean);
  return std::sqrt(squares / static_cast<double>(seconds.size() - 1));
}

double BenchResult::MedianRate() const {
  std::vector<double> rates;
  for (size_t i = 0; i < seconds.size(); ++i) rates.push_back(Rate(i));
  return Median(std::move(rates));
}

double BenchResult::MedianCpuSeconds() const { return Median(cpu_seconds); }

void BenchResult::Add(const engine::PhaseTime& phase) {
  seconds.back() += phase.seconds;
  cpu_seconds.back() += phase.cpu_seconds;
  for (const kernels::OperatorTime& t : phase.operators) {
    const auto same = [&](const kernels::OperatorTime& o) { return o.name == t.name; };
    const auto at = std::find_if(operators.begin(), operators.end(), same);
    if (at == operators.end()) {
      operators.push_back(t);
    } else {
      at->calls += t.calls;
      at->seconds += t.seconds;
    }
  }
}

std::optional<double> BenchResult::AcceptanceLength() const {
  if (speculation.rounds.empty()) return std::nullopt;
  return speculation.MeanLength();
}

std::optional<double> BenchResult::Throughput(const BenchModel& model) const {
  if (test.prompt > 0 || model.draft_tokens > 0) return std::nullopt;
  return MedianRate() * static_cast<double>(model.per_token);
}

Result<BenchFormat> ParseBenchFormat(std::string_view text) {
  constexpr std::pair<std::string_view, BenchFormat> kFormats[] = {{"md", BenchFormat::kMarkdown},
                                                                   {"csv", BenchFormat::kCsv},
                                                                   {"json", BenchFormat::kJson},
                                                                   {"jsonl", BenchFormat::kJsonl}};
  for (const auto& [name, format] : kFormats) {
    if (name == text) return format;
  }
  return Err(ErrorCode::kInvalidArgument, "output {}; expected md, csv, json or jsonl",
             Quoted(text));
}

void BenchReport::Row(const BenchModel& model, const BenchResult& result) {
  switch (format_) {
    case BenchFormat::kMarkdown:
      MarkdownRow(model, result);
      break;
    case BenchFormat::kCsv:
      CsvRow(Fields(model, result));
      break;
    case BenchFormat::kJson:
      rows_.emplace_back(Fields(model, result));
      break;
    case BenchFormat::kJsonl:
      PrintJson(Fields(model, result));
      break;
  }
  first_ = false;
}

void BenchReport::MarkdownRow(const BenchModel& m, const BenchResult& r) {
  const bool drafts = m.draft_tokens > 0;
  if (first_) {
    fmt::print(
        "| model                       |       size |     params | backend    | threads |          "
        "test |              t/s | {} |\n",
        drafts ? "accepted a round" : "MB/token |   GB/s | of read");
    fmt::print(
        "| --------------------------- | ---------: | ---------: | ---------- | ------: | "
        "------------: | ---------------: | {} |\n",
        drafts ? "---------------:" : "-------: | -----: | ------:");
  }
  fmt::print("| {:<27} | {:>10} | {:>10} | {:<10} | {:>7} | {:>13} | {:>16} | ", m.name,
             Size(m.bytes), Parameters(m.parameters), m.backends,
             m.bandwidth > 0 ? fmt::format("{}", m.threads) : "", r.test.Name(),
             fmt::format("{:.2f} ± {:.2f}", r.MeanRate(), r.RateDeviation()));
  if (drafts) {
    const auto length = r.AcceptanceLength();
    fmt::print("{:>16} |\n", length ? fmt::format("{:.2f}", *length) : "");
  } else if (const auto throughput = r.Throughput(m)) {
    fmt::print("{:>8.1f} | {:>6.2f} | {:>7} |\n", static_cast<double>(m.per_token) * 1e-6,
               *throughput * 1e-9,
               m.bandwidth > 0 ? fmt::format("{:.1f} %", 100 * *throughput / m.bandwidth) : "");
  } else {
    fmt::print("{:>8} | {:>6} | {:>7} |\n", "", "", "");
  }
  if (!r.operators.empty()) profiled_.push_back(r);
  std::fflush(stdout);
}

/// Where a row's time went, the longest first.
void BenchReport::ProfileTable(const BenchResult& r) {
  std::vector<kernels::OperatorTime> operators = r.operators;
  double rest = std::accumulate(r.seconds.begin(), r.seconds.end(), 0.0);
  const double total = rest;
  for (const kernels::OperatorTime& t : operators) rest -= t.seconds;
  operators.push_back({"between them", 0, rest});
  std::sort(operators.begin(), operators.end(),
            [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  const double tokens = static_cast<double>(r.tokens()) * static_cast<double>(r.seconds.size());
  fmt::print("\n{}: {:.1f} us a token\n\n| {:<24} | us a token |  share | us a call |\n",
             r.test.Name(), 1e6 * total / tokens, "operator");
  fmt::print("| {:-<24} | ---------: | -----: | --------: |\n", "");
  for (const kernels::OperatorTime& t : operators) {
    const auto calls = static_cast<double>(t.calls);
    fmt::print("| {:<24} | {:>10.2f} | {:>4.1f} % | {:>9} |\n", t.name, 1e6 * t.seconds / tokens,
               100 * t.seconds / total,
               t.calls > 0 ? fmt::format("{:.1f}", 1e6 * t.seconds / calls) : "");
  }
}

void BenchReport::CsvRow(const Json::Object& fields) {
  std::string names, values;
  for (const auto& [name, value] : fields) {
    if (value.is_array()) continue;  // samples are for programs that read JSON
    names += (names.empty() ? "" : ",") + name;
    values += (&value == &fields.front().second ? "" : ",") + CsvField(value);
  }
  if (first_) fmt::print("{}\n", names);
  fmt::print("{}\n", values);
  std::fflush(stdout);
}

void BenchReport::Footer(const BenchModel& m) {
  if (format_ != BenchFormat::kMarkdown) return;
  fmt::print(
      "\n{} | load {:.2f} s: {} of tensors, {} packed{} | peak memory of the process {} ({:.2f} x "
      "the "
      "tensors), {} with pages of files\n\n",
      m.bandwidth > 0
          ? fmt::format("{}, {} threads read {:.1f} GB/s", m.device, m.threads, m.bandwidth * 1e-9)
          : m.device,
      m.load_seconds, Size(m.bytes), Size(m.packed),
      m.mapped > 0 ? fmt::format(", {} left in the file", Size(m.mapped)) : "",
      Size(m.peak_anonymous), static_cast<double>(m.peak_anonymous) / static_cast<double>(m.bytes),
      Size(m.peak_resident));
  for (const BenchResult& r : profiled_) ProfileTable(r);
  if (!profiled_.empty()) fmt::print("\n");
  profiled_.clear();
  first_ = true;
}

void BenchReport::Finish() {
  if (format_ == BenchFormat::kJson) PrintJson(Json(std::move(rows_)), 2);
}

}  // namespace nibble::app
