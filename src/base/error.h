#pragma once

#include <fmt/core.h>

#include "nibble/error.h"

namespace nibble {

/// Makes an Error with a formatted `what`: Err(kCorruptFile, "shape {}", s).
template <class... Args>
Error Err(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Error{code, fmt::format(format, std::forward<Args>(args)...), {}, {}, {}};
}

/// Ends the process: for our own bugs only, never for input. A corrupted engine must not go on.
[[noreturn]] void Die(const char* file, int line, std::string_view what);

}  // namespace nibble

#define NIBBLE_CHECK(condition, what) \
  (static_cast<bool>(condition) ? void(0) : ::nibble::Die(__FILE__, __LINE__, (what)))
