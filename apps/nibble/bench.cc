#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/memory_use.h"
#include "base/read_bandwidth.h"
#include "bench_report.h"
#include "bench_requests.h"
#include "bench_tests.h"
#include "command.h"
#include "synth/noise.h"
#include "synth_options.h"

namespace nibble::app {
namespace {

struct Arguments {
  ModelOptions model;
  SynthOptions synth;
  std::string synthetic;  // directory of configs
  std::vector<std::string> prompts, generated, pairs, depths;
  std::string threads, output = "md";
  int repetitions = 5;
  bool profile = false;
  RequestBench requests;
};

/// The most that the process held of its own, looked at now and then.
class MemoryWatch {
 public:
  void Look() { peak_ = std::max(peak_, ReadMemoryUse().anonymous); }
  /// For callers that are called often.
  void LookAt(uint64_t done, uint64_t total) {
    if (done < next_ && done < total) return;
    next_ = done + total / 64;
    Look();
  }
  uint64_t peak() const { return peak_; }

 private:
  uint64_t peak_ = 0, next_ = 0;
};

Result<std::unique_ptr<engine::Engine>> Load(const Arguments& a,
                                             const engine::EngineOptions& options,
                                             MemoryWatch* memory) {
  ProgressBar bar("preparing weights");
  const auto progress = [&](uint64_t done, uint64_t total) {
    bar.Update(done, total, "MB");
    memory->LookAt(done, total);
  };
  if (a.synthetic.empty()) return engine::Engine::Open(a.model.dir, options, progress);
  NIBBLE_TRY(const synth::Options what, a.synth.Parse());
  NIBBLE_TRY(checkpoint::CheckpointParts parts, synth::Synthesize(a.synthetic, what));
  return engine::Engine::OpenCheckpoint(checkpoint::Checkpoint::FromParts(std::move(parts)),
                                        options, progress);
}

int64_t ParametersOf(const plan::Plan& plan) {
  int64_t total = 0;
  for (const plan::PlannedModule& m : plan.modules) {
    const checkpoint::ModuleSpec& s = m.spec;
    total += s.kind == checkpoint::ModuleKind::kExperts
                 ? 3 * int64_t{s.experts} * s.k * s.moe_intermediate
                 : s.n * std::max<int64_t>(s.k, 1);
  }
  return total;
}

/// Those that run multiplications, each once.
std::string BackendsOf(const plan::Plan& plan) {
  std::vector<std::string_view> names;
  for (const plan::PlannedModule& m : plan.modules) {
    const std::string_view name = NameOf(m.kernel->backend);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return fmt::format("{}", fmt::join(names, "+"));
}

BenchModel Describe(const Arguments& a, engine::Engine& engine) {
  const plan::Plan& plan = engine.plan();
  BenchModel m;
  m.synthetic = !a.synthetic.empty();
  m.path = m.synthetic ? a.synthetic : a.model.dir;
  std::filesystem::path path = std::filesystem::path(m.path).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  m.name = path.filename().string();
  if (m.synthetic) m.name += " (synthetic)";
  m.layers = plan.model.n_layers;
  m.backends = BackendsOf(plan);
  m.isa = NameOf(plan.device.isa);
  m.device = plan.device.model.empty() ? plan.device.name
                                       : fmt::format("{}: {}", plan.device.name, plan.device.model);
  m.threads = engine.pool().threads();
  m.bytes = engine.checkpoint().total_bytes();
  m.packed = plan.memory.weights;
  m.mapped = plan.memory.mapped;
  m.parameters = ParametersOf(plan);
  m.per_token = engine.BytesPerToken();
  m.draft_tokens = plan.draft_tokens;
  m.load_seconds = engine.load_seconds();
  return m;
}

/// Ids that are the same in every run, and all over the vocabulary.
std::vector<int32_t> PromptOf(int64_t length, int vocab, std::string_view what = "prompt") {
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(synth::Hash(i, what) % static_cast<uint64_t>(vocab));
  }
  return ids;
}

Result<BenchResult> Measure(engine::Engine& engine, const BenchTest& test, int repetitions,
                            bool profile) {
  BenchResult result;
  result.test = test;
  engine::Request request;
  request.profile = profile;
  request.prompt =
      PromptOf(std::max<int64_t>(test.prompt + test.depth, 1), engine.plan().model.vocab);
  request.max_tokens = test.generated + 1;  // the prompt's own pass gives the first
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  for (int i = -1; i < repetitions; ++i) {  // the first is not counted
    NIBBLE_TRY(const engine::Completion c, engine.Generate(request));
    if (static_cast<int64_t>(c.ids.size()) != request.max_tokens) {
      return Err(ErrorCode::kInternal, "{} gave {} tokens, expected {}", test.Name(), c.ids.size(),
                 request.max_tokens);
    }
    if (i < 0) continue;
    result.seconds.push_back(0);
    result.cpu_seconds.push_back(0);
    if (test.prompt > 0) result.Add(c.timings.prompt);
    if (test.generated > 0) result.Add(c.timings.decode);
    result.speculation.draft_tokens = c.speculation.draft_tokens;
    auto& rounds = result.speculation.rounds;
    rounds.insert(rounds.end(), c.speculation.rounds.begin(), c.speculation.rounds.end());
  }
  return result;
}

Result<void> BenchThreads(const Arguments& a, const std::vector<BenchTest>& tests, int threads,
                          BenchReport* report) {
  NIBBLE_TRY(engine::EngineOptions options, a.model.ParseToRun());
  options.threads = threads;
  int64_t longest = 0;
  for (const BenchTest& test : tests)
    longest = std::max(longest, std::max<int64_t>(test.prompt + test.depth, 1) + test.generated);
  if (options.wishes.context == 0) options.wishes.context = longest + 1;
  // Before the model is there: it needs half a GiB, which shall not count as the model's.
  const double bandwidth = [&] {
    if (options.device != DeviceKind::kCpu) return 0.0;
    return PlainReadBandwidth(*OpenThreadPool(options.threads, options.pinning));
  }();
  MemoryWatch memory;
  NIBBLE_TRY(const std::unique_ptr<engine::Engine> engine, Load(a, options, &memory));
  memory.Look();
  BenchModel model = Describe(a, *engine);
  model.bandwidth = bandwidth;
  for (const BenchTest& test : tests) {
    NIBBLE_TRY(const BenchResult result, Measure(*engine, test, a.repetitions, a.profile));
    memory.Look();
    model.peak_anonymous = memory.peak();
    model.peak_resident = ReadMemoryUse().peak_resident;
    report->Row(model, result);
  }
  report->Footer(model);
  return {};
}

Result<void> BenchRequests(const Arguments& a) {
  NIBBLE_TRY(engine::EngineOptions options, a.model.ParseToRun());
  if (!a.threads.empty()) {
    NIBBLE_TRY(const auto threads, ParseNumbers(a.threads, 0, 1024));
    if (threads.size() != 1)
      return Err(ErrorCode::kInvalidArgument, "--requests with {} numbers of threads, expected one",
                 threads.size());
    options.threads = static_cast<int>(threads[0]);
  }
  options.wishes.sequences = a.requests.prefix > 0 ? 2 : 1;
  if (options.wishes.context == 0) options.wishes.context = a.requests.Context();
  MemoryWatch memory;
  NIBBLE_TRY(const std::unique_ptr<engine::Engine> engine, Load(a, options, &memory));
  const int vocab = engine->plan().model.vocab;
  const auto ids = [&](int64_t length, int64_t request) {
    return PromptOf(length, vocab, fmt::format("request {}", request));
  };
  NIBBLE_TRY(const RequestFigures figures, RunRequests(*engine, a.requests, ids));
  const BenchModel model = Describe(a, *engine);
  if (a.model.json || a.output == "json") {
    PrintJson(RequestsJson(model, a.requests, figures), 2);
  } else {
    PrintRequests(model, a.requests, figures);
  }
  return {};
}

Result<void> Bench(const Arguments& a) {
  NIBBLE_TRY(const BenchFormat format, ParseBenchFormat(a.model.json ? "json" : a.output));
  NIBBLE_TRY(const auto tests, ParseBenchTests(a.prompts, a.generated, a.pairs, a.depths));
  std::vector<int64_t> threads = {0};
  if (!a.threads.empty()) {
    NIBBLE_TRY(threads, ParseNumbers(a.threads, 0, 1024));
  }
  if (a.model.dir.empty() == a.synthetic.empty()) {
    return Err(ErrorCode::kInvalidArgument,
               "expected a checkpoint's directory, or --synthetic and one of configs");
  }
  if (a.requests.requests > 0) return BenchRequests(a);
  BenchReport report(format);
  for (const int64_t count : threads)
    NIBBLE_CHECK_OK(BenchThreads(a, tests, static_cast<int>(count), &report));
  report.Finish();
  return {};
}

}  // namespace

Verb AddBench(CLI::App& app) {
  auto a = std::make_shared<Arguments>();
  a->model.AddTo(app);
  app.get_option("DIR")->required(false);
  app.remove_option(app.get_option("--threads"));
  const auto list = [&](const char* name, std::vector<std::string>* to, const char* what) {
    return app.add_option(name, *to, what)->allow_extra_args(false)->take_all();
  };
  list("-p,--n-prompt", &a->prompts, "prompt lengths to measure: 512, 64,512, 128-1024*2")
      ->default_val("512");
  list("-n,--n-gen", &a->generated, "numbers of tokens to decode, in the same words")
      ->default_val("128");
  list("-d,--n-depth", &a->depths, "tokens in the cache before those of -n, in the same words")
      ->default_val("0");
  list("--pg", &a->pairs, "-pg 512,128: a prompt and tokens after it, as one figure");
  app.add_option("-t,--threads", a->threads,
                 "threads, in the same words (default: one a physical core)");
  app.add_option("-r,--repetitions", a->repetitions, "times that each row is measured")
      ->check(CLI::Range(1, 1000));
  app.add_flag("--profile", a->profile, "where the time goes, operator by operator");
  app.add_option("-o,--output", a->output, "md, csv, json or jsonl");
  app.add_option("--synthetic", a->synthetic,
                 "instead of a checkpoint: random weights in memory, of this directory's configs "
                 "(nibble synth)");
  a->synth.AddTo(app);
  // Requests instead of -p and -n.
  const auto count = [&](const char* name, int64_t* to, int64_t least, const char* what) {
    return app.add_option(name, *to, what)->check(CLI::Range(least, int64_t{1} << 24));
  };
  auto* const requests = count("--requests", &a->requests.requests, 1,
                               "measure so many requests one after the other, as a server's one "
                               "user makes them: TTFT, ITL, latency, output tok/s");
  count("--warmup", &a->requests.warmup, 0, "requests before those that count")->needs(requests);
  count("--input-len", &a->requests.input, 1, "tokens of each request")->needs(requests);
  count("--output-len", &a->requests.output, 1, "tokens to generate for each")->needs(requests);
  count("--prefix-len", &a->requests.prefix, 0,
        "tokens before those that all requests share: prefilled once, copied for each")
      ->needs(requests);
  app.add_option("--synthetic-acceptance", a->requests.acceptance,
                 "tokens that a round of --spec commits on average, 1 … K+1, whatever the drafts "
                 "are: for weights that mean nothing")
      ->needs(requests);
  return [a] {
    auto done = Bench(*a);
    return done ? 0 : Fail(done.error(), a->model.json);
  };
}

}  // namespace nibble::app
