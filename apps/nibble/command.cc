#include "command.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "kernels/cpu/isa.h"
#include "plan/devices.h"

namespace nibble::app {
namespace {

std::atomic<bool> interrupted{false};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Readable from a Ctrl-C on. A flag alone is missed by a read that begins just after it was set.
int interrupt_event = -1;

/// Once: a second Ctrl-C ends the process.
bool CatchInterrupt() {
  if (interrupt_event < 0) interrupt_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  struct sigaction action {};
  action.sa_handler = [](int) {
    const int saved = errno;
    interrupted = true;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(interrupt_event, &one, sizeof one);
    errno = saved;
  };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  return sigaction(SIGINT, &action, nullptr) == 0;
}

/// "cpu" is what NIBBLE_ISA leaves of this machine; other names are held against all of it.
Result<CpuIsa> IsaOf(const std::string& name) {
  NIBBLE_TRY(const CpuIsa chosen, kernels::cpu::ChooseIsa(std::getenv("NIBBLE_ISA")));
  NIBBLE_TRY(const DeviceInfo device, plan::FindDevice(name, kernels::cpu::DescribeCpu(chosen)));
  if (device.present) return device.isa;
  NIBBLE_TRY(const CpuIsa best, kernels::cpu::ChooseIsa(nullptr));
  NIBBLE_TRY(const DeviceInfo here, plan::FindPresentDevice(name, kernels::cpu::DescribeCpu(best)));
  return here.isa;
}

}  // namespace

bool ToTerminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) && (term == nullptr || std::string_view(term) != "dumb");
}

bool Interrupted() {
  // Installed on first use: verbs that never ask end on Ctrl-C as any program does.
  static const bool installed = CatchInterrupt();
  return installed && interrupted;
}

void ForgetInterrupt() {
  interrupted = false;
  CatchInterrupt();
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t taken = read(interrupt_event, &count, sizeof count);
}

bool WaitForInput() {
  while (!Interrupted()) {
    pollfd events[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_event, POLLIN, 0}};
    if (poll(events, 2, -1) > 0 && events[0].revents != 0) return true;
  }
  return false;
}

void ModelOptions::AddTo(CLI::App& app) {
  app.add_option("DIR", dir, "checkpoint directory")->required();
  app.add_option("--device", device,
                 "cpu; cuda: this machine's first GPU; cpu-avx512, cpu-avx2, cpu-scalar: the lower "
                 "instruction sets; inspect plans for any of nibble devices, here or not");
  app.add_option("--moe-backend", moe_backend,
                 "backend to force: NAME, or nvfp4=NAME,fp8=NAME,bf16=NAME")
      ->envname("NIBBLE_MOE_BACKEND");
  app.add_option("--activation-precision", activation_precision,
                 "auto (the checkpoint's own) or bf16 (raise W4A4 to W4A16)");
  app.add_option("--kv-cache-dtype", kv_cache_dtype,
                 "auto (what the checkpoint declares), f32 (CPU), bf16 or fp8");
  app.add_option("--spec", spec,
                 "speculation: none, or mtp:K to draft K tokens a step with the MTP module");
  app.add_flag("--batch-invariant", batch_invariant,
               "a token's numbers do not depend on how many are computed with it: chunks and "
               "speculation change no bit; prefill is slower");
  app.add_flag("--no-repack", no_repack,
               "leave the weights in the file's pages: instant start and little memory of its own, "
               "the same numbers, but slower, since they are packed each time they are used");
  app.add_flag("--no-cuda-graphs", no_cuda_graphs,
               "launch every kernel of a step by itself, to compare");
  app.add_option("--ctx", context,
                 "tokens of context to reserve (default: the model's own, up to 32768)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  app.add_option("-t,--threads", threads,
                 "threads (default: one a physical core, no more than a container's quota)")
      ->check(CLI::Range(0, 1024));
  app.add_option("--pin", pinning,
                 "auto (with several NUMA nodes each thread keeps to one), none, or cores (each to "
                 "a core of its own)")
      ->envname("NIBBLE_PIN");
  app.add_flag("--json", json, "one JSON object on stdout, for programs");
}

Result<engine::EngineOptions> ModelOptions::Parse() const {
  engine::EngineOptions out;
  out.threads = threads;
  const std::optional<Pinning> pin = ParsePinning(pinning);
  if (!pin) {
    return Err(ErrorCode::kInvalidArgument, "--pin {}: expected auto, none or cores", pinning);
  }
  out.pinning = *pin;
  out.cuda_graphs = !no_cuda_graphs;
  out.wishes.context = context;
  out.wishes.batch_invariant = batch_invariant;
  out.wishes.map_weights = no_repack;
  NIBBLE_CHECK_OK(plan::ParseMoeBackend(moe_backend, &out.wishes));
  NIBBLE_CHECK_OK(plan::ParseActivationPrecision(activation_precision, &out.wishes));
  NIBBLE_CHECK_OK(plan::ParseKvDtype(kv_cache_dtype, &out.wishes));
  NIBBLE_CHECK_OK(plan::ParseSpeculation(spec, &out.wishes));
  return out;
}

Result<engine::EngineOptions> ModelOptions::ParseToRun() const {
  NIBBLE_TRY(engine::EngineOptions out, Parse());
  if (device == "cuda") {
    out.device = DeviceKind::kCuda;
  } else {
    NIBBLE_TRY(out.isa, IsaOf(device));
  }
  return out;
}

Result<std::unique_ptr<engine::Engine>> OpenEngine(const ModelOptions& options) {
  NIBBLE_TRY(const engine::EngineOptions engine_options, options.ParseToRun());
  ProgressBar bar("preparing weights");
  return engine::Engine::Open(options.dir, engine_options, [&](uint64_t done, uint64_t total) {
    bar.Update(done, total, "MB");
  });
}

Result<std::vector<int32_t>> ParseIds(std::string_view text) {
  std::vector<int32_t> out;
  while (!text.empty()) {
    const size_t end = text.find_first_of(", \n\t");
    const std::string_view item = text.substr(0, end);
    text = end == text.npos ? std::string_view{} : text.substr(end + 1);
    if (item.empty()) continue;
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(item.data(), item.data() + item.size(), id);
    if (error != std::errc() || stop != item.data() + item.size() || id < 0) {
      return Err(ErrorCode::kInvalidArgument, "\"{}\" is no token id", item.substr(0, 32));
    }
    out.push_back(id);
  }
  return out;
}

int Fail(const Error& error, bool json) {
  fmt::print(stderr, "nibble: error: {}\n", error.Message());
  if (json) {
    Json::Object body = {{"code", Json(NameOf(error.code))}, {"message", Json(error.Message())}};
    if (!error.candidates.empty()) {
      Json::Array candidates;
      for (const Candidate& c : error.candidates) {
        Json::Array reasons(c.reasons.begin(), c.reasons.end());
        candidates.push_back(
            Json::Object{{"backend", Json(c.name)}, {"reasons", Json(std::move(reasons))}});
      }
      body.emplace_back("candidates", Json(std::move(candidates)));
    }
    PrintJson(Json::Object{{"error", Json(std::move(body))}});
  }
  return ExitCodeOf(error.code);
}

void PrintJson(const Json& value, int indent) {
  JsonStyle style;
  style.indent = indent;
  if (indent > 0) style.comma = ",";
  fmt::print("{}\n", WriteJson(value, style));
  std::fflush(stdout);
}

Json SpeculationJson(const engine::SpeculationStats& stats) {
  Json::Array rates, accepted;
  for (double rate : stats.PositionRates()) rates.push_back(Json(rate));
  for (const auto& round : stats.rounds) accepted.push_back(Json(round.accepted));
  return Json::Object{{"draft_tokens", Json(stats.draft_tokens)},
                      {"rounds", Json(static_cast<int64_t>(stats.rounds.size()))},
                      {"mean_acceptance_length", Json(stats.MeanLength())},
                      {"draft_acceptance_rate", Json(stats.AcceptanceRate())},
                      {"position_rates", Json(std::move(rates))},
                      {"accepted", Json(std::move(accepted))}};
}

std::string SpeculationText(const engine::SpeculationStats& stats) {
  std::string rates;
  for (double rate : stats.PositionRates()) rates += fmt::format(" {:.0f} %", 100 * rate);
  return fmt::format("mtp:{} | {} rounds | mean acceptance length {:.2f} | accepted by position{}",
                     stats.draft_tokens, stats.rounds.size(), stats.MeanLength(), rates);
}

ProgressBar::ProgressBar(std::string label) : label_(std::move(label)), start_(Now()) {}

ProgressBar::~ProgressBar() {
  if (shown_) fmt::print(stderr, "\r\033[K");
}

void ProgressBar::Update(uint64_t done, uint64_t total, std::string_view unit) {
  static const bool terminal = ToTerminal();
  const double now = Now();
  // Short work shows nothing; longer work at most ten times a second.
  if (!terminal || total == 0 || now - start_ < 0.3 || (now - last_ < 0.1 && done < total)) return;
  last_ = now;
  shown_ = true;
  constexpr int kWidth = 30;
  const double part = static_cast<double>(done) / static_cast<double>(total);
  const int filled = static_cast<int>(part * kWidth);
  const double scale = unit == "MB" ? 1e-6 : 1;
  fmt::print(stderr, "\r{} [{:=<{}}{: <{}}] {:.0f}/{:.0f} {}  {:.1f} {}/s  {:.0f} s left\033[K",
             label_, "", filled, "", kWidth - filled, static_cast<double>(done) * scale,
             static_cast<double>(total) * scale, unit,
             static_cast<double>(done) * scale / (now - start_), unit,
             (now - start_) * (1 - part) / std::max(part, 1e-9));
}

}  // namespace nibble::app
