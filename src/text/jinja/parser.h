#pragma once

#include <string_view>

#include "text/jinja/ast.h"

namespace nibble::text::jinja {

/// Parses a template, by the grammar of Jinja2 3.1: set, if, for (with filter and else), macro,
/// with, filter, raw, break, continue, and generation blocks, which are transparent.
/// errors   kCorruptFile (syntax; nested or chained too deeply), kUnsupported (a statement, filter
///          or test that is not known here, by name); both with the line
Result<Ast> Parse(std::string_view source);

}  // namespace nibble::text::jinja
