#include "text/added_tokens.h"

#include <algorithm>

#include "text/utf8.h"

namespace nibble::text {
namespace {

auto EdgeOf(auto& edges, char byte) {
  return std::lower_bound(edges.begin(), edges.end(), byte,
                          [](const auto& e, char b) { return e.first < b; });
}

size_t StripLeft(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    size_t start = end - 1;
    while (start > floor && !IsCharStart(text[start])) --start;
    if (!IsWhiteSpace(DecodeUtf8(text, start).code_point)) break;
    end = start;
  }
  return end;
}

size_t StripRight(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const Utf8Step step = DecodeUtf8(text, begin);
    if (!IsWhiteSpace(step.code_point)) break;
    begin += step.length;
  }
  return begin;
}

}  // namespace

void AddedTokenMatcher::Add(std::string_view content, const AddedToken* token) {
  uint32_t at = 0;
  for (char byte : content) {
    auto edge = EdgeOf(nodes_[at].next, byte);
    if (edge == nodes_[at].next.end() || edge->first != byte) {
      const auto fresh = static_cast<uint32_t>(nodes_.size());
      nodes_[at].next.insert(edge, {byte, fresh});
      nodes_.emplace_back();
      at = fresh;
    } else {
      at = edge->second;
    }
  }
  nodes_[at].token = token;
}

std::pair<const AddedToken*, size_t> AddedTokenMatcher::LongestAt(std::string_view text,
                                                                  size_t pos) const {
  std::pair<const AddedToken*, size_t> best{nullptr, pos};
  uint32_t at = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto& edges = nodes_[at].next;
    const auto edge = EdgeOf(edges, text[i]);
    if (edge == edges.end() || edge->first != text[i]) break;
    at = edge->second;
    if (nodes_[at].token) best = {nodes_[at].token, i + 1};
  }
  return best;
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::Find(std::string_view text) const {
  std::vector<Segment> segments;
  size_t taken = 0;  // everything before it is in a segment, or stripped
  for (size_t pos = 0; pos < text.size();) {
    const auto [token, end] = LongestAt(text, pos);
    if (!token) {
      ++pos;
      continue;
    }
    const size_t begin = token->lstrip ? StripLeft(text, pos, taken) : pos;
    if (begin > taken) segments.push_back({text.substr(taken, begin - taken), nullptr});
    segments.push_back({text.substr(pos, end - pos), token});
    // The next match may start in white space that this one strips, as it may in the reference.
    taken = token->rstrip ? StripRight(text, end) : end;
    pos = end;
  }
  if (taken < text.size()) segments.push_back({text.substr(taken), nullptr});
  return segments;
}

}  // namespace nibble::text
