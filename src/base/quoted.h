#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// A stranger's text made fit to be shown in an error or a log line: in double quotes, control
/// characters escaped as JSON does, cut (at a character's border, with "..." behind) when longer
/// than max_bytes.
std::string Quoted(std::string_view text, size_t max_bytes = 128);

}  // namespace nibble
