#include "kernels/cpu/isa.h"

#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdio>
#include <string>
#include <string_view>

#include "base/topology.h"

namespace nibble::kernels::cpu {
namespace {

constexpr CpuIsa kWeakestFirst[] = {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512,
                                    CpuIsa::kAvx512Bf16};

std::string ModelName() {
  std::FILE* file = std::fopen("/proc/cpuinfo", "re");
  if (file == nullptr) return {};
  std::string name;
  char line[512];
  while (name.empty() && std::fgets(line, sizeof line, file)) {
    std::string_view text(line);
    if (!text.starts_with("model name")) continue;
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos) break;
    text.remove_prefix(colon + 1);
    const size_t first = text.find_first_not_of(" \t\n"), last = text.find_last_not_of(" \t\n");
    if (first == std::string_view::npos) break;
    name = text.substr(first, last - first + 1);
  }
  std::fclose(file);
  return name;
}

#if defined(__x86_64__)
/// Half-precision conversions; clang 14 cannot be asked for them by name.
bool HasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

}  // namespace

bool HasIsa(CpuIsa isa) {
#if defined(__x86_64__)
  // libgcc also asks whether the operating system saves the registers. Each feature that a target
  // region names is asked for.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case CpuIsa::kScalar:
      return true;
    case CpuIsa::kAvx2:
      return avx2;
    case CpuIsa::kAvx512:
      return avx512;
    case CpuIsa::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return isa == CpuIsa::kScalar;
}

Result<CpuIsa> ChooseIsa(const char* env) {
  CpuIsa best = CpuIsa::kScalar;
  for (CpuIsa isa : kWeakestFirst) {
    if (HasIsa(isa)) best = isa;
  }
  if (env == nullptr || *env == '\0') return best;
  for (CpuIsa isa : kWeakestFirst) {
    if (NameOf(isa) != env) continue;
    if (HasIsa(isa)) return isa;
    Error error = Err(ErrorCode::kUnsupported, "NIBBLE_ISA={}: this CPU does not have it", env);
    error.hint = fmt::format("its best is {}; unset NIBBLE_ISA to use that", NameOf(best));
    return error;
  }
  Error error = Err(ErrorCode::kInvalidArgument,
                    "NIBBLE_ISA={}: expected scalar, avx2, avx512 or avx512bf16", env);
  error.hint = "unset NIBBLE_ISA to use the best that this CPU has";
  return error;
}

DeviceInfo DescribeCpu(CpuIsa isa) {
  DeviceInfo device;
  device.kind = DeviceKind::kCpu;
  device.name = "cpu";
  device.model = ModelName();
  device.isa = isa;
  device.cores = AvailableCores();
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) {
    device.memory_bytes = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page);
  }
  device.present = true;
  return device;
}

}  // namespace nibble::kernels::cpu
