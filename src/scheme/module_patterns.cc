#include "scheme/module_patterns.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/quoted.h"

namespace nibble::scheme {
namespace {

constexpr size_t kNone = SIZE_MAX;
constexpr size_t kMaxPatterns = 1024;
constexpr size_t kMaxEntryBytes = 1024;  // as a tensor's name
constexpr std::string_view kRegexMark = "re:";

bool HasWildcard(std::string_view text) {
  return text.find_first_of("*?[") != std::string_view::npos;
}

/// Whether a final star stands right behind a word, as ModelOpt's exporter writes the tree below a
/// module: "model.layers.0.self_attn*".
bool EndsInTree(std::string_view text) {
  if (text.size() < 2 || text.back() != '*') return false;
  const char before = text[text.size() - 2];
  return ('a' <= before && before <= 'z') || ('A' <= before && before <= 'Z') ||
         ('0' <= before && before <= '9');
}

std::string_view LastComponent(std::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? path : path.substr(dot + 1);
}

size_t Find(const std::unordered_map<std::string_view, size_t>& index, std::string_view key) {
  const auto found = index.find(key);
  return found == index.end() ? kNone : found->second;
}

}  // namespace

Result<ModulePatterns> ModulePatterns::ReadList(const Json& list, std::string path) {
  if (!list.is_array()) {
    return Err(ErrorCode::kCorruptFile, "is {}, expected a list of module names", list.TypeName())
        .At(path);
  }
  ModulePatterns patterns;
  patterns.path_ = std::move(path);
  patterns.entries_.reserve(list.array().size());
  for (const Json& entry : list.array()) {
    const std::string at = fmt::format("{}[{}]", patterns.path_, patterns.entries_.size());
    if (!entry.is_string()) {
      return Err(ErrorCode::kCorruptFile, "is {}, expected a module name", entry.TypeName()).At(at);
    }
    if (entry.string().empty() || entry.string().size() > kMaxEntryBytes) {
      return Err(ErrorCode::kCorruptFile, "a module name of {} bytes, expected 1 to {}",
                 entry.string().size(), kMaxEntryBytes)
          .At(at);
    }
    patterns.entries_.push_back(entry.string());
  }
  return patterns;
}

Result<void> ModulePatterns::CheckCount() const {
  if (globs_.size() + regexes_.size() <= kMaxPatterns) return {};
  return Err(ErrorCode::kUnsupported, "more than {} entries are patterns", kMaxPatterns).At(path_);
}

void ModulePatterns::AddModelopt(std::string_view text, size_t entry) {
  if (EndsInTree(text)) {
    const std::string_view root = text.substr(0, text.size() - 1);
    if (HasWildcard(root)) {
      globs_.push_back({std::string(root), entry});
      globs_.push_back({std::string(root) + ".*", entry});
    } else {
      roots_.emplace(root, entry);
      last_components_.insert(LastComponent(root));
    }
  } else if (HasWildcard(text)) {
    globs_.push_back({std::string(text), entry});
  } else {
    paths_.emplace(text, entry);
    last_components_.insert(LastComponent(text));
  }
}

Result<ModulePatterns> ModulePatterns::ReadModelopt(const Json& list, std::string path) {
  NIBBLE_TRY(ModulePatterns patterns, ReadList(list, std::move(path)));
  for (size_t i = 0; i < patterns.entries_.size(); ++i) {
    patterns.AddModelopt(patterns.entries_[i], i);
  }
  NIBBLE_CHECK_OK(patterns.CheckCount());
  return patterns;
}

Result<ModulePatterns> ModulePatterns::ReadCompressedTensors(const Json& list, std::string path) {
  NIBBLE_TRY(ModulePatterns patterns, ReadList(list, std::move(path)));
  for (size_t i = 0; i < patterns.entries_.size(); ++i) {
    const std::string_view text = patterns.entries_[i];
    if (!text.starts_with(kRegexMark)) {
      patterns.whole_.emplace(text, i);
      continue;
    }
    auto regex = RegexLite::Compile(text.substr(kRegexMark.size()));
    if (!regex) {
      return std::move(regex).error().At(fmt::format("{}[{}]", patterns.path_, i));
    }
    patterns.regexes_.push_back({*std::move(regex), i});
    NIBBLE_CHECK_OK(patterns.CheckCount());
  }
  return patterns;
}

std::string ModulePatterns::EvidenceOf(size_t entry) const {
  return fmt::format("{}[{}] = {}", path_, entry, Quoted(entries_[entry]));
}

std::optional<std::string> ModulePatterns::Evidence(size_t entry) const {
  if (entry == kNone) return std::nullopt;
  return EvidenceOf(entry);
}

size_t ModulePatterns::FindWhole(const ModuleName& name) const {
  size_t first = kNone;
  if (whole_.empty()) return first;
  for (const Spellings* spellings : {&name.own, &name.stack, &name.block}) {
    for (const std::string& spelling : *spellings) first = std::min(first, Find(whole_, spelling));
  }
  return first;
}

size_t ModulePatterns::FindPath(std::string_view name) const {
  size_t first = kNone;
  if (last_components_.empty()) return first;
  // Only paths that end where a component ends can name this module or one above it; most end in
  // no entry's last component, so that this costs one look-up a component.
  for (size_t begin = 0; begin < name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    if (last_components_.contains(name.substr(begin, end - begin))) {
      const std::string_view whole = name.substr(0, end);
      first = std::min(first, Find(roots_, whole));
      for (size_t from = 0; from <= begin; from = whole.find('.', from) + 1) {
        first = std::min(first, Find(paths_, whole.substr(from)));
        if (whole.find('.', from) == std::string_view::npos) break;
      }
    }
    begin = end + 1;
  }
  return first;
}

size_t ModulePatterns::FindGlob(std::string_view name, uint64_t* steps) const {
  for (const Glob& glob : globs_) {
    if (*steps > kMaxPatternSteps) break;
    if (GlobMatches(glob.pattern, name, steps)) return glob.entry;
  }
  return kNone;
}

size_t ModulePatterns::FindRegex(const ModuleName& name, uint64_t* steps) const {
  size_t first = kNone;
  for (const Spellings* spellings : {&name.own, &name.block}) {
    for (const std::string& spelling : *spellings) {
      for (const Regex& r : regexes_) {
        if (*steps > kMaxPatternSteps) return kNone;
        if (r.entry < first && r.regex.MatchesPrefix(spelling, steps)) first = r.entry;
      }
    }
  }
  return first;
}

std::optional<std::string> ModulePatterns::Match(const ModuleName& name, uint64_t* steps) const {
  size_t first = std::min(FindWhole(name), FindRegex(name, steps));
  for (const std::string& spelling : name.own) {
    first = std::min({first, FindPath(spelling), FindGlob(spelling, steps)});
  }
  for (const std::string& spelling : name.stack) first = std::min(first, FindPath(spelling));
  for (const std::string& spelling : name.block) {
    first = std::min(first, FindGlob(spelling, steps));
  }
  return Evidence(first);
}

std::optional<std::string> ModulePatterns::MatchWhole(const ModuleName& name) const {
  return Evidence(FindWhole(name));
}

std::optional<std::string> ModulePatterns::MatchRegex(const ModuleName& name,
                                                      uint64_t* steps) const {
  return Evidence(FindRegex(name, steps));
}

}  // namespace nibble::scheme
