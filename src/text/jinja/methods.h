#pragma once

#include <string_view>

#include "text/jinja/runtime.h"

namespace nibble::text::jinja {

enum class MethodStatus : uint8_t {
  kNone,     // Python has no such method: the name may be a key
  kKnown,    // CallMethod runs it
  kRefused,  // Python has it; it would change a value, or no template was seen that needs it
};
MethodStatus FindMethod(const Value& object, std::string_view name);

/// needs    FindMethod(object, name) == kKnown
/// errors   kInvalidArgument (arguments), kUnsupported (letter case outside ASCII)
Result<Value> CallMethod(Runtime& runtime, const Value& object, std::string_view name,
                         const Arguments& arguments);

// Shared with the filters of the same names.
Result<std::string> Strip(std::string_view text, const Value& characters, bool left, bool right);
std::string Replace(std::string_view text, std::string_view old, std::string_view fresh,
                    int64_t count);
enum class Case : uint8_t { kUpper, kLower, kCapitalized };
/// errors kUnsupported: text outside ASCII
Result<std::string> WithCase(std::string_view text, Case how);

}  // namespace nibble::text::jinja
