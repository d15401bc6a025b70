#include "base/regex_lite.h"

#include <optional>

#include "base/quoted.h"

namespace nibble {
namespace {

using Bytes = std::bitset<128>;

constexpr size_t kMaxPatternBytes = 1024;
constexpr int kMaxDepth = 32;

Bytes Range(unsigned first, unsigned last) {
  Bytes bytes;
  for (unsigned c = first; c <= last; ++c) bytes.set(c);
  return bytes;
}

const Bytes kDigits = Range('0', '9');
const Bytes kWord = Range('a', 'z') | Range('A', 'Z') | kDigits | Range('_', '_');
const Bytes kSpace = Range('\t', '\r') | Range(' ', ' ') | Range(0x1C, 0x1F);
const Bytes kAnyButNewline = ~Range('\n', '\n');

/// The set behind \d and its kin.
std::optional<Bytes> ClassOf(char letter) {
  switch (letter) {
    case 'd':
      return kDigits;
    case 'D':
      return ~kDigits;
    case 'w':
      return kWord;
    case 'W':
      return ~kWord;
    case 's':
      return kSpace;
    case 'S':
      return ~kSpace;
    default:
      return std::nullopt;
  }
}

bool IsAlnum(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte <= 0x7F && kWord.test(byte) && c != '_';
}

}  // namespace

/// Pattern to syntax tree to states. The tree's depth is bounded by that of the groups, so the
/// recursion is too.
class RegexCompiler {
 public:
  explicit RegexCompiler(std::string_view pattern) : pattern_(pattern) {}

  Result<RegexLite> Compile() {
    if (pattern_.size() > kMaxPatternBytes) {
      return Err(ErrorCode::kUnsupported,
                 "regular expression {} has {} bytes, at most {} are taken", Quoted(pattern_),
                 pattern_.size(), kMaxPatternBytes);
    }
    NIBBLE_TRY(const int root, Alternatives(0));
    if (pos_ < pattern_.size()) return Wrong("an unmatched ')'");
    regex_.pattern_ = std::string(pattern_);
    const int accept = AddState({});
    regex_.start_ = Emit(root, accept);
    regex_.BuildTable();
    return std::move(regex_);
  }

 private:
  enum class Kind : uint8_t {
    kSet,
    kBegin,
    kEnd,
    kSequence,
    kAlternatives,
    kStar,
    kPlus,
    kOptional
  };
  struct Node {
    Kind kind;
    Bytes bytes;
    std::vector<int> children;
  };

  Error Wrong(std::string_view what) const {
    return Err(ErrorCode::kCorruptFile, "regular expression {}: {} at byte {}", Quoted(pattern_),
               what, pos_);
  }
  Error Refused(std::string_view what) const {
    Error e = Err(ErrorCode::kUnsupported, "regular expression {}: {} at byte {} is not supported",
                  Quoted(pattern_), what, pos_);
    e.hint = "taken are literals, . [] \\d \\w \\s * + ? | () (?:) ^ $";
    return e;
  }

  bool AtEnd() const { return pos_ >= pattern_.size(); }
  char Peek() const { return pattern_[pos_]; }
  bool Take(char c) {
    if (AtEnd() || Peek() != c) return false;
    ++pos_;
    return true;
  }

  int AddNode(Kind kind, Bytes bytes = {}, std::vector<int> children = {}) {
    nodes_.push_back({kind, bytes, std::move(children)});
    return static_cast<int>(nodes_.size()) - 1;
  }

  Result<int> Alternatives(int depth) {
    if (depth > kMaxDepth) return Refused("a group nested this deep");
    std::vector<int> ways;
    do {
      NIBBLE_TRY(const int way, Sequence(depth));
      ways.push_back(way);
    } while (Take('|'));
    if (ways.size() == 1) return ways.front();
    return AddNode(Kind::kAlternatives, {}, std::move(ways));
  }

  Result<int> Sequence(int depth) {
    std::vector<int> parts;
    while (!AtEnd() && Peek() != '|' && Peek() != ')') {
      NIBBLE_TRY(const int atom, Atom(depth));
      NIBBLE_TRY(const int part, Repeated(atom));
      parts.push_back(part);
    }
    return AddNode(Kind::kSequence, {}, std::move(parts));
  }

  Result<int> Repeated(int atom) {
    if (AtEnd()) return atom;
    Kind kind;
    switch (Peek()) {
      case '*':
        kind = Kind::kStar;
        break;
      case '+':
        kind = Kind::kPlus;
        break;
      case '?':
        kind = Kind::kOptional;
        break;
      case '{':
        return Refused("a counted repeat {}");
      default:
        return atom;
    }
    const Kind repeated = nodes_[static_cast<size_t>(atom)].kind;
    if (repeated == Kind::kBegin || repeated == Kind::kEnd) return Refused("a repeated anchor");
    ++pos_;
    if (!AtEnd() && Peek() == '+') return Refused("a possessive repeat");
    Take('?');
    if (!AtEnd() && (Peek() == '*' || Peek() == '+' || Peek() == '?' || Peek() == '{')) {
      return Wrong("a repeat of a repeat");
    }
    return AddNode(kind, {}, {atom});
  }

  Result<int> Atom(int depth) {
    const char c = Peek();
    switch (c) {
      case '(':
        return Group(depth);
      case '[':
        return Set();
      case '.':
        ++pos_;
        return AddNode(Kind::kSet, kAnyButNewline);
      case '^':
        ++pos_;
        return AddNode(Kind::kBegin);
      case '$':
        ++pos_;
        return AddNode(Kind::kEnd);
      case '*':
      case '+':
      case '?':
        return Wrong("a repeat of nothing");
      case '{':
        return Refused("a counted repeat {}");
      case '\\': {
        NIBBLE_TRY(Bytes bytes, Escape());
        return AddNode(Kind::kSet, bytes);
      }
      default: {
        NIBBLE_TRY(const unsigned literal, Literal());
        return AddNode(Kind::kSet, Range(literal, literal));
      }
    }
  }

  Result<unsigned> Literal() {
    const auto c = static_cast<unsigned char>(Peek());
    if (c > 0x7F) return Refused("a byte outside ASCII");
    ++pos_;
    return unsigned{c};
  }

  Result<Bytes> Escape() {
    if (pos_ + 1 >= pattern_.size()) return Wrong("a lone backslash");
    const char c = pattern_[pos_ + 1];
    if (auto bytes = ClassOf(c)) {
      pos_ += 2;
      return *bytes;
    }
    if (IsAlnum(c)) return Refused(std::string("the escape \\") + c);
    ++pos_;
    NIBBLE_TRY(const unsigned literal, Literal());
    return Range(literal, literal);
  }

  Result<int> Group(int depth) {
    if (pattern_.substr(pos_, 2) == "(?" && pattern_.substr(pos_, 3) != "(?:") {
      const std::string_view head = pattern_.substr(pos_, 4);
      const bool look = head.starts_with("(?=") || head.starts_with("(?!") ||
                        head.starts_with("(?<=") || head.starts_with("(?<!");
      return Refused(look ? "a look-around group" : "a group that begins with (?");
    }
    pos_ += pattern_.substr(pos_, 3) == "(?:" ? 3 : 1;
    NIBBLE_TRY(const int inner, Alternatives(depth + 1));
    if (!Take(')')) return Wrong("a group without ')'");
    // Wrapped, so that a group around an anchor may be repeated as in Python.
    return AddNode(Kind::kSequence, {}, {inner});
  }

  /// One element of a set: a byte, or a class such as \d (`single` stays -1).
  Result<Bytes> SetElement(int* single) {
    *single = -1;
    if (Peek() == '\\') {
      NIBBLE_TRY(Bytes bytes, Escape());
      if (bytes.count() == 1) *single = static_cast<unsigned char>(pattern_[pos_ - 1]);
      return bytes;
    }
    NIBBLE_TRY(const unsigned literal, Literal());
    *single = static_cast<int>(literal);
    return Range(literal, literal);
  }

  Result<int> Set() {
    ++pos_;
    const bool negated = Take('^');
    Bytes bytes;
    bool first = true;
    for (;; first = false) {
      if (AtEnd()) return Wrong("a set without ']'");
      if (Peek() == ']' && !first) break;
      int low;
      NIBBLE_TRY(Bytes element, SetElement(&low));
      const bool range = pos_ + 1 < pattern_.size() && Peek() == '-' && pattern_[pos_ + 1] != ']';
      if (!range) {
        bytes |= element;
        continue;
      }
      ++pos_;
      int high;
      NIBBLE_TRY([[maybe_unused]] Bytes last, SetElement(&high));
      if (low < 0 || high < low) return Wrong("a range that is none");
      bytes |= Range(static_cast<unsigned>(low), static_cast<unsigned>(high));
    }
    ++pos_;
    return AddNode(Kind::kSet, negated ? ~bytes : bytes);
  }

  int AddState(RegexLite::State state) {
    regex_.states_.push_back(state);
    return static_cast<int>(regex_.states_.size()) - 1;
  }
  int AddSplit(int next, int other) { return AddState({RegexLite::Op::kSplit, next, other, {}}); }

  /// The states of a node that go on to `next`; gives the first. Built from the end, so that no
  /// state needs patching but a repeat's.
  int Emit(int index, int next) {
    const Node& node = nodes_[static_cast<size_t>(index)];
    switch (node.kind) {
      case Kind::kSet:
        return AddState({RegexLite::Op::kSet, next, -1, node.bytes});
      case Kind::kBegin:
        return AddState({RegexLite::Op::kBegin, next, -1, {}});
      case Kind::kEnd:
        return AddState({RegexLite::Op::kEnd, next, -1, {}});
      case Kind::kSequence:
        for (auto child = node.children.rbegin(); child != node.children.rend(); ++child) {
          next = Emit(*child, next);
        }
        return next;
      case Kind::kAlternatives: {
        int start = Emit(node.children.back(), next);
        for (size_t i = node.children.size() - 1; i-- > 0;) {
          start = AddSplit(Emit(node.children[i], next), start);
        }
        return start;
      }
      case Kind::kOptional:
        return AddSplit(Emit(node.children[0], next), next);
      case Kind::kStar:
      case Kind::kPlus:
        break;
    }
    const int loop = AddSplit(-1, next);
    const int body = Emit(node.children[0], loop);
    regex_.states_[static_cast<size_t>(loop)].next = body;
    return node.kind == Kind::kStar ? loop : body;
  }

  std::string_view pattern_;
  size_t pos_ = 0;
  std::vector<Node> nodes_;
  RegexLite regex_;
};

Result<RegexLite> RegexLite::Compile(std::string_view pattern) {
  return RegexCompiler(pattern).Compile();
}

}  // namespace nibble
