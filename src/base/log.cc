#include "base/log.h"

#include <utility>

namespace nibble {
namespace {

struct State {
  LogSink sink;
  LogLevel level = LogLevel::kError;
};

State& TheState() {
  static State state;
  return state;
}

}  // namespace

void SetLogSink(LogSink sink, LogLevel level) { TheState() = {std::move(sink), level}; }

bool LogEnabled(LogLevel level) {
  return TheState().sink != nullptr &&
         static_cast<int>(level) <= static_cast<int>(TheState().level);
}

void LogLine(LogLevel level, std::string_view line) {
  if (LogEnabled(level)) TheState().sink(level, line);
}

}  // namespace nibble
