#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "command.h"
#include "kernels/cpu/isa.h"
#include "plan/devices.h"
#include "weights/model_weights.h"

namespace nibble::app {
namespace {

using plan::Plan;
using plan::PlannedModule;

struct InspectOptions {
  ModelOptions model;
  std::string device = "cpu";
  bool config_only = false;
  int tp_size = 1, ep_size = 1;
};

/// Modules that differ in nothing but their layer.
struct Group {
  std::string name;  // "model.layers.*.mlp.experts"
  const PlannedModule* first = nullptr;
  int count = 0;
  int first_layer = -1, last_layer = -1;
  uint64_t weights = 0;  // numbers of weight
};

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

uint64_t WeightsOf(const checkpoint::ModuleSpec& s) {
  if (s.kind == checkpoint::ModuleKind::kExperts) {
    return 3ull * static_cast<uint64_t>(s.experts) * static_cast<uint64_t>(s.k) *
           static_cast<uint64_t>(s.moe_intermediate);
  }
  return static_cast<uint64_t>(s.n) * static_cast<uint64_t>(std::max<int64_t>(s.k, 1));
}

std::vector<Group> GroupModules(const Plan& plan) {
  std::vector<Group> groups;
  for (const PlannedModule& m : plan.modules) {
    const std::string name = StarredName(m);
    auto found = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
      return g.name == name && SameButForLayer(*g.first, m);
    });
    if (found == groups.end()) {
      groups.push_back({name, &m, 0, m.spec.layer, m.spec.layer, 0});
      found = groups.end() - 1;
    }
    ++found->count;
    found->last_layer = m.spec.layer;
    found->weights += WeightsOf(m.spec);
  }
  return groups;
}

std::string Bytes(uint64_t bytes) {
  if (bytes >= 10'000'000'000) return fmt::format("{:.1f} GB", 1e-9 * static_cast<double>(bytes));
  return fmt::format("{:.1f} MB", 1e-6 * static_cast<double>(bytes));
}

Json Strings(const std::vector<std::string>& list) {
  Json::Array out;
  for (const std::string& s : list) out.push_back(Json(s));
  return out;
}

Json KeyJson(const std::optional<QuantKey>& key) { return key ? Json(ToString(*key)) : Json(); }

Json ModuleJson(const Group& g) {
  const PlannedModule& m = *g.first;
  Json::Array refused;
  for (const plan::Refusal& r : m.refused) {
    std::vector<std::string> reasons;
    for (const plan::Reason& reason : r.reasons) reasons.push_back(plan::Clause(reason));
    refused.push_back(
        Json::Object{{"backend", Json(NameOf(r.backend))}, {"reasons", Strings(reasons)}});
  }
  return Json::Object{{"name", Json(g.name)},
                      {"count", Json(g.count)},
                      {"kind", Json(NameOf(m.spec.kind))},
                      {"scheme", Json(ShortName(m.declared.scheme))},
                      {"weight_key", KeyJson(m.declared.scheme.weight)},
                      {"activation_key", KeyJson(m.declared.scheme.activation)},
                      {"source_format", Json(NameOf(m.declared.source_format))},
                      {"evidence", Json(m.declared.evidence)},
                      {"backend", Json(NameOf(m.kernel->backend))},
                      {"kernel", Json(m.kernel->id)},
                      {"in_this_build", Json(m.kernel->built)},
                      {"activation_precision", Json(NameOf(m.activation_precision()))},
                      {"refused", Json(std::move(refused))}};
}

void PrintAsJson(const checkpoint::Checkpoint& checkpoint, const Plan& plan,
                 const std::vector<std::string>& ignored) {
  Json::Array modules;
  for (const Group& g : GroupModules(plan)) modules.push_back(ModuleJson(g));
  PrintJson(
      Json::Object{{"checkpoint", Json::Object{{"architecture", Json(plan.model.architecture)},
                                               {"source_format", Json(NameOf(plan.source_format))},
                                               {"layers", Json(plan.model.n_layers)},
                                               {"bytes", Json(checkpoint.total_bytes())}}},
                   {"device", Json::Object{{"name", Json(plan.device.name)},
                                           {"present", Json(plan.device.present)}}},
                   {"modules", Json(std::move(modules))},
                   {"ignored_tensors", Strings(ignored)},
                   {"warnings", Strings(plan.warnings)},
                   {"memory", Json::Object{{"weights", Json(plan.memory.weights)},
                                           {"kv", Json(plan.memory.kv)},
                                           {"workspace", Json(plan.memory.workspace)}}}},
      1);
}

void PrintHeader(const InspectOptions& o, const checkpoint::Checkpoint& checkpoint,
                 const Plan& plan) {
  const checkpoint::ModelConfig& c = plan.model;
  const std::string name = std::filesystem::path(o.model.dir).lexically_normal().filename();
  fmt::print("checkpoint  {}  {}{}\n", name.empty() ? o.model.dir : name, c.architecture,
             o.config_only ? "" : ", " + Bytes(checkpoint.total_bytes()));
  fmt::print("model       {} layers, hidden {}, {} query and {} kv heads of {}, vocabulary {}\n",
             c.n_layers, c.hidden, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab);
  if (c.n_experts > 0)
    fmt::print("experts     {} of width {}, {} a token\n", c.n_experts, c.moe_intermediate,
               c.top_k);
  fmt::print("format      {}\n", NameOf(plan.source_format));
  const DeviceInfo& d = plan.device;
  std::string device = fmt::format("{}: {}", d.name, d.model);
  if (d.kind == DeviceKind::kCpu) device += fmt::format(", {}", NameOf(d.isa));
  if (d.cores > 0) device += fmt::format(", {} cores", d.cores);
  if (d.memory_bytes > 0)
    device += fmt::format(", {:.0f} GB", 1e-9 * static_cast<double>(d.memory_bytes));
  fmt::print("device      {}{}\n", device, d.present ? "" : "  (not this machine's)");
}

void PrintModules(const Plan& plan) {
  fmt::print("\n{:<9} {:<34} {:<6} {:<5} {}\n", "layers", "module", "scheme", "act", "kernel");
  std::vector<std::pair<std::string, std::string>> evidence;  // scheme, where it is said
  for (const Group& g : GroupModules(plan)) {
    const PlannedModule& m = *g.first;
    if (m.spec.kind == checkpoint::ModuleKind::kNorm)
      continue;  // always 16 bits, never of interest; --json has them
    const std::string layers =
        g.first_layer < 0 ? ""
        : g.first_layer == g.last_layer
            ? fmt::format("{}", g.first_layer)
            : fmt::format("{}-{} ({})", g.first_layer, g.last_layer, g.count);
    std::string name = g.name;
    if (const size_t star = name.find(".*."); star != name.npos) name = name.substr(star + 3);
    std::string note = m.effective == m.declared.scheme ? "" : "  (raised)";
    if (!m.kernel->built) note += "  (not in this build)";
    fmt::print("{:<9} {:<34} {:<6} {:<5} {}{}\n", layers, name, ShortName(m.declared.scheme),
               NameOf(m.activation_precision()), m.kernel->id, note);
    const std::pair<std::string, std::string> said{std::string(ShortName(m.declared.scheme)),
                                                   m.declared.evidence};
    const bool known = std::any_of(evidence.begin(), evidence.end(),
                                   [&](const auto& e) { return e.first == said.first; });
    if (!known && !said.second.empty()) evidence.push_back(said);
  }
  fmt::print("\n");
  for (const auto& [scheme, where] : evidence) fmt::print("why {:<7} {}\n", scheme, where);
}

/// A label, then text broken at spaces so that no line passes 100 columns.
void PrintWrapped(std::string_view label, std::string_view text) {
  constexpr size_t kLabel = 12, kWidth = 100 - kLabel;
  while (true) {
    size_t end = text.size();
    if (end > kWidth) {
      end = text.rfind(' ', kWidth);
      if (end == text.npos || end == 0) end = std::min(text.find(' ', kWidth), text.size());
    }
    fmt::print("{:<{}}{}\n", label, kLabel, text.substr(0, end));
    if (end == text.size()) return;
    text.remove_prefix(end + 1);
    label = "";
  }
}

/// One line a backend: what it answered to the experts, or to the first module that it cannot run.
/// --json has every module's.
void PrintRefusals(const Plan& plan) {
  std::vector<const PlannedModule*> order;
  for (const PlannedModule& m : plan.modules) order.push_back(&m);
  std::stable_partition(order.begin(), order.end(), [](const PlannedModule* m) {
    return m->spec.kind == checkpoint::ModuleKind::kExperts;
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

void PrintAsText(const InspectOptions& o, const checkpoint::Checkpoint& checkpoint,
                 const Plan& plan, const std::vector<std::string>& ignored,
                 const std::vector<std::string>& unused) {
  PrintHeader(o, checkpoint, plan);
  PrintModules(plan);
  PrintRefusals(plan);
  if (!ignored.empty()) {
    fmt::print("ignored     {} activation scales that a W4A16 label forbids, e.g. {}\n",
               ignored.size(), ignored.front());
  }
  if (!unused.empty())
    fmt::print("not run     {} tensors of other parts, e.g. {}\n", unused.size(), unused.front());
  for (const std::string& w : plan.warnings) PrintWrapped("warning", w);
  fmt::print("memory      weights {} + kv {} ({} tokens) + workspace {}\n",
             Bytes(plan.memory.weights), Bytes(plan.memory.kv), plan.context,
             Bytes(plan.memory.workspace));
}

Result<void> Inspect(const InspectOptions& o) {
  NIBBLE_TRY(engine::EngineOptions options, o.model.Parse());
  checkpoint::CheckpointOptions how;
  how.config_only = o.config_only;
  NIBBLE_TRY(const checkpoint::Checkpoint checkpoint,
             checkpoint::Checkpoint::Open(o.model.dir, how));
  NIBBLE_TRY(const CpuIsa isa, kernels::cpu::ChooseIsa(std::getenv("NIBBLE_ISA")));
  options.wishes.tp_size = o.tp_size;
  options.wishes.ep_size = o.ep_size;
  NIBBLE_TRY(const DeviceInfo device, plan::FindDevice(o.device, kernels::cpu::DescribeCpu(isa)));
  NIBBLE_TRY(const Plan plan, plan::MakePlan(checkpoint, device, options.wishes));
  std::vector<std::string> ignored, unused;
  if (!o.config_only) {
    NIBBLE_TRY(weights::ModelWeights checked, weights::CheckWeights(checkpoint, plan));
    ignored = std::move(checked.ignored_tensors);
    unused = std::move(checked.unused_tensors);
  }
  if (o.model.json) {
    PrintAsJson(checkpoint, plan, ignored);
  } else {
    PrintAsText(o, checkpoint, plan, ignored, unused);
  }
  return {};
}

}  // namespace

Verb AddInspect(CLI::App& app) {
  auto o = std::make_shared<InspectOptions>();
  o->model.AddTo(app);
  app.add_option("--device", o->device,
                 "plan for this device, here or not: cpu, sm_90, sm_121, … (nibble devices)");
  app.add_option("--tensor-parallel-size", o->tp_size, "ranks that share each expert")
      ->check(CLI::Range(1, 1024));
  app.add_option("--expert-parallel-size", o->ep_size, "ranks that share the experts")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--config-only", o->config_only,
               "read the JSON files alone: ask before downloading the weights");
  return [o] {
    auto done = Inspect(*o);
    return done ? 0 : Fail(done.error(), o->model.json);
  };
}

}  // namespace nibble::app
