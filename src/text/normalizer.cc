#include "text/normalizer.h"

#if NIBBLE_HAVE_TEXT

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "text/unicode_delta.h"
#include "text/utf8.h"

namespace nibble::text {
namespace {

using Points = std::vector<utf8proc_int32_t>;

bool IsUnknown(char32_t c) {
  const auto table = UnknownToNfc();
  const auto after =
      std::upper_bound(table.begin(), table.end(), c,
                       [](char32_t x, const CodePointRange& r) { return x < r.first; });
  return after != table.begin() && c <= std::prev(after)->last;
}

int ClassOf(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

void AppendDecomposed(Points& points, char32_t c) {
  // The longest canonical decomposition of one character is 4 (Unicode's guarantee); 18 is
  // utf8proc's own bound for any.
  std::array<utf8proc_int32_t, 18> parts;
  int last_boundclass = 0;
  const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts.data(),
                                         parts.size(), UTF8PROC_DECOMPOSE, &last_boundclass);
  NIBBLE_CHECK(n >= 0 && n <= static_cast<utf8proc_ssize_t>(parts.size()),
               "utf8proc_decompose_char");
  points.insert(points.end(), parts.begin(), parts.begin() + n);
}

// utf8proc's own reordering inserts one mark at a time: quadratic on a megabyte of marks, which any
// client can send.
void OrderMarks(Points& points) {
  for (auto it = points.begin(); it != points.end();) {
    if (ClassOf(*it) == 0) {
      ++it;
      continue;
    }
    const auto end = std::find_if(it, points.end(), [](auto c) { return ClassOf(c) == 0; });
    std::stable_sort(it, end, [](auto a, auto b) { return ClassOf(a) < ClassOf(b); });
    it = end;
  }
}

void FlushComposed(Points& points, std::string& out) {
  if (points.empty()) return;
  OrderMarks(points);
  const auto n =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  NIBBLE_CHECK(n >= 0, "utf8proc_normalize_utf32");
  for (utf8proc_ssize_t i = 0; i < n; ++i) AppendUtf8(out, static_cast<char32_t>(points[i]));
  points.clear();
}

}  // namespace

Result<void> CanNormalize() { return {}; }

std::string Nfc(std::string_view utf8) {
  // Everything below U+0300 is in form C: its lead bytes are below 0xCC.
  if (std::all_of(utf8.begin(), utf8.end(),
                  [](char b) { return static_cast<uint8_t>(b) < 0xCC; })) {
    return std::string(utf8);
  }
  std::string out;
  out.reserve(utf8.size());
  Points points;
  for (size_t pos = 0; pos < utf8.size();) {
    const Utf8Step step = DecodeUtf8(utf8, pos);
    pos += step.length;
    if (IsUnknown(step.code_point)) {
      FlushComposed(points, out);
      AppendUtf8(out, step.code_point);
    } else {
      AppendDecomposed(points, step.code_point);
    }
  }
  FlushComposed(points, out);
  return out;
}

}  // namespace nibble::text

#else

namespace nibble::text {

Result<void> CanNormalize() {
  Error error = Err(ErrorCode::kUnsupported,
                    "this program was built without utf8proc: text cannot be turned into tokens");
  error.hint = "give token ids, or build with libutf8proc-dev installed";
  return error;
}

std::string Nfc(std::string_view utf8) { return std::string(utf8); }

}  // namespace nibble::text

#endif
