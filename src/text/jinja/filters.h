#pragma once

#include <string_view>

#include "text/jinja/runtime.h"

namespace nibble::text::jinja {

/// What stands behind `|`. The first argument is what is filtered. Filters that are lazy in Jinja
/// (map, select, ...) give a list here.
using FilterFunction = Result<Value> (*)(Runtime&, const Arguments&);

/// Null for a name that is not known.
FilterFunction FindFilter(std::string_view name);

}  // namespace nibble::text::jinja
