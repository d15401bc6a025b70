#include "kernels/cpu/pack.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/cpu/test_support.h"

namespace nibble::kernels::cpu {
namespace {

// Against NaivePack, which is written from the comment in layout/cpu_tile.h alone.
class PackTest : public testing::TestWithParam<CpuIsa> {};

void ExpectTiles(const TestMatrix& m, CpuIsa isa) {
  const PackedMatrix from = m.mapped_view();
  const auto bytes = static_cast<size_t>(StripBytes(m.format, m.k));
  for (int64_t s = 0; s < StripCount(m.n); ++s) {
    AlignedBytes tiles(bytes);  // poisoned, and nothing lies behind them
    PackStrip(KernelsFor(isa), from, s, tiles.data());
    ASSERT_EQ(std::memcmp(tiles.data(), m.packed.data() + s * bytes, bytes), 0)
        << m.n << "x" << m.k << " strip " << s << " format " << static_cast<int>(m.format);
  }
}

TEST_P(PackTest, Nvfp4AndBf16StripsAreWhatTheLayoutSays) {
  Random random(3);
  for (const int64_t n : {1, 15, 16, 17, 33, 64}) {
    for (const int64_t k : {16, 48, 64, 80, 128, 144, 192, 256, 320, 464, 1024}) {
      for (const TileFormat format : {TileFormat::kNvfp4, TileFormat::kBf16}) {
        ExpectTiles(RandomMatrix(random, format, n, k, 1), GetParam());
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(PackTest, Fp8StripsAreWhatTheLayoutSays) {
  Random random(5);
  for (const int64_t n : {1, 16, 17, 130}) {
    for (const int64_t k : {16, 63, 64, 65, 129, 144, 256, 1023}) {
      TestMatrix m = RandomFp8(random, kFp8StaticTensor, n, k, 1);
      for (uint8_t& code : m.codes) code = static_cast<uint8_t>(random());  // NaNs move as well
      NaivePack(m);
      ExpectTiles(m, GetParam());
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(PackTest, Bf16StripsOfOddRows) {
  Random random(4);
  for (const int64_t k : {1, 31, 65, 127, 193}) {
    ExpectTiles(RandomMatrix(random, TileFormat::kBf16, 18, k, 1), GetParam());
    if (HasFatalFailure()) return;
  }
}

TEST_P(PackTest, NanCodesAreFoundWhereverTheyAre) {
  std::vector<std::byte> tiles(2 * kFp8TileBytes);
  for (int code = 0; code < 256; ++code) {
    const bool nan = (code & 0x7F) == 0x7F;
    tiles[static_cast<size_t>(code) * 7] = static_cast<std::byte>(code);
    EXPECT_EQ(HasNanCode(tiles), nan) << code;
    tiles[static_cast<size_t>(code) * 7] = std::byte{0x7E};
  }
}

INSTANTIATE_TEST_SUITE_P(Every, PackTest, testing::ValuesIn(IsasOfThisMachine()), IsaTestName);

}  // namespace
}  // namespace nibble::kernels::cpu
