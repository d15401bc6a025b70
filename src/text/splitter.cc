#include "text/splitter.h"

#if NIBBLE_HAVE_TEXT

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <limits>

#include "text/regex_dialect.h"
#include "text/unicode_delta.h"
#include "text/utf8.h"

namespace nibble::text {
namespace {

template <auto Free>
struct Freer {
  template <class T>
  void operator()(T* p) const {
    Free(p);
  }
};
using CodePtr = std::unique_ptr<pcre2_code, Freer<&pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Freer<&pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freer<&pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<&pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freer<&pcre2_jit_stack_free>>;

// A sane split pattern backtracks over a run of characters once: two steps a byte. The rest allows
// for small texts.
constexpr uint64_t kStepsPerByte = 4;
constexpr uint64_t kStepsAtLeast = 100'000;
constexpr uint32_t kHeapLimitKib = 256 << 10;
constexpr size_t kJitStackBytes = 1 << 20;

std::string MessageOf(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

const CategoryDelta* DeltaOf(char32_t c) {
  const auto table = CategoryDeltas();
  const auto after =
      std::upper_bound(table.begin(), table.end(), c,
                       [](char32_t x, const CategoryDelta& d) { return x < d.first; });
  if (after == table.begin() || c > std::prev(after)->last) return nullptr;
  return &*std::prev(after);
}

/// The text as the pattern shall see it: the same bytes, or `copy` with stand-ins for the
/// characters that PCRE2 would class otherwise than the reference. Offsets stay the same.
std::string_view WithStandIns(std::string_view utf8, std::string& copy) {
  for (size_t pos = 0; pos < utf8.size();) {
    if (static_cast<uint8_t>(utf8[pos]) < 0xE0) {  // no table entry has fewer than three bytes
      ++pos;
      continue;
    }
    const Utf8Step step = DecodeUtf8(utf8, pos);
    if (const CategoryDelta* delta = DeltaOf(step.code_point)) {
      if (copy.empty()) copy = utf8;
      std::string stand_in;
      AppendUtf8(stand_in, delta->stand_in);
      copy.replace(pos, step.length, stand_in);
    }
    pos += step.length;
  }
  return copy.empty() ? utf8 : std::string_view(copy);
}

Result<void> CheckLiterals(const std::vector<LiteralRange>& literals) {
  for (const LiteralRange& literal : literals) {
    for (const CategoryDelta& delta : CategoryDeltas()) {
      const bool names_it = delta.first <= literal.last && literal.first <= delta.last;
      const bool names_stand_in = literal.first <= delta.stand_in && delta.stand_in <= literal.last;
      // A range over all of them treats a character and its stand-in alike.
      const bool names_all = literal.first <= std::min(delta.first, delta.stand_in) &&
                             std::max(delta.last, delta.stand_in) <= literal.last;
      if ((names_it || names_stand_in) && !names_all) {
        return Err(ErrorCode::kUnsupported,
                   "the split pattern names U+{:04X}..U+{:04X}, which holds characters that PCRE2 "
                   "is too old to know",
                   static_cast<uint32_t>(literal.first), static_cast<uint32_t>(literal.last));
      }
    }
  }
  return {};
}

}  // namespace

struct Splitter::Code {
  CodePtr pcre;
};

Result<Splitter> Splitter::Make(const std::string& pattern) {
  NIBBLE_TRY(const auto literals, CheckRegexDialect(pattern));
  NIBBLE_CHECK_OK(CheckLiterals(literals));
  const CompileContext context(pcre2_compile_context_create(nullptr));
  if (!context) return Err(ErrorCode::kOutOfMemory, "no memory for the split pattern");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->pcre.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 context.get()));
  if (!code->pcre) {
    return Err(ErrorCode::kCorruptFile, "the split pattern is no regular expression: {} at byte {}",
               MessageOf(error), offset);
  }
  uint32_t may_be_empty = 0;
  pcre2_pattern_info(code->pcre.get(), PCRE2_INFO_MATCHEMPTY, &may_be_empty);
  if (may_be_empty)
    return Err(ErrorCode::kUnsupported, "the split pattern can match nothing at all");
  // Where the system forbids generated code this fails and the interpreter runs instead, with the
  // same matches.
  pcre2_jit_compile(code->pcre.get(), PCRE2_JIT_COMPLETE);
  Splitter splitter;
  splitter.code_ = std::move(code);
  return splitter;
}

Result<void> Splitter::Split(std::string_view utf8, std::vector<Piece>& out) const {
  const MatchData match(pcre2_match_data_create_from_pattern(code_->pcre.get(), nullptr));
  const MatchContext context(pcre2_match_context_create(nullptr));
  const JitStack stack(pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr));
  if (!match || !context) return Err(ErrorCode::kOutOfMemory, "no memory to split a text");
  const uint64_t steps = kStepsAtLeast + kStepsPerByte * utf8.size();
  pcre2_set_match_limit(context.get(), static_cast<uint32_t>(std::min<uint64_t>(
                                           steps, std::numeric_limits<uint32_t>::max())));
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  if (stack) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());

  std::string copy;
  const std::string_view seen = WithStandIns(utf8, copy);
  const auto subject = reinterpret_cast<PCRE2_SPTR>(seen.data());
  size_t pos = 0;
  while (pos < seen.size()) {
    int rc = pcre2_match(code_->pcre.get(), subject, seen.size(), pos, PCRE2_NO_UTF_CHECK,
                         match.get(), context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_->pcre.get(), subject, seen.size(), pos,
                       PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match.get(), context.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return Err(ErrorCode::kUnsupported,
                 "the split pattern failed on a text of {} bytes at byte {}: {}", utf8.size(), pos,
                 MessageOf(rc));
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
    // Guards against a lookaround that PCRE2 takes for consuming.
    if (span[1] <= span[0] || span[0] < pos)
      return Err(ErrorCode::kUnsupported, "the split pattern matched nothing at all");
    if (span[0] > pos) out.push_back({pos, span[0]});
    out.push_back({span[0], span[1]});
    pos = span[1];
  }
  if (pos < seen.size()) out.push_back({pos, seen.size()});
  return {};
}

}  // namespace nibble::text

#else

namespace nibble::text {

struct Splitter::Code {};

Result<Splitter> Splitter::Make(const std::string&) {
  Error error = Err(ErrorCode::kUnsupported,
                    "this program was built without PCRE2: text cannot be turned into tokens");
  error.hint = "give token ids, or build with libpcre2-dev installed";
  return error;
}

Result<void> Splitter::Split(std::string_view, std::vector<Piece>&) const {
  return Err(ErrorCode::kUnsupported, "this program was built without PCRE2");
}

}  // namespace nibble::text

#endif
