// A conversation: in the terminal, or message by message through a pipe. Answers go to stdout,
// everything else to stderr.
#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "generation.h"

namespace nibble::app {
namespace {

struct ChatOptions {
  GenerationOptions generation;
  std::string system;
};

constexpr std::string_view kHelp =
    "/system [TEXT]  set the system message; without a text: none\n"
    "/drop [N]       forget the N oldest turns (1)\n"
    "/reset          forget the conversation, keep the system message\n"
    "/stats          numbers of the conversation so far\n"
    "/help           this\n"
    "/exit           end, as Ctrl-D does\n"
    "A line that ends in \\ goes on in the next. Ctrl-C stops an answer.\n";

std::string Turns(size_t n) { return fmt::format("{} turn{}", n, n == 1 ? "" : "s"); }

/// What was said, and what a checkpoint's template makes of it.
class Conversation {
 public:
  Conversation(const text::ChatTemplate& chat, const text::Tokenizer& tokenizer, int64_t context)
      : chat_(chat), tokenizer_(tokenizer), context_(context) {}

  /// Tokens of the whole conversation with a question after it.
  /// errors  kInvalidArgument (the template refuses; more than the context holds, and what to drop)
  Result<std::vector<int32_t>> Ask(const std::string& question) const {
    NIBBLE_TRY(std::vector<int32_t> ids, Render(question, 0));
    if (static_cast<int64_t>(ids.size()) <= context_) return ids;
    return TooLong(question, ids.size());
  }

  void Add(std::string question, std::string answer) {
    turns_.push_back({std::move(question), std::move(answer)});
  }
  void Drop(size_t n) { turns_.erase(turns_.begin(), turns_.begin() + std::min(n, turns())); }
  void SetSystem(std::string text) { system_ = std::move(text); }

  size_t turns() const { return turns_.size(); }
  int64_t context() const { return context_; }

 private:
  struct Turn {
    std::string question, answer;
  };

  /// Leaves the `dropped` oldest turns out.
  Result<std::vector<int32_t>> Render(const std::string& question, size_t dropped) const {
    Json::Array messages;
    if (!system_.empty()) messages.push_back(ChatMessage("system", system_));
    for (size_t i = dropped; i < turns(); ++i) {
      messages.push_back(ChatMessage("user", turns_[i].question));
      messages.push_back(ChatMessage("assistant", turns_[i].answer));
    }
    messages.push_back(ChatMessage("user", question));
    NIBBLE_TRY(const std::string text, chat_.Render(Json(std::move(messages)), Json(), true, {}));
    return tokenizer_.Encode(text);
  }

  /// Names the fewest turns without which there is room.
  Error TooLong(const std::string& question, size_t tokens) const {
    Error error = Err(ErrorCode::kInvalidArgument,
                      "the conversation has {} tokens with this message, {} fit", tokens, context_);
    size_t left = tokens;
    for (size_t n = 1; n <= turns(); ++n) {
      auto ids = Render(question, n);
      if (!ids) return std::move(ids).error();
      left = ids->size();
      if (static_cast<int64_t>(left) > context_) continue;
      error.hint =
          fmt::format("{} {} tokens, and {} remain without: /drop {}, or /reset to forget all",
                      n == 1 ? "the oldest turn has" : fmt::format("the {} oldest turns have", n),
                      tokens - left, left, n);
      return error;
    }
    error.hint = fmt::format(
        "this message has {} tokens by itself: shorten it, or ask for more with --ctx", left);
    return error;
  }

  const text::ChatTemplate& chat_;
  const text::Tokenizer& tokenizer_;
  const int64_t context_;
  std::string system_;
  std::vector<Turn> turns_;
};

/// Sums over the turns of a session, those that were dropped since included.
struct Totals {
  int64_t in_context = 0, prompt_tokens = 0, answer_tokens = 0;
  size_t turns = 0;
  double prompt_seconds = 0, decode_seconds = 0;
  engine::SpeculationStats speculation;

  void Add(const engine::Request& request, const engine::Completion& c) {
    const auto n_prompt = static_cast<int64_t>(request.prompt.size()),
               n_answer = static_cast<int64_t>(c.ids.size());
    ++turns;
    in_context = n_prompt + n_answer;
    prompt_tokens += n_prompt;
    answer_tokens += n_answer;
    prompt_seconds += c.timings.prompt.seconds;
    decode_seconds += c.timings.decode.seconds;
    speculation.draft_tokens = c.speculation.draft_tokens;
    speculation.rounds.insert(speculation.rounds.end(), c.speculation.rounds.begin(),
                              c.speculation.rounds.end());
  }

  std::string Text(int64_t context) const {
    const auto rate = [](int64_t count, double seconds) {
      return seconds > 0 ? static_cast<double>(count) / seconds : 0;
    };
    std::string out = fmt::format(
        "{} | {} of {} tokens of context | prompts {} tokens, {:.0f} tok/s | "
        "answers {} tokens, {:.0f} tok/s\n",
        Turns(turns), in_context, context, prompt_tokens, rate(prompt_tokens, prompt_seconds),
        answer_tokens, rate(answer_tokens - static_cast<int64_t>(turns), decode_seconds));
    if (speculation.draft_tokens > 0) out += SpeculationText(speculation) + "\n";
    return out;
  }
};

enum class Input : uint8_t { kText, kEnd, kInterrupted };

/// Lines of standard input.
class LineReader {
 public:
  /// The last line needs no end. An interrupted line is forgotten.
  Input Next(std::string* line) {
    size_t end;
    while ((end = buffer_.find('\n')) == std::string::npos) {
      if (!WaitForInput()) {
        buffer_.clear();
        return Input::kInterrupted;
      }
      char bytes[4096];
      const ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
      if (n <= 0) {
        *line = std::exchange(buffer_, {});
        return line->empty() ? Input::kEnd : Input::kText;
      }
      buffer_.append(bytes, static_cast<size_t>(n));
    }
    *line = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    return Input::kText;
  }

 private:
  std::string buffer_;  // read, and not yet given
};

/// For people; a pipe that is read by a program sees none of it on stdout.
void Note(std::string_view text) {
  static const bool grey = [] {
    const char* no_color = std::getenv("NO_COLOR");
    return ToTerminal() && (no_color == nullptr || *no_color == '\0');
  }();
  std::fflush(stdout);
  fmt::print(stderr, "{}{}{}", grey ? "\033[90m" : "", text, grey ? "\033[0m" : "");
}

class Chat {
 public:
  Chat(const ChatOptions& options, engine::Engine& engine, const text::ChatTemplate& chat)
      : options_(options.generation),
        engine_(engine),
        request_(options_.RequestFor(engine)),
        conversation_(chat, *engine.tokenizer(), engine.plan().context) {
    conversation_.SetSystem(options.system);
  }

  /// Until the input ends. In a terminal an error ends the turn, in a pipe the program: what
  /// follows was written for an answer that is not there.
  /// returns an exit code
  Result<int> Run() {
    if (terminal_) Note(fmt::format("context {} tokens | /help\n", conversation_.context()));
    for (std::string message;;) {
      ForgetInterrupt();
      const Input input = ReadMessage(&message);
      if (input == Input::kInterrupted) {
        if (!terminal_) return ExitCodeOf(ErrorCode::kCancelled);
        Note("\nCtrl-D or /exit ends\n");
        continue;
      }
      if (input == Input::kEnd) break;
      if (message.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (message[0] == '/') {
        if (!Command(message)) return 0;
        continue;
      }
      auto reason = Turn(std::move(message));
      if (!reason) {
        if (!terminal_ || reason.error().code != ErrorCode::kInvalidArgument)
          return std::move(reason).error();
        Fail(reason.error(), options_.model.json);
      } else if (!terminal_ && *reason == engine::FinishReason::kCancelled) {
        return ExitCodeOf(ErrorCode::kCancelled);
      }
    }
    if (terminal_) Note("\n");
    return 0;
  }

 private:
  Input ReadMessage(std::string* message) {
    message->clear();
    for (std::string line;;) {
      if (terminal_) fmt::print(stderr, "{}", message->empty() ? "> " : "… ");
      const Input input = lines_.Next(&line);
      if (input == Input::kInterrupted) return input;
      if (input == Input::kEnd) return message->empty() ? input : Input::kText;
      const bool goes_on = !line.empty() && line.back() == '\\';
      if (goes_on) line.back() = '\n';
      *message += line;
      if (!goes_on) return Input::kText;
    }
  }

  /// False where the conversation ends.
  bool Command(const std::string& message) {
    const size_t space = std::min(message.find_first_of(" \n"), message.size());
    const std::string name = message.substr(0, space);
    const size_t start = message.find_first_not_of(" \n", space);
    std::string rest = start == std::string::npos ? "" : message.substr(start);
    if (name == "/exit" || name == "/quit" || name == "/bye") return false;
    if (name == "/help" || name == "/?") {
      Note(kHelp);
    } else if (name == "/system") {
      Note(rest.empty() ? "no system message\n" : "the system message is set\n");
      conversation_.SetSystem(std::move(rest));
    } else if (name == "/reset") {
      conversation_.Drop(conversation_.turns());
      totals_.in_context = 0;
      Note("the conversation is forgotten\n");
    } else if (name == "/drop") {
      Drop(rest);
    } else if (name == "/stats") {
      Note(totals_.Text(conversation_.context()));
    } else {
      Note(
          fmt::format("no command {}; /help lists them. A message that begins with / needs a "
                      "space before it.\n",
                      name));
    }
    return true;
  }

  void Drop(const std::string& text) {
    size_t n = 1;
    if (!text.empty()) {
      const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), n);
      if (error != std::errc() || stop != text.data() + text.size()) {
        Note(fmt::format("\"{}\" is no number of turns\n", text));
        return;
      }
    }
    n = std::min(n, conversation_.turns());
    conversation_.Drop(n);
    Note(fmt::format("{} forgotten, {} left\n", Turns(n), conversation_.turns()));
  }

  /// One question and its answer. What was stopped stays in the conversation as far as it came.
  Result<engine::FinishReason> Turn(std::string question) {
    NIBBLE_TRY(request_.prompt, conversation_.Ask(question));
    const bool json = options_.model.json;
    NIBBLE_TRY(const engine::Completion c, engine_.Generate(request_, [&](std::string_view piece) {
      return json ? !Interrupted() : StreamPiece(piece);
    }));
    totals_.Add(request_, c);
    if (json) {
      PrintJson(Json(CompletionJson(engine_, request_, c)));
    } else {
      fmt::print("\n");
      Note(Statistics(c));
    }
    ++request_.sampling.seed;  // each turn draws anew, and a session repeats from its first seed
    conversation_.Add(std::move(question), c.text);
    return c.finish_reason;
  }

  std::string Statistics(const engine::Completion& c) const {
    std::string out = fmt::format(
        "prompt {} tokens, {:.0f} tok/s, TTFT {:.1f} ms | answer {} tokens, {:.0f} tok/s",
        request_.prompt.size(), PromptRate(request_, c), 1e3 * c.timings.first_token_seconds,
        c.ids.size(), DecodeRate(c));
    if (const auto& s = c.speculation; s.draft_tokens > 0) {
      out += fmt::format(" | mtp:{}, {:.2f} tokens a round, {:.0f} % of drafts accepted",
                         s.draft_tokens, s.MeanLength(), 100 * s.AcceptanceRate());
    }
    if (c.finish_reason == engine::FinishReason::kCancelled) out += " | stopped";
    if (c.finish_reason == engine::FinishReason::kLength) {
      const auto total = static_cast<int64_t>(request_.prompt.size() + c.ids.size());
      out += total > conversation_.context() ? " | cut: the context is full (/drop, /reset)"
                                             : " | cut at --max-tokens";
    }
    return out + "\n";
  }

  const GenerationOptions& options_;
  engine::Engine& engine_;
  engine::Request request_;
  Conversation conversation_;
  Totals totals_;
  LineReader lines_;
  const bool terminal_ = isatty(STDIN_FILENO) != 0;
};

Result<int> Run(const ChatOptions& options) {
  NIBBLE_TRY(const std::unique_ptr<engine::Engine> engine, OpenEngine(options.generation.model));
  if (engine->tokenizer() == nullptr) {
    Error error = engine->tokenizer_error();
    error.hint = "a conversation needs a tokenizer; nibble run takes ids (--prompt-ids)";
    return error;
  }
  NIBBLE_TRY(const text::ChatTemplate* chat, engine->chat_template());
  return Chat(options, *engine, *chat).Run();
}

}  // namespace

Verb AddChat(CLI::App& app) {
  auto o = std::make_shared<ChatOptions>();
  o->generation.AddTo(app);
  app.add_option("--system", o->system, "a system message before the conversation");
  return [o] {
    auto done = Run(*o);
    return done ? *done : Fail(done.error(), o->generation.model.json);
  };
}

}  // namespace nibble::app
