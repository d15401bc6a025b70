#include "engine/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "command.h"

namespace nibble::app {
namespace {

constexpr int kCheckFailed = 4;  // the exit code of a check that did not hold

/// Where it differs from the plan, and in which of the two multiplications.
std::string Verdict(const engine::LayerProof& p) {
  if (p.agrees()) return "";
  return fmt::format("  MISMATCH: w13 {}, w2 {}", NameOf(p.first), NameOf(p.second));
}

void PrintTable(const DeviceInfo& device, const std::vector<engine::LayerProof>& proofs) {
  const bool cpu = device.kind == DeviceKind::kCpu;
  fmt::print("device  {}: {}{}{}\n\n", device.name, device.model, cpu ? ", " : "",
             cpu ? NameOf(device.isa) : "");
  fmt::print("{:<5} {:<32} {:<8} {:<8} {:>8} {:>8}\n", "layer", "kernel", "declared", "measured",
             "distance", "margin");
  for (const engine::LayerProof& p : proofs) {
    fmt::print("{:<5} {:<32} {:<8} {:<8} {:>8.1e} {:>8.3g}{}\n",
               p.module.starts_with("mtp.") ? "mtp" : fmt::format("{}", p.layer), p.kernel,
               NameOf(p.declared), NameOf(p.measured), p.distance, p.margin, Verdict(p));
  }
  const auto agreeing =
      std::count_if(proofs.begin(), proofs.end(), [](const auto& p) { return p.agrees(); });
  fmt::print("\n{} of {} layers run the precision that the plan declares\n", agreeing,
             proofs.size());
}

Json ProofJson(const engine::LayerProof& p) {
  return Json::Object{{"layer", Json(p.layer)},
                      {"module", Json(p.module)},
                      {"kernel", Json(p.kernel)},
                      {"declared", Json(NameOf(p.declared))},
                      {"measured", Json(NameOf(p.measured))},
                      {"distance", Json(p.distance)},
                      {"margin", Json(p.margin)},
                      {"agrees", Json(p.agrees())}};
}

Result<int> Verify(const ModelOptions& o) {
  NIBBLE_TRY(const std::unique_ptr<engine::Engine> engine, OpenEngine(o));
  ProgressBar bar("probing layers");
  NIBBLE_TRY(const std::vector<engine::LayerProof> proofs,
             engine::VerifyExperts(engine->checkpoint(), engine->plan(), engine->weights(),
                                   engine->operators(), engine->pool(), [&](int done, int total) {
                                     bar.Update(static_cast<uint64_t>(done),
                                                static_cast<uint64_t>(total), "layers");
                                   }));
  const bool all =
      std::all_of(proofs.begin(), proofs.end(), [](const auto& p) { return p.agrees(); });
  if (o.json) {
    Json::Array layers;
    for (const engine::LayerProof& p : proofs) layers.push_back(ProofJson(p));
    PrintJson(Json::Object{{"layers", Json(std::move(layers))}, {"agrees", Json(all)}}, 1);
  } else {
    PrintTable(engine->plan().device, proofs);
  }
  return all ? 0 : kCheckFailed;
}

}  // namespace

Verb AddVerify(CLI::App& app) {
  auto o = std::make_shared<ModelOptions>();
  o->AddTo(app);
  return [o] {
    auto done = Verify(*o);
    return done ? *done : Fail(done.error(), o->json);
  };
}

}  // namespace nibble::app
