#include <cstring>

#include "base/json.h"

// The pull parser. One byte of look-ahead, one state byte, one stack of open containers; no
// recursion.

namespace nibble {
namespace {

enum State : uint8_t {
  kExpectValue,   // at the start, behind a colon, behind a comma in an array
  kFirstElement,  // behind '[': a value or ']'
  kFirstKey,      // behind '{': a key or '}'
  kExpectKey,     // behind a comma in an object
  kExpectColon,
  kAfterValue,
  kOver,
};

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

constexpr uint64_t kOnes = 0x0101010101010101;
constexpr uint64_t kHighs = 0x8080808080808080;

/// The high bit of each byte that is zero (a byte above a zero one may be marked too: only "any" is
/// exact, which is all we ask).
uint64_t ZeroBytes(uint64_t v) { return (v - kOnes) & ~v & kHighs; }

/// True when none of eight bytes ends or interrupts a plain string: all ASCII, no control, quote or
/// backslash.
bool EightPlain(const char* p) {
  uint64_t v = 0;
  std::memcpy(&v, p, sizeof v);
  const uint64_t below_space = (v - kOnes * 0x20) & ~v & kHighs;
  return ((v & kHighs) | below_space | ZeroBytes(v ^ (kOnes * '"')) |
          ZeroBytes(v ^ (kOnes * '\\'))) == 0;
}

/// Bytes of the well-formed UTF-8 sequence at the start of `s`, which starts with a byte >= 0x80; 0
/// when there is none (Unicode 15, table 3-7: no overlong forms, no surrogates, nothing above
/// U+10FFFF).
size_t Utf8Length(std::string_view s) {
  auto byte = [&](size_t i) { return i < s.size() ? static_cast<uint8_t>(s[i]) : uint8_t{0}; };
  auto tail = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t lead = byte(0);
  const uint8_t second = byte(1);
  if (lead >= 0xC2 && lead <= 0xDF) return tail(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const uint8_t low = lead == 0xE0 ? 0xA0 : 0x80;
    const uint8_t high = lead == 0xED ? 0x9F : 0xBF;
    return second >= low && second <= high && tail(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const uint8_t low = lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xF4 ? 0x8F : 0xBF;
    return second >= low && second <= high && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

void AppendUtf8(std::string& out, uint32_t c) {
  auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else {
    if (c < 0x10000) {
      put(0xE0 | c >> 12);
    } else {
      put(0xF0 | c >> 18);
      put(0x80 | (c >> 12 & 0x3F));
    }
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

/// The four hex digits at the start of `s`.
std::optional<uint32_t> Hex4(std::string_view s) {
  if (s.size() < 4) return std::nullopt;
  uint32_t value = 0;
  for (char c : s.substr(0, 4)) {
    const char lower = static_cast<char>(c | 0x20);
    if (IsDigit(c)) {
      value = value << 4 | static_cast<uint32_t>(c - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      value = value << 4 | static_cast<uint32_t>(lower - 'a' + 10);
    } else {
      return std::nullopt;
    }
  }
  return value;
}

/// What a one-letter escape stands for; 0 when it stands for nothing.
char SimpleEscape(char c) {
  switch (c) {
    case '"':
    case '\\':
    case '/':
      return c;
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    default:
      return 0;
  }
}

/// Appends what the escape at the start of `s` (its backslash) stands for, and returns its length;
/// 0 when it is none.
size_t AppendEscape(std::string& out, std::string_view s) {
  if (s.size() < 2) return 0;
  if (char c = SimpleEscape(s[1]); c != 0) {
    out.push_back(c);
    return 2;
  }
  if (s[1] != 'u') return 0;
  const auto unit = Hex4(s.substr(2));
  if (!unit || (*unit >= 0xDC00 && *unit <= 0xDFFF)) return 0;
  if (*unit < 0xD800 || *unit > 0xDBFF) {
    AppendUtf8(out, *unit);
    return 6;
  }
  if (s.size() < 12 || s[6] != '\\' || s[7] != 'u') return 0;
  const auto low = Hex4(s.substr(8));
  if (!low || *low < 0xDC00 || *low > 0xDFFF) return 0;
  AppendUtf8(out, 0x10000 + ((*unit - 0xD800) << 10) + (*low - 0xDC00));
  return 12;
}

/// The bytes of `s` that need no look at all, counted from its start.
size_t PlainPrefix(std::string_view s) {
  size_t i = 0;
  while (i + 8 <= s.size() && EightPlain(s.data() + i)) i += 8;
  while (i < s.size()) {
    const auto c = static_cast<uint8_t>(s[i]);
    if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\') break;
    ++i;
  }
  return i;
}

/// The length of the number at the start of `s` (RFC 8259, section 6), or 0 and where it broke.
size_t NumberLength(std::string_view s, size_t& broke_at) {
  size_t i = 0;
  auto digits = [&] {
    const size_t begin = i;
    while (i < s.size() && IsDigit(s[i])) ++i;
    return i > begin;
  };
  auto at = [&](char c) { return i < s.size() && s[i] == c; };
  bool good = true;
  if (at('-')) ++i;
  if (at('0')) {
    ++i;
  } else {
    good = digits();
  }
  if (good && at('.')) {
    ++i;
    good = digits();
  }
  if (good && (at('e') || at('E'))) {
    ++i;
    if (at('+') || at('-')) ++i;
    good = digits();
  }
  broke_at = i;
  return good ? i : 0;
}

}  // namespace

JsonReader::JsonReader(std::string_view text, JsonLimits limits) : text_(text), limits_(limits) {}

Error JsonReader::Fail(std::string what) {
  failed_ = Error{ErrorCode::kCorruptFile,
                  "not valid JSON: " + std::move(what),
                  fmt::format("byte {}", pos_),
                  {}};
  return *failed_;
}

Error JsonReader::Unexpected(std::string_view expected) {
  if (pos_ >= text_.size()) return Fail(fmt::format("the text ends, expected {}", expected));
  const auto c = static_cast<uint8_t>(text_[pos_]);
  if (c > 0x20 && c < 0x7F)
    return Fail(fmt::format("found '{}', expected {}", text_[pos_], expected));
  return Fail(fmt::format("found byte 0x{:02x}, expected {}", c, expected));
}

void JsonReader::SkipSpace() {
  while (pos_ < text_.size()) {
    const char c = text_[pos_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
    ++pos_;
  }
}

Result<JsonReader::Token> JsonReader::Next() {
  if (failed_) return *failed_;
  SkipSpace();
  // A NUL byte is valid nowhere, so it may stand for the end of the text here.
  auto peek = [&] { return pos_ < text_.size() ? text_[pos_] : '\0'; };
  if (state_ == kExpectColon) {
    if (peek() != ':') return Unexpected("':'");
    ++pos_;
    SkipSpace();
    return Value();
  }
  if (state_ == kAfterValue) {
    if (stack_.empty()) {
      if (pos_ != text_.size()) return Unexpected("the end of the text");
      state_ = kOver;
      return Token::kEnd;
    }
    const bool in_object = stack_.back() == '{';
    const char close = in_object ? '}' : ']';
    if (peek() == close) return Close(close);
    if (peek() != ',') return Unexpected(in_object ? "',' or '}'" : "',' or ']'");
    ++pos_;
    SkipSpace();
    state_ = in_object ? kExpectKey : kExpectValue;
  }
  if (state_ == kExpectValue) return Value();
  if (state_ == kFirstElement) return peek() == ']' ? Close(']') : Value();
  if (state_ == kOver) return Token::kEnd;
  if (state_ == kFirstKey && peek() == '}') return Close('}');
  if (peek() != '"') return Unexpected(state_ == kFirstKey ? "a key or '}'" : "a key");
  return String(Token::kKey);
}

JsonReader::Token JsonReader::Close(char bracket) {
  ++pos_;
  stack_.pop_back();
  state_ = kAfterValue;
  return bracket == '}' ? Token::kEndObject : Token::kEndArray;
}

Result<JsonReader::Token> JsonReader::Value() {
  if (pos_ >= text_.size()) return Unexpected("a value");
  if (++values_ > limits_.max_values) {
    return Fail(fmt::format("more than {} values", limits_.max_values));
  }
  const char c = text_[pos_];
  if (c == '"') return String(Token::kString);
  if (c == '-' || IsDigit(c)) return Number();
  if (c == '{' || c == '[') {
    if (depth() >= limits_.max_depth) {
      return Fail(fmt::format("nested more than {} deep", limits_.max_depth));
    }
    ++pos_;
    stack_.push_back(c);
    state_ = c == '{' ? kFirstKey : kFirstElement;
    return c == '{' ? Token::kBeginObject : Token::kBeginArray;
  }
  struct Word {
    std::string_view text;
    Token token;
  };
  static constexpr Word kWords[] = {
      {"true", Token::kTrue}, {"false", Token::kFalse}, {"null", Token::kNull}};
  for (const Word& word : kWords) {
    if (text_.substr(pos_, word.text.size()) != word.text) continue;
    pos_ += word.text.size();
    state_ = kAfterValue;
    return word.token;
  }
  return Unexpected("a value");
}

Result<JsonReader::Token> JsonReader::String(Token as) {
  const size_t opening = pos_;
  size_t run = ++pos_;  // start of the bytes not yet copied to buffer_
  bool escaped = false;
  for (;;) {
    pos_ += PlainPrefix(text_.substr(pos_));
    if (pos_ >= text_.size()) {
      pos_ = opening;
      return Fail("the string has no end");
    }
    const char c = text_[pos_];
    if (c == '"') break;
    if (static_cast<uint8_t>(c) >= 0x80) {
      const size_t length = Utf8Length(text_.substr(pos_));
      if (length == 0) return Fail("a string is not UTF-8");
      pos_ += length;
    } else if (c == '\\') {
      if (!escaped) buffer_.clear();
      escaped = true;
      buffer_.append(text_, run, pos_ - run);
      const size_t length = AppendEscape(buffer_, text_.substr(pos_));
      if (length == 0) return Fail("an escape that stands for nothing (or half a surrogate pair)");
      pos_ += length;
      run = pos_;
    } else {
      return Fail(
          fmt::format("byte 0x{:02x} in a string, expected it escaped", static_cast<uint8_t>(c)));
    }
  }
  if (escaped) buffer_.append(text_, run, pos_ - run);
  token_text_ = escaped ? std::string_view(buffer_) : text_.substr(opening + 1, pos_ - opening - 1);
  if (token_text_.size() > limits_.max_string_bytes) {
    pos_ = opening;
    return Fail(fmt::format("a string of {} bytes, expected at most {}", token_text_.size(),
                            limits_.max_string_bytes));
  }
  ++pos_;
  state_ = as == Token::kKey ? kExpectColon : kAfterValue;
  return as;
}

Result<JsonReader::Token> JsonReader::Number() {
  size_t broke_at = 0;
  const size_t length = NumberLength(text_.substr(pos_), broke_at);
  if (length == 0) {
    pos_ += broke_at;
    return Unexpected("a digit");
  }
  token_text_ = text_.substr(pos_, length);
  pos_ += length;
  state_ = kAfterValue;
  return Token::kNumber;
}

std::optional<uint64_t> JsonReader::AsUint() const {
  uint64_t value = 0;
  for (char c : token_text_) {
    if (!IsDigit(c)) return std::nullopt;
    if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(c - '0'), &value)) {
      return std::nullopt;
    }
  }
  if (token_text_.empty()) return std::nullopt;
  return value;
}

Result<void> JsonReader::SkipValue() {
  const int outer = depth();
  do {
    NIBBLE_TRY([[maybe_unused]] Token token, Next());
  } while (depth() > outer);
  return {};
}

}  // namespace nibble
