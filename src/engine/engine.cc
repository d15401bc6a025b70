#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/log.h"
#include "base/stopwatch.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/cuda.h"

namespace nibble::engine {

std::string_view NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "?";
}

Result<std::unique_ptr<Engine>> Engine::Open(const std::string& dir, const EngineOptions& options,
                                             const weights::Progress& progress) {
  const Stopwatch watch;
  NIBBLE_TRY(checkpoint::Checkpoint checkpoint, checkpoint::Checkpoint::Open(dir));
  Log(LogLevel::kInfo, "checkpoint tensors={} bytes={} open_s={:.3f}", checkpoint.tensors().size(),
      checkpoint.total_bytes(), watch.Seconds());
  NIBBLE_TRY(std::unique_ptr<Engine> e, OpenCheckpoint(std::move(checkpoint), options, progress));
  e->load_seconds_ = watch.Seconds();
  return e;
}

Result<std::unique_ptr<Engine>> Engine::OpenCheckpoint(checkpoint::Checkpoint checkpoint,
                                                       const EngineOptions& options,
                                                       const weights::Progress& progress) {
  const Stopwatch watch;
  std::unique_ptr<Engine> e(new Engine());
  e->checkpoint_ = std::move(checkpoint);
  const std::string& dir = e->checkpoint_.dir();
  NIBBLE_TRY(const CpuIsa isa, options.isa ? kernels::cpu::ChooseIsa(NameOf(*options.isa).data())
                                           : kernels::cpu::ChooseIsa(std::getenv("NIBBLE_ISA")));
  DeviceInfo device = kernels::cpu::DescribeCpu(isa);
  if (options.device == DeviceKind::kCuda) {
    NIBBLE_TRY(device, cuda::DescribeDevice());
  }
  NIBBLE_TRY(e->plan_, plan::MakePlan(e->checkpoint_, device, options.wishes));
  for (const std::string& warning : e->plan_.warnings) Log(LogLevel::kWarning, "plan {}", warning);
  e->pool_ = OpenThreadPool(options.threads, options.pinning);
  const double planned = watch.Seconds();
  NIBBLE_TRY(e->weights_, weights::LoadWeights(e->checkpoint_, e->plan_, *e->pool_, progress));
  const double loaded = watch.Seconds();
  if (device.kind == DeviceKind::kCuda) {
    NIBBLE_TRY(e->operators_, cuda::MakeOperators({options.cuda_graphs}));
  } else {
    e->operators_ = std::make_unique<kernels::HostOperators>(e->plan_.glue, isa, *e->pool_,
                                                             e->plan_.batch_invariant);
  }
  NIBBLE_TRY(e->model_, model::QwenMoe::Create(
                            e->plan_.model, e->weights_, *e->operators_,
                            {e->plan_.sequences, e->plan_.context, e->plan_.kv_dtype,
                             e->plan_.draft_tokens + 1, plan::MaxBatchTokens(device.kind)}));
  const double made = watch.Seconds();

  if (auto tokenizer = text::Tokenizer::Load(dir)) {
    e->tokenizer_ = *std::move(tokenizer);
  } else if (tokenizer.error().code == ErrorCode::kNotFound ||
             tokenizer.error().code == ErrorCode::kUnsupported) {
    e->tokenizer_error_ = std::move(tokenizer).error();
  } else {
    return std::move(tokenizer).error();
  }
  if (auto found = text::LoadChatTemplate(dir)) {
    e->template_ = *std::move(found);
  } else {
    e->template_error_ = std::move(found).error();
  }
  e->load_seconds_ = watch.Seconds();
  Log(LogLevel::kInfo, "load plan_s={:.3f} weights_s={:.3f} operators_s={:.3f} text_s={:.3f}",
      planned, loaded - planned, made - loaded, e->load_seconds_ - made);
  return e;
}

Result<const text::ChatTemplate*> Engine::chat_template() const {
  if (!template_) return Error(template_error_);
  return &*template_;
}

SamplingParameters Engine::default_sampling() const {
  const checkpoint::SamplingDefaults& d = plan_.model.sampling;
  SamplingParameters p;
  p.temperature = d.do_sample.value_or(true) ? d.temperature.value_or(1) : 0;
  p.top_k = d.top_k.value_or(0);
  p.top_p = d.top_p.value_or(1);
  p.min_p = d.min_p.value_or(0);
  p.repetition_penalty = d.repetition_penalty.value_or(1);
  p.presence_penalty = d.presence_penalty.value_or(0);
  p.frequency_penalty = d.frequency_penalty.value_or(0);
  return p;
}

uint64_t Engine::BytesPerToken() const {
  uint64_t total = 0;
  for (const plan::PlannedModule& m : plan_.modules) {
    if (m.spec.name.starts_with("mtp.")) continue;  // which drafts, and reads for what it drafts
    // Four bits and one e4m3 scale for 16, a byte, or 16 bits.
    const double bytes = !m.effective.weight ? 2 : m.effective.weight == kNvfp4Static ? 0.5625 : 1;
    const checkpoint::ModuleSpec& s = m.spec;
    double elements = 0;
    switch (s.kind) {
      case checkpoint::ModuleKind::kExperts:
        elements = 3.0 * plan_.model.top_k * static_cast<double>(s.k) *
                   static_cast<double>(s.moe_intermediate);
        break;
      case checkpoint::ModuleKind::kLinear:
      case checkpoint::ModuleKind::kLmHead:
      case checkpoint::ModuleKind::kRouter:
      case checkpoint::ModuleKind::kConv:
        elements = static_cast<double>(s.n) * static_cast<double>(s.k);
        break;
      case checkpoint::ModuleKind::kEmbedding:
      case checkpoint::ModuleKind::kNorm:
        break;
    }
    total += static_cast<uint64_t>(elements * bytes);
  }
  return total;
}

Result<void> Engine::CheckRequest(const Request& request) const {
  NIBBLE_CHECK_OK(request.sampling.Check());
  const double length = request.synthetic_acceptance;
  if (length != 0 && !(length >= 1 && length <= plan_.draft_tokens + 1)) {
    return Err(ErrorCode::kInvalidArgument,
               "{} accepted tokens a round with {} drafts, expected 1 … {}", length,
               plan_.draft_tokens, plan_.draft_tokens + 1);
  }
  if (request.after_prefix && prefix_.empty())
    return Err(ErrorCode::kInvalidArgument, "a request after a prefix, and none was kept");
  return CheckPrompt(request.prompt, request.after_prefix ? prefix_.size() : 0);
}

/// Of ids behind `before` others.
Result<void> Engine::CheckPrompt(std::span<const int32_t> ids, size_t before) const {
  if (ids.empty()) return Err(ErrorCode::kInvalidArgument, "the prompt has no tokens");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= plan_.model.vocab) {
      return Err(ErrorCode::kInvalidArgument, "prompt token {} is id {}, expected 0 … {}", i,
                 ids[i], plan_.model.vocab - 1);
    }
  }
  if (static_cast<int64_t>(before + ids.size()) > plan_.context) {
    Error error = Err(ErrorCode::kInvalidArgument,
                      "the prompt has {} tokens, the maximum context length is {}",
                      before + ids.size(), plan_.context);
    error.hint = "ask for more with --ctx, or shorten it";
    return error;
  }
  return {};
}

Result<double> Engine::NegativeLogLikelihood(std::span<const int32_t> tokens, int64_t windows,
                                             int64_t length,
                                             const std::function<void(int64_t)>& progress) {
  const int64_t n = static_cast<int64_t>(tokens.size()), vocab = plan_.model.vocab;
  if (windows < 1 || length < 1 || length > plan_.context ||
      (windows - 1) * (n / windows) + length + 1 > n) {
    return Err(ErrorCode::kInvalidArgument,
               "{} windows of {} tokens do not fit {} tokens and a context of {}", windows, length,
               n, plan_.context);
  }
  for (int32_t id : tokens) {
    if (id < 0 || id >= vocab)
      return Err(ErrorCode::kInvalidArgument, "token id {}, expected 0 … {}", id, vocab - 1);
  }
  double total = 0;
  std::vector<float> logits;
  std::vector<int64_t> rows;
  for (int64_t w = 0; w < windows; ++w) {
    const std::span<const int32_t> window = tokens.subspan(w * (n / windows), length + 1);
    const int64_t most = plan::MaxBatchTokens(plan_.device.kind);
    for (int64_t start = 0; start < length; start += most) {
      const int64_t batch = std::min(most, length - start);
      const kernels::SequenceRows sequence{0, 0, batch, start};
      model_->Forward(window.subspan(start, batch), {&sequence, 1});
      for (int64_t first = 0; first < batch; first += model::QwenMoe::kLogitRows) {
        const int64_t count = std::min(model::QwenMoe::kLogitRows, batch - first);
        rows.resize(count);
        for (int64_t i = 0; i < count; ++i) rows[i] = first + i;
        logits.resize(count * vocab);
        NIBBLE_CHECK_OK(model_->Logits(rows, logits));
        for (int64_t i = 0; i < count; ++i) {
          const std::span<const float> row(logits.data() + i * vocab, vocab);
          const double largest = *std::max_element(row.begin(), row.end());
          double sum = 0;
          for (float v : row) sum += std::exp(v - largest);
          total += largest + std::log(sum) - row[window[start + first + i + 1]];
        }
      }
    }
    if (progress) progress(w + 1);
  }
  return total / static_cast<double>(windows * length);
}

}  // namespace nibble::engine
