#include "weights/w13.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string_view>

#include "weights/scale_swizzle.h"
#include "weights/test_golden.h"

namespace nibble::weights {
namespace {

constexpr std::pair<W13Order, std::string_view> kOrders[] = {
    {W13Order::kGateUp, "gate_up"},
    {W13Order::kUpGate, "up_gate"},
    {W13Order::kInterleaved, "interleaved"}};

// Random codes under every legal scale byte, zero and the subnormals often.
Nvfp4Matrix RandomMatrix(int64_t rows, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  Nvfp4Matrix m(rows, k);
  for (uint8_t& b : m.codes) b = static_cast<uint8_t>(random());
  for (uint8_t& b : m.scales) {
    b = static_cast<uint8_t>(random() % 4 ? random() % 0x7F : random() % 9);
  }
  return m;
}

template <class Bytes>
bool AllZero(const Bytes& bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
}

TEST(W13, EveryByteIsTheGoldenOne) {
  const Json golden = ReadGolden("w13");
  ASSERT_GE(golden.array().size(), 3u);
  for (const Json& c : golden.array()) {
    const int64_t hidden = IntegerOf(c, "hidden"), intermediate = IntegerOf(c, "intermediate");
    const int64_t pad_to = IntegerOf(c, "pad_to"), padded = IntegerOf(c, "padded");
    const Nvfp4Matrix gate = MatrixOf(c, "gate", intermediate, hidden);
    const Nvfp4Matrix up = MatrixOf(c, "up", intermediate, hidden);
    EXPECT_EQ(PaddedIntermediate(intermediate, pad_to), padded);
    for (const auto& [order, name] : kOrders) {
      SCOPED_TRACE(testing::Message() << name << ", I = " << intermediate);
      const Nvfp4Matrix want = MatrixOf(c, name, 2 * padded, hidden);
      const Nvfp4Matrix w13 = PrepareW13(gate.View(1), up.View(1), order, pad_to);
      EXPECT_EQ(w13.rows, want.rows);
      EXPECT_EQ(w13.k, hidden);
      EXPECT_EQ(w13.codes, want.codes);
      EXPECT_EQ(w13.scales, want.scales);
    }
  }
}

TEST(W2, EveryByteIsTheGoldenOne) {
  const Json golden = ReadGolden("w2");
  ASSERT_GE(golden.array().size(), 3u);
  for (const Json& c : golden.array()) {
    const int64_t hidden = IntegerOf(c, "hidden"), padded = IntegerOf(c, "padded");
    const Nvfp4Matrix down = MatrixOf(c, "down", hidden, IntegerOf(c, "intermediate"));
    const Nvfp4Matrix want = MatrixOf(c, "w2", hidden, padded);
    const Nvfp4Matrix w2 = PrepareW2(down.View(1), IntegerOf(c, "pad_to"));
    SCOPED_TRACE(testing::Message() << hidden << " x " << down.k);
    EXPECT_EQ(w2.rows, hidden);
    EXPECT_EQ(w2.k, padded);
    EXPECT_EQ(w2.codes, want.codes);
    EXPECT_EQ(w2.scales, want.scales);
    EXPECT_EQ(SwizzleScales(w2.scales, hidden, padded / 16), BytesOf(c, "swizzled_scales"));
  }
}

// The shapes that upstream's own test of B12X expects of I = 48.
TEST(W13, AnIntermediateOf48BecomesTheShapesOfTheReference) {
  constexpr int64_t kHidden = 128, kIntermediate = 48;
  const Nvfp4Matrix gate = RandomMatrix(kIntermediate, kHidden, 1);
  const Nvfp4Matrix up = RandomMatrix(kIntermediate, kHidden, 2);
  const Nvfp4Matrix down = RandomMatrix(kHidden, kIntermediate, 3);
  const Nvfp4Matrix w13 = PrepareW13(gate.View(1), up.View(1), W13Order::kUpGate, 64);
  const Nvfp4Matrix w2 = PrepareW2(down.View(1), 64);
  EXPECT_EQ(w13.codes.size(), 128u * kHidden / 2);
  EXPECT_EQ(w13.scales.size(), 128u * kHidden / 16);
  EXPECT_EQ(SwizzleScales(w13.scales, w13.rows, w13.k / 16).size(), 128u * kHidden / 16);
  EXPECT_EQ(w2.codes.size(), kHidden * 32u);
  EXPECT_EQ(SwizzleScales(w2.scales, w2.rows, w2.k / 16).size(), 128u * 4);
}

TEST(W13, ValuesMoveUnchangedAndPaddingIsExactlyZero) {
  struct Shape {
    int64_t hidden, intermediate, pad_to, padded;
  };
  const Shape kShapes[] = {{64, 48, 64, 64}, {16, 1, 16, 16}, {80, 96, 128, 128}, {32, 64, 64, 64}};
  for (const auto [hidden, intermediate, pad_to, padded] : kShapes) {
    const Nvfp4Matrix gate = RandomMatrix(intermediate, hidden, 4);
    const Nvfp4Matrix up = RandomMatrix(intermediate, hidden, 5);
    const CanonicalNvfp4 halves[] = {gate.View(2e-5f), up.View(3e-4f)};
    for (const auto& [order, name] : kOrders) {
      SCOPED_TRACE(testing::Message() << name << ", I = " << intermediate);
      const Nvfp4Matrix w13 = PrepareW13(halves[0], halves[1], order, pad_to);
      ASSERT_EQ(w13.rows, 2 * padded);
      for (int half = 0; half < 2; ++half) {
        const CanonicalNvfp4 view = w13.View(halves[half].global);
        for (int64_t i = 0; i < padded; ++i) {
          const int64_t row = order == W13Order::kInterleaved        ? 2 * i + half
                              : (order == W13Order::kUpGate) != half ? padded + i
                                                                     : i;
          for (int64_t k = 0; k < hidden; ++k) {
            const double want = i < intermediate ? ValueAt(halves[half], i, k) : 0.0;
            ASSERT_EQ(ValueAt(view, row, k), want) << "half " << half << " row " << row;
          }
          if (i < intermediate) continue;
          // Not merely worth zero: zero codes under zero scales.
          EXPECT_TRUE(AllZero(std::span(w13.codes).subspan(row * hidden / 2, hidden / 2)));
          EXPECT_TRUE(AllZero(std::span(w13.scales).subspan(row * hidden / 16, hidden / 16)));
        }
      }
    }
  }
}

TEST(W2, ValuesStayWhereTheyAreAndPaddingIsExactlyZero) {
  for (const int64_t intermediate : {16, 48, 64, 80}) {
    const Nvfp4Matrix down = RandomMatrix(33, intermediate, 6);
    const CanonicalNvfp4 before = down.View(7e-5f);
    const Nvfp4Matrix w2 = PrepareW2(before, 64);
    ASSERT_EQ(w2.k, intermediate <= 64 ? 64 : 128);
    for (int64_t row = 0; row < 33; ++row) {
      for (int64_t k = 0; k < intermediate; ++k) {
        ASSERT_EQ(ValueAt(w2.View(7e-5f), row, k), ValueAt(before, row, k)) << row << ", " << k;
      }
      const int64_t rest = w2.k - intermediate;
      const int64_t code = (row * w2.k + intermediate) / 2, scale = code / 8;
      EXPECT_TRUE(AllZero(std::span(w2.codes).subspan(code, rest / 2)));
      EXPECT_TRUE(AllZero(std::span(w2.scales).subspan(scale, rest / 16)));
    }
  }
}

TEST(W13, WithoutAGateRowsArePaddedOnce) {
  const Nvfp4Matrix up = RandomMatrix(48, 32, 7);
  const Nvfp4Matrix w1 = PrepareUngatedW13(up.View(1), 64);
  ASSERT_EQ(w1.rows, 64);
  EXPECT_TRUE(std::equal(up.codes.begin(), up.codes.end(), w1.codes.begin()));
  EXPECT_TRUE(std::equal(up.scales.begin(), up.scales.end(), w1.scales.begin()));
  EXPECT_TRUE(AllZero(std::span(w1.codes).subspan(48 * 16)));
  EXPECT_TRUE(AllZero(std::span(w1.scales).subspan(48 * 2)));
}

TEST(W13, AFusedMatrixComesApartInEveryOrder) {
  // Rows carry their own number, so what went where is read off them.
  Nvfp4Matrix w13(6, 16);
  for (int64_t row = 0; row < 6; ++row) {
    std::fill_n(w13.codes.begin() + row * 8, 8, static_cast<uint8_t>(0x10 + row));
    w13.scales[row] = static_cast<uint8_t>(0x30 + row);
  }
  const std::vector<uint8_t> kFirst = {0x30, 0x31, 0x32}, kSecond = {0x33, 0x34, 0x35};
  const std::vector<uint8_t> kEven = {0x30, 0x32, 0x34}, kOdd = {0x31, 0x33, 0x35};
  const struct {
    W13Order order;
    const std::vector<uint8_t>&gate, &up;
  } kCases[] = {{W13Order::kGateUp, kFirst, kSecond},
                {W13Order::kUpGate, kSecond, kFirst},
                {W13Order::kInterleaved, kEven, kOdd}};
  for (const auto& c : kCases) {
    const GateAndUp apart = SplitW13(w13.View(1), c.order);
    EXPECT_EQ(apart.gate.rows, 3);
    EXPECT_EQ(apart.gate.k, 16);
    EXPECT_EQ(apart.gate.scales, c.gate);
    EXPECT_EQ(apart.up.scales, c.up);
    for (int64_t i = 0; i < 24; ++i) {
      EXPECT_EQ(apart.gate.codes[i], c.gate[i / 8] - 0x20);
      EXPECT_EQ(apart.up.codes[i], c.up[i / 8] - 0x20);
    }
  }
}

}  // namespace
}  // namespace nibble::weights
