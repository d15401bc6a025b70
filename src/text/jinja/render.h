#pragma once

#include <string>
#include <utility>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/runtime.h"

namespace nibble::text::jinja {

/// The names that every template has besides its variables; a variable may not take one.
bool IsGlobal(std::string_view name);

/// Renders a template with these variables.
/// errors   kInvalidArgument (raise_exception, an undefined value, types that do not fit, a limit),
///          kUnsupported (something that is not known here); with the line
Result<std::string> Render(const Ast& ast, std::vector<std::pair<std::string, Value>> variables,
                           const Limits& limits);

}  // namespace nibble::text::jinja
