#include "text/jinja/methods.h"

#include <algorithm>
#include <span>

#include "base/quoted.h"
#include "text/utf8.h"

namespace nibble::text::jinja {
namespace {

using Method = Result<Value> (*)(Runtime&, const Value& self, const Arguments&);
struct Row {
  std::string_view name;
  Method run;  // null: refused
};

char AsciiUpper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
char AsciiLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }
bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

Error Expected(std::string_view what, const Value& found) {
  return Err(ErrorCode::kInvalidArgument, "expected {}, found {}", what, found.TypeName());
}

// --- Strings ---

template <bool kLeft, bool kRight>
Result<Value> StripMethod(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"chars"}, 0));
  NIBBLE_TRY(std::string text, Strip(self.string(), args[0], kLeft, kRight));
  return runtime.NewText(std::move(text));
}

template <bool kStart>
Result<Value> StartsOrEnds(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"affix"}, 1));
  const std::string_view text = self.string();
  const auto matches = [&](const Value& affix) -> Result<bool> {
    if (!affix.is_string()) return Expected("a string", affix);
    NIBBLE_CHECK_OK(runtime.Spend(affix.string().size()));
    return kStart ? text.starts_with(affix.string()) : text.ends_with(affix.string());
  };
  if (!args[0].is_list()) {
    NIBBLE_TRY(const bool match, matches(args[0]));
    return Value(match);
  }
  for (const Value& affix : args[0].items()) {
    NIBBLE_TRY(const bool match, matches(affix));
    if (match) return Value(true);
  }
  return Value(false);
}

/// Splits at runs of white space, as split() without a separator does.
std::vector<Value> SplitAtSpace(std::string_view text, int64_t most) {
  std::vector<Value> parts;
  size_t pos = 0;
  const auto skip = [&](bool space) {
    while (pos < text.size()) {
      const Utf8Step step = DecodeUtf8(text, pos);
      if (IsPythonSpace(step.code_point) != space) break;
      pos += step.length;
    }
  };
  for (skip(true); pos < text.size(); skip(true)) {
    const size_t begin = pos;
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.emplace_back(text.substr(begin));
      return parts;
    }
    skip(false);
    parts.emplace_back(text.substr(begin, pos - begin));
  }
  return parts;
}

template <bool kFromRight>
Result<Value> Split(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"sep", "maxsplit"}, 0));
  const std::string_view text = self.string();
  const int64_t most = args[1].is_int() ? args[1].integer() : -1;
  NIBBLE_CHECK_OK(runtime.Spend(4 * text.size()));
  if (args[0].is_undefined() || args[0].is_none()) {
    if (kFromRight && most >= 0)
      return Err(ErrorCode::kUnsupported, "rsplit at white space with a limit is not known here");
    return runtime.NewList(SplitAtSpace(text, most));
  }
  if (!args[0].is_string()) return Expected("a string", args[0]);
  const std::string& separator = args[0].string();
  if (separator.empty()) return Err(ErrorCode::kInvalidArgument, "a split at nothing");
  std::vector<Value> parts;
  if (kFromRight) {
    size_t end = text.size();
    while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
      if (end < separator.size()) break;
      const size_t at = text.rfind(separator, end - separator.size());
      if (at == std::string_view::npos) break;
      parts.emplace_back(text.substr(at + separator.size(), end - at - separator.size()));
      end = at;
    }
    parts.emplace_back(text.substr(0, end));
    std::reverse(parts.begin(), parts.end());
    return runtime.NewList(std::move(parts));
  }
  size_t begin = 0;
  while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
    const size_t at = text.find(separator, begin);
    if (at == std::string_view::npos) break;
    parts.emplace_back(text.substr(begin, at - begin));
    begin = at + separator.size();
  }
  parts.emplace_back(text.substr(begin));
  return runtime.NewList(std::move(parts));
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

Result<Value> SplitLines(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"keepends"}, 0));
  const std::string_view text = self.string();
  NIBBLE_CHECK_OK(runtime.Spend(4 * text.size()));
  std::vector<Value> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = DecodeUtf8(text, pos);
    const size_t line_end = pos;
    pos += step.length;
    if (!IsLineBreak(step.code_point)) continue;
    if (step.code_point == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.emplace_back(text.substr(begin, (args[0].Truthy() ? pos : line_end) - begin));
    begin = pos;
  }
  if (begin < text.size()) lines.emplace_back(text.substr(begin));
  return runtime.NewList(std::move(lines));
}

Result<Value> Count(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"sub"}, 1));
  if (self.is_list()) {
    int64_t n = 0;
    for (const Value& item : self.items()) {
      NIBBLE_TRY(const bool equal, runtime.Equal(item, args[0]));
      n += equal;
    }
    return Value(n);
  }
  if (!args[0].is_string()) return Expected("a string", args[0]);
  const std::string& text = self.string();
  const std::string& part = args[0].string();
  NIBBLE_CHECK_OK(runtime.Spend(text.size()));
  if (part.empty()) return Value(static_cast<int64_t>(CountCodePoints(text)) + 1);
  int64_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size()))
    ++n;
  return Value(n);
}

Result<Value> ReplaceMethod(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"old", "new", "count"}, 2));
  if (!args[0].is_string()) return Expected("a string", args[0]);
  if (!args[1].is_string()) return Expected("a string", args[1]);
  Arguments what;
  what.positional = {args[0]};
  NIBBLE_TRY(const Value found, Count(runtime, self, what));
  NIBBLE_CHECK_OK(runtime.Spend(self.string().size() +
                                static_cast<uint64_t>(found.integer()) * args[1].string().size()));
  const int64_t count = args[2].is_int() ? args[2].integer() : -1;
  return Value(Replace(self.string(), args[0].string(), args[1].string(), count));
}

template <Case kHow>
Result<Value> CaseMethod(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_CHECK_OK(arguments.Bind({}, 0));
  NIBBLE_TRY(std::string text, WithCase(self.string(), kHow));
  return runtime.NewText(std::move(text));
}

/// str.title(): a letter is small behind a letter and large elsewhere.
Result<Value> Title(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_CHECK_OK(arguments.Bind({}, 0));
  NIBBLE_TRY(std::string text, WithCase(self.string(), Case::kLower));
  bool inside = false;
  for (char& c : text) {
    const bool letter = c >= 'a' && c <= 'z';
    if (letter && !inside) c = AsciiUpper(c);
    inside = letter;
  }
  return runtime.NewText(std::move(text));
}

Result<Value> Join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"iterable"}, 1));
  NIBBLE_TRY(const auto items, Iterate(runtime, args[0]));
  std::string text;
  for (size_t i = 0; i < items->items.size(); ++i) {
    if (!items->items[i].is_string()) return Expected("a string", items->items[i]);
    if (i) text += self.string();
    text += items->items[i].string();
    NIBBLE_CHECK_OK(runtime.Spend(self.string().size() + items->items[i].string().size()));
  }
  return Value(std::move(text));
}

template <bool kLast>
Result<Value> Find(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"sub"}, 1));
  if (!args[0].is_string()) return Expected("a string", args[0]);
  const std::string& text = self.string();
  NIBBLE_CHECK_OK(runtime.Spend(text.size()));
  const size_t at = kLast ? text.rfind(args[0].string()) : text.find(args[0].string());
  if (at == std::string::npos) return Value(int64_t{-1});
  return Value(static_cast<int64_t>(CountCodePoints(std::string_view(text).substr(0, at))));
}

template <bool kPrefix>
Result<Value> RemoveAffix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"affix"}, 1));
  if (!args[0].is_string()) return Expected("a string", args[0]);
  std::string_view text = self.string();
  const std::string& affix = args[0].string();
  if (kPrefix && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!kPrefix && text.ends_with(affix)) text.remove_suffix(affix.size());
  return runtime.NewText(std::string(text));
}

template <bool (*kIs)(char)>
Result<Value> AllAre(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_CHECK_OK(arguments.Bind({}, 0));
  const std::string& text = self.string();
  NIBBLE_CHECK_OK(runtime.Spend(text.size()));
  if (!IsAscii(text))
    return Err(ErrorCode::kUnsupported, "a class of characters outside ASCII is not known here");
  return Value(!text.empty() && std::all_of(text.begin(), text.end(), kIs));
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsAlpha(char c) { return AsciiLower(c) >= 'a' && AsciiLower(c) <= 'z'; }
bool IsSpace(char c) { return IsPythonSpace(static_cast<char32_t>(c)); }

constexpr Row kStringMethods[] = {{"strip", StripMethod<true, true>},
                                  {"lstrip", StripMethod<true, false>},
                                  {"rstrip", StripMethod<false, true>},
                                  {"startswith", StartsOrEnds<true>},
                                  {"endswith", StartsOrEnds<false>},
                                  {"split", Split<false>},
                                  {"rsplit", Split<true>},
                                  {"splitlines", SplitLines},
                                  {"replace", ReplaceMethod},
                                  {"join", Join},
                                  {"find", Find<false>},
                                  {"rfind", Find<true>},
                                  {"count", Count},
                                  {"upper", CaseMethod<Case::kUpper>},
                                  {"lower", CaseMethod<Case::kLower>},
                                  {"capitalize", CaseMethod<Case::kCapitalized>},
                                  {"title", Title},
                                  {"removeprefix", RemoveAffix<true>},
                                  {"removesuffix", RemoveAffix<false>},
                                  {"isdigit", AllAre<IsDigit>},
                                  {"isalpha", AllAre<IsAlpha>},
                                  {"isspace", AllAre<IsSpace>},
                                  {"casefold", nullptr},
                                  {"center", nullptr},
                                  {"encode", nullptr},
                                  {"expandtabs", nullptr},
                                  {"format", nullptr},
                                  {"format_map", nullptr},
                                  {"index", nullptr},
                                  {"isalnum", nullptr},
                                  {"isascii", nullptr},
                                  {"isdecimal", nullptr},
                                  {"isidentifier", nullptr},
                                  {"islower", nullptr},
                                  {"isnumeric", nullptr},
                                  {"isprintable", nullptr},
                                  {"istitle", nullptr},
                                  {"isupper", nullptr},
                                  {"ljust", nullptr},
                                  {"maketrans", nullptr},
                                  {"partition", nullptr},
                                  {"rindex", nullptr},
                                  {"rjust", nullptr},
                                  {"rpartition", nullptr},
                                  {"swapcase", nullptr},
                                  {"translate", nullptr},
                                  {"zfill", nullptr}};

// --- Mappings and lists ---

enum class Part : uint8_t { kKeys, kValues, kItems };

template <Part kPart>
Result<Value> PartsOf(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_CHECK_OK(arguments.Bind({}, 0));
  std::vector<Value> parts;
  for (const auto& [key, value] : self.dict().items) {
    if (kPart == Part::kKeys) {
      parts.emplace_back(key);
    } else if (kPart == Part::kValues) {
      parts.push_back(value);
    } else {
      NIBBLE_TRY(Value pair, runtime.NewList({Value(key), value}, true));
      parts.push_back(std::move(pair));
    }
  }
  return runtime.NewList(std::move(parts));
}

Result<Value> Get(Runtime& runtime, const Value& self, const Arguments& arguments) {
  NIBBLE_TRY(auto args, arguments.Bind({"key", "default"}, 1));
  NIBBLE_CHECK_OK(runtime.Spend(1 + self.dict().items.size() / 8));
  const Value* found = args[0].is_string() ? self.dict().Find(args[0].string()) : nullptr;
  if (found) return *found;
  if (arguments.positional.size() + arguments.named.size() < 2) return Value(None{});
  return args[1];
}

Result<Value> Copy(Runtime&, const Value& self, const Arguments& arguments) {
  NIBBLE_CHECK_OK(arguments.Bind({}, 0));
  return self;
}

constexpr Row kDictMethods[] = {{"keys", PartsOf<Part::kKeys>},
                                {"values", PartsOf<Part::kValues>},
                                {"items", PartsOf<Part::kItems>},
                                {"get", Get},
                                {"copy", Copy},
                                {"clear", nullptr},
                                {"fromkeys", nullptr},
                                {"pop", nullptr},
                                {"popitem", nullptr},
                                {"setdefault", nullptr},
                                {"update", nullptr}};

constexpr Row kListMethods[] = {{"count", Count},     {"copy", Copy},      {"append", nullptr},
                                {"clear", nullptr},   {"extend", nullptr}, {"index", nullptr},
                                {"insert", nullptr},  {"pop", nullptr},    {"remove", nullptr},
                                {"reverse", nullptr}, {"sort", nullptr}};

Result<Value> Cycle(Runtime&, const Value& self, const Arguments& arguments) {
  const auto& choices = arguments.positional;
  if (choices.empty()) return Err(ErrorCode::kInvalidArgument, "loop.cycle of nothing");
  return choices[self.As<std::shared_ptr<LoopState>>()->index % choices.size()];
}

constexpr Row kLoopMethods[] = {{"cycle", Cycle}, {"changed", nullptr}};

std::span<const Row> MethodsOf(const Value& object) {
  if (object.is_string()) return kStringMethods;
  if (object.is_dict()) return kDictMethods;
  if (object.is_list()) return kListMethods;
  if (object.Is<std::shared_ptr<LoopState>>()) return kLoopMethods;
  return {};
}

const Row* FindRow(const Value& object, std::string_view name) {
  for (const Row& row : MethodsOf(object)) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

}  // namespace

MethodStatus FindMethod(const Value& object, std::string_view name) {
  const Row* row = FindRow(object, name);
  return !row ? MethodStatus::kNone : row->run ? MethodStatus::kKnown : MethodStatus::kRefused;
}

Result<Value> CallMethod(Runtime& runtime, const Value& object, std::string_view name,
                         const Arguments& arguments) {
  const Row* row = FindRow(object, name);
  NIBBLE_CHECK(row && row->run, "a method that FindMethod did not find");
  return row->run(runtime, object, arguments);
}

Result<std::string> Strip(std::string_view text, const Value& characters, bool left, bool right) {
  if (!characters.is_undefined() && !characters.is_none() && !characters.is_string())
    return Expected("a string", characters);
  const bool spaces = !characters.is_string();
  const auto strips = [&](std::string_view character) {
    if (spaces) return IsPythonSpace(DecodeUtf8(character, 0).code_point);
    return characters.string().find(character) != std::string::npos;
  };
  while (left && !text.empty()) {
    const size_t n = DecodeUtf8(text, 0).length;
    if (!strips(text.substr(0, n))) break;
    text.remove_prefix(n);
  }
  while (right && !text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && !IsCharStart(text[start])) --start;
    if (!strips(text.substr(start))) break;
    text.remove_suffix(text.size() - start);
  }
  return std::string(text);
}

std::string Replace(std::string_view text, std::string_view old, std::string_view fresh,
                    int64_t count) {
  std::string out;
  size_t pos = 0;
  if (old.empty()) {  // between all characters
    for (; count != 0; --count) {
      out += fresh;
      if (pos == text.size()) return out;
      const size_t n = DecodeUtf8(text, pos).length;
      out += text.substr(pos, n);
      pos += n;
    }
    return out.append(text.substr(pos));
  }
  for (; count != 0; --count) {
    const size_t at = text.find(old, pos);
    if (at == std::string_view::npos) break;
    out.append(text, pos, at - pos);
    out += fresh;
    pos = at + old.size();
  }
  return out.append(text.substr(pos));
}

Result<std::string> WithCase(std::string_view text, Case how) {
  if (!IsAscii(text))
    return Err(ErrorCode::kUnsupported, "letter case of {}, which is not all ASCII", Quoted(text));
  std::string out(text);
  for (size_t i = 0; i < out.size(); ++i) {
    const bool upper = how == Case::kUpper || (how == Case::kCapitalized && i == 0);
    out[i] = upper ? AsciiUpper(out[i]) : AsciiLower(out[i]);
  }
  return out;
}

}  // namespace nibble::text::jinja
