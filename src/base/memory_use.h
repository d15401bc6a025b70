#pragma once

#include <cstdint>

namespace nibble {

/// What this process holds of memory, in bytes; 0 where the system does not say.
struct MemoryUse {
  uint64_t anonymous = 0;      // now: its own, which nothing can take away
  uint64_t peak_resident = 0;  // ever: with pages of mapped files, which the system may evict
};
MemoryUse ReadMemoryUse();

}  // namespace nibble
