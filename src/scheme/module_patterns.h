#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/regex_lite.h"
#include "scheme/names.h"

namespace nibble::scheme {

/// The work that the patterns of one model may cost. That of a real one with 94 layers of 512
/// experts and ten patterns is half a billion steps, a second; what exceeds this is meant to hang
/// us.
inline constexpr uint64_t kMaxPatternSteps = 4'000'000'000;

/// A list of module names out of a configuration, which gives the entry that names a module as
/// evidence. At most 1024 entries may be patterns; plain names are unlimited.
class ModulePatterns {
 public:
  ModulePatterns() = default;
  ModulePatterns(ModulePatterns&&) = default;
  ModulePatterns& operator=(ModulePatterns&&) = default;

  /// ModelOpt's exclude list, matched by whole components and never inside one (upstream excludes
  /// `mlp.gate_up_proj` for an entry `mlp.gate`):
  ///   a plain entry names the module of that path and all below it, wherever in the tree the path
  ///   begins ("lm_head", "mlp.gate"); "a.b*", a star right behind a word and no other wildcard,
  ///   names a.b from the root and all below it; anything else is a shell wildcard for the whole
  ///   name, in which `*` crosses dots (and a star right behind a word means it and all below it
  ///   there too). Case matters.
  /// errors kCorruptFile: no list of strings; kUnsupported: too many patterns
  static Result<ModulePatterns> ReadModelopt(const Json& list, std::string path);

  /// compressed-tensors' lists: whole names, and "re:" regular expressions anchored at the start.
  /// errors as above, and RegexLite's
  static Result<ModulePatterns> ReadCompressedTensors(const Json& list, std::string path);

  /// The first entry that names the module: `config.json: quantization_config.ignore[3] =
  /// "lm_head"`. Nothing, whatever the entries, once `*steps` exceeds kMaxPatternSteps: who asks
  /// must look.
  std::optional<std::string> Match(const ModuleName& name, uint64_t* steps) const;

  // The same for one kind of compressed-tensors' entries alone.
  std::optional<std::string> MatchWhole(const ModuleName& name) const;
  std::optional<std::string> MatchRegex(const ModuleName& name, uint64_t* steps) const;

  const std::vector<std::string>& entries() const { return entries_; }
  /// An entry as evidence.
  std::string EvidenceOf(size_t entry) const;

 private:
  // Views of entries_, whose elements stay where they are when the object moves.
  using Index = std::unordered_map<std::string_view, size_t>;
  struct Glob {
    std::string pattern;
    size_t entry;
  };
  struct Regex {
    RegexLite regex;
    size_t entry;
  };

  static Result<ModulePatterns> ReadList(const Json& list, std::string path);
  void AddModelopt(std::string_view text, size_t entry);
  Result<void> CheckCount() const;
  size_t FindWhole(const ModuleName& name) const;
  size_t FindPath(std::string_view name) const;
  size_t FindGlob(std::string_view name, uint64_t* steps) const;
  size_t FindRegex(const ModuleName& name, uint64_t* steps) const;
  std::optional<std::string> Evidence(size_t entry) const;

  std::string path_;
  std::vector<std::string> entries_;
  Index whole_;                                           // the module's whole name
  Index roots_;                                           // a path from the first component
  Index paths_;                                           // a path from any component
  std::unordered_set<std::string_view> last_components_;  // of roots_ and paths_
  std::vector<Glob> globs_;
  std::vector<Regex> regexes_;
};

}  // namespace nibble::scheme
