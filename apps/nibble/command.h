#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>

#include "base/json.h"
#include "engine/engine.h"

namespace nibble::app {

// What the verbs share. One file a verb; each adds itself to the command line and runs when chosen.

/// What a verb ends with: an exit code (ExitCodeOf), the error already told.
using Verb = std::function<int()>;

/// Options of every verb that loads a model.
struct ModelOptions {
  std::string dir;
  std::string device = "cpu";
  std::string moe_backend, activation_precision = "auto", kv_cache_dtype = "auto", spec;
  int64_t context = 0;
  int threads = 0;
  std::string pinning = "auto";
  bool json = false, batch_invariant = false, no_repack = false, no_cuda_graphs = false;

  void AddTo(CLI::App& app);
  Result<engine::EngineOptions> Parse() const;
  /// With the device that --device names, which must be here.
  /// errors  kDevice
  Result<engine::EngineOptions> ParseToRun() const;
};

/// Loads with a progress bar on a terminal, for the device that the options name.
/// errors  kDevice (it is not here), and those of Engine::Open
Result<std::unique_ptr<engine::Engine>> OpenEngine(const ModelOptions& options);

/// Token ids separated by commas or white space.
/// errors  kInvalidArgument naming what is no id
Result<std::vector<int32_t>> ParseIds(std::string_view text);

/// Tells an error on stderr, and on stdout as {"error": …} when programs listen; gives its exit
/// code.
int Fail(const Error& error, bool json);

/// Prints one JSON value and a newline on stdout.
void PrintJson(const Json& value, int indent = 0);

/// A line that overwrites itself on a terminal; elsewhere nothing at all.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  void Update(uint64_t done, uint64_t total, std::string_view unit);

 private:
  std::string label_;
  bool shown_ = false;
  double start_ = 0, last_ = 0;
};

/// What speculation did: {"draft_tokens", "rounds", "mean_acceptance_length",
/// "draft_acceptance_rate", "position_rates", "accepted"} and one line for people.
Json SpeculationJson(const engine::SpeculationStats& stats);
std::string SpeculationText(const engine::SpeculationStats& stats);

/// Set by Ctrl-C; generation stops at the next token. A second Ctrl-C ends the process.
bool Interrupted();
/// For verbs that go on after a Ctrl-C: forgets it, and catches the next.
void ForgetInterrupt();
/// Waits until standard input has something to read, or its end; false where Ctrl-C comes first.
bool WaitForInput();

/// Whether stderr is a terminal that can overwrite and colour.
bool ToTerminal();

Verb AddRun(CLI::App& app);
Verb AddChat(CLI::App& app);
Verb AddInspect(CLI::App& app);
Verb AddVerify(CLI::App& app);
Verb AddDevices(CLI::App& app);
Verb AddTokenize(CLI::App& app);
Verb AddDetokenize(CLI::App& app);
Verb AddEval(CLI::App& app);
Verb AddBench(CLI::App& app);
Verb AddSynth(CLI::App& app);

}  // namespace nibble::app
