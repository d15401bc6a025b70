#include "text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <optional>

#include "text/utf8.h"

namespace nibble::text::jinja {
namespace {

constexpr std::array<std::string_view, 26> kOperators = {
    "//", "**", "==", "!=", "<=", ">=", "+", "-", "/", "*", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameChar(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/// "\r\n" and "\r" become "\n"; one at the very end goes.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

int HexValue(char c) {
  if (IsDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  Result<std::vector<Token>> Run();

 private:
  enum class Sign : uint8_t { kNone, kMinus, kPlus };

  Error Corrupt(std::string_view what) const {
    return Err(ErrorCode::kCorruptFile, "{}", what).At(fmt::format("line {}", line_));
  }
  Error Unsupported(std::string_view what) const {
    return Err(ErrorCode::kUnsupported, "{}", what).At(fmt::format("line {}", line_));
  }
  bool At(std::string_view s) const {
    return std::string_view(source_).substr(pos_).starts_with(s);
  }
  void Advance(size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + pos_, source_.begin() + pos_ + n, '\n'));
    pos_ += n;
  }
  void SkipSpace();
  Sign TakeSign();
  void Emit(TokenKind kind, std::string text = {}) {
    tokens_.push_back({kind, std::move(text), line_});
  }
  void EmitData(size_t end, Sign sign, bool is_variable);
  bool TagEndsHere(std::string_view close, bool trims);
  Result<void> Comment();
  Result<bool> Raw();
  Result<void> Tag(std::string_view close, TokenKind end_kind);
  Result<void> TagToken(std::string& open_brackets);
  bool Number();
  Result<void> String();
  Result<void> Escape(std::string& out);

  std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

void Lexer::SkipSpace() {
  while (pos_ < source_.size()) {
    const Utf8Step step = DecodeUtf8(source_, pos_);
    if (!IsPythonSpace(step.code_point)) return;
    Advance(step.length);
  }
}

Lexer::Sign Lexer::TakeSign() {
  const Sign sign = At("-") ? Sign::kMinus : At("+") ? Sign::kPlus : Sign::kNone;
  if (sign != Sign::kNone) Advance(1);
  return sign;
}

/// Emits the text from pos_ to `end`, where a tag of that sign stands.
void Lexer::EmitData(size_t end, Sign sign, bool is_variable) {
  const std::string_view text = std::string_view(source_).substr(pos_, end - pos_);
  size_t keep = text.size();
  const auto space_before =
      [&](size_t at) -> size_t {  // bytes of the white space that ends at `at`
    size_t start = at;
    do {
      if (start == 0) return 0;
      --start;
    } while (!IsCharStart(text[start]));
    return IsPythonSpace(DecodeUtf8(text, start).code_point) ? at - start : 0;
  };
  if (sign == Sign::kMinus) {
    while (const size_t n = space_before(keep)) keep -= n;
  } else if (sign == Sign::kNone && !is_variable) {
    const size_t newline = text.rfind('\n');
    const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
    const bool at_line_start = line_start > 0 || pos_ == 0 || source_[pos_ - 1] == '\n';
    size_t blank = text.size();
    while (blank > line_start) {
      const size_t n = space_before(blank);
      if (n == 0) break;
      blank -= n;
    }
    if (at_line_start && blank == line_start) keep = line_start;
  }
  if (keep > 0) Emit(TokenKind::kData, std::string(text.substr(0, keep)));
  Advance(text.size());
}

/// Takes "}}", "-}}", "%}", "-%}", "+%}" and the white space that belongs to it.
bool Lexer::TagEndsHere(std::string_view close, bool trims) {
  const std::string_view rest = std::string_view(source_).substr(pos_);
  if (rest.starts_with('-') && rest.substr(1).starts_with(close)) {
    Advance(1 + close.size());
    SkipSpace();
    return true;
  }
  if (trims && rest.starts_with('+') && rest.substr(1).starts_with(close)) {
    Advance(1 + close.size());
    return true;
  }
  if (!rest.starts_with(close)) return false;
  Advance(close.size());
  if (trims && At("\n")) Advance(1);
  return true;
}

Result<void> Lexer::Comment() {
  const size_t end = source_.find("#}", pos_);
  if (end == std::string::npos) return Corrupt("a comment is not closed");
  size_t start = end;
  if (end > pos_ && (source_[end - 1] == '-' || source_[end - 1] == '+')) --start;
  Advance(start - pos_);
  TagEndsHere("#}", true);
  return {};
}

/// At the inside of "{%": takes a whole raw block if this is one.
Result<bool> Lexer::Raw() {
  const size_t start = pos_;
  const int start_line = line_;
  const auto back = [&] {
    pos_ = start;
    line_ = start_line;
    return false;
  };
  SkipSpace();
  if (!At("raw")) return back();
  Advance(3);
  SkipSpace();
  if (At("-%}")) {
    Advance(3);
    SkipSpace();
  } else if (At("%}")) {
    Advance(2);
  } else {
    return back();
  }
  const size_t body = pos_;
  const int body_line = line_;
  for (size_t open = source_.find("{%", body); open != std::string::npos;
       open = source_.find("{%", open + 1)) {
    pos_ = open + 2;
    const Sign sign = TakeSign();
    SkipSpace();
    if (!At("endraw")) continue;
    Advance(6);
    SkipSpace();
    const size_t close = pos_;
    if (!At("%}") && !At("-%}") && !At("+%}")) continue;
    pos_ = body;
    line_ = body_line;
    EmitData(open, sign, false);
    Advance(close - pos_);
    TagEndsHere("%}", true);
    return true;
  }
  return Corrupt("a raw block is not closed");
}

bool Lexer::Number() {
  const auto digits = [&](size_t at) {  // the end of "12_345" at `at`, or `at`
    size_t end = at;
    while (end < source_.size() &&
           (IsDigit(source_[end]) || (source_[end] == '_' && end > at && end + 1 < source_.size() &&
                                      IsDigit(source_[end + 1])))) {
      ++end;
    }
    return end;
  };
  const auto text = [&](size_t end) {
    std::string s = source_.substr(pos_, end - pos_);
    std::erase(s, '_');
    return s;
  };
  const size_t whole = digits(pos_);
  if (whole == pos_) return false;
  size_t end = whole;
  const bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
  if (end < source_.size() && source_[end] == '.' && digits(end + 1) > end + 1)
    end = digits(end + 1);
  if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
    size_t exponent = end + 1;
    if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-'))
      ++exponent;
    if (digits(exponent) > exponent) end = digits(exponent);
  }
  const bool is_float = end > whole && !after_dot;
  if (!is_float) end = whole;
  Emit(is_float ? TokenKind::kFloat : TokenKind::kInteger, text(end));
  Advance(end - pos_);
  return true;
}

Result<void> Lexer::Escape(std::string& out) {
  const char c = source_[pos_];
  constexpr std::string_view kNames = "\\'\"abfnrtv";
  constexpr std::string_view kMeanings = "\\'\"\a\b\f\n\r\t\v";
  if (const size_t at = kNames.find(c); at != std::string_view::npos) {
    out += kMeanings[at];
    Advance(1);
    return {};
  }
  if (c == '\n') {  // a line that goes on
    Advance(1);
    return {};
  }
  const int hex_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
  uint32_t value = 0;
  if (hex_digits) {
    Advance(1);
    for (int i = 0; i < hex_digits; ++i) {
      const int digit = pos_ < source_.size() ? HexValue(source_[pos_]) : -1;
      if (digit < 0) return Corrupt("a string escape lacks hexadecimal digits");
      value = value * 16 + static_cast<uint32_t>(digit);
      Advance(1);
    }
  } else if (c >= '0' && c <= '7') {
    for (int i = 0; i < 3 && pos_ < source_.size() && source_[pos_] >= '0' && source_[pos_] <= '7';
         ++i) {
      value = value * 8 + static_cast<uint32_t>(source_[pos_] - '0');
      Advance(1);
    }
  } else if (c == 'N' || static_cast<uint8_t>(c) >= 0x80) {
    return Unsupported("a string has an escape of a kind that is not known here");
  } else {
    out += '\\';  // as Python: no escape at all
    return {};
  }
  if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
    return Unsupported("a string escape is no character");
  }
  AppendUtf8(out, value);
  return {};
}

Result<void> Lexer::String() {
  const char quote = source_[pos_];
  Advance(1);
  std::string out;
  while (true) {
    if (pos_ >= source_.size()) return Corrupt("a string is not closed");
    const char c = source_[pos_];
    if (c == quote) break;
    Advance(1);
    if (c != '\\') {
      out += c;
      continue;
    }
    if (pos_ >= source_.size()) return Corrupt("a string is not closed");
    NIBBLE_CHECK_OK(Escape(out));
  }
  Advance(1);
  Emit(TokenKind::kString, std::move(out));
  return {};
}

Result<void> Lexer::TagToken(std::string& open_brackets) {
  const char c = source_[pos_];
  if (static_cast<uint8_t>(c) >= 0x80) return Unsupported("a character outside ASCII in a tag");
  if (c == '0' && pos_ + 1 < source_.size() &&
      std::string_view("bBoOxX").find(source_[pos_ + 1]) != std::string_view::npos) {
    return Unsupported("a number that is not decimal");
  }
  if (Number()) return {};
  if (IsNameChar(c)) {
    size_t end = pos_;
    while (end < source_.size() && IsNameChar(source_[end])) ++end;
    Emit(TokenKind::kName, source_.substr(pos_, end - pos_));
    Advance(end - pos_);
    return {};
  }
  if (c == '\'' || c == '"') return String();
  for (std::string_view op : kOperators) {
    if (!At(op)) continue;
    if (op == "(" || op == "[" || op == "{")
      open_brackets += op == "(" ? ')' : op == "[" ? ']' : '}';
    if (op == ")" || op == "]" || op == "}") {
      if (!open_brackets.ends_with(op)) return Corrupt(fmt::format("unexpected '{}'", op));
      open_brackets.pop_back();
    }
    Emit(TokenKind::kOperator, std::string(op));
    Advance(op.size());
    return {};
  }
  return Corrupt(fmt::format("unexpected character '{}'", c >= 0x20 ? c : '?'));
}

Result<void> Lexer::Tag(std::string_view close, TokenKind end_kind) {
  std::string open_brackets;
  while (true) {
    SkipSpace();
    if (pos_ >= source_.size()) return Corrupt("a tag is not closed");
    const int line = line_;
    if (open_brackets.empty() && TagEndsHere(close, end_kind == TokenKind::kBlockEnd)) {
      tokens_.push_back({end_kind, {}, line});
      return {};
    }
    NIBBLE_CHECK_OK(TagToken(open_brackets));
  }
}

Result<std::vector<Token>> Lexer::Run() {
  while (pos_ < source_.size()) {
    size_t open = pos_;
    while (true) {
      open = source_.find('{', open);
      if (open == std::string::npos || open + 1 >= source_.size()) {
        open = source_.size();
        break;
      }
      const char next = source_[open + 1];
      if (next == '{' || next == '%' || next == '#') break;
      ++open;
    }
    if (open == source_.size()) {
      Emit(TokenKind::kData, source_.substr(pos_));
      Advance(open - pos_);
      break;
    }
    const char kind = source_[open + 1];
    const char mark = open + 2 < source_.size() ? source_[open + 2] : ' ';
    const Sign sign = mark == '-' ? Sign::kMinus : mark == '+' ? Sign::kPlus : Sign::kNone;
    EmitData(open, sign, kind == '{');
    Advance(sign == Sign::kNone ? 2 : 3);
    if (kind == '#') {
      NIBBLE_CHECK_OK(Comment());
    } else if (kind == '{') {
      Emit(TokenKind::kVariableBegin);
      NIBBLE_CHECK_OK(Tag("}}", TokenKind::kVariableEnd));
    } else {
      NIBBLE_TRY(const bool was_raw, Raw());
      if (was_raw) continue;
      Emit(TokenKind::kBlockBegin);
      NIBBLE_CHECK_OK(Tag("%}", TokenKind::kBlockEnd));
    }
  }
  Emit(TokenKind::kEnd);
  return std::move(tokens_);
}

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace nibble::text::jinja
