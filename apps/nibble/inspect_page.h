#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "plan/plan.h"

namespace nibble::app {

/// Modules that differ in nothing but their layer.
struct ModuleGroup {
  std::string name;  // "model.layers.*.mlp.experts"
  const plan::PlannedModule* first = nullptr;
  std::vector<int> layers;  // ascending; empty outside the layers
  int count = 0;
};
std::vector<ModuleGroup> GroupModules(const plan::Plan& plan);

/// What inspect tells people.
struct InspectPage {
  std::string dir;
  const checkpoint::Checkpoint* checkpoint = nullptr;
  const plan::Plan* plan = nullptr;
  bool config_only = false;
  int tp_size = 1, ep_size = 1;
  std::vector<std::string> ignored;  // activation scales that a label forbids
  std::vector<std::string> unused;   // tensors of parts that are not run
};

/// Prints it on stdout, no line longer than 100 columns.
void PrintPage(const InspectPage& page);

}  // namespace nibble::app
