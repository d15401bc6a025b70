#include "scheme/names.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace nibble::scheme {
namespace {

constexpr std::string_view kModel = "model.";
constexpr std::string_view kInner = "model.language_model.";
constexpr std::string_view kOuter = "language_model.model.";
constexpr std::string_view kWrapper = "language_model.";

/// The name as a file without a wrapper has it.
std::string Unwrapped(std::string_view name) {
  for (const std::string_view prefix : {kInner, kOuter}) {
    if (name.starts_with(prefix)) {
      return std::string(kModel).append(name.substr(prefix.size()));
    }
  }
  if (name.starts_with(kWrapper)) name.remove_prefix(kWrapper.size());
  return std::string(name);
}

/// What a pattern's `[…]` that begins at `at` says of `c`, and where it ends; nothing when no ']'
/// closes it, which makes the '[' a literal.
struct SetVerdict {
  bool holds;
  size_t end;
};
std::optional<SetVerdict> TestSet(std::string_view pattern, size_t at, char c) {
  size_t i = at + 1;
  const bool negated = i < pattern.size() && pattern[i] == '!';
  if (negated) ++i;
  const size_t first = i;
  bool holds = false;
  for (; i < pattern.size() && (pattern[i] != ']' || i == first); ++i) {
    const bool range = i + 2 < pattern.size() && pattern[i + 1] == '-' && pattern[i + 2] != ']';
    if (range) {
      holds |= pattern[i] <= c && c <= pattern[i + 2];
      i += 2;
    } else {
      holds |= pattern[i] == c;
    }
  }
  if (i >= pattern.size()) return std::nullopt;
  return SetVerdict{holds != negated, i + 1};
}

/// Whether the one pattern element at `at`, which is no star, takes `c`; sets `*end` behind it.
bool TakesOne(std::string_view pattern, size_t at, char c, size_t* end) {
  *end = at + 1;
  if (pattern[at] == '?') return true;
  if (pattern[at] == '[') {
    if (auto set = TestSet(pattern, at, c)) {
      *end = set->end;
      return set->holds;
    }
  }
  return pattern[at] == c;
}

/// The linear that engines make of this one and its siblings; empty: they make none.
std::string FusedName(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return {};
  const std::string_view leaf = name.substr(dot + 1);
  const std::string parent(name.substr(0, dot + 1));
  if (leaf == "q_proj" || leaf == "k_proj" || leaf == "v_proj") return parent + "qkv_proj";
  if (leaf == "gate_proj" || leaf == "up_proj") return parent + "gate_up_proj";
  return {};
}

/// The other name of an expert's projection.
std::string_view AliasOf(std::string_view projection) {
  if (projection == "gate_proj") return "w1";
  if (projection == "up_proj") return "w3";
  return projection == "down_proj" ? "w2" : "";
}

}  // namespace

Spellings SpellingsOf(std::string_view name) {
  Spellings all{std::string(name)};
  auto add = [&all](std::string spelling) {
    if (std::find(all.begin(), all.end(), spelling) == all.end()) {
      all.push_back(std::move(spelling));
    }
  };
  const std::string plain = Unwrapped(name);
  add(plain);
  const std::string_view view = plain;
  if (view.starts_with(kModel)) {
    add(std::string(kInner).append(view.substr(kModel.size())));
    add(std::string(kOuter).append(view.substr(kModel.size())));
  } else if (view.ends_with("lm_head")) {
    add(std::string(kWrapper) + plain);
  }
  if (view.ends_with(".lm_head")) add("lm_head");
  return all;
}

ModuleName ModuleNameOf(std::string_view name) {
  ModuleName result{SpellingsOf(name), {}, {}};
  constexpr std::string_view kExperts = ".experts.";
  const size_t at = name.find(kExperts);
  if (at == std::string_view::npos) {
    const std::string fused = FusedName(name);
    if (!fused.empty()) result.stack = SpellingsOf(fused);
    return result;
  }
  const std::string_view block = name.substr(0, at + kExperts.size() - 1);
  const std::string_view rest = name.substr(at + kExperts.size());
  const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
  if (digits == 0 || digits >= rest.size() || rest[digits] != '.') return result;
  const std::string_view projection = rest.substr(digits + 1);
  const bool half = projection == "gate_proj" || projection == "up_proj";
  result.stack =
      SpellingsOf(std::string(block).append(".").append(half ? "gate_up_proj" : projection));
  result.block = SpellingsOf(block);
  const std::string_view alias = AliasOf(projection);
  if (!alias.empty()) {
    const std::string_view expert = name.substr(0, name.size() - projection.size());
    for (std::string& spelling : SpellingsOf(std::string(expert).append(alias))) {
      result.own.push_back(std::move(spelling));
    }
  }
  return result;
}

bool GlobMatches(std::string_view pattern, std::string_view text, uint64_t* steps) {
  size_t p = 0, t = 0;
  size_t star = std::string_view::npos, star_text = 0;
  while (t < text.size()) {
    ++*steps;
    size_t end = p;
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
    } else if (p < pattern.size() && TakesOne(pattern, p, text[t], &end)) {
      p = end;
      ++t;
    } else if (star != std::string_view::npos) {
      // Only the last star need ever take more: the earlier ones' choice was the shortest.
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace nibble::scheme
