// How values look as text: Python's str() and repr(), and json.dumps().

#include <algorithm>
#include <cmath>

#include "text/jinja/value.h"
#include "text/utf8.h"

namespace nibble::text::jinja {
namespace {

std::string FloatText(double v, bool json) {
  if (std::isnan(v)) return json ? "NaN" : "nan";
  if (std::isinf(v)) return std::string(v < 0 ? "-" : "") + (json ? "Infinity" : "inf");
  return WriteJson(Json(v));
}

/// Python's repr() of a string, but that of unprintable characters outside ASCII: it needs Python's
/// own tables, and no template shows them.
void AppendQuoted(std::string& out, std::string_view text) {
  const bool doubled =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubled ? '"' : '\'';
  out += quote;
  for (char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  out += quote;
}

Result<void> AppendRepr(std::string& out, const Value& value) {
  if (value.is_string()) {
    AppendQuoted(out, value.string());
    return {};
  }
  if (value.is_undefined()) {
    out += "Undefined";
    return {};
  }
  return AppendStr(out, value);
}

Result<void> AppendList(std::string& out, const Sequence& list) {
  out += list.is_tuple ? '(' : '[';
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i) out += ", ";
    NIBBLE_CHECK_OK(AppendRepr(out, list.items[i]));
  }
  if (list.is_tuple && list.items.size() == 1) out += ',';
  out += list.is_tuple ? ')' : ']';
  return {};
}

Result<void> AppendDict(std::string& out, const Mapping& dict) {
  out += '{';
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i) out += ", ";
    AppendQuoted(out, dict.items[i].first);
    out += ": ";
    NIBBLE_CHECK_OK(AppendRepr(out, dict.items[i].second));
  }
  out += '}';
  return {};
}

void AppendEscape(std::string& out, uint32_t unit) { out += fmt::format("\\u{:04x}", unit); }

void AppendJsonString(std::string& out, std::string_view text, bool ascii) {
  out += '"';
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = DecodeUtf8(text, pos);
    const char32_t c = step.code_point;
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (const size_t at = std::string_view("\b\f\n\r\t").find(static_cast<char>(c));
               c < 0x20 && at != std::string_view::npos) {
      out += '\\';
      out += "bfnrt"[at];
    } else if (c < 0x20) {
      AppendEscape(out, c);
    } else if (ascii && c >= 0x10000) {
      AppendEscape(out, 0xD800 + ((c - 0x10000) >> 10));
      AppendEscape(out, 0xDC00 + ((c - 0x10000) & 0x3FF));
    } else if (ascii && c >= 0x7F) {
      AppendEscape(out, c);
    } else {
      out.append(text, pos, step.length);
    }
    pos += step.length;
  }
  out += '"';
}

class JsonWriter {
 public:
  JsonWriter(std::string& out, const JsonFormat& format) : out_(out), format_(format) {}

  Result<void> Write(const Value& value, int level) {
    if (value.is_none()) return Put("null");
    if (value.Is<bool>()) return Put(value.As<bool>() ? "true" : "false");
    if (value.is_int()) return Put(fmt::format("{}", value.integer()));
    if (value.Is<double>()) return Put(FloatText(value.As<double>(), true));
    if (value.is_string()) {
      AppendJsonString(out_, value.string(), format_.ascii);
      return {};
    }
    if (value.is_list()) return WriteList(value.items(), level);
    if (value.is_dict()) return WriteDict(value.dict(), level);
    return Err(ErrorCode::kInvalidArgument, "tojson of {}, which JSON has no word for",
               value.TypeName());
  }

 private:
  Result<void> Put(std::string_view text) {
    out_ += text;
    return {};
  }

  void NewLine(int level) {
    if (format_.indent < 0) return;
    out_ += '\n';
    out_.append(static_cast<size_t>(format_.indent) * level, ' ');
  }

  Result<void> WriteList(const std::vector<Value>& items, int level) {
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i) out_ += format_.comma;
      NewLine(level + 1);
      NIBBLE_CHECK_OK(Write(items[i], level + 1));
    }
    if (!items.empty()) NewLine(level);
    return Put("]");
  }

  Result<void> WriteDict(const Mapping& dict, int level) {
    std::vector<const std::pair<std::string, Value>*> members;
    for (const auto& member : dict.items) members.push_back(&member);
    if (format_.sort_keys) {
      std::sort(members.begin(), members.end(),
                [](auto* a, auto* b) { return a->first < b->first; });
    }
    out_ += '{';
    for (size_t i = 0; i < members.size(); ++i) {
      if (i) out_ += format_.comma;
      NewLine(level + 1);
      AppendJsonString(out_, members[i]->first, format_.ascii);
      out_ += format_.colon;
      NIBBLE_CHECK_OK(Write(members[i]->second, level + 1));
    }
    if (!members.empty()) NewLine(level);
    return Put("}");
  }

  std::string& out_;
  const JsonFormat& format_;
};

}  // namespace

Result<void> AppendStr(std::string& out, const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_string()) {
    out += value.string();
  } else if (value.is_none()) {
    out += "None";
  } else if (value.Is<bool>()) {
    out += value.As<bool>() ? "True" : "False";
  } else if (value.is_int()) {
    out += fmt::format("{}", value.integer());
  } else if (value.Is<double>()) {
    out += FloatText(value.As<double>(), false);
  } else if (value.is_list()) {
    return AppendList(out, *value.As<Value::List>());
  } else if (value.is_dict()) {
    return AppendDict(out, value.dict());
  } else {
    return Err(ErrorCode::kUnsupported, "a {} shown as text", value.TypeName());
  }
  return {};
}

Result<void> AppendJson(std::string& out, const Value& value, const JsonFormat& format) {
  return JsonWriter(out, format).Write(value, 0);
}

}  // namespace nibble::text::jinja
