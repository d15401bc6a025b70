#include "text/jinja/filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/quoted.h"
#include "text/jinja/methods.h"
#include "text/jinja/tests.h"
#include "text/utf8.h"

namespace nibble::text::jinja {
namespace {

Error Expected(std::string_view what, const Value& found) {
  return Err(ErrorCode::kInvalidArgument, "expected {}, found {}", what, found.TypeName());
}

bool Absent(const Value& v) { return v.is_undefined(); }

int64_t IntOr(const Value& v, int64_t otherwise) { return v.is_int() ? v.integer() : otherwise; }

// --- Text ---

Result<Value> Trim(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "chars"}, 1));
  NIBBLE_TRY(const std::string text, runtime.Str(args[0]));
  NIBBLE_TRY(std::string stripped, Strip(text, args[1], true, true));
  return runtime.NewText(std::move(stripped));
}

Result<Value> String(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  if (args[0].is_string()) return args[0];
  NIBBLE_TRY(std::string text, runtime.Str(args[0]));
  return runtime.NewText(std::move(text));
}

template <Case kHow>
Result<Value> CaseFilter(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  NIBBLE_TRY(const std::string text, runtime.Str(args[0]));
  NIBBLE_TRY(std::string changed, WithCase(text, kHow));
  return runtime.NewText(std::move(changed));
}

/// Jinja's own title: words end at white space, "-", "(", "{", "[" and "<".
Result<Value> Title(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  NIBBLE_TRY(const std::string text, runtime.Str(args[0]));
  NIBBLE_TRY(std::string changed, WithCase(text, Case::kLower));
  bool start = true;
  for (char& c : changed) {
    if (start && c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
    start = IsPythonSpace(static_cast<char32_t>(c)) ||
            std::string_view("-({[<").find(c) != std::string_view::npos;
  }
  return runtime.NewText(std::move(changed));
}

Result<Value> ReplaceFilter(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "old", "new", "count"}, 3));
  NIBBLE_TRY(std::string text, runtime.Str(args[0]));
  NIBBLE_TRY(std::string old, runtime.Str(args[1]));
  NIBBLE_TRY(std::string fresh, runtime.Str(args[2]));
  Arguments inner;
  inner.positional = {Value(std::move(old)), Value(std::move(fresh)), Value(IntOr(args[3], -1))};
  return CallMethod(runtime, Value(std::move(text)), "replace", inner);
}

Result<Value> Indent(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "width", "first", "blank"}, 1));
  NIBBLE_TRY(std::string text, runtime.Str(args[0]));
  const int64_t width = IntOr(args[1], 4);
  if (width < 0 || width > 1000) return Err(ErrorCode::kInvalidArgument, "an indent of {}", width);
  const std::string margin =
      args[1].is_string() ? args[1].string() : std::string(static_cast<size_t>(width), ' ');
  text += '\n';  // Jinja's way: the last line counts even when empty
  std::string out;
  bool is_first = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const bool indented = is_first ? args[2].Truthy() : (end > begin || args[3].Truthy());
    if (!is_first) out += '\n';
    if (indented) out += margin;
    out.append(text, begin, end - begin);
    NIBBLE_CHECK_OK(runtime.Spend(1 + margin.size() + end - begin));
    begin = end + 1;
    is_first = false;
  }
  return Value(std::move(out));
}

Result<Value> ToJson(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args,
             arguments.Bind({"value", "ensure_ascii", "indent", "separators", "sort_keys"}, 1));
  JsonFormat format;
  format.ascii = args[1].Truthy();
  format.sort_keys = args[4].Truthy();
  if (args[2].is_int()) {
    if (args[2].integer() > 100)
      return Err(ErrorCode::kInvalidArgument, "an indent of {}", args[2].integer());
    format.indent = static_cast<int>(std::max<int64_t>(args[2].integer(), 0));
    format.comma = ",";
  } else if (!Absent(args[2]) && !args[2].is_none()) {
    return Expected("an integer as indent", args[2]);
  }
  if (args[3].is_list()) {
    const auto& pair = args[3].items();
    if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
      return Expected("two separators", args[3]);
    format.comma = pair[0].string();
    format.colon = pair[1].string();
  }
  // An indent multiplies what a value weighs, by no more than this.
  const uint64_t factor = 2 +
                          static_cast<uint64_t>(std::max(format.indent, 0)) * kMaxValueDepth / 8 +
                          format.comma.size() + format.colon.size();
  NIBBLE_CHECK_OK(runtime.Spend(args[0].Weight() * factor));
  std::string out;
  NIBBLE_CHECK_OK(AppendJson(out, args[0], format));
  return runtime.NewText(std::move(out));
}

Result<Value> Join(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "d", "attribute"}, 1));
  NIBBLE_TRY(const auto items, Iterate(runtime, args[0]));
  NIBBLE_TRY(const std::string separator, runtime.Str(args[1]));
  std::string out;
  for (size_t i = 0; i < items->items.size(); ++i) {
    Value item = items->items[i];
    if (!Absent(args[2])) {
      NIBBLE_TRY(item, GetItem(runtime, item, args[2]));
    }
    NIBBLE_TRY(const std::string text, runtime.Str(item));
    if (i) out += separator;
    out += text;
    NIBBLE_CHECK_OK(runtime.Spend(separator.size() + text.size()));
  }
  return Value(std::move(out));
}

// --- Any value ---

Result<Value> Safe(Runtime&, const Arguments& arguments) {
  NIBBLE_TRY(auto args, arguments.Bind({"value"}, 1));
  return args[0];
}

Result<Value> Length(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  if (args[0].is_string()) NIBBLE_CHECK_OK(runtime.Spend(args[0].string().size()));
  NIBBLE_TRY(const int64_t length, LengthOf(args[0]));
  return Value(length);
}

Result<Value> Default(Runtime&, const Arguments& arguments) {
  NIBBLE_TRY(auto args, arguments.Bind({"value", "default_value", "boolean"}, 1));
  if (!args[0].is_undefined() && !(args[2].Truthy() && !args[0].Truthy())) return args[0];
  return Absent(args[1]) ? Value(std::string()) : args[1];
}

/// Digits with a sign and white space around, as int() and float() take them.
template <class T>
std::optional<T> Parse(const std::string& text) {
  const auto stripped = Strip(text, Value(None{}), true, true);
  std::string_view digits = *stripped;
  if (digits.starts_with('+')) digits.remove_prefix(1);
  T value{};
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

Result<Value> Int(Runtime&, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "default"}, 1));
  const Value& v = args[0];
  if (v.is_undefined()) return UndefinedError(v);
  if (v.is_int()) return Value(v.integer());
  std::optional<double> real = v.Is<double>() ? std::optional(v.As<double>()) : std::nullopt;
  if (v.is_string()) {
    if (const auto whole = Parse<int64_t>(v.string())) return Value(*whole);
    real = Parse<double>(v.string());
  }
  if (real && std::abs(*real) < 0x1p63) return Value(static_cast<int64_t>(*real));
  return Absent(args[1]) ? Value(int64_t{0}) : args[1];
}

Result<Value> Float(Runtime&, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "default"}, 1));
  if (args[0].is_undefined()) return UndefinedError(args[0]);
  if (args[0].is_number()) return Value(args[0].number());
  if (args[0].is_string()) {
    if (const auto real = Parse<double>(args[0].string())) return Value(*real);
  }
  return Absent(args[1]) ? Value(0.0) : args[1];
}

Result<Value> Abs(Runtime&, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  if (!args[0].is_number()) return Expected("a number", args[0]);
  return args[0].number() < 0 ? Negate(args[0]) : args[0];
}

// --- Lists ---

Result<Value> First(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  NIBBLE_TRY(const auto items, Iterate(runtime, args[0]));
  return items->items.empty() ? Value(Undefined{}) : items->items.front();
}

Result<Value> Last(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  NIBBLE_TRY(const auto items, Iterate(runtime, args[0]));
  return items->items.empty() ? Value(Undefined{}) : items->items.back();
}

Result<Value> List(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  NIBBLE_TRY(const auto items, Iterate(runtime, args[0]));
  return items->is_tuple ? runtime.NewList(items->items) : Value(items);
}

Result<Value> Reverse(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  NIBBLE_TRY(const auto items, Iterate(runtime, args[0]));
  std::vector<Value> reversed(items->items.rbegin(), items->items.rend());
  if (!args[0].is_string()) return runtime.NewList(std::move(reversed));
  std::string text;
  for (const Value& character : reversed) text += character.string();
  return runtime.NewText(std::move(text));
}

Result<Value> Items(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value"}, 1));
  if (args[0].is_undefined()) return runtime.NewList({});
  if (!args[0].is_dict()) return Expected("a mapping", args[0]);
  return CallMethod(runtime, args[0], "items", {});
}

/// What sorting compares: an attribute if one is named, small letters unless told otherwise.
Result<Value> SortKey(Runtime& runtime, const Value& item, const Value& attribute,
                      bool case_sensitive) {
  Value key = item;
  if (!Absent(attribute) && !attribute.is_none()) {
    NIBBLE_TRY(key, GetItem(runtime, item, attribute));
  }
  if (!key.is_string() || case_sensitive) return key;
  NIBBLE_TRY(std::string lower, WithCase(key.string(), Case::kLower));
  return runtime.NewText(std::move(lower));
}

using Keyed = std::pair<Value, Value>;  // key, item

Result<std::vector<Value>> Sorted(Runtime& runtime, std::vector<Keyed> keyed, bool descending) {
  // Python sorts stably, backwards too. A merge sort of our own: std::stable_sort may not see an
  // order that fails halfway.
  std::vector<Keyed> other(keyed.size());
  for (size_t width = 1; width < keyed.size(); width *= 2) {
    for (size_t begin = 0; begin < keyed.size(); begin += 2 * width) {
      size_t a = begin, b = std::min(begin + width, keyed.size()), out = begin;
      const size_t a_end = b, b_end = std::min(begin + 2 * width, keyed.size());
      while (a < a_end || b < b_end) {
        bool take_b = a == a_end;
        if (a < a_end && b < b_end) {
          NIBBLE_TRY(take_b, descending ? runtime.Less(keyed[a].first, keyed[b].first)
                                        : runtime.Less(keyed[b].first, keyed[a].first));
        }
        other[out++] = keyed[take_b ? b++ : a++];
      }
    }
    keyed.swap(other);
  }
  std::vector<Value> items;
  for (Keyed& pair : keyed) items.push_back(std::move(pair.second));
  return items;
}

Result<std::vector<Keyed>> WithKeys(Runtime& runtime, const Value& list, const Value& attribute,
                                    bool case_sensitive) {
  NIBBLE_TRY(const auto items, Iterate(runtime, list));
  std::vector<Keyed> keyed;
  for (const Value& item : items->items) {
    NIBBLE_TRY(Value key, SortKey(runtime, item, attribute, case_sensitive));
    keyed.emplace_back(std::move(key), item);
  }
  return keyed;
}

Result<Value> Sort(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args,
             arguments.Bind({"value", "reverse", "case_sensitive", "attribute"}, 1));
  NIBBLE_TRY(auto keyed, WithKeys(runtime, args[0], args[3], args[2].Truthy()));
  NIBBLE_TRY(auto items, Sorted(runtime, std::move(keyed), args[1].Truthy()));
  return runtime.NewList(std::move(items));
}

Result<Value> DictSort(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "case_sensitive", "by", "reverse"}, 1));
  if (!args[0].is_dict()) return Expected("a mapping", args[0]);
  const bool by_value = args[2].is_string() && args[2].string() == "value";
  NIBBLE_TRY(const Value pairs, CallMethod(runtime, args[0], "items", {}));
  NIBBLE_TRY(auto keyed, WithKeys(runtime, pairs, Value(int64_t{by_value}), args[1].Truthy()));
  NIBBLE_TRY(auto items, Sorted(runtime, std::move(keyed), args[3].Truthy()));
  return runtime.NewList(std::move(items));
}

Result<Value> Unique(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "case_sensitive", "attribute"}, 1));
  NIBBLE_TRY(const auto keyed, WithKeys(runtime, args[0], args[2], args[1].Truthy()));
  std::vector<Value> seen, items;
  for (const auto& [key, item] : keyed) {
    bool known = false;
    for (size_t i = 0; i < seen.size() && !known; ++i) {
      NIBBLE_TRY(known, runtime.Equal(seen[i], key));
    }
    if (known) continue;
    seen.push_back(key);
    items.push_back(item);
  }
  return runtime.NewList(std::move(items));
}

template <bool kMax>
Result<Value> Extreme(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "case_sensitive", "attribute"}, 1));
  NIBBLE_TRY(const auto keyed, WithKeys(runtime, args[0], args[2], args[1].Truthy()));
  const Keyed* best = nullptr;
  for (const Keyed& pair : keyed) {
    bool better = best == nullptr;
    if (best) {
      NIBBLE_TRY(better, kMax ? runtime.Less(best->first, pair.first)
                              : runtime.Less(pair.first, best->first));
    }
    if (better) best = &pair;
  }
  return best ? best->second : Value(Undefined{});
}

Result<Value> Sum(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto args, arguments.Bind({"value", "attribute", "start"}, 1));
  NIBBLE_TRY(const auto items, Iterate(runtime, args[0]));
  Value total = Absent(args[2]) ? Value(int64_t{0}) : args[2];
  for (Value item : items->items) {
    if (!Absent(args[1]) && !args[1].is_none()) {
      NIBBLE_TRY(item, GetItem(runtime, item, args[1]));
    }
    NIBBLE_TRY(total, Binary(runtime, "+", total, item));
  }
  return total;
}

/// "a.b" reaches into an item step by step; `otherwise`, if defined, stands for what is not there.
Result<Value> Reach(Runtime& runtime, Value item, const Value& path, const Value& otherwise = {}) {
  if (!path.is_string()) return GetItem(runtime, item, path);  // an index
  std::string_view rest = path.string();
  while (true) {
    const size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    int64_t index = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index =
        error == std::errc{} && end == part.data() + part.size() && !part.starts_with('-');
    NIBBLE_TRY(item, GetItem(runtime, item, is_index ? Value(index) : Value(part)));
    if (item.is_undefined() && !Absent(otherwise)) item = otherwise;
    if (dot == std::string_view::npos) return item;
    rest.remove_prefix(dot + 1);
  }
}

Result<Value> Map(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto items, Iterate(runtime, arguments.positional.at(0)));
  std::vector<Value> mapped;
  if (arguments.positional.size() == 1) {
    Value attribute, otherwise;
    for (const auto& [name, value] : arguments.named) {
      if (name == "attribute") attribute = value;
      if (name == "default") otherwise = value;
    }
    if (Absent(attribute))
      return Err(ErrorCode::kInvalidArgument, "map needs a filter or an attribute");
    for (const Value& item : items->items) {
      NIBBLE_TRY(Value value, Reach(runtime, item, attribute, otherwise));
      mapped.push_back(std::move(value));
    }
    return runtime.NewList(std::move(mapped));
  }
  const Value& name = arguments.positional[1];
  const FilterFunction filter = name.is_string() ? FindFilter(name.string()) : nullptr;
  // A map of map of map ... would recurse as deep as it is long.
  if (!filter || filter == Map)
    return Err(ErrorCode::kUnsupported, "map with a filter that is not known here");
  Arguments inner = arguments;
  inner.positional.erase(inner.positional.begin());
  for (const Value& item : items->items) {
    NIBBLE_CHECK_OK(runtime.Step());
    inner.positional[0] = item;
    NIBBLE_TRY(Value value, filter(runtime, inner));
    mapped.push_back(std::move(value));
  }
  return runtime.NewList(std::move(mapped));
}

/// select, reject, selectattr, rejectattr.
template <bool kKeep, bool kAttribute>
Result<Value> Select(Runtime& runtime, const Arguments& arguments) {
  NIBBLE_TRY(const auto items, Iterate(runtime, arguments.positional.at(0)));
  const size_t skip = kAttribute ? 2 : 1;  // the list, and the attribute
  if (arguments.positional.size() < skip)
    return Err(ErrorCode::kInvalidArgument, "selectattr needs an attribute");
  TestFunction test = nullptr;
  Arguments inner;
  inner.named = arguments.named;
  if (arguments.positional.size() > skip) {
    const Value& name = arguments.positional[skip];
    test = name.is_string() ? FindTest(name.string()) : nullptr;
    if (!test) return Err(ErrorCode::kUnsupported, "select with a test that is not known here");
    inner.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(skip),
                            arguments.positional.end());
  }
  std::vector<Value> kept;
  for (const Value& item : items->items) {
    NIBBLE_CHECK_OK(runtime.Step());
    Value subject = item;
    if (kAttribute) {
      NIBBLE_TRY(subject, Reach(runtime, item, arguments.positional[1]));
    }
    bool passes = subject.Truthy();
    if (test) {
      inner.positional[0] = subject;
      NIBBLE_TRY(passes, test(runtime, inner));
    }
    if (passes == kKeep) kept.push_back(item);
  }
  return runtime.NewList(std::move(kept));
}

struct Row {
  std::string_view name;
  FilterFunction run;
};
constexpr Row kFilters[] = {{"trim", Trim},
                            {"string", String},
                            {"upper", CaseFilter<Case::kUpper>},
                            {"lower", CaseFilter<Case::kLower>},
                            {"capitalize", CaseFilter<Case::kCapitalized>},
                            {"title", Title},
                            {"replace", ReplaceFilter},
                            {"indent", Indent},
                            {"tojson", ToJson},
                            {"join", Join},
                            {"safe", Safe},
                            {"length", Length},
                            {"count", Length},
                            {"default", Default},
                            {"d", Default},
                            {"int", Int},
                            {"float", Float},
                            {"abs", Abs},
                            {"first", First},
                            {"last", Last},
                            {"list", List},
                            {"reverse", Reverse},
                            {"items", Items},
                            {"sort", Sort},
                            {"dictsort", DictSort},
                            {"unique", Unique},
                            {"min", Extreme<false>},
                            {"max", Extreme<true>},
                            {"sum", Sum},
                            {"map", Map},
                            {"select", Select<true, false>},
                            {"reject", Select<false, false>},
                            {"selectattr", Select<true, true>},
                            {"rejectattr", Select<false, true>}};

}  // namespace

FilterFunction FindFilter(std::string_view name) {
  const auto* found = std::find_if(std::begin(kFilters), std::end(kFilters),
                                   [&](const Row& r) { return r.name == name; });
  return found == std::end(kFilters) ? nullptr : found->run;
}

}  // namespace nibble::text::jinja
