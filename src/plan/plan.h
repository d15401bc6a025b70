#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/model_config.h"
#include "checkpoint/modules.h"
#include "plan/oracle.h"
#include "plan/wishes.h"
#include "scheme/quant_config.h"

namespace nibble::plan {

/// One module and the kernel that will run it.
struct PlannedModule {
  checkpoint::ModuleSpec spec;
  scheme::ModuleScheme declared;  // what the checkpoint's label says, and where
  QuantScheme effective;          // what runs: the same, or raised by --activation-precision bf16
  const kernels::CatalogueRow* kernel = nullptr;
  std::vector<Refusal> refused;  // the backends that cannot run it

  ActivationPrecision activation_precision() const;
};

/// Bytes that a run will hold, on one rank where several share the model.
struct MemoryBudget {
  uint64_t weights = 0, kv = 0, workspace = 0;
  uint64_t mapped =
      0;  // of the file's pages that every token reads from, which the system may evict
  uint64_t state = 0;  // of recurrent layers
};

/// What runs where, and why nothing else. The runtime executes this object and nothing besides.
struct Plan {
  checkpoint::ModelConfig model;
  DeviceInfo device;
  SourceFormat source_format = SourceFormat::kNone;
  std::vector<PlannedModule> modules;  // in forward order
  Backend glue = Backend::kCpu;        // norms, RoPE, attention, router
  int64_t context = 0;                 // tokens of KV cache that a sequence has
  int sequences = 1;                   // that have one
  KvDtype kv_dtype = KvDtype::kF32;
  std::string kv_evidence;  // why that
  bool batch_invariant = false;
  bool map_weights = false;  // the CPU's stay in the file's pages
  int draft_tokens = 0;      // of speculation by the MTP module, a step; 0: none
  MemoryBudget memory;
  std::vector<std::string> warnings;

  /// The module of that name; the plan's makers guarantee those of ListModules.
  const PlannedModule& Find(std::string_view name) const;
};

/// Tokens that one forward pass takes at most: what the workspace is sized for.
/// A GPU's tensor cores want more of them for each expert.
constexpr int64_t MaxBatchTokens(DeviceKind kind) { return kind == DeviceKind::kCpu ? 2048 : 8192; }

/// Reads configurations alone, no tensor: the plan is the label's, whatever the file holds.
/// errors  kUnsupported (no kernel; every candidate's reasons), kCorruptFile (configuration)
Result<Plan> MakePlan(const checkpoint::Checkpoint& checkpoint, const DeviceInfo& device,
                      const Wishes& wishes);

}  // namespace nibble::plan
