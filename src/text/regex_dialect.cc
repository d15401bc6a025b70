#include "text/regex_dialect.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "text/utf8.h"

namespace nibble::text {
namespace {

constexpr size_t kMaxPatternBytes = 16 << 10;
constexpr size_t kMaxNesting = 64;
constexpr int kMaxRepeat = 1000;

constexpr std::array<std::string_view, 36> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd",
    "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
    "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cn"};

// Sequences that full case folding makes of one character ("ß", "ﬁ", ...): Oniguruma matches them,
// PCRE2 does not.
constexpr std::array<std::string_view, 5> kFoldedPairs = {"ss", "ff", "fi", "fl", "st"};

bool IsAsciiAlnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

char AsciiLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

class Checker {
 public:
  explicit Checker(std::string_view pattern) : pattern_(pattern) {}

  Result<std::vector<LiteralRange>> Check();

 private:
  struct Group {
    bool caseless = false;
    bool repeats = false;  // holds a quantifier that may run more than once
  };
  /// What the next quantifier would apply to.
  enum class Atom : uint8_t { kNone, kSimple, kGroup };
  /// One member of a class, or one escape: a set (\p{L}), or a single character.
  struct Item {
    std::optional<char32_t> single;
  };

  bool done() const { return pos_ >= pattern_.size(); }
  bool At(std::string_view s) const { return pattern_.substr(pos_).starts_with(s); }
  Error Refuse(std::string_view what) const {
    Error error = Err(ErrorCode::kUnsupported, "the split pattern has {} at byte {}", what, pos_);
    error.hint = "PCRE2 would read it otherwise than the tokenizer that the model was trained with";
    return error;
  }

  Result<void> Step();
  Result<Item> Escape();
  Result<Item> Property();
  Result<void> Class();
  Result<Item> ClassItem();
  Result<void> OpenGroup();
  Result<void> CloseGroup();
  Result<void> Quantifier();
  Result<std::pair<int, int>> Braces();
  Result<void> Literal(char32_t c);

  std::string_view pattern_;
  size_t pos_ = 0;
  std::vector<Group> groups_ = {Group{}};
  Atom atom_ = Atom::kNone;
  bool group_repeats_ = false;  // of the group that just closed
  char last_caseless_ = 0;      // the literal just before, inside (?i:...)
  std::vector<LiteralRange> literals_;
};

Result<std::vector<LiteralRange>> Checker::Check() {
  if (pattern_.empty()) return Err(ErrorCode::kCorruptFile, "the split pattern is empty");
  if (pattern_.size() > kMaxPatternBytes) {
    return Err(ErrorCode::kUnsupported, "the split pattern has {} bytes, expected at most {}",
               pattern_.size(), kMaxPatternBytes);
  }
  while (!done()) NIBBLE_CHECK_OK(Step());
  if (groups_.size() != 1) return Refuse("a group that is not closed");
  return std::move(literals_);
}

Result<void> Checker::Step() {
  const char c = pattern_[pos_];
  if (c == '*' || c == '+' || c == '?' || c == '{') return Quantifier();
  const char before = std::exchange(last_caseless_, 0);
  switch (c) {
    case '\\': {
      NIBBLE_TRY(const Item item, Escape());
      if (item.single) return Literal(*item.single);
      atom_ = Atom::kSimple;
      return {};
    }
    case '[':
      return Class();
    case '(':
      return OpenGroup();
    case ')':
      return CloseGroup();
    case '|':
      ++pos_;
      atom_ = Atom::kNone;
      return {};
    case '.':
      ++pos_;
      atom_ = Atom::kSimple;
      return {};
    case '^':
    case '$':
      return Refuse("an anchor");
    case ']':
    case '}':
      return Refuse("a closing bracket without its opening one");
    default:
      break;
  }
  const Utf8Step step = DecodeUtf8(pattern_, pos_);
  last_caseless_ = before;
  pos_ += step.length;
  return Literal(step.code_point);
}

Result<void> Checker::Literal(char32_t c) {
  atom_ = Atom::kSimple;
  if (c >= 0x80) literals_.push_back({c, c});
  if (!groups_.back().caseless) return {};
  if (c >= 0x80) return Refuse("a character outside ASCII inside (?i:...)");
  const char pair[2] = {last_caseless_, AsciiLower(static_cast<char>(c))};
  if (std::find(kFoldedPairs.begin(), kFoldedPairs.end(), std::string_view(pair, 2)) !=
      kFoldedPairs.end()) {
    return Refuse("letters inside (?i:...) that also fold from one character");
  }
  last_caseless_ = pair[1];
  return {};
}

Result<Checker::Item> Checker::Escape() {
  if (pos_ + 1 >= pattern_.size()) return Refuse("a backslash at its end");
  const char c = pattern_[pos_ + 1];
  if (c == 'p' || c == 'P') return Property();
  const auto take = [&](Item item) {
    pos_ += 2;
    return item;
  };
  switch (c) {
    case 'r':
      return take({U'\r'});
    case 'n':
      return take({U'\n'});
    case 't':
      return take({U'\t'});
    case 'f':
      return take({U'\f'});
    case 's':
    case 'S':
    case 'd':
    case 'D':
      return take({});
    default:
      break;
  }
  if (IsAsciiAlnum(c) || static_cast<uint8_t>(c) >= 0x80) {
    return Refuse(fmt::format("the escape \"\\{}\"", static_cast<uint8_t>(c) < 0x80 ? c : '?'));
  }
  return take({static_cast<char32_t>(c)});
}

Result<Checker::Item> Checker::Property() {
  const size_t open = pos_ + 2;
  const size_t close = pattern_.find('}', open);
  if (open >= pattern_.size() || pattern_[open] != '{' || close == std::string_view::npos) {
    return Refuse("a property without braces");
  }
  std::string_view name = pattern_.substr(open + 1, close - open - 1);
  if (name.starts_with('^')) name.remove_prefix(1);
  if (std::find(kCategories.begin(), kCategories.end(), name) == kCategories.end()) {
    return Refuse("a property that is no general category");
  }
  if (groups_.back().caseless && (name == "Lu" || name == "Ll" || name == "Lt")) {
    return Refuse("a letter case property inside (?i:...)");
  }
  pos_ = close + 1;
  return Item{};
}

Result<Checker::Item> Checker::ClassItem() {
  if (pattern_[pos_] == '\\') return Escape();
  if (pattern_[pos_] == '[') return Refuse("a class inside a class");
  if (At("&&")) return Refuse("a class intersection");
  const Utf8Step step = DecodeUtf8(pattern_, pos_);
  pos_ += step.length;
  return Item{step.code_point};
}

Result<void> Checker::Class() {
  ++pos_;
  if (At("^")) ++pos_;
  if (At("]")) return Refuse("an empty class");
  const bool caseless = groups_.back().caseless;
  while (!At("]")) {
    if (done()) return Refuse("a class that is not closed");
    NIBBLE_TRY(const Item first, ClassItem());
    char32_t last = first.single.value_or(0);
    if (At("-") && !At("-]")) {
      ++pos_;
      if (done()) return Refuse("a class that is not closed");
      NIBBLE_TRY(const Item second, ClassItem());
      if (!first.single || !second.single || *second.single < *first.single)
        return Refuse("a range without two ends");
      last = *second.single;
    }
    if (first.single && last >= 0x80) {
      if (caseless) return Refuse("a character outside ASCII inside (?i:...)");
      literals_.push_back({*first.single, last});
    }
  }
  ++pos_;
  atom_ = Atom::kSimple;
  return {};
}

Result<void> Checker::OpenGroup() {
  if (groups_.size() > kMaxNesting) return Refuse("groups nested too deeply");
  Group group{groups_.back().caseless, false};
  if (At("(*")) return Refuse("a verb");
  if (At("(?i:")) {
    group.caseless = true;
    pos_ += 4;
  } else if (At("(?:") || At("(?=") || At("(?!") || At("(?>")) {
    pos_ += 3;
  } else if (At("(?<=") || At("(?<!")) {
    pos_ += 4;
  } else if (At("(?")) {
    return Refuse("a group of a kind that is not known here");
  } else {
    ++pos_;
  }
  groups_.push_back(group);
  atom_ = Atom::kNone;
  return {};
}

Result<void> Checker::CloseGroup() {
  if (groups_.size() == 1) return Refuse("a closing bracket without its opening one");
  group_repeats_ = groups_.back().repeats;
  groups_.pop_back();
  groups_.back().repeats |= group_repeats_;
  atom_ = Atom::kGroup;
  ++pos_;
  return {};
}

Result<std::pair<int, int>> Checker::Braces() {
  const size_t close = pattern_.find('}', pos_);
  if (close == std::string_view::npos) return Refuse("a brace that is no quantifier");
  const std::string_view body = pattern_.substr(pos_ + 1, close - pos_ - 1);
  const size_t comma = body.find(',');
  const auto number = [](std::string_view digits) -> std::optional<int> {
    if (digits.empty() || digits.size() > 4) return std::nullopt;
    int value = 0;
    for (char d : digits) {
      if (d < '0' || d > '9') return std::nullopt;
      value = value * 10 + (d - '0');
    }
    return value;
  };
  const auto low = number(body.substr(0, comma));
  std::optional<int> high = low;
  if (comma != std::string_view::npos) {
    high = comma + 1 == body.size() ? std::optional(INT32_MAX) : number(body.substr(comma + 1));
  }
  if (!low || !high || *high < *low || *low > kMaxRepeat ||
      (*high != INT32_MAX && *high > kMaxRepeat)) {
    return Refuse("a brace that is no quantifier of at most 1000");
  }
  pos_ = close + 1;
  return std::pair(*low, *high);
}

Result<void> Checker::Quantifier() {
  if (atom_ == Atom::kNone) return Refuse("a quantifier with nothing to repeat");
  const bool braces = pattern_[pos_] == '{';
  int most = pattern_[pos_] == '?' ? 1 : INT32_MAX;
  if (braces) {
    NIBBLE_TRY(const auto bounds, Braces());
    most = bounds.second;
  } else {
    ++pos_;
  }
  if (most > 1) {
    if (atom_ == Atom::kGroup && group_repeats_)
      return Refuse("a repeated group that repeats something itself");
    groups_.back().repeats = true;
  }
  if (At("?") || At("+")) {
    if (braces) return Refuse("a mark after {...}");  // {2}? and {2}+ differ between the two
    ++pos_;
  }
  atom_ = Atom::kNone;
  last_caseless_ = 0;
  return {};
}

}  // namespace

Result<std::vector<LiteralRange>> CheckRegexDialect(std::string_view pattern) {
  return Checker(pattern).Check();
}

}  // namespace nibble::text
