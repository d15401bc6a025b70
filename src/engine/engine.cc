#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "base/log.h"
#include "kernels/cpu/isa.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"

namespace nibble::engine {
namespace {

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Text on its way out: tokens become characters, characters are watched for stop strings, what is
/// certain is sent.
class TextSink {
 public:
  static Result<TextSink> Make(const text::Tokenizer* tokenizer, const Request& request,
                               const OnText& on_text) {
    TextSink sink;
    if (tokenizer == nullptr) {
      if (request.stop.empty()) return sink;
      return Err(ErrorCode::kInvalidArgument,
                 "stop strings need a tokenizer, and this checkpoint has none");
    }
    NIBBLE_TRY(text::StopStrings stops, text::StopStrings::Make(request.stop));
    sink.decoder_.emplace(*tokenizer, !request.keep_special);
    sink.stops_.emplace(std::move(stops));
    sink.on_text_ = &on_text;
    return sink;
  }

  enum class State : uint8_t { kGoing, kMatched, kCancelled };

  State Push(int32_t id) {
    if (!decoder_) return State::kGoing;
    const text::StopStrings::Output output = stops_->Push(decoder_->Push(id));
    if (!Send(output.text)) return State::kCancelled;
    matched_ = output.matched.has_value();
    return matched_ ? State::kMatched : State::kGoing;
  }

  std::string Finish() {
    if (decoder_ && !matched_) {
      const text::StopStrings::Output last = stops_->Push(decoder_->Finish());
      Send(last.text);
      if (!last.matched) Send(stops_->Finish());
    }
    return std::move(text_);
  }

 private:
  bool Send(std::string_view piece) {
    if (piece.empty()) return true;
    text_ += piece;
    return !*on_text_ || (*on_text_)(piece);
  }

  std::optional<text::StreamDecoder> decoder_;
  std::optional<text::StopStrings> stops_;
  const OnText* on_text_ = nullptr;
  std::string text_;
  bool matched_ = false;
};

}  // namespace

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
  std::unique_ptr<Engine> e(new Engine());
  NIBBLE_TRY(const CpuIsa isa, options.isa ? kernels::cpu::ChooseIsa(NameOf(*options.isa).data())
                                           : kernels::cpu::ChooseIsa(std::getenv("NIBBLE_ISA")));
  NIBBLE_TRY(e->checkpoint_, checkpoint::Checkpoint::Open(dir));
  NIBBLE_TRY(e->plan_,
             plan::MakePlan(e->checkpoint_, kernels::cpu::DescribeCpu(isa), options.wishes));
  for (const std::string& warning : e->plan_.warnings) Log(LogLevel::kWarning, "plan {}", warning);
  e->pool_ = std::make_unique<ThreadPool>(options.threads > 0 ? options.threads : AvailableCores());
  NIBBLE_TRY(e->weights_, weights::LoadWeights(e->checkpoint_, e->plan_, *e->pool_, progress));
  e->operators_ = std::make_unique<kernels::HostOperators>(e->plan_.glue, isa, *e->pool_);
  NIBBLE_TRY(e->model_, model::QwenMoe::Create(
                            e->plan_.model, e->weights_, *e->operators_,
                            {1, e->plan_.context, e->plan_.kv_dtype, e->plan_.draft_tokens + 1}));

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
    // Four bits and one e4m3 scale for 16, or 16 bits.
    const double bytes = m.effective.weight ? 0.5625 : 2;
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
  if (request.prompt.empty()) return Err(ErrorCode::kInvalidArgument, "the prompt has no tokens");
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= plan_.model.vocab) {
      return Err(ErrorCode::kInvalidArgument, "prompt token {} is id {}, expected 0 … {}", i,
                 request.prompt[i], plan_.model.vocab - 1);
    }
  }
  if (static_cast<int64_t>(request.prompt.size()) > plan_.context) {
    Error error = Err(ErrorCode::kInvalidArgument,
                      "the prompt has {} tokens, the maximum context length is {}",
                      request.prompt.size(), plan_.context);
    error.hint = "ask for more with --ctx, or shorten it";
    return error;
  }
  return {};
}

Result<void> Engine::Prefill(std::span<const int32_t> prompt, std::span<float> last_logits) {
  const int64_t n = static_cast<int64_t>(prompt.size());
  for (int64_t start = 0; start < n; start += plan::kMaxBatchTokens) {
    const int64_t rows = std::min(plan::kMaxBatchTokens, n - start);
    const kernels::SequenceRows sequence{0, 0, rows, start};
    NIBBLE_CHECK_OK(model_->Forward(prompt.subspan(start, rows), {&sequence, 1}));
    const int64_t last = rows - 1;
    if (start + rows == n) NIBBLE_CHECK_OK(model_->Logits({&last, 1}, last_logits));
  }
  return {};
}

Result<Completion> Engine::Generate(const Request& request, const OnText& on_text) {
  NIBBLE_CHECK_OK(CheckRequest(request));
  const int64_t vocab = plan_.model.vocab, n_prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t drawable = tokenizer_ ? std::min<int64_t>(tokenizer_->vocab_size(), vocab) : vocab;
  const int64_t room = plan_.context - n_prompt + 1;  // the last token need not be cached
  const int64_t max_tokens = request.max_tokens > 0 ? std::min(request.max_tokens, room) : room;
  Sampler sampler(request.sampling, vocab, drawable, request.prompt);
  NIBBLE_TRY(TextSink sink, TextSink::Make(tokenizer(), request, on_text));

  Completion out;
  out.timings.load_seconds = load_seconds_;
  const Stopwatch prompt_watch;
  std::vector<float> logits(vocab);
  NIBBLE_CHECK_OK(Prefill(request.prompt, logits));
  out.prompt_logits = logits;
  std::optional<Stopwatch> decode_watch;
  while (true) {
    NIBBLE_TRY(const int32_t id, sampler.Next(logits));
    out.ids.push_back(id);
    if (!decode_watch) {
      out.timings.prompt_seconds = prompt_watch.Seconds();
      decode_watch.emplace();
    }
    const std::vector<int32_t>& eos = plan_.model.eos_ids;
    if (!request.ignore_eos && std::find(eos.begin(), eos.end(), id) != eos.end()) {
      out.finish_reason = FinishReason::kStop;
      break;
    }
    const TextSink::State state = sink.Push(id);
    if (state != TextSink::State::kGoing) {
      out.finish_reason =
          state == TextSink::State::kMatched ? FinishReason::kStop : FinishReason::kCancelled;
      break;
    }
    if (static_cast<int64_t>(out.ids.size()) == max_tokens) break;
    const kernels::SequenceRows sequence{0, 0, 1,
                                         n_prompt + static_cast<int64_t>(out.ids.size()) - 1};
    NIBBLE_CHECK_OK(model_->Forward({&id, 1}, {&sequence, 1}));
    const int64_t row = 0;
    NIBBLE_CHECK_OK(model_->Logits({&row, 1}, logits));
  }
  out.timings.decode_seconds = decode_watch->Seconds();
  out.text = sink.Finish();
  return out;
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
    for (int64_t start = 0; start < length; start += plan::kMaxBatchTokens) {
      const int64_t batch = std::min(plan::kMaxBatchTokens, length - start);
      const kernels::SequenceRows sequence{0, 0, batch, start};
      NIBBLE_CHECK_OK(model_->Forward(window.subspan(start, batch), {&sequence, 1}));
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
