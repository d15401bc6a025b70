#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace nibble {

/// What a JSON text may cost. Every text that we read comes from a stranger.
struct JsonLimits {
  int max_depth = 64;
  uint64_t max_values = 20'000'000;
  size_t max_string_bytes = size_t{64} << 20;
};

/// A strict pull parser over one JSON text (RFC 8259): valid UTF-8 only, no comments, no NaN, no
/// lone surrogates, no trailing bytes but white space. It allocates nothing but the buffer of a
/// string that holds an escape; a string without one is a view into the text. Not safe for use from
/// two threads.
class JsonReader {
 public:
  enum class Token : uint8_t {
    kBeginObject,
    kEndObject,
    kBeginArray,
    kEndArray,
    kKey,
    kString,
    kNumber,
    kTrue,
    kFalse,
    kNull,
    kEnd,  // the one value is over and only white space followed
  };

  explicit JsonReader(std::string_view text, JsonLimits limits = {});

  /// The next token, or what is wrong at which byte (kCorruptFile). After an error every further
  /// call gives it again.
  Result<Token> Next();

  /// Of the last kKey or kString: the decoded text; of the last kNumber: its digits as written.
  /// Valid until the next Next().
  std::string_view text() const { return token_text_; }
  /// The last kNumber, if it was written as a plain non-negative integer (no sign, point or
  /// exponent) that fits 64 bits.
  std::optional<uint64_t> AsUint() const;
  /// Byte offset just behind the last token.
  size_t offset() const { return pos_; }
  int depth() const { return static_cast<int>(stack_.size()); }

  /// Skips the value that would come next (an object or array whole).
  Result<void> SkipValue();

 private:
  std::string_view text_;
  JsonLimits limits_;
  size_t pos_ = 0;
  std::string_view token_text_;
  std::string buffer_;
  std::vector<char> stack_;  // '{' or '[' of every open container
  uint64_t values_ = 0;
  uint8_t state_ = 0;
  std::optional<Error> failed_;

  Error Fail(std::string what);
  Error Unexpected(std::string_view expected);
  Token Close(char bracket);
  Result<Token> Value();
  Result<Token> String(Token as);
  Result<Token> Number();
  void SkipSpace();
};

/// A JSON value. Objects keep the order of their text (the chat templates' `tojson` shows it) and
/// never hold a key twice: Parse refuses that.
class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() = default;
  Json(std::nullptr_t) {}
  Json(bool v) : value_(v) {}
  Json(int v) : value_(int64_t{v}) {}
  Json(int64_t v) : value_(v) {}
  Json(uint64_t v);  // above 2^63-1: kept as double
  Json(double v) : value_(v) {}
  Json(const char* v) : value_(std::string(v)) {}
  Json(std::string_view v) : value_(std::string(v)) {}
  Json(std::string v) : value_(std::move(v)) {}
  Json(Array v) : value_(std::move(v)) {}
  Json(Object v) : value_(std::move(v)) {}

  /// errors kCorruptFile with the byte offset: syntax, limits, a key twice in one object.
  static Result<Json> Parse(std::string_view text, JsonLimits limits = {});

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_double() const { return std::holds_alternative<double>(value_); }
  bool is_number() const { return is_int() || is_double(); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  /// "null", "bool", "integer", "number", "string", "array" or "object", for error texts.
  std::string_view TypeName() const;

  // Unchecked accessors: the caller has asked is_…() first.
  bool boolean() const { return std::get<bool>(value_); }
  int64_t integer() const { return std::get<int64_t>(value_); }
  double number() const {
    return is_int() ? static_cast<double>(integer()) : std::get<double>(value_);
  }
  const std::string& string() const { return std::get<std::string>(value_); }
  const Array& array() const { return std::get<Array>(value_); }
  Array& array() { return std::get<Array>(value_); }
  const Object& object() const { return std::get<Object>(value_); }
  Object& object() { return std::get<Object>(value_); }

  /// The member of that name; null when absent or when this is no object. A member whose value is
  /// JSON null is found.
  const Json* Find(std::string_view key) const;
  /// The same, but a JSON null counts as absent: what config files mean by it.
  const Json* FindSet(std::string_view key) const;
  /// Sets or appends a member; this must be an object (or null, which becomes one).
  void Set(std::string key, Json value);

  // Typed members of a config object. Absent (or null): nothing. Present with another type, or out
  // of range: kCorruptFile that names the key, the type found and the one expected.
  Result<std::optional<int64_t>> GetInt(std::string_view key, int64_t min, int64_t max) const;
  Result<std::optional<double>> GetDouble(std::string_view key) const;  // an integer is taken too
  Result<std::optional<bool>> GetBool(std::string_view key) const;
  Result<std::optional<std::string>> GetString(std::string_view key) const;

  bool operator==(const Json&) const = default;

 private:
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value_ = nullptr;
};

struct JsonStyle {
  int indent = 0;  // 0: one line; else the comma's trailing spaces are dropped, as Python does
  std::string_view comma = ", ";  // Python's json.dumps separators by default
  std::string_view colon = ": ";
};

/// Writes a value as Python's json.dumps(ensure_ascii=False) does: members in their order, the
/// shortest number text that reads back the same ("1.0", "1e+16"), control characters escaped.
/// Depth is bounded by the value's own, which Parse bounds.
std::string WriteJson(const Json& value, const JsonStyle& style = {});

}  // namespace nibble
