#include "bench_tests.h"

#include <charconv>
#include <optional>

#include "base/quoted.h"

namespace nibble::app {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 24;
constexpr size_t kMostNumbers = 1024;

std::optional<int64_t> TakeNumber(std::string_view* text) {
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
  text->remove_prefix(static_cast<size_t>(stop - text->data()));
  return value;
}

/// "first", "first-last", "first-last+step" or "first-last*factor".
struct Range {
  int64_t first = 0, last = 0, step = 1;
  bool multiplies = false;
};

std::optional<Range> ParseRange(std::string_view text) {
  Range range;
  const auto first = TakeNumber(&text);
  if (!first) return std::nullopt;
  range.first = range.last = *first;
  if (text.empty()) return range;
  if (text.front() != '-') return std::nullopt;
  text.remove_prefix(1);
  const auto last = TakeNumber(&text);
  if (!last || *last < range.first) return std::nullopt;
  range.last = *last;
  if (text.empty()) return range;
  range.multiplies = text.front() == '*';
  if (!range.multiplies && text.front() != '+') return std::nullopt;
  text.remove_prefix(1);
  const auto step = TakeNumber(&text);
  if (!step || !text.empty() || *step < (range.multiplies ? 2 : 1)) return std::nullopt;
  if (range.multiplies && range.first == 0) return std::nullopt;
  range.step = *step;
  return range;
}

}  // namespace

std::string BenchTest::Name() const {
  if (generated == 0) return fmt::format("pp{}", prompt);
  if (prompt == 0 && depth > 0) return fmt::format("tg{} @ d{}", generated, depth);
  if (prompt == 0) return fmt::format("tg{}", generated);
  return fmt::format("pp{}+tg{}", prompt, generated);
}

Result<std::vector<int64_t>> ParseNumbers(std::string_view text, int64_t min, int64_t max) {
  std::vector<int64_t> out;
  while (true) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    const auto range = ParseRange(item);
    if (!range) {
      return Err(ErrorCode::kInvalidArgument,
                 "{} is no number and no range; expected 512, 1-4, 1-9+2 or 128-512*2",
                 Quoted(item));
    }
    if (range->first < min || range->last > max) {
      return Err(ErrorCode::kInvalidArgument, "{}; expected {} to {}", Quoted(item), min, max);
    }
    for (int64_t v = range->first; v <= range->last;
         v = range->multiplies ? v * range->step : v + range->step) {
      if (out.size() == kMostNumbers) {
        return Err(ErrorCode::kInvalidArgument, "{} is more than {} numbers", Quoted(item),
                   kMostNumbers);
      }
      out.push_back(v);
    }
    if (comma == text.npos) return out;
    text.remove_prefix(comma + 1);
  }
}

Result<std::vector<BenchTest>> ParseBenchTests(const std::vector<std::string>& prompts,
                                               const std::vector<std::string>& generated,
                                               const std::vector<std::string>& pairs,
                                               const std::vector<std::string>& depths) {
  std::vector<int64_t> before;
  for (const std::string& text : depths) {
    NIBBLE_TRY(const auto counts, ParseNumbers(text, 0, kMostTokens));
    before.insert(before.end(), counts.begin(), counts.end());
  }
  if (before.empty()) before = {0};
  std::vector<BenchTest> tests;
  const auto add = [&](BenchTest test) {
    if (test.prompt + test.generated > 0) tests.push_back(test);
  };
  for (const std::string& text : prompts) {
    NIBBLE_TRY(const auto counts, ParseNumbers(text, 0, kMostTokens));
    for (const int64_t n : counts) add({n, 0, 0});
  }
  for (const std::string& text : generated) {
    NIBBLE_TRY(const auto counts, ParseNumbers(text, 0, kMostTokens));
    for (const int64_t n : counts) {
      for (const int64_t depth : before) add({0, n, depth});
    }
  }
  for (const std::string& text : pairs) {
    NIBBLE_TRY(const auto counts, ParseNumbers(text, 0, kMostTokens));
    if (counts.size() != 2 || text.find('-') != text.npos) {
      return Err(ErrorCode::kInvalidArgument, "-pg {}; expected a pair, as 512,128", Quoted(text));
    }
    add({counts[0], counts[1], 0});
  }
  if (tests.empty())
    return Err(ErrorCode::kInvalidArgument, "no test is asked for; give -p, -n or -pg");
  return tests;
}

}  // namespace nibble::app
