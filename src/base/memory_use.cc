#include "base/memory_use.h"

#include <cstdio>
#include <cstring>

namespace nibble {

MemoryUse ReadMemoryUse() {
  MemoryUse use;
  std::FILE* file = std::fopen("/proc/self/status", "re");
  if (file == nullptr) return use;
  char line[256];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    unsigned long long kib = 0;
    if (std::sscanf(line, "RssAnon: %llu kB", &kib) == 1) use.anonymous = kib * 1024;
    if (std::sscanf(line, "VmHWM: %llu kB", &kib) == 1) use.peak_resident = kib * 1024;
  }
  std::fclose(file);
  return use;
}

}  // namespace nibble
