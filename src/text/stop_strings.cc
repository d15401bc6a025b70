#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

#include "text/utf8.h"

namespace nibble::text {
namespace {

constexpr size_t kMaxStops = 64;
constexpr size_t kMaxStopBytes = 4 << 10;

}  // namespace

Result<StopStrings> StopStrings::Make(std::vector<std::string> stops, bool keep_match) {
  if (stops.size() > kMaxStops) {
    return Err(ErrorCode::kInvalidArgument, "{} stop strings, expected at most {}", stops.size(),
               kMaxStops);
  }
  StopStrings result;
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty() || stops[i].size() > kMaxStopBytes || !IsValidUtf8(stops[i])) {
      return Err(ErrorCode::kInvalidArgument, "stop string {}: expected 1..{} bytes of UTF-8", i,
                 kMaxStopBytes);
    }
    result.longest_ = std::max(result.longest_, stops[i].size());
  }
  result.stops_ = std::move(stops);
  result.keep_match_ = keep_match;
  return result;
}

StopStrings::Output StopStrings::Push(std::string_view utf8) {
  if (stops_.empty()) return {std::string(utf8), std::nullopt};
  tail_ += utf8;
  size_t begin = std::string::npos;
  Output output;
  for (size_t i = 0; i < stops_.size(); ++i) {
    const size_t found = tail_.find(stops_[i]);
    if (found < begin) {
      begin = found;
      output.matched = i;
    }
  }
  if (output.matched) {
    const size_t end = keep_match_ ? begin + stops_[*output.matched].size() : begin;
    if (end > sent_) output.text = tail_.substr(sent_, end - sent_);
    tail_.clear();
    sent_ = 0;
    return output;
  }
  size_t keep_from = tail_.size() - std::min(tail_.size(), longest_ - 1);
  while (keep_from > 0 && keep_from < tail_.size() && !IsCharStart(tail_[keep_from])) --keep_from;
  const size_t send_to = keep_match_ ? tail_.size() : keep_from;
  output.text = tail_.substr(sent_, send_to - sent_);
  tail_.erase(0, keep_from);
  sent_ = send_to - keep_from;
  return output;
}

std::string StopStrings::Finish() {
  std::string rest = tail_.substr(sent_);
  tail_.clear();
  sent_ = 0;
  return rest;
}

}  // namespace nibble::text
