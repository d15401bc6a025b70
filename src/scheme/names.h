#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::scheme {

/// A name in all the ways that files spell it, its own first: the language model of a wrapper is
/// "model.language_model.…" in one file, "language_model.model.…" or "model.…" in another.
using Spellings = std::vector<std::string>;

Spellings SpellingsOf(std::string_view name);

/// A module's name as the quantizers' rules look at it. An expert's projection
/// ("P.experts.7.gate_proj", or "….w1") also lies in a stacked tensor ("P.experts.gate_up_proj") and
/// in its block ("P.experts"); a linear that shares its input with others is part of a fused one
/// ("P.qkv_proj", "P.gate_up_proj"), which only engines have and only a whole name can mean. What
/// there is not is empty.
struct ModuleName {
  Spellings own;
  Spellings stack;  // or fused
  Spellings block;
};

ModuleName ModuleNameOf(std::string_view name);

/// Shell wildcards as Python's fnmatch.fnmatchcase: `*` (crosses dots), `?`, `[abc]`, `[!a-c]`,
/// the whole text.
/// cost  pattern x text at worst, added to `*steps`
bool GlobMatches(std::string_view pattern, std::string_view text, uint64_t* steps);

}  // namespace nibble::scheme
