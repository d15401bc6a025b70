#include "kernels/cpu/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/test_support.h"

namespace nibble::kernels::cpu {
namespace {

struct Shard {
  TestMatrix matrix;
  std::optional<QuantKey> activation;
  std::optional<float> input_scale;
  int64_t column = 0;

  TestForm form() const {
    const bool nvfp4 = activation && activation->dtype == ScalarType::kU8;
    return {activation, nvfp4 ? 1.0f / *input_scale : input_scale.value_or(0)};
  }
};

struct Case {
  std::vector<Shard> shards;
  int64_t tokens = 0, k = 0, ldy = 0;
  std::vector<float> x;
};

Shard RandomShard(Random& random, const QuantScheme& scheme, int64_t n, int64_t k) {
  const float global = !scheme.weight ? 1.0f : random() % 2 ? 2e-5f : 0.0123f;
  const bool fp8 = scheme.weight && scheme.weight->dtype == ScalarType::kF8E4M3;
  const TileFormat format = scheme.weight ? TileFormat::kNvfp4 : TileFormat::kBf16;
  Shard shard{fp8 ? RandomFp8(random, *scheme.weight, n, k, global)
                  : RandomMatrix(random, format, n, k, global),
              scheme.activation, std::nullopt, 0};
  if (scheme.activation == kNvfp4Dynamic) shard.input_scale = random() % 2 ? 0.002f : 0.0007f;
  if (scheme.activation == kFp8StaticTensor) shard.input_scale = random() % 2 ? 0.002f : 0.0071f;
  return shard;
}

/// One to four shards of odd heights and mixed schemes, with gaps between their columns.
Case RandomCase(Random& random) {
  Case c;
  c.k = 16 * (1 + random() % 25);
  c.tokens = random() % 3 == 0 ? 1 + random() % 40 : 1 + random() % 9;
  const int shards = 1 + random() % 4;
  for (int i = 0; i < shards; ++i) {
    constexpr QuantScheme kOthers[] = {kW4A16, kW4A4, kBf16Scheme};
    const unsigned choice = random() % 16;
    const QuantScheme& scheme =
        choice < 8 ? kFp8Schemes[choice] : kOthers[choice % std::size(kOthers)];
    Shard shard = RandomShard(random, scheme, 1 + random() % (choice < 8 ? 200 : 70), c.k);
    shard.column = c.ldy;
    c.ldy += shard.matrix.n + random() % 3;
    c.shards.push_back(std::move(shard));
  }
  c.x = RandomFloats(random, c.tokens * c.k);
  if (c.tokens > 2) std::fill_n(c.x.begin() + c.k, c.k, 0.0f);  // a token without any magnitude
  return c;
}

std::vector<float> RunLinear(const Case& c, CpuIsa isa, int threads, Scratch& scratch,
                             bool mapped = false) {
  std::vector<PreparedLinearShard> prepared(c.shards.size());
  std::vector<const PreparedLinearShard*> pointers;
  std::vector<int64_t> columns;
  for (size_t i = 0; i < c.shards.size(); ++i) {
    const TestMatrix& matrix = c.shards[i].matrix;
    prepared[i].weight = mapped ? matrix.mapped_view() : matrix.view();
    prepared[i].n = c.shards[i].matrix.n;
    prepared[i].global = c.shards[i].matrix.global;
    prepared[i].activation = c.shards[i].activation;
    prepared[i].input_scale = c.shards[i].input_scale;
    pointers.push_back(&prepared[i]);
    columns.push_back(c.shards[i].column);
  }
  ThreadPool pool(threads);
  std::vector<float> y(c.tokens * c.ldy, std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(Linear(KernelsFor(isa), pool, scratch, pointers, columns, c.x.data(), c.tokens, c.k,
                     y.data(), c.ldy));
  return y;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void ExpectTruth(const Case& c, const std::vector<float>& y) {
  std::vector<bool> written(y.size());
  for (const Shard& shard : c.shards) {
    for (int64_t t = 0; t < c.tokens; ++t) {
      const auto x = ActivationTruth(c.x.data() + t * c.k, c.k, shard.form());
      for (int64_t r = 0; r < shard.matrix.n; ++r) {
        const Truth truth = DotTruth(shard.matrix, r, x);
        const int64_t at = t * c.ldy + shard.column + r;
        written[at] = true;
        ASSERT_NEAR(y[at], truth.value, truth.bound)
            << "n " << shard.matrix.n << " k " << c.k << " token " << t << "/" << c.tokens
            << " row " << r << " format " << static_cast<int>(shard.matrix.format) << " group "
            << ToString(shard.matrix.group) << " activation "
            << (shard.activation ? ToString(*shard.activation) : "bf16");
      }
    }
  }
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_TRUE(written[i] || std::isnan(y[i])) << "column between shards was written";
  }
}

class LinearTest : public testing::TestWithParam<CpuIsa> {};

TEST_P(LinearTest, IsWithinTheFp32BoundAndIndependentOfThreadsAndScratch) {
  Random random(11);
  for (int round = 0; round < 90; ++round) {
    const Case c = RandomCase(random);
    Scratch scratch;
    const auto y =
        RunLinear(c, GetParam(), 7, scratch);  // the most scratch: it does not grow below
    ExpectTruth(c, y);
    if (HasFatalFailure()) return;
    for (int threads : {1, 2, 3, 7}) {
      std::memset(scratch.bytes().data(), 0xFF, scratch.bytes().size());
      EXPECT_TRUE(SameBits(RunLinear(c, GetParam(), threads, scratch), y)) << threads;
    }
    Scratch other;
    EXPECT_TRUE(SameBits(RunLinear(c, GetParam(), 2, other, true), y)) << "mapped";
  }
}

TEST_P(LinearTest, EveryFp8PairAtEveryNumberOfTokens) {
  Random random(15);
  for (const QuantScheme& scheme : kFp8Schemes) {
    for (int64_t tokens = 1; tokens <= 17; ++tokens) {
      for (const int64_t k : {176, 256}) {
        Case c{{}, tokens, k, 150, RandomFloats(random, tokens * k)};
        c.shards.push_back(RandomShard(random, scheme, k == 256 ? 144 : 131, k));
        Scratch scratch;
        ExpectTruth(c, RunLinear(c, GetParam(), 2, scratch));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(LinearTest, ATokenHasTheSameBitsWhateverPanelItIsIn) {
  Random random(12);
  for (const QuantScheme& scheme :
       {kW4A16, kFp8Schemes[0], QuantScheme{kFp8StaticBlock128, kFp8Dynamic128}}) {
    Case c{{}, 40, 192, 70, {}};
    c.shards.push_back(RandomShard(random, scheme, 70, c.k));
    c.x = RandomFloats(random, c.tokens * c.k);
    Scratch scratch;
    const auto all = RunLinear(c, GetParam(), 1, scratch);
    const CpuKernels& kernels = KernelsFor(GetParam());
    for (int64_t tokens = scheme == kW4A16 ? kernels.nvfp4_panel_tokens : kernels.fp8_panel_tokens;
         tokens < 40; ++tokens) {
      Case part{{}, tokens, c.k, c.ldy, c.x};
      part.shards.push_back(
          {Copy(c.shards[0].matrix), c.shards[0].activation, c.shards[0].input_scale, 0});
      const auto y = RunLinear(part, GetParam(), 1, scratch);
      EXPECT_EQ(std::memcmp(y.data(), all.data(), y.size() * sizeof(float)), 0) << tokens;
    }
  }
}

TEST_P(LinearTest, ZeroWeightsGiveZeroAndNansStayInTheirToken) {
  Random random(13);
  Case c;
  c.k = 64;
  c.tokens = 3;
  c.ldy = 20;
  c.shards.push_back({RandomMatrix(random, TileFormat::kNvfp4, 20, c.k, 0.5f), {}, {}, 0});
  std::fill(c.shards[0].matrix.scales.begin(), c.shards[0].matrix.scales.end(), uint8_t{0});
  NaivePack(c.shards[0].matrix);
  c.x = RandomFloats(random, c.tokens * c.k);
  c.x[c.k + 5] = std::numeric_limits<float>::quiet_NaN();
  Scratch scratch;
  const auto y = RunLinear(c, GetParam(), 2, scratch);
  for (int64_t i = 0; i < 60; ++i) {
    if (i / 20 == 1) {
      EXPECT_TRUE(std::isnan(y[i])) << i;
    } else {
      EXPECT_EQ(y[i], 0.0f) << i;
    }
  }
}

TEST_P(LinearTest, MappedWeightsWithANanCodeAreRefused) {
  Random random(17);
  for (const QuantScheme& scheme : kFp8Schemes) {
    for (int64_t tokens : {1, 30}) {
      Case c{{}, tokens, 144, 80, RandomFloats(random, tokens * 144)};
      c.shards.push_back(RandomShard(random, kW4A16, 16, c.k));
      c.shards.push_back(RandomShard(random, scheme, 64, c.k));
      c.shards[1].column = 16;
      TestMatrix& m = c.shards[1].matrix;
      m.codes[random() % m.codes.size()] = random() % 2 ? 0x7F : 0xFF;
      WriteFileRows(m);
      std::vector<PreparedLinearShard> prepared(2);
      for (int i = 0; i < 2; ++i) {
        prepared[i].name = i == 0 ? "first" : "second";
        prepared[i].weight = c.shards[i].matrix.mapped_view();
        prepared[i].n = c.shards[i].matrix.n;
        prepared[i].activation = c.shards[i].activation;
        prepared[i].input_scale = c.shards[i].input_scale;
      }
      const PreparedLinearShard* pointers[] = {&prepared[0], &prepared[1]};
      const int64_t columns[] = {0, 16};
      ThreadPool pool(2);
      Scratch scratch;
      std::vector<float> y(tokens * 80);
      const auto done = Linear(KernelsFor(GetParam()), pool, scratch, pointers, columns, c.x.data(),
                               tokens, c.k, y.data(), 80);
      ASSERT_FALSE(done);
      EXPECT_EQ(done.error().code, ErrorCode::kCorruptFile);
      EXPECT_NE(done.error().Message().find("second"), std::string::npos) << done.error().Message();
    }
  }
}

TEST_P(LinearTest, ANanStaysInItsTokenUnderEveryFp8Pair) {
  Random random(16);
  for (const QuantScheme& scheme : kFp8Schemes) {
    for (int64_t tokens : {3, 12}) {
      Case c{{}, tokens, 144, 20, RandomFloats(random, tokens * 144)};
      c.shards.push_back(RandomShard(random, scheme, 20, c.k));
      std::fill(c.shards[0].matrix.fp8_scales.begin(), c.shards[0].matrix.fp8_scales.end(), 0.5f);
      c.x[c.k + 5] = std::numeric_limits<float>::quiet_NaN();
      Scratch scratch;
      const auto y = RunLinear(c, GetParam(), 2, scratch);
      for (int64_t i = 0; i < tokens * 20; ++i) EXPECT_EQ(std::isnan(y[i]), i / 20 == 1) << i;
    }
  }
}

TEST(LinearAcrossIsas, DifferOnlyWithinTheirBounds) {
  Random random(14);
  for (int round = 0; round < 20; ++round) {
    const Case c = RandomCase(random);
    Scratch scratch;
    const auto scalar = RunLinear(c, CpuIsa::kScalar, 1, scratch);
    for (CpuIsa isa : IsasOfThisMachine()) {
      const auto y = RunLinear(c, isa, 2, scratch);
      for (const Shard& shard : c.shards) {
        for (int64_t t = 0; t < c.tokens; ++t) {
          const auto x = ActivationTruth(c.x.data() + t * c.k, c.k, shard.form());
          for (int64_t r = 0; r < shard.matrix.n; ++r) {
            const int64_t at = t * c.ldy + shard.column + r;
            ASSERT_NEAR(y[at], scalar[at], 2 * DotTruth(shard.matrix, r, x).bound) << NameOf(isa);
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, LinearTest, testing::ValuesIn(IsasOfThisMachine()), IsaTestName);

}  // namespace
}  // namespace nibble::kernels::cpu
