#include "base/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace nibble {
namespace {

TEST(HugeBuffer, IsZeroedAlignedAndWritableToItsLastByte) {
  for (size_t bytes : {size_t{1}, size_t{4096}, size_t{2} << 20, (size_t{5} << 20) + 3}) {
    auto buffer = HugeBuffer::Allocate(bytes);
    ASSERT_TRUE(buffer);
    EXPECT_EQ(buffer->size(), bytes);
    const size_t alignment = bytes < size_t{2} << 20 ? 64 : size_t{2} << 20;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % alignment, 0u);
    for (size_t i = 0; i < bytes; i += 4093) EXPECT_EQ(buffer->data()[i], std::byte{0});
    EXPECT_EQ(buffer->data()[bytes - 1], std::byte{0});
    for (std::byte& b : buffer->bytes()) b = std::byte{1};
  }
}

TEST(HugeBuffer, OfNoBytesIsEmpty) {
  auto buffer = HugeBuffer::Allocate(0);
  ASSERT_TRUE(buffer);
  EXPECT_EQ(buffer->size(), 0u);
}

TEST(HugeBuffer, TooMuchIsAnErrorThatNamesTheBytes) {
  for (size_t bytes : {std::numeric_limits<size_t>::max(), size_t{1} << 62}) {
    auto buffer = HugeBuffer::Allocate(bytes);
    ASSERT_FALSE(buffer);
    EXPECT_EQ(buffer.error().code, ErrorCode::kOutOfMemory);
    EXPECT_NE(buffer.error().Message().find(std::to_string(bytes)), std::string::npos);
  }
}

TEST(HugeBuffer, MovesItsMemory) {
  auto a = HugeBuffer::Allocate(100);
  ASSERT_TRUE(a);
  std::byte* data = a->data();
  HugeBuffer b = *std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(a->data(), nullptr);
  b = HugeBuffer();
  EXPECT_EQ(b.size(), 0u);
}

}  // namespace
}  // namespace nibble
