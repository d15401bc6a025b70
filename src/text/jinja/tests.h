#pragma once

#include <string_view>

#include "text/jinja/runtime.h"

namespace nibble::text::jinja {

/// What stands behind `is`. The first argument is what is tested.
using TestFunction = Result<bool> (*)(Runtime&, const Arguments&);

/// Null for a name that is not known.
TestFunction FindTest(std::string_view name);

}  // namespace nibble::text::jinja
