#include "scheme/tensor_checks.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

namespace nibble::scheme {
namespace {

TEST(TensorChecks, FindsEachBadBlockScale) {
  // Every byte at every place of a length with a tail, behind words of every fill.
  for (const size_t size : {1u, 7u, 31u, 32u, 33u, 70u, 4096u, 4101u}) {
    for (unsigned byte = 0; byte < 256; ++byte) {
      for (size_t at = 0; at < size; at += size < 100 ? 1 : 409) {
        std::vector<std::byte> scales(size, std::byte{0x7E});
        scales[at] = std::byte(byte);
        const auto bad = FindBadBlockScale(scales);
        const bool legal = byte <= 0x7E;
        ASSERT_EQ(bad.has_value(), !legal) << size << " " << byte << " " << at;
        EXPECT_EQ(bad.value_or(at), at);
      }
    }
  }
  std::vector<std::byte> two(32, std::byte{0});
  two[9] = std::byte{0xFF};
  two[3] = std::byte{0x80};
  EXPECT_EQ(FindBadBlockScale(two), 3u);
}

TEST(TensorChecks, FindsEachNanCode) {
  for (const size_t size : {1u, 7u, 33u, 4096u, 4101u}) {
    for (unsigned byte = 0; byte < 256; ++byte) {
      for (size_t at = 0; at < size; at += size < 100 ? 1 : 409) {
        std::vector<std::byte> codes(size, std::byte{0xFE});
        codes[at] = std::byte(byte);
        const auto bad = FindNanCode(codes);
        ASSERT_EQ(bad.has_value(), byte == 0x7F || byte == 0xFF) << size << " " << byte;
        EXPECT_EQ(bad.value_or(at), at);
      }
    }
  }
}

TEST(TensorChecks, InvertsOnceInSinglePrecision) {
  EXPECT_EQ(GlobalScale(0.25f, SourceFormat::kModelopt), 0.25f);
  EXPECT_EQ(GlobalScale(4.0f, SourceFormat::kCompressedTensors), 0.25f);
  EXPECT_EQ(GlobalScale(29440.0f, SourceFormat::kCompressedTensors), 1.0f / 29440.0f);
}

}  // namespace
}  // namespace nibble::scheme
