#pragma once

#include <span>
#include <string_view>

#include "base/error.h"
#include "layout/words.h"

namespace nibble::plan {

/// A device that a plan can be made for without having it.
struct KnownDevice {
  std::string_view name;   // "sm_121", "cpu-avx2"
  std::string_view model;  // what carries it: "GB10 (DGX Spark)"
  DeviceKind kind = DeviceKind::kCuda;
  int compute_capability = 0;
  CpuIsa isa = CpuIsa::kScalar;
  uint64_t memory_bytes = 0;  // of the model named; 0 where it says nothing
};

std::span<const KnownDevice> KnownDevices();

/// The device of a name: "cpu" is `here`, this machine's; otherwise a known one, not present.
/// "sm_121", "sm121" and "12.1" are the same.
/// errors  kInvalidArgument listing the names
Result<DeviceInfo> FindDevice(std::string_view name, const DeviceInfo& here);

/// The device of a name for work that needs it here: `here`, or, by the name of a lower instruction
/// set, `here` with that one.
/// errors  those of FindDevice; kDevice: it is not in this machine, naming what is
Result<DeviceInfo> FindPresentDevice(std::string_view name, const DeviceInfo& here);

}  // namespace nibble::plan
