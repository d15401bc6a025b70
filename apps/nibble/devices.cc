#include <fmt/format.h>

#include <cstdlib>
#include <memory>

#include "command.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/cuda.h"
#include "plan/devices.h"

namespace nibble::app {
namespace {

Result<void> Devices(bool json) {
  NIBBLE_TRY(const CpuIsa isa, kernels::cpu::ChooseIsa(std::getenv("NIBBLE_ISA")));
  const DeviceInfo here = kernels::cpu::DescribeCpu(isa);
  const Result<DeviceInfo> gpu = cuda::DescribeDevice();
  if (json) {
    Json::Array present = {Json::Object{{"name", Json(here.name)},
                                        {"model", Json(here.model)},
                                        {"isa", Json(NameOf(here.isa))},
                                        {"cores", Json(here.cores)},
                                        {"memory_bytes", Json(here.memory_bytes)}}};
    if (gpu) {
      present.push_back(Json::Object{{"name", Json(gpu->name)},
                                     {"model", Json(gpu->model)},
                                     {"cores", Json(gpu->cores)},
                                     {"memory_bytes", Json(gpu->memory_bytes)}});
    }
    Json::Array known;
    for (const plan::KnownDevice& d : plan::KnownDevices()) {
      known.push_back(Json::Object{{"name", Json(d.name)}, {"model", Json(d.model)}});
    }
    PrintJson(
        Json::Object{{"present", Json(std::move(present))}, {"known", Json(std::move(known))}}, 1);
    return {};
  }
  fmt::print("here\n  {:<16} {}, {}, {} cores, {:.0f} GB\n", here.name, here.model,
             NameOf(here.isa), here.cores, 1e-9 * static_cast<double>(here.memory_bytes));
  if (gpu) {
    fmt::print("  {:<16} {}, {} multiprocessors, {:.0f} GB\n", gpu->name, gpu->model, gpu->cores,
               1e-9 * static_cast<double>(gpu->memory_bytes));
  } else {
    fmt::print("  {:<16} {}\n", "no GPU", gpu.error().what);
  }
  fmt::print("known: nibble inspect DIR --device NAME plans for them\n");
  for (const plan::KnownDevice& d : plan::KnownDevices())
    fmt::print("  {:<16} {}\n", d.name, d.model);
  return {};
}

}  // namespace

Verb AddDevices(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  app.add_flag("--json", *json, "one JSON object on stdout, for programs");
  return [json] {
    auto done = Devices(*json);
    return done ? 0 : Fail(done.error(), *json);
  };
}

}  // namespace nibble::app
