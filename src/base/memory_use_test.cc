#include "base/memory_use.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/arena.h"

namespace nibble {
namespace {

TEST(MemoryUse, CountsWhatIsTouched) {
  constexpr size_t kBytes = size_t{64} << 20;
  const MemoryUse before = ReadMemoryUse();
  auto buffer = HugeBuffer::Allocate(kBytes);
  ASSERT_TRUE(buffer.ok());
  std::memset(buffer->data(), 1, kBytes);
  const MemoryUse with = ReadMemoryUse();
  // Allocators give little back meanwhile.
  EXPECT_GE(with.anonymous, before.anonymous + kBytes * 9 / 10);
  EXPECT_GE(with.peak_resident, with.anonymous);
  *buffer = HugeBuffer();
  const MemoryUse after = ReadMemoryUse();
  EXPECT_LE(after.anonymous, with.anonymous - kBytes * 9 / 10);
  // The kernel counts pages by core and adds them up late: a peak may be told some pages lower.
  EXPECT_GE(after.peak_resident + (size_t{4} << 20), with.peak_resident);
}

}  // namespace
}  // namespace nibble
