#include <fmt/format.h>

#include <cstdlib>
#include <memory>

#include "command.h"
#include "inspect_page.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/cuda.h"
#include "plan/devices.h"
#include "weights/model_weights.h"

namespace nibble::app {
namespace {

using plan::Plan;
using plan::PlannedModule;

struct InspectOptions {
  ModelOptions model;
  bool config_only = false;
  int tp_size = 1, ep_size = 1;
};

Json Strings(const std::vector<std::string>& list) {
  Json::Array out;
  for (const std::string& s : list) out.push_back(Json(s));
  return out;
}

Json KeyJson(const std::optional<QuantKey>& key) { return key ? Json(ToString(*key)) : Json(); }

Json ModuleJson(const ModuleGroup& g) {
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
  for (const ModuleGroup& g : GroupModules(plan)) modules.push_back(ModuleJson(g));
  PrintJson(
      Json::Object{{"checkpoint", Json::Object{{"architecture", Json(plan.model.architecture)},
                                               {"source_format", Json(NameOf(plan.source_format))},
                                               {"layers", Json(plan.model.n_layers)},
                                               {"bytes", Json(checkpoint.total_bytes())}}},
                   {"device", Json::Object{{"name", Json(plan.device.name)},
                                           {"present", Json(plan.device.present)}}},
                   {"kv_cache", Json::Object{{"dtype", Json(NameOf(plan.kv_dtype))},
                                             {"evidence", Json(plan.kv_evidence)}}},
                   {"modules", Json(std::move(modules))},
                   {"ignored_tensors", Strings(ignored)},
                   {"warnings", Strings(plan.warnings)},
                   {"memory", Json::Object{{"weights", Json(plan.memory.weights)},
                                           {"mapped", Json(plan.memory.mapped)},
                                           {"kv", Json(plan.memory.kv)},
                                           {"state", Json(plan.memory.state)},
                                           {"workspace", Json(plan.memory.workspace)}}}},
      1);
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
  DeviceInfo device;
  if (o.model.device == "cuda") {
    NIBBLE_TRY(device, cuda::DescribeDevice());
  } else {
    NIBBLE_TRY(device, plan::FindDevice(o.model.device, kernels::cpu::DescribeCpu(isa)));
  }
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
    PrintPage({o.model.dir, &checkpoint, &plan, o.config_only, o.tp_size, o.ep_size,
               std::move(ignored), std::move(unused)});
  }
  return {};
}

}  // namespace

Verb AddInspect(CLI::App& app) {
  auto o = std::make_shared<InspectOptions>();
  o->model.AddTo(app);
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
