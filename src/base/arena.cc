#include "base/arena.h"

#include <sys/mman.h>

#include <cstdint>

#include "base/checked.h"

namespace nibble {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

/// The mapping of a buffer: huge pages need its start and its end on their boundary.
size_t MappedBytes(size_t bytes) { return bytes < kHugePage ? bytes : RoundUp(bytes, kHugePage); }

std::byte* Map(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
}

}  // namespace

Result<HugeBuffer> HugeBuffer::Allocate(size_t bytes) {
  HugeBuffer buffer;
  if (bytes == 0) return buffer;
  const auto fail = [&] {
    return Err(ErrorCode::kOutOfMemory, "cannot allocate {} bytes ({:.1f} GiB)", bytes,
               static_cast<double>(bytes) / (1 << 30));
  };
  if (bytes > SIZE_MAX - 2 * kHugePage) return fail();
  const size_t mapped = MappedBytes(bytes);
  const size_t slack = bytes < kHugePage ? 0 : kHugePage;
  std::byte* start = Map(mapped + slack);
  if (start == nullptr) return fail();
  if (slack != 0) {
    const size_t before = -reinterpret_cast<uintptr_t>(start) % kHugePage;
    if (before != 0) munmap(start, before);
    if (before != slack) munmap(start + before + mapped, slack - before);
    start += before;
    madvise(start, mapped, MADV_HUGEPAGE);  // a wish: without huge pages it is only slower
  }
  buffer.data_ = start;
  buffer.size_ = bytes;
  return buffer;
}

void HugeBuffer::Release() {
  if (data_ != nullptr) munmap(data_, MappedBytes(size_));
  data_ = nullptr;
  size_ = 0;
}

}  // namespace nibble
