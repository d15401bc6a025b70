#include "plan/devices.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

namespace nibble::plan {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

constexpr KnownDevice kKnown[] = {
    {"sm_75", "Turing: T4", DeviceKind::kCuda, 75, CpuIsa::kScalar, 16 * kGiB},
    {"sm_80", "Ampere: A100", DeviceKind::kCuda, 80, CpuIsa::kScalar, 80 * kGiB},
    {"sm_86", "Ampere: RTX 3090, A10", DeviceKind::kCuda, 86, CpuIsa::kScalar, 24 * kGiB},
    {"sm_87", "Ampere: Jetson Orin", DeviceKind::kCuda, 87, CpuIsa::kScalar, 64 * kGiB},
    {"sm_89", "Ada: RTX 4090, L40", DeviceKind::kCuda, 89, CpuIsa::kScalar, 24 * kGiB},
    {"sm_90", "Hopper: H100, H200", DeviceKind::kCuda, 90, CpuIsa::kScalar, 141 * kGiB},
    {"sm_100", "Blackwell: B200", DeviceKind::kCuda, 100, CpuIsa::kScalar, 192 * kGiB},
    {"sm_103", "Blackwell: B300", DeviceKind::kCuda, 103, CpuIsa::kScalar, 288 * kGiB},
    {"sm_110", "Blackwell: Jetson Thor", DeviceKind::kCuda, 110, CpuIsa::kScalar, 128 * kGiB},
    {"sm_120", "Blackwell: RTX 5090, RTX PRO 6000", DeviceKind::kCuda, 120, CpuIsa::kScalar,
     32 * kGiB},
    {"sm_121", "Blackwell: GB10 (DGX Spark)", DeviceKind::kCuda, 121, CpuIsa::kScalar, 128 * kGiB},
    {"cpu-scalar", "x86-64 without AVX2, or any other CPU", DeviceKind::kCpu, 0, CpuIsa::kScalar,
     0},
    {"cpu-avx2", "x86-64 with AVX2", DeviceKind::kCpu, 0, CpuIsa::kAvx2, 0},
    {"cpu-avx512", "x86-64 with AVX-512", DeviceKind::kCpu, 0, CpuIsa::kAvx512, 0},
    {"cpu-avx512bf16", "x86-64 with AVX-512 BF16", DeviceKind::kCpu, 0, CpuIsa::kAvx512Bf16, 0},
};

/// "SM-121", "sm121" and "12.1" to "sm_121".
std::string Fold(std::string_view name) {
  std::string out;
  for (char c : name)
    out += c == '_' ? '-' : static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (out.starts_with("sm") && out.size() > 2 && out[2] != '-') out.insert(2, "-");
  const size_t dot = out.find('.');
  if (dot != out.npos && dot > 0 && out.find_first_not_of("0123456789.") == out.npos)
    out = "sm-" + out.erase(dot, 1);
  return out;
}

}  // namespace

std::span<const KnownDevice> KnownDevices() { return kKnown; }

Result<DeviceInfo> FindDevice(std::string_view name, const DeviceInfo& here) {
  const std::string folded = Fold(name);
  if (folded == "cpu") return here;
  std::vector<std::string_view> names = {"cpu"};
  for (const KnownDevice& d : kKnown) {
    if (Fold(d.name) == folded) {
      DeviceInfo out;
      out.kind = d.kind;
      out.name = d.name;
      out.model = d.model;
      out.compute_capability = d.compute_capability;
      out.isa = d.isa;
      out.memory_bytes = d.memory_bytes;
      return out;
    }
    names.push_back(d.name);
  }
  return Err(ErrorCode::kInvalidArgument, "device '{}' is not known. Expected one of [{}]",
             name.substr(0, 64), fmt::join(names, ", "));
}

Result<DeviceInfo> FindPresentDevice(std::string_view name, const DeviceInfo& here) {
  NIBBLE_TRY(const DeviceInfo found, FindDevice(name, here));
  if (found.present) return found;
  if (found.kind == DeviceKind::kCpu && here.kind == DeviceKind::kCpu && found.isa <= here.isa) {
    DeviceInfo lowered = here;
    lowered.isa = found.isa;
    return lowered;
  }
  Error error = Err(ErrorCode::kDevice, "device '{}' ({}) is not in this machine, which has {}: {}",
                    found.name, found.model, here.name, here.model);
  if (here.kind == DeviceKind::kCpu) error.what += fmt::format(", {}", NameOf(here.isa));
  error.hint =
      fmt::format("nothing can run there; nibble inspect --device {} shows its plan", found.name);
  return error;
}

}  // namespace nibble::plan
