#include "inspect_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

namespace nibble::app {
namespace {

using checkpoint::ModuleKind;
using plan::Plan;
using plan::PlannedModule;

constexpr size_t kPageWidth = 100, kLabelWidth = 12;

std::string StarredName(const PlannedModule& m) {
  if (m.spec.layer < 0) return m.spec.name;
  const std::string number = fmt::format(".{}.", m.spec.layer);
  std::string name = m.spec.name;
  const size_t at = name.find(number);
  return at == name.npos ? name : name.replace(at, number.size(), ".*.");
}

bool SameButForLayer(const PlannedModule& a, const PlannedModule& b) {
  return a.declared.scheme == b.declared.scheme && a.effective == b.effective &&
         a.kernel == b.kernel && a.declared.source_format == b.declared.source_format &&
         a.spec.n == b.spec.n && a.spec.k == b.spec.k;
}

std::string Bytes(uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024);
}

/// Where a text too long for its line is broken: behind a space, else behind what joins names.
size_t BreakAt(std::string_view text, size_t width) {
  if (text.size() <= width) return text.size();
  const size_t space = text.rfind(' ', width);
  if (space != text.npos && space > width / 3) return space;
  const size_t joint = text.find_last_of(",.])", width - 1);
  return joint == text.npos || joint < width / 3 ? width : joint + 1;
}

/// A label, then text in as many lines as it needs.
void PrintWrapped(std::string_view label, std::string_view text) {
  do {
    const size_t end = BreakAt(text, kPageWidth - kLabelWidth);
    fmt::print("{:<{}}{}\n", label, kLabelWidth, text.substr(0, end));
    text.remove_prefix(std::min(end + (end < text.size() && text[end] == ' '), text.size()));
    label = "";
  } while (!text.empty());
}

// ---- Head of the page

void PrintHeader(const InspectPage& page) {
  const Plan& plan = *page.plan;
  const checkpoint::ModelConfig& c = plan.model;
  const std::string name = std::filesystem::path(page.dir).lexically_normal().filename();
  fmt::print("checkpoint  {}  {}{}\n", name.empty() ? page.dir : name, c.architecture,
             page.config_only ? "" : ", " + Bytes(page.checkpoint->total_bytes()));
  fmt::print("model       {} layers, hidden {}, {} query and {} kv heads of {}, vocabulary {}\n",
             c.n_layers, c.hidden, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab);
  if (c.n_experts > 0) {
    fmt::print("experts     {} of width {}, {} a token\n", c.n_experts, c.moe_intermediate,
               c.top_k);
  }
  fmt::print("format      {}\n", NameOf(plan.source_format));
  const DeviceInfo& d = plan.device;
  std::string device = fmt::format("{}: {}", d.name, d.model);
  if (d.kind == DeviceKind::kCpu) device += fmt::format(", {}", NameOf(d.isa));
  if (d.cores > 0) device += fmt::format(", {} cores", d.cores);
  if (d.memory_bytes > 0) device += ", " + Bytes(d.memory_bytes);
  PrintWrapped("device", device + (d.present ? "" : "  (not this machine's)"));
  if (page.tp_size * page.ep_size > 1) {
    fmt::print("rank        1 of {} tensor parallel, {} expert parallel\n", page.tp_size,
               page.ep_size);
  }
  PrintWrapped("kv cache", fmt::format("{}  ({})", NameOf(plan.kv_dtype), plan.kv_evidence));
}

/// "NVFP4 W4A16", "FP8 W8A8", "BF16".
std::string SchemeName(const QuantScheme& scheme) {
  if (!scheme.weight) return std::string(ShortName(scheme));
  return fmt::format("{} {}", scheme.weight->dtype == ScalarType::kU8 ? "NVFP4" : "FP8",
                     ShortName(scheme));
}

/// One line a kind: "experts  6 NVFP4 W4A4, 2 FP8 W8A8".
void PrintMix(const Plan& plan) {
  std::string text;
  for (const auto& [kind, name] : {std::pair(ModuleKind::kExperts, "experts in layers"),
                                   std::pair(ModuleKind::kLinear, "linears")}) {
    std::vector<std::pair<std::string, int>> counts;
    for (const PlannedModule& m : plan.modules) {
      if (m.spec.kind != kind) continue;
      const std::string scheme = SchemeName(m.declared.scheme);
      auto found = std::find_if(counts.begin(), counts.end(),
                                [&](const auto& entry) { return entry.first == scheme; });
      if (found == counts.end()) found = counts.insert(counts.end(), {scheme, 0});
      ++found->second;
    }
    std::string parts;
    for (const auto& [scheme, count] : counts)
      parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", count, scheme);
    if (!parts.empty()) text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", name, parts);
  }
  if (!text.empty()) PrintWrapped("precision", text);
}

// ---- The table

/// One line of the table: modules of the same layers that share all it says.
struct Row {
  std::string layers, scheme, activation, kernel;
  std::vector<std::string> names;

  bool Shares(const Row& other) const {
    return layers == other.layers && scheme == other.scheme && activation == other.activation &&
           kernel == other.kernel;
  }
};

/// "0-2,4-6", or, too long for its column, "30 of 0-38".
std::string LayersText(const ModuleGroup& group) {
  if (group.first->spec.name.starts_with("mtp.")) return "mtp";
  if (group.layers.empty()) return "";
  std::string text;
  for (size_t i = 0; i < group.layers.size();) {
    size_t end = i + 1;
    while (end < group.layers.size() && group.layers[end] == group.layers[end - 1] + 1) ++end;
    if (!text.empty()) text += ',';
    text += end - i == 1 ? fmt::format("{}", group.layers[i])
                         : fmt::format("{}-{}", group.layers[i], group.layers[end - 1]);
    i = end;
  }
  constexpr size_t kWidth = 10;
  if (text.size() <= kWidth) return text;
  return fmt::format("{} of {}-{}", group.count, group.layers.front(), group.layers.back());
}

/// "self_attn.{q,k,v,o}_proj": names as one, split at '.' and '_'.
std::string FoldNames(const std::vector<std::string>& names) {
  std::string_view prefix = names[0], suffix = names[0];
  for (const std::string& name : names) {
    while (!name.starts_with(prefix)) prefix.remove_suffix(1);
    while (!name.ends_with(suffix)) suffix.remove_prefix(1);
  }
  if (names.size() == 1) return names[0];
  prefix = prefix.substr(0, prefix.find_last_of("._") + 1);
  const size_t joint = suffix.find_first_of("._");
  suffix = joint == suffix.npos ? std::string_view{} : suffix.substr(joint);
  std::string middles;
  for (const std::string& name : names) {
    if (name.size() < prefix.size() + suffix.size())
      return fmt::format("{}", fmt::join(names, ","));
    middles += (middles.empty() ? "" : ",") +
               name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
  }
  return fmt::format("{}{{{}}}{}", prefix, middles, suffix);
}

void AddRow(std::vector<Row>& rows, Row row) {
  constexpr size_t kWidth = 37;
  for (Row& before : rows) {
    if (!before.Shares(row)) continue;
    std::vector<std::string> together = before.names;
    together.push_back(row.names[0]);
    if (FoldNames(together).size() > kWidth) continue;
    before.names = std::move(together);
    return;
  }
  rows.push_back(std::move(row));
}

void PrintTable(const std::vector<ModuleGroup>& groups) {
  std::vector<Row> rows;
  bool raised = false, absent = false;
  for (const ModuleGroup& g : groups) {
    const PlannedModule& m = *g.first;
    if (m.spec.kind == ModuleKind::kNorm) continue;  // always 16 bits; --json has them
    const bool is_raised = m.effective != m.declared.scheme;
    raised |= is_raised;
    absent |= !m.kernel->built;
    std::string name = g.name;
    if (const size_t star = name.find(".*."); star != name.npos) name = name.substr(star + 3);
    AddRow(rows, {LayersText(g),
                  SchemeName(m.declared.scheme),
                  std::string(NameOf(m.activation_precision())) + (is_raised ? "^" : ""),
                  std::string(m.kernel->id) + (m.kernel->built ? "" : "*"),
                  {std::move(name)}});
  }
  size_t layers = 6, module = 6;
  for (const Row& r : rows) {
    layers = std::max(layers, r.layers.size());
    module = std::max(module, FoldNames(r.names).size());
  }
  fmt::print("\n{:<{}}  {:<{}}  {:<12}{:<6}{}\n", "layers", layers, "module", module, "scheme",
             "act", "kernel");
  for (const Row& r : rows) {
    fmt::print("{:<{}}  {:<{}}  {:<12}{:<6}{}\n", r.layers, layers, FoldNames(r.names), module,
               r.scheme, r.activation, r.kernel);
  }
  if (absent) fmt::print("* not in this build\n");
  if (raised) fmt::print("^ raised above the declared scheme (--activation-precision bf16)\n");
  fmt::print("\n");
}

// ---- Why

/// One line a scheme: where the checkpoint says it, of the first module that has it.
void PrintEvidence(const std::vector<ModuleGroup>& groups) {
  std::vector<std::string> told;
  for (const ModuleGroup& g : groups) {
    const std::string scheme = SchemeName(g.first->declared.scheme);
    if (g.first->spec.kind == ModuleKind::kNorm || g.first->declared.evidence.empty() ||
        std::find(told.begin(), told.end(), scheme) != told.end()) {
      continue;
    }
    told.push_back(scheme);
    PrintWrapped(scheme, g.first->declared.evidence);
  }
}

/// One line a backend: what it answered to the experts, or to the first module that it cannot run.
/// --json has every module's.
void PrintRefusals(const Plan& plan) {
  std::vector<const PlannedModule*> order;
  for (const PlannedModule& m : plan.modules) order.push_back(&m);
  std::stable_partition(order.begin(), order.end(), [](const PlannedModule* m) {
    return m->spec.kind == ModuleKind::kExperts;
  });
  std::vector<Backend> told;  // and those that run a part: what they cannot run shows in the table
  for (const PlannedModule& m : plan.modules) told.push_back(m.kernel->backend);
  for (const PlannedModule* m : order) {
    for (const plan::Refusal& r : m->refused) {
      if (std::find(told.begin(), told.end(), r.backend) != told.end()) continue;
      told.push_back(r.backend);
      std::vector<std::string> reasons;
      for (const plan::Reason& reason : r.reasons) reasons.push_back(plan::Clause(reason));
      PrintWrapped("refused", fmt::format("{}: {}", NameOf(r.backend), fmt::join(reasons, "; ")));
    }
  }
}

void PrintMemory(const Plan& plan) {
  const plan::MemoryBudget& m = plan.memory;
  const uint64_t total = m.weights + m.kv + m.state + m.workspace;
  std::string text = Bytes(total);
  if (plan.device.memory_bytes > 0) text += " of " + Bytes(plan.device.memory_bytes);
  text += fmt::format(": weights {}, kv cache {} ({} tokens)", Bytes(m.weights), Bytes(m.kv),
                      plan.context);
  if (m.state > 0) text += fmt::format(", state {}", Bytes(m.state));
  text += fmt::format(", workspace {}", Bytes(m.workspace));
  if (m.mapped > 0) text += fmt::format("; {} of weights stay in the file", Bytes(m.mapped));
  PrintWrapped("memory", text);
}

}  // namespace

std::vector<ModuleGroup> GroupModules(const Plan& plan) {
  std::vector<ModuleGroup> groups;
  for (const PlannedModule& m : plan.modules) {
    const std::string name = StarredName(m);
    auto found = std::find_if(groups.begin(), groups.end(), [&](const ModuleGroup& g) {
      return g.name == name && SameButForLayer(*g.first, m);
    });
    if (found == groups.end()) found = groups.insert(groups.end(), {name, &m, {}, 0});
    ++found->count;
    if (m.spec.layer >= 0) found->layers.push_back(m.spec.layer);
  }
  return groups;
}

void PrintPage(const InspectPage& page) {
  const std::vector<ModuleGroup> groups = GroupModules(*page.plan);
  PrintHeader(page);
  PrintMix(*page.plan);
  PrintTable(groups);
  PrintEvidence(groups);
  PrintRefusals(*page.plan);
  if (!page.ignored.empty()) {
    PrintWrapped("ignored", fmt::format("{} activation scales, which W4A16 never reads, e.g. {}",
                                        page.ignored.size(), page.ignored.front()));
  }
  if (!page.unused.empty()) {
    PrintWrapped("not run", fmt::format("{} tensors of other parts, e.g. {}", page.unused.size(),
                                        page.unused.front()));
  }
  for (const std::string& w : page.plan->warnings) PrintWrapped("warning", w);
  PrintMemory(*page.plan);
}

}  // namespace nibble::app
