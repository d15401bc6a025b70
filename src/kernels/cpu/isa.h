#pragma once

#include "base/error.h"
#include "layout/words.h"

namespace nibble::kernels::cpu {

/// Whether this machine, and its operating system, can run the kernels of `isa`.
bool HasIsa(CpuIsa isa);

/// The ISA to run: this machine's best, or the one that `env` (the value of NIBBLE_ISA, null when
/// unset) names. It lowers only.
/// errors   kInvalidArgument: an unknown name; kUnsupported: one that
/// this machine lacks
Result<CpuIsa> ChooseIsa(const char* env);

/// This machine as a device to plan for: model name, physical cores that the process may use,
/// memory.
DeviceInfo DescribeCpu(CpuIsa isa);

}  // namespace nibble::kernels::cpu
