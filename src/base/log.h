#pragma once

#include <fmt/core.h>

#include <functional>
#include <string_view>

namespace nibble {

enum class LogLevel : int { kError = 0, kWarning = 1, kInfo = 2, kDebug = 3 };

/// Where log lines go. The library itself never writes to stdout or stderr: the host program gives
/// a sink, and without one nothing is logged. A line is fields, not prose: "experts layer=3
/// backend=CPU kernel=…". The sink may be called from any thread.
using LogSink = std::function<void(LogLevel, std::string_view line)>;

/// Not safe to call while another thread logs; programs set it once at start.
void SetLogSink(LogSink sink, LogLevel level);
bool LogEnabled(LogLevel level);
void LogLine(LogLevel level, std::string_view line);

template <class... Args>
void Log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(level)) LogLine(level, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nibble
