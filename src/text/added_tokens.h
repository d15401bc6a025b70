#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::text {

/// A token that is found in the text as it stands, before any splitting.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool lstrip = false;      // swallows white space before it
  bool rstrip = false;      // and behind it
  bool normalized = false;  // is looked for in the normalised text, by its normalised content
  bool special = false;     // left out by skip_special
};

/// Finds added tokens in text, leftmost first, the longest of those that start together. Immutable
/// once filled.
class AddedTokenMatcher {
 public:
  /// `content` must not be empty. `token` must outlive the matcher.
  void Add(std::string_view content, const AddedToken* token);

  struct Segment {
    std::string_view text;
    const AddedToken* token = nullptr;  // null: ordinary text
  };
  /// Cuts text into tokens and what lies between them; white space that a token strips belongs to
  /// no segment.
  /// cost     O(text.size() * longest content) at worst
  std::vector<Segment> Find(std::string_view text) const;

 private:
  struct Node {
    const AddedToken* token = nullptr;
    std::vector<std::pair<char, uint32_t>> next;  // sorted by byte
  };
  std::pair<const AddedToken*, size_t> LongestAt(std::string_view text, size_t pos) const;

  std::vector<Node> nodes_ = std::vector<Node>(1);
};

}  // namespace nibble::text
