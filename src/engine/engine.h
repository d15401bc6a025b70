#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "engine/sampler.h"
#include "engine/speculation.h"
#include "kernels/host_operators.h"
#include "model/qwen_moe.h"
#include "plan/plan.h"
#include "text/template.h"
#include "text/tokenizer.h"
#include "weights/model_weights.h"

namespace nibble::engine {

struct EngineOptions {
  plan::Wishes wishes;
  int threads = 0;  // 0: as many as AvailableCores()
  Pinning pinning = Pinning::kAuto;
  DeviceKind device = DeviceKind::kCpu;
  bool cuda_graphs = true;
  std::optional<CpuIsa> isa;  // nothing: what NIBBLE_ISA names, else this machine's best
};

/// One completion to make.
struct Request {
  std::vector<int32_t> prompt;
  int64_t max_tokens = 0;  // 0: as many as the context has room for
  SamplingParameters sampling;
  std::vector<std::string> stop;  // text that ends the answer; needs a tokenizer
  bool ignore_eos = false;
  bool keep_special = false;  // special tokens' text stays in the answer
  bool profile = false;       // fill Timings' operators
  bool after_prefix = false;  // the prompt goes on from what KeepPrefix() was given last
  /// Tokens that a round of speculation commits on average, 1 … K+1, whatever the model says of the
  /// drafts: for measurements with weights that mean nothing. 0: drafts are accepted where they are right.
  double synthetic_acceptance = 0;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled };
std::string_view NameOf(FinishReason reason);  // "stop", "length", "cancelled"

/// A stretch of a generation.
struct PhaseTime {
  double seconds = 0;      // by the clock
  double cpu_seconds = 0;  // of all threads of the process
  std::vector<kernels::OperatorTime> operators;
};

struct Timings {
  double load_seconds = 0;         // of the engine
  double first_token_seconds = 0;  // from the request to its first token: TTFT
  PhaseTime prompt;                // prefill, the first token, and the drafts after it
  PhaseTime decode;                // from there to the last token
};

struct Completion {
  std::vector<int32_t> ids;  // drawn tokens, the one that stopped included
  std::string text;          // without it; empty without a tokenizer
  FinishReason finish_reason = FinishReason::kLength;
  std::vector<float> prompt_logits;  // [vocab], of the prompt's last position
  Timings timings;
  SpeculationStats speculation;  // draft_tokens 0: there was none
};

/// What a generation tells while it runs. Return false to stop it.
using OnText = std::function<bool(std::string_view piece)>;

/// A loaded checkpoint and what runs it. One sequence at a time.
/// threads  one caller at a time
class Engine {
 public:
  /// Plans, checks, loads.
  /// errors  those of every step, before any compute
  static Result<std::unique_ptr<Engine>> Open(const std::string& dir, const EngineOptions& options,
                                              const weights::Progress& progress = {});
  /// The same of a checkpoint that is open, or that a program made; a tokenizer is looked for where
  /// it says it lies.
  static Result<std::unique_ptr<Engine>> OpenCheckpoint(checkpoint::Checkpoint checkpoint,
                                                        const EngineOptions& options,
                                                        const weights::Progress& progress = {});

  const plan::Plan& plan() const { return plan_; }
  const checkpoint::Checkpoint& checkpoint() const { return checkpoint_; }
  const weights::ModelWeights& weights() const { return weights_; }
  ThreadPool& pool() { return *pool_; }
  /// Null when the checkpoint has none, or this build cannot read it; the reason is then
  /// tokenizer_error().
  const text::Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }
  const Error& tokenizer_error() const { return tokenizer_error_; }
  Result<const text::ChatTemplate*> chat_template() const;

  /// The checkpoint's own sampling (generation_config.json); neutral where that says nothing.
  SamplingParameters default_sampling() const;
  /// Bytes of weights that one decoded token reads, drafts aside.
  uint64_t BytesPerToken() const;

  /// errors  kInvalidArgument (empty prompt, an id outside the vocabulary, a prompt longer than the
  ///         context, parameters), kInternal (NaN logits)
  Result<Completion> Generate(const Request& request, const OnText& on_text = {});

  /// Runs a prompt's beginning that many requests share, into the plan's second sequence: Generate()
  /// copies its state for each request that asks for it. The last token is left to the requests, whose
  /// own tokens the MTP module needs beside it.
  /// errors  as Generate; kInvalidArgument: the plan has one sequence
  Result<void> KeepPrefix(std::span<const int32_t> ids);

  /// Mean negative log-likelihood of each window's tokens 1..length, given all before: `length`
  /// predictions a window. tokens [>= starts + length + 1]
  Result<double> NegativeLogLikelihood(std::span<const int32_t> tokens, int64_t windows,
                                       int64_t length,
                                       const std::function<void(int64_t done)>& progress = {});

  /// For tests and tracing.
  kernels::Operators& operators() { return *operators_; }
  model::QwenMoe& model() { return *model_; }
  double load_seconds() const { return load_seconds_; }

 private:
  Engine() = default;
  Result<void> CheckRequest(const Request& request) const;
  Result<void> CheckPrompt(std::span<const int32_t> ids, size_t before) const;

  checkpoint::Checkpoint checkpoint_;
  plan::Plan plan_;
  std::unique_ptr<ThreadPool> pool_;
  weights::ModelWeights weights_;
  std::unique_ptr<kernels::Operators> operators_;
  std::optional<model::QwenMoe> model_;
  std::optional<text::Tokenizer> tokenizer_;
  Error tokenizer_error_;
  std::optional<text::ChatTemplate> template_;
  Error template_error_;
  double load_seconds_ = 0;
  std::vector<int32_t> prefix_;  // that KeepPrefix() ran
};

}  // namespace nibble::engine
