#include "base/error.h"

#include <cstdio>
#include <cstdlib>

namespace nibble {
namespace {

struct CodeRow {
  ErrorCode code;
  std::string_view name;
  int exit_code;
};

constexpr CodeRow kCodes[] = {
    {ErrorCode::kInvalidArgument, "InvalidArgument", 2},
    {ErrorCode::kNotFound, "NotFound", 3},
    {ErrorCode::kCorruptFile, "CorruptFile", 3},
    {ErrorCode::kUnsupported, "Unsupported", 5},
    {ErrorCode::kOutOfMemory, "OutOfMemory", 6},
    {ErrorCode::kIo, "Io", 3},
    {ErrorCode::kDevice, "Device", 7},
    {ErrorCode::kCancelled, "Cancelled", 130},
    {ErrorCode::kInternal, "Internal", 1},
};

const CodeRow& RowOf(ErrorCode code) {
  for (const CodeRow& row : kCodes) {
    if (row.code == code) return row;
  }
  return kCodes[std::size(kCodes) - 1];
}

}  // namespace

std::string_view NameOf(ErrorCode code) { return RowOf(code).name; }
int ExitCodeOf(ErrorCode code) { return RowOf(code).exit_code; }

std::string Error::Message() const {
  std::string out;
  if (!where.empty()) out += where + ": ";
  out += what;
  if (!hint.empty()) out += "; " + hint;
  return out;
}

Error Error::At(std::string_view outer) && {
  where = where.empty() ? std::string(outer) : fmt::format("{}: {}", outer, where);
  return std::move(*this);
}

void Die(const char* file, int line, std::string_view what) {
  std::fprintf(stderr, "nibble: internal error at %s:%d: %.*s\n", file, line,
               static_cast<int>(what.size()), what.data());
  std::abort();
}

}  // namespace nibble
