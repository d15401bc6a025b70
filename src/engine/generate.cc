#include <algorithm>
#include <optional>

#include "base/stopwatch.h"
#include "engine/engine.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"

namespace nibble::engine {
namespace {

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

constexpr int kPrefixSlot = 1;

/// One completion on its way: what was drawn, and what the model's slot holds of it.
class Generation {
 public:
  /// `before`: positions of the slot that have run already; `prompt` begins behind them.
  Generation(Engine& engine, const Request& request, std::span<const int32_t> prompt,
             int64_t before, int64_t max_tokens, Sampler sampler, TextSink sink)
      : model_(engine.model()),
        operators_(engine.operators()),
        request_(request),
        prompt_(prompt),
        before_(before),
        eos_(engine.plan().model.eos_ids),
        max_tokens_(max_tokens),
        batch_tokens_(plan::MaxBatchTokens(engine.plan().device.kind)),
        draft_tokens_(engine.plan().draft_tokens),
        vocab_(engine.plan().model.vocab),
        sampler_(std::move(sampler)),
        sink_(std::move(sink)),
        synthetic_(request.synthetic_acceptance),
        logits_(vocab_ * (draft_tokens_ + 1)) {
    out_.speculation.draft_tokens = draft_tokens_;
  }

  Result<Completion> Run() {
    NIBBLE_CHECK_OK(Timed(&out_.timings.prompt, [&] { return Prefill(); }));
    NIBBLE_CHECK_OK(Timed(&out_.timings.decode, [&] { return Decode(); }));
    out_.text = sink_.Finish();
    return std::move(out_);
  }

 private:
  template <class F>
  Result<void> Timed(PhaseTime* phase, F work) {
    const Stopwatch watch;
    const double cpu = CpuSeconds();
    if (request_.profile) operators_.times().Start();
    const Result<void> done = work();
    if (request_.profile) phase->operators = operators_.times().Stop();
    phase->seconds = watch.Seconds();
    phase->cpu_seconds = CpuSeconds() - cpu;
    return done;
  }

  /// Runs the prompt and draws the first token; the MTP module follows over every position, each
  /// with the token that comes next.
  Result<void> Prefill() {
    const int64_t n = static_cast<int64_t>(prompt_.size());
    if (before_ > 0) operators_.CopySlot(kPrefixSlot, 0, before_);
    for (int64_t start = 0; start < n; start += batch_tokens_) {
      const int64_t rows = std::min(batch_tokens_, n - start), last = rows - 1;
      const kernels::SequenceRows sequence{0, 0, rows, before_ + start};
      model_.Forward(prompt_.subspan(start, rows), {&sequence, 1});
      const bool final = start + rows == n;
      if (final) {
        const std::span<float> logits(logits_.data(), vocab_);
        NIBBLE_CHECK_OK(model_.Logits({&last, 1}, logits));
        out_.prompt_logits.assign(logits.begin(), logits.end());
        NIBBLE_TRY(const int32_t id, sampler_.Next(logits));
        out_.timings.first_token_seconds = watch_.Seconds();
        Commit(id);
      }
      if (draft_tokens_ == 0 || done_) continue;
      std::vector<int32_t> next(prompt_.begin() + start + 1,
                                prompt_.begin() + std::min(start + rows + 1, n));
      if (final) next.push_back(out_.ids.back());
      model_.Draft(next, {&sequence, 1});
      if (final) NIBBLE_CHECK_OK(DraftAfter(last, before_ + n - 1));
    }
    position_ = before_ + n;
    return {};
  }

  Result<void> Decode() {
    while (!done_) NIBBLE_CHECK_OK(Round());
    return {};
  }

  /// The last token and its drafts through the model; draws, and drafts anew.
  Result<void> Round() {
    std::vector<int32_t> ids = {out_.ids.back()};
    const int64_t room = model_.context() - 1 - position_;
    const int64_t wanted = max_tokens_ - static_cast<int64_t>(out_.ids.size()) - 1;
    const auto drafted = std::min<size_t>(drafts_.size(), std::min(room, wanted));
    ids.insert(ids.end(), drafts_.begin(), drafts_.begin() + drafted);
    const auto rows = static_cast<int64_t>(ids.size());
    kernels::SequenceRows sequence{0, 0, rows, position_, draft_tokens_ > 0};
    model_.Forward(ids, {&sequence, 1});
    std::vector<int64_t> all(rows);
    for (int64_t i = 0; i < rows; ++i) all[i] = i;
    std::vector<int32_t> likeliest(all.size());
    if (sampler_.greedy()) {
      NIBBLE_CHECK_OK(model_.Greedy(all, sampler_.drawable(), likeliest));
    } else {
      NIBBLE_CHECK_OK(model_.Logits(all, std::span(logits_).first(rows * vocab_)));
    }
    const auto draw = [&](size_t row) -> Result<int32_t> {
      if (sampler_.greedy()) return likeliest[row];
      return sampler_.Next(std::span(logits_).subspan(row * vocab_, vocab_));
    };
    const auto commit = [&](int32_t id) { return Commit(id); };
    const auto drafts = std::span<const int32_t>(ids).subspan(1);
    NIBBLE_TRY(const int64_t accepted, request_.synthetic_acceptance > 0
                                           ? synthetic_.DrawRound(drafts, draw, commit)
                                           : DrawRound(drafts, draw, commit));
    if (draft_tokens_ > 0) {
      out_.speculation.rounds.push_back({static_cast<int>(drafted), static_cast<int>(accepted)});
      model_.Keep(0, accepted + 1);
    }
    if (!done_ && draft_tokens_ > 0) {
      // The hidden states of the rows that stay, each with the token that came after it.
      std::vector<int32_t> next(ids.begin() + 1, ids.begin() + 1 + accepted);
      next.push_back(out_.ids.back());
      sequence.n_rows = accepted + 1;
      model_.Draft(next, {&sequence, 1});
      NIBBLE_CHECK_OK(DraftAfter(accepted, position_ + accepted));
    }
    position_ += accepted + 1;
    return {};
  }

  /// Drafts from row `row` of the Draft that has just run, at `position` there, and goes on from
  /// each draft to the next.
  Result<void> DraftAfter(int64_t row, int64_t position) {
    drafts_.clear();
    for (int i = 0; i < draft_tokens_; ++i) {
      if (i > 0) {
        if (++position >= model_.context()) break;
        const kernels::SequenceRows sequence{0, 0, 1, position};
        model_.Draft({&drafts_.back(), 1}, {&sequence, 1});
      }
      int32_t id = 0;
      NIBBLE_CHECK_OK(model_.Greedy({&row, 1}, sampler_.drawable(), {&id, 1}));
      drafts_.push_back(id);
      model_.GoOnFrom(row);
      row = 0;
    }
    return {};
  }

  /// Takes a drawn token into the answer; false where it is the last.
  bool Commit(int32_t id) {
    out_.ids.push_back(id);
    done_ = true;
    if (!request_.ignore_eos && std::find(eos_.begin(), eos_.end(), id) != eos_.end()) {
      out_.finish_reason = FinishReason::kStop;
      return false;
    }
    switch (sink_.Push(id)) {
      case TextSink::State::kMatched:
        out_.finish_reason = FinishReason::kStop;
        return false;
      case TextSink::State::kCancelled:
        out_.finish_reason = FinishReason::kCancelled;
        return false;
      case TextSink::State::kGoing:
        break;
    }
    done_ = static_cast<int64_t>(out_.ids.size()) == max_tokens_;
    return !done_;
  }

  const Stopwatch watch_;  // since the request came
  model::QwenMoe& model_;
  kernels::Operators& operators_;
  const Request& request_;
  const std::span<const int32_t> prompt_;
  const int64_t before_;
  const std::vector<int32_t>& eos_;
  const int64_t max_tokens_;
  const int64_t batch_tokens_;
  const int draft_tokens_;
  const int64_t vocab_;
  Sampler sampler_;
  TextSink sink_;
  SyntheticAcceptance synthetic_;
  std::vector<float> logits_;  // [K + 1, vocab]
  std::vector<int32_t> drafts_;
  int64_t position_ = 0;  // of the last drawn token
  bool done_ = false;
  Completion out_;
};

}  // namespace

Result<Completion> Engine::Generate(const Request& request, const OnText& on_text) {
  NIBBLE_CHECK_OK(CheckRequest(request));
  // The prefix's last token runs with the request.
  std::vector<int32_t> prompt = request.prompt;
  const int64_t before = request.after_prefix ? static_cast<int64_t>(prefix_.size()) - 1 : 0;
  if (request.after_prefix) prompt.insert(prompt.begin(), prefix_.back());
  const int64_t vocab = plan_.model.vocab;
  const int64_t n_prompt = before + static_cast<int64_t>(prompt.size());
  const int64_t drawable = tokenizer_ ? std::min<int64_t>(tokenizer_->vocab_size(), vocab) : vocab;
  const int64_t room = plan_.context - n_prompt + 1;  // the last token need not be cached
  const int64_t max_tokens = request.max_tokens > 0 ? std::min(request.max_tokens, room) : room;
  std::vector<int32_t> seen = request.after_prefix ? prefix_ : std::vector<int32_t>();
  seen.insert(seen.end(), request.prompt.begin(), request.prompt.end());
  Sampler sampler(request.sampling, vocab, drawable, seen);
  NIBBLE_TRY(TextSink sink, TextSink::Make(tokenizer(), request, on_text));
  Generation generation(*this, request, prompt, before, max_tokens, std::move(sampler),
                        std::move(sink));
  NIBBLE_TRY(Completion out, generation.Run());
  out.timings.load_seconds = load_seconds_;
  return out;
}

Result<void> Engine::KeepPrefix(std::span<const int32_t> ids) {
  prefix_.clear();
  if (plan_.sequences <= kPrefixSlot) {
    return Err(ErrorCode::kInvalidArgument, "a prefix needs a plan of two sequences, not {}",
               plan_.sequences);
  }
  NIBBLE_CHECK_OK(CheckPrompt(ids, 0));
  const int64_t n = static_cast<int64_t>(ids.size()) - 1;
  const int64_t most = plan::MaxBatchTokens(plan_.device.kind);
  for (int64_t start = 0; start < n; start += most) {
    const int64_t rows = std::min(most, n - start);
    const kernels::SequenceRows sequence{kPrefixSlot, 0, rows, start};
    model_->Forward(ids.subspan(start, rows), {&sequence, 1});
    if (plan_.draft_tokens > 0) model_->Draft(ids.subspan(start + 1, rows), {&sequence, 1});
  }
  NIBBLE_CHECK_OK(operators_->Finish());
  prefix_.assign(ids.begin(), ids.end());
  return {};
}

}  // namespace nibble::engine
