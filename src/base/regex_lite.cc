#include "base/regex_lite.h"

#include <algorithm>
#include <map>
#include <utility>

namespace nibble {

/// Adds states to a set together with all that they lead to without taking a byte.
class RegexLite::Walk {
 public:
  explicit Walk(const RegexLite& regex) : regex_(regex), added_(regex.states_.size()) {}

  /// Begins a new set, at the first byte of the text or not, at its end or not.
  void Begin(bool at_begin, bool at_end) {
    at_begin_ = at_begin;
    at_end_ = at_end;
    ++round_;
    members.clear();
  }

  /// True when the set accepts; it is then left incomplete.
  bool Add(int state) {
    stack_.push_back(state);
    while (!stack_.empty()) {
      const int index = stack_.back();
      stack_.pop_back();
      if (added_[static_cast<size_t>(index)] == round_) continue;
      added_[static_cast<size_t>(index)] = round_;
      ++steps;
      const State& s = regex_.states_[static_cast<size_t>(index)];
      switch (s.op) {
        case Op::kAccept:
          stack_.clear();
          return true;
        case Op::kSet:
          members.push_back(index);
          break;
        case Op::kBegin:
          if (at_begin_) stack_.push_back(s.next);
          break;
        case Op::kEnd:
          if (at_end_) {
            stack_.push_back(s.next);
          } else {
            members.push_back(index);  // so that the set can be asked again at the end
          }
          break;
        case Op::kSplit:
          stack_.push_back(s.other);
          stack_.push_back(s.next);
          break;
      }
    }
    return false;
  }

  std::vector<int> members;  // kSet and kEnd states
  uint64_t steps = 0;

 private:
  const RegexLite& regex_;
  bool at_begin_ = false, at_end_ = false;
  size_t round_ = 0;
  std::vector<size_t> added_;  // the round in which a state was last added
  std::vector<int> stack_;
};

/// Gives two bytes one class if every set of the pattern holds both or neither.
void RegexLite::BuildClasses() {
  table_.columns = 1;
  for (const State& s : states_) {
    if (s.op != Op::kSet) continue;
    std::array<int, 256> split_of;  // by old class: its part inside the set
    split_of.fill(-1);
    std::array<size_t, 128> inside = {}, outside = {};
    for (size_t c = 0; c < 128; ++c) ++(s.bytes.test(c) ? inside : outside)[table_.class_of[c]];
    for (size_t c = 0; c < 128; ++c) {
      const uint8_t old = table_.class_of[c];
      if (!s.bytes.test(c) || outside[old] == 0) continue;
      if (split_of[old] < 0) split_of[old] = static_cast<int>(table_.columns++);
      table_.class_of[c] = static_cast<uint8_t>(split_of[old]);
    }
  }
}

/// The subset construction, given up (leaving `next` empty) where a stranger's pattern makes it
/// large: real recipes' need some fifty rows.
void RegexLite::BuildTable() {
  constexpr size_t kMaxRows = 256;
  constexpr uint64_t kMaxSteps = 100'000;
  constexpr uint16_t kDead = 0, kMatch = 1;
  BuildClasses();
  std::array<unsigned, 128> byte_of = {};
  for (unsigned c = 0; c < 128; ++c) byte_of[table_.class_of[c]] = c;

  Walk walk(*this);
  std::map<std::vector<int>, uint16_t> row_of;
  std::vector<std::vector<int>> rows(2);  // [row]: its states
  table_.accept_at_end = {false, true};
  auto add_row = [&](bool at_begin) {
    rows.push_back(walk.members);
    const std::vector<int>& members = rows.back();
    walk.Begin(at_begin, true);
    bool accepts = false;
    for (const int m : members) {
      const State& s = states_[static_cast<size_t>(m)];
      accepts = accepts || (s.op == Op::kEnd && walk.Add(s.next));
    }
    table_.accept_at_end.push_back(accepts);
    return static_cast<uint16_t>(rows.size() - 1);
  };

  walk.Begin(true, false);
  // The start is in no map: `^` holds in it, and in no row that has the same states later.
  table_.start = walk.Add(start_) ? kMatch : add_row(true);
  table_.next.assign(2 * table_.columns, kDead);
  std::fill_n(table_.next.begin() + static_cast<std::ptrdiff_t>(table_.columns), table_.columns,
              kMatch);
  for (size_t row = 2; row < rows.size(); ++row) {
    for (size_t column = 0; column < table_.columns; ++column) {
      walk.Begin(false, false);
      bool accepted = false;
      for (const int m : rows[row]) {
        const State& s = states_[static_cast<size_t>(m)];
        accepted = s.op == Op::kSet && s.bytes.test(byte_of[column]) && walk.Add(s.next);
        if (accepted) break;
      }
      uint16_t next = accepted ? kMatch : kDead;
      if (!accepted && !walk.members.empty()) {
        std::sort(walk.members.begin(), walk.members.end());
        const auto [at, is_new] = row_of.emplace(walk.members, uint16_t{0});
        if (is_new) at->second = add_row(false);
        next = at->second;
      }
      table_.next.push_back(next);
    }
    if (rows.size() > kMaxRows || walk.steps > kMaxSteps) {
      table_.next.clear();
      return;
    }
  }
}

bool RegexLite::MatchStates(std::string_view text, uint64_t* steps) const {
  Walk walk(*this);
  std::vector<int> now;
  walk.Begin(true, text.empty());
  bool accepted = walk.Add(start_);
  for (size_t i = 0; i < text.size() && !accepted && !walk.members.empty(); ++i) {
    std::swap(now, walk.members);
    walk.Begin(false, i + 1 == text.size());
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte > 0x7F) break;
    for (const int index : now) {
      const State& s = states_[static_cast<size_t>(index)];
      accepted = s.op == Op::kSet && s.bytes.test(byte) && walk.Add(s.next);
      if (accepted) break;
    }
  }
  if (steps) *steps += walk.steps;
  return accepted;
}

bool RegexLite::MatchesPrefix(std::string_view text, uint64_t* steps) const {
  if (table_.next.empty()) return MatchStates(text, steps);
  size_t row = table_.start, i = 0;
  for (; i < text.size() && row > 1; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    row = byte > 0x7F ? 0 : table_.next[row * table_.columns + table_.class_of[byte]];
  }
  if (steps) *steps += i + 1;
  return row == 1 || (i == text.size() && table_.accept_at_end[row]);
}

}  // namespace nibble
