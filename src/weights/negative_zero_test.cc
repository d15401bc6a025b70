#include "weights/negative_zero.h"

#include <gtest/gtest.h>

#include "weights/test_golden.h"

namespace nibble::weights {
namespace {

TEST(NegativeZero, EveryPairOfCodesAndEveryTailIsTheGoldenOne) {
  const Json golden = ReadGolden("negative_zero");
  const std::vector<uint8_t> codes = BytesOf(golden, "codes"), want = BytesOf(golden, "cleared");
  ASSERT_GE(codes.size(), 256u);
  // Every start and length around a word: bytes before and behind stay as they are.
  for (size_t first = 0; first < 9; ++first) {
    for (size_t last = codes.size() - 9; last <= codes.size(); ++last) {
      std::vector<uint8_t> cleared = codes;
      ClearNegativeZeros(std::span(cleared).subspan(first, last - first));
      for (size_t i = 0; i < codes.size(); ++i) {
        ASSERT_EQ(cleared[i], i >= first && i < last ? want[i] : codes[i]) << "byte " << i;
      }
    }
  }
}

TEST(NegativeZero, ValuesAreEqualAndNoNegativeZeroIsLeft) {
  Nvfp4Matrix before(16, 32);
  for (int i = 0; i < 256; ++i) before.codes[i] = static_cast<uint8_t>(i);
  for (int i = 0; i < 32; ++i) before.scales[i] = static_cast<uint8_t>(4 * i);
  Nvfp4Matrix after = before;
  ClearNegativeZeros(after.codes);
  int changed = 0;
  for (int64_t i = 0; i < 16 * 32; ++i) {
    EXPECT_EQ(ValueAt(after.View(2e-5f), i / 32, i % 32),
              ValueAt(before.View(2e-5f), i / 32, i % 32));
    EXPECT_NE(Nvfp4Code(after.codes.data(), i), 8u);
    changed += Nvfp4Code(before.codes.data(), i) != Nvfp4Code(after.codes.data(), i);
  }
  EXPECT_EQ(changed, 32);  // each of 256 bytes has two codes, each of them 0x8 once in sixteen
}

}  // namespace
}  // namespace nibble::weights
