#include "base/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/quoted.h"

namespace nibble {
namespace {

/// A number as Python reads it: an integer where it is written as one and fits 64 bits, else the
/// nearest double. Nothing when no double is near: above its range, or so small that only zero
/// would be left.
std::optional<Json> ToNumber(std::string_view digits) {
  const char* begin = digits.data();
  const char* end = begin + digits.size();
  if (digits.find_first_of(".eE") == std::string_view::npos) {
    int64_t integer = 0;
    if (std::from_chars(begin, end, integer).ec == std::errc()) return Json(integer);
  }
  double number = 0;
  if (std::from_chars(begin, end, number).ec != std::errc()) return std::nullopt;
  return Json(number);
}

/// A name that two members share, if any do.
std::optional<std::string_view> DuplicateKey(const Json::Object& object) {
  constexpr size_t kFewMembers = 8;  // below, comparing all pairs needs no memory and is faster
  if (object.size() <= kFewMembers) {
    for (size_t i = 1; i < object.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (object[i].first == object[j].first) return object[i].first;
      }
    }
    return std::nullopt;
  }
  std::vector<std::string_view> names;
  names.reserve(object.size());
  for (const Json::Member& member : object) names.push_back(member.first);
  std::sort(names.begin(), names.end());
  auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin == names.end()) return std::nullopt;
  return *twin;
}

/// Builds a tree from a reader's tokens. The open containers are a chain of pointers, not of calls:
/// each is the last child of the one before it, which gets no further child (and so does not move
/// it) until it is closed.
class TreeBuilder {
 public:
  TreeBuilder(std::string_view text, JsonLimits limits) : reader_(text, limits) {}

  Result<Json> Build() {
    for (;;) {
      NIBBLE_TRY(JsonReader::Token token, reader_.Next());
      if (token == JsonReader::Token::kEnd) return std::move(root_);
      NIBBLE_CHECK_OK(Take(token));
    }
  }

 private:
  using Token = JsonReader::Token;

  Result<void> Take(Token token) {
    switch (token) {
      case Token::kKey:
        open_.back()->object().emplace_back(std::string(reader_.text()), Json());
        return {};
      case Token::kBeginObject:
        open_.push_back(&Place(Json(Json::Object())));
        return {};
      case Token::kBeginArray:
        open_.push_back(&Place(Json(Json::Array())));
        return {};
      case Token::kEndObject:
        if (auto twin = DuplicateKey(open_.back()->object())) {
          return Wrong(
              fmt::format("the object that ends here holds the key {} twice", Quoted(*twin)));
        }
        open_.pop_back();
        return {};
      case Token::kEndArray:
        open_.pop_back();
        return {};
      case Token::kNumber: {
        auto number = ToNumber(reader_.text());
        if (!number) {
          return Wrong(fmt::format("the number {} does not fit a double", Quoted(reader_.text())));
        }
        Place(*std::move(number));
        return {};
      }
      case Token::kString:
        Place(Json(reader_.text()));
        return {};
      case Token::kTrue:
      case Token::kFalse:
        Place(Json(token == Token::kTrue));
        return {};
      case Token::kNull:
      case Token::kEnd:
        Place(Json());
        return {};
    }
    return {};
  }

  Error Wrong(std::string what) const {
    return Error{
        ErrorCode::kCorruptFile, std::move(what), fmt::format("byte {}", reader_.offset()), {}};
  }

  Json& Place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) return parent.array().emplace_back(std::move(value));
    return parent.object().back().second = std::move(value);
  }

  JsonReader reader_;
  Json root_;
  std::vector<Json*> open_;
};

void AppendString(std::string& out, std::string_view text) {
  out.push_back('"');
  for (char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

/// float.__repr__: the shortest digits that read back the same, with an exponent below 1e-4 and
/// from 1e16 on.
void AppendDouble(std::string& out, double v) {
  if (std::isnan(v)) {
    out += "NaN";
    return;
  }
  if (std::signbit(v)) out.push_back('-');
  v = std::fabs(v);
  if (std::isinf(v)) {
    out += "Infinity";
    return;
  }
  char buffer[32];
  char* end = std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::scientific).ptr;
  char* e = std::find(buffer, end, 'e');
  int exponent = 0;
  std::from_chars(e[1] == '+' ? e + 2 : e + 1, end, exponent);
  std::string digits(buffer, e);  // "d" or "d.ddd"
  if (digits.size() > 1) digits.erase(1, 1);
  const int n = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    if (n > 1) digits.insert(1, ".");
    out += fmt::format("{}e{}{:02}", digits, exponent < 0 ? '-' : '+', std::abs(exponent));
  } else if (exponent < 0) {
    out += "0.";
    out.append(static_cast<size_t>(-exponent - 1), '0');
    out += digits;
  } else {
    if (n < exponent + 2) digits.append(static_cast<size_t>(exponent + 2 - n), '0');
    digits.insert(static_cast<size_t>(exponent) + 1, ".");
    out += digits;
  }
}

class Writer {
 public:
  Writer(std::string& out, const JsonStyle& style) : out_(out), style_(style) {
    comma_ = style.comma;
    while (style.indent > 0 && comma_.ends_with(' ')) comma_.remove_suffix(1);
  }

  void Write(const Json& v) {
    if (v.is_null()) {
      out_ += "null";
    } else if (v.is_bool()) {
      out_ += v.boolean() ? "true" : "false";
    } else if (v.is_int()) {
      out_ += fmt::format("{}", v.integer());
    } else if (v.is_double()) {
      AppendDouble(out_, v.number());
    } else if (v.is_string()) {
      AppendString(out_, v.string());
    } else if (v.is_array()) {
      Container('[', ']', v.array(), [&](const Json& item) { Write(item); });
    } else {
      Container('{', '}', v.object(), [&](const Json::Member& member) {
        AppendString(out_, member.first);
        out_ += style_.colon;
        Write(member.second);
      });
    }
  }

 private:
  template <class Items, class WriteItem>
  void Container(char open, char close, const Items& items, WriteItem write_item) {
    out_.push_back(open);
    ++depth_;
    bool first = true;
    for (const auto& item : items) {
      if (!first) out_ += comma_;
      first = false;
      NewLine();
      write_item(item);
    }
    --depth_;
    if (!items.empty()) NewLine();
    out_.push_back(close);
  }

  void NewLine() {
    if (style_.indent <= 0) return;
    out_.push_back('\n');
    out_.append(static_cast<size_t>(style_.indent) * depth_, ' ');
  }

  std::string& out_;
  const JsonStyle& style_;
  std::string_view comma_;
  size_t depth_ = 0;
};

Error WrongType(std::string_view key, const Json& found, std::string_view expected) {
  const bool scalar = !found.is_array() && !found.is_object();
  const std::string shown =
      scalar ? " " + (found.is_string() ? Quoted(found.string()) : WriteJson(found)) : "";
  return Err(ErrorCode::kCorruptFile, "\"{}\" is {}{}, expected {}", key, found.TypeName(), shown,
             expected);
}

}  // namespace

Json::Json(uint64_t v) {
  if (v <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    value_ = static_cast<int64_t>(v);
  } else {
    value_ = static_cast<double>(v);
  }
}

Result<Json> Json::Parse(std::string_view text, JsonLimits limits) {
  return TreeBuilder(text, limits).Build();
}

std::string_view Json::TypeName() const {
  static constexpr std::string_view kNames[] = {"null",   "bool",  "integer", "number",
                                                "string", "array", "object"};
  return kNames[value_.index()];
}

const Json* Json::Find(std::string_view key) const {
  if (!is_object()) return nullptr;
  for (const Member& member : object()) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

const Json* Json::FindSet(std::string_view key) const {
  const Json* found = Find(key);
  return found != nullptr && !found->is_null() ? found : nullptr;
}

void Json::Set(std::string key, Json value) {
  if (is_null()) value_ = Object();
  for (Member& member : object()) {
    if (member.first != key) continue;
    member.second = std::move(value);
    return;
  }
  object().emplace_back(std::move(key), std::move(value));
}

Result<std::optional<int64_t>> Json::GetInt(std::string_view key, int64_t min, int64_t max) const {
  const Json* v = FindSet(key);
  if (v == nullptr) return std::optional<int64_t>();
  if (!v->is_int() || v->integer() < min || v->integer() > max) {
    return WrongType(key, *v, fmt::format("an integer in [{}, {}]", min, max));
  }
  return std::optional<int64_t>(v->integer());
}

Result<std::optional<double>> Json::GetDouble(std::string_view key) const {
  const Json* v = FindSet(key);
  if (v == nullptr) return std::optional<double>();
  if (!v->is_number()) return WrongType(key, *v, "a number");
  return std::optional<double>(v->number());
}

Result<std::optional<bool>> Json::GetBool(std::string_view key) const {
  const Json* v = FindSet(key);
  if (v == nullptr) return std::optional<bool>();
  if (!v->is_bool()) return WrongType(key, *v, "true or false");
  return std::optional<bool>(v->boolean());
}

Result<std::optional<std::string>> Json::GetString(std::string_view key) const {
  const Json* v = FindSet(key);
  if (v == nullptr) return std::optional<std::string>();
  if (!v->is_string()) return WrongType(key, *v, "a string");
  return std::optional<std::string>(v->string());
}

std::string Quoted(std::string_view text, size_t max_bytes) {
  size_t keep = std::min(text.size(), max_bytes);
  auto is_tail = [&](size_t i) { return (static_cast<uint8_t>(text[i]) & 0xC0) == 0x80; };
  while (keep > 0 && keep < text.size() && is_tail(keep)) --keep;
  std::string out;
  AppendString(out, text.substr(0, keep));
  if (keep < text.size()) out += "...";
  return out;
}

std::string WriteJson(const Json& value, const JsonStyle& style) {
  std::string out;
  Writer(out, style).Write(value);
  return out;
}

}  // namespace nibble
