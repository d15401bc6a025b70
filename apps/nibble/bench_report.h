#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "bench_tests.h"
#include "engine/engine.h"

namespace nibble::app {

/// What the rows of one loaded model have in common.
struct BenchModel {
  std::string name, path, backends, isa;
  std::string device;  // "cpu: AMD EPYC", "sm_90: NVIDIA H200"
  bool synthetic = false;
  int layers = 0, threads = 0;
  uint64_t bytes = 0;       // of the checkpoint's tensors
  uint64_t packed = 0;      // of weights as the kernels want them
  uint64_t mapped = 0;      // of weights in the file's pages
  int64_t parameters = 0;   // of what is run
  uint64_t per_token = 0;   // bytes of weights that a decoded token reads
  int draft_tokens = 0;     // of speculation, a round; 0: none
  double bandwidth = 0;     // plain reads of a CPU's threads, bytes a second; 0: another device
  double load_seconds = 0;  // plan, check, pack
  uint64_t peak_anonymous = 0, peak_resident = 0;
};

/// One row's repetitions.
struct BenchResult {
  BenchTest test;
  std::vector<double> seconds, cpu_seconds;      // each
  std::vector<kernels::OperatorTime> operators;  // of all repetitions; empty unless profiled
  engine::SpeculationStats speculation;

  /// Adds a stretch to the last repetition.
  void Add(const engine::PhaseTime& phase);
  int64_t tokens() const { return test.prompt + test.generated; }
  double Rate(size_t i) const { return static_cast<double>(tokens()) / seconds[i]; }
  double MeanRate() const;
  double RateDeviation() const;  // of the sample: 0 for one repetition
  double MedianRate() const;
  double MedianCpuSeconds() const;
  /// Tokens a round where drafts were made.
  std::optional<double> AcceptanceLength() const;
  /// Bytes of weights a second, and their share of the bandwidth: only where every token reads them
  /// once, which is plain decoding.
  std::optional<double> Throughput(const BenchModel& model) const;
};

enum class BenchFormat : uint8_t { kMarkdown, kCsv, kJson, kJsonl };
/// errors  kInvalidArgument
Result<BenchFormat> ParseBenchFormat(std::string_view text);

/// Prints rows on stdout as they come, in one of the formats.
class BenchReport {
 public:
  explicit BenchReport(BenchFormat format) : format_(format) {}

  void Row(const BenchModel& model, const BenchResult& result);
  /// After the last row of a model: how it was loaded and what it held.
  void Footer(const BenchModel& model);
  void Finish();

 private:
  void MarkdownRow(const BenchModel& model, const BenchResult& result);
  void CsvRow(const Json::Object& fields);
  void ProfileTable(const BenchResult& result);

  BenchFormat format_;
  bool first_ = true;
  Json::Array rows_;
  std::vector<BenchResult> profiled_;  // rows of the table that is being printed
};

}  // namespace nibble::app
