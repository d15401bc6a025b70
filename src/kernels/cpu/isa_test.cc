#include "kernels/cpu/isa.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/test_support.h"

namespace nibble::kernels::cpu {
namespace {

TEST(ChooseIsa, TakesTheBestWithoutAWishAndNothingAboveIt) {
  const auto best = ChooseIsa(nullptr);
  ASSERT_TRUE(best);
  EXPECT_EQ(*best, IsasOfThisMachine().back());
  EXPECT_EQ(*ChooseIsa(""), *best);
}

TEST(ChooseIsa, LowersToEveryOneThatTheMachineHasAndRefusesTheOthers) {
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    const std::string name(NameOf(isa));
    const auto chosen = ChooseIsa(name.c_str());
    EXPECT_EQ(chosen.ok(), HasIsa(isa)) << name;
    if (chosen) {
      EXPECT_EQ(*chosen, isa);
      EXPECT_EQ(KernelsFor(isa).isa, isa);
    } else {
      EXPECT_EQ(chosen.error().code, ErrorCode::kUnsupported);
    }
  }
}

TEST(ChooseIsa, AnUnknownNameListsTheKnownOnes) {
  const auto chosen = ChooseIsa("avx1024");
  ASSERT_FALSE(chosen);
  EXPECT_EQ(chosen.error().code, ErrorCode::kInvalidArgument);
  for (const char* part : {"avx1024", "scalar", "avx2", "avx512", "avx512bf16"}) {
    EXPECT_NE(chosen.error().Message().find(part), std::string::npos) << part;
  }
}

TEST(DescribeCpu, KnowsCoresAndMemory) {
  const DeviceInfo device = DescribeCpu(CpuIsa::kScalar);
  EXPECT_TRUE(device.present);
  EXPECT_EQ(device.name, "cpu");
  EXPECT_GE(device.cores, 1);
  EXPECT_GT(device.memory_bytes, uint64_t{64} << 20);
}

class IsaTest : public testing::TestWithParam<CpuIsa> {
 protected:
  const CpuKernels& kernels() const { return KernelsFor(GetParam()); }

  /// A packed activation's bits as those of its bf16, whichever form the ISA holds it in; an fp32
  /// form must be an exact bf16.
  uint16_t PackedBits(const AlignedBytes& packed, int64_t i) const {
    if (kernels().activation_bytes == 2) {
      uint16_t bits;
      std::memcpy(&bits, packed.data() + 2 * i, 2);
      return bits;
    }
    uint32_t bits;
    std::memcpy(&bits, packed.data() + 4 * i, 4);
    EXPECT_EQ(bits & 0xFFFF, 0u) << "not a bf16";
    return static_cast<uint16_t>(bits >> 16);
  }

  void ExpectPackedNvfp4(const std::vector<float>& x, float gscale) {
    const int64_t groups = static_cast<int64_t>(x.size()) / 16;
    AlignedBytes packed(x.size() * kernels().activation_bytes);
    kernels().pack_nvfp4(x.data(), groups, gscale, packed.data());
    for (int64_t b = 0; b < groups; ++b) {
      const auto block =
          QuantizeNvfp4Block<float>(std::span<const float, 16>(x.data() + b * 16, 16), gscale);
      for (int i = 0; i < 16; ++i) {
        const float expected = Nvfp4Product(block.codes[i], block.scale);
        ASSERT_EQ(PackedBits(packed, b * 16 + i), ToBf16(expected).bits)
            << "x=" << x[b * 16 + i] << " code " << int{block.codes[i]} << " scale "
            << int{block.scale} << " gscale " << gscale;
      }
    }
  }
};

TEST_P(IsaTest, PacksBf16AsToBf16Does) {
  Random random(1);
  std::vector<float> x;
  for (int i = 0; i < 16384; ++i) x.push_back(std::bit_cast<float>(uint32_t(random())));
  for (uint32_t low :
       {0x0000u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {  // around ties, both parities
    for (uint32_t high : {0x3F80u, 0x3F81u, 0x7F7Fu, 0x7F80u, 0x7FC0u, 0x0000u, 0x0080u, 0xBF81u}) {
      for (int i = 0; i < 2; ++i) x.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  ASSERT_EQ(x.size() % 16, 0u);
  AlignedBytes packed(x.size() * kernels().activation_bytes);
  kernels().pack_bf16(x.data(), static_cast<int64_t>(x.size()) / 16, packed.data());
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(PackedBits(packed, i), ToBf16(x[i]).bits) << std::bit_cast<uint32_t>(x[i]);
  }
}

TEST_P(IsaTest, QuantizesRandomBlocksAsNumericsDoes) {
  Random random(2);
  std::uniform_real_distribution<float> exponent(-12, 12);
  for (int round = 0; round < 300; ++round) {
    const auto x = RandomFloats(random, 16 * 64, std::exp2(exponent(random)));
    ExpectPackedNvfp4(x, std::exp2(exponent(random)));
  }
}

TEST_P(IsaTest, QuantizesTiesAsNumericsDoes) {
  // A block whose largest element is 6 s gets the scale s; the others stand on, just under and just
  // over each middle of two codes.
  std::vector<float> x;
  for (float scale : {0x1p-9f, 3 * 0x1p-9f, 0x1p-6f, 0.875f, 1.0f, 1.125f, 240.0f, 448.0f}) {
    for (float middle : {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 0.0f, 6.0f, 1.0f}) {
      for (float toward : {-1.0f, 0.0f, 1.0f}) {
        x.push_back(6 * scale);
        for (int i = 1; i < 16; ++i) {
          float v = middle * scale;
          if (toward != 0) v = std::nextafter(v, toward * 1e9f);
          x.push_back(i % 2 ? v : -v);
        }
      }
    }
  }
  ExpectPackedNvfp4(x, 1.0f);
}

TEST_P(IsaTest, RoundsEveryBlockScaleAsNumericsDoes) {
  // Largest elements on, under and over the middle of every two neighbouring E4M3 scales, below the
  // smallest and beyond the largest.
  std::vector<float> x;
  for (unsigned byte = 0; byte < 0x7E; ++byte) {
    const float middle =
        (DecodeE4m3(static_cast<uint8_t>(byte)) + DecodeE4m3(static_cast<uint8_t>(byte + 1))) / 2;
    float amax = middle * 6;
    for (int i = 0; i < 3; ++i) amax = std::nextafter(amax, 0.0f);
    for (int i = 0; i < 7; ++i, amax = std::nextafter(amax, 1e9f)) {
      for (int j = 0; j < 16; ++j) x.push_back(amax * static_cast<float>(j - 8) / 8);
    }
  }
  for (float amax : {0.0f, 1e-30f, 1e-6f, 3000.0f, 1e20f, 3e38f}) {
    for (int j = 0; j < 16; ++j) x.push_back(j % 3 ? amax : -0.0f);
  }
  ExpectPackedNvfp4(x, 1.0f);
  ExpectPackedNvfp4(x, 0.37f);
  ExpectPackedNvfp4(x, 1e-4f);
}

TEST_P(IsaTest, QuantizesInfinitiesAndNansAsNumericsDoes) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x(16 * 4, 1.5f);
  x[3] = inf;
  x[16 + 5] = nan;
  x[16 + 6] = -nan;
  x[32] = -inf;
  for (int i = 48; i < 64; ++i) x[i] = nan;
  ExpectPackedNvfp4(x, 2.0f);
}

TEST_P(IsaTest, QuantizesToFp8AsNumericsDoes) {
  Random random(5);
  for (float scale : {1.0f, 0.0123f, 3.7f, 1e-9f, 0x1p-9f}) {
    std::vector<float> x;
    for (unsigned b = 0; b < 0x7F; ++b) {  // on, under and over each code and each middle of two
      const float low = DecodeE4m3(static_cast<uint8_t>(b));
      const float middle = b < 0x7E ? (low + DecodeE4m3(static_cast<uint8_t>(b + 1))) / 2 : 464;
      for (float at : {low * scale, middle * scale}) {
        for (float v : {at, std::nextafter(at, 0.0f), std::nextafter(at, 1e30f)}) {
          x.push_back(v);
          x.push_back(-v);
        }
      }
    }
    const float inf = std::numeric_limits<float>::infinity();
    for (float v : {inf, -inf, 3e38f, 1e-40f, 0.0f, -0.0f}) x.push_back(v);
    for (uint32_t nan : {0x7FC00000u, 0xFFC00000u, 0x7FFFFFFFu, 0x7F800001u, 0xFFFFFFFFu}) {
      x.push_back(std::bit_cast<float>(nan));
    }
    for (float f : RandomFloats(random, 4096, 100 * scale)) x.push_back(f);
    x.resize((x.size() + 15) / 16 * 16);
    AlignedBytes packed(x.size() * kernels().activation_bytes);
    kernels().pack_fp8(x.data(), static_cast<int64_t>(x.size()) / 16, scale, packed.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const float want = DecodeE4m3(QuantizeFp8(x[i], scale));
      const float got = ToFloat(Bf16{PackedBits(packed, static_cast<int64_t>(i))});
      if (std::isnan(x[i])) {
        ASSERT_TRUE(std::isnan(got));
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want))
            << x[i] << " under " << scale;
      }
    }
  }
}

TEST_P(IsaTest, FindsTheLargestMagnitudeWhereverItIsAndPassesNansOver) {
  for (int at = 0; at < 48; ++at) {
    std::vector<float> x(48, 0.5f);
    x[at] = -3;
    x[(at + 5) % 48] = x[(at + 16) % 48] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(kernels().largest_magnitude(x.data(), 3), 3.0f) << at;
  }
  const std::vector<float> zeros(16);
  EXPECT_EQ(kernels().largest_magnitude(zeros.data(), 1), 0.0f);
}

/// 16 rows in which every row meets every code, none of them NaN.
TestMatrix EveryFp8Code() {
  TestMatrix m;
  m.format = TileFormat::kFp8;
  m.n = 16;
  m.k = 256;
  for (int64_t r = 0; r < m.n; ++r) {
    for (int64_t c = 0; c < m.k; ++c) {
      const auto code = static_cast<uint8_t>(c + 37 * r);
      m.codes.push_back(IsNanE4m3(code) ? 0x80 : code);
    }
  }
  NaivePack(m);
  return m;
}

TEST_P(IsaTest, ExpandsEveryFp8CodeExactly) {
  const TestMatrix m = EveryFp8Code();
  AlignedBytes panel(m.k / 64 * kBf16TileBytes);
  kernels().expand_fp8(m.packed.data(), nullptr, m.k / 64, panel.data());
  for (int64_t r = 0; r < 16; ++r) {
    for (int64_t c = 0; c < m.k; ++c) {
      uint16_t bits;
      std::memcpy(&bits, panel.data() + c / 2 * 64 + r * 4 + c % 2 * 2, 2);
      ASSERT_EQ(bits, ToBf16(DecodeE4m3(m.codes[r * m.k + c])).bits) << r << "," << c;
    }
  }
}

TEST_P(IsaTest, DecodesEveryFp8CodeExactly) {
  const TestMatrix m = EveryFp8Code();
  for (int64_t c = 0; c < m.k; ++c) {  // a single 1: the sum is the weight
    std::vector<float> x(m.k);
    x[c] = 1;
    AlignedBytes packed(m.k * kernels().activation_bytes);
    kernels().pack_bf16(x.data(), m.k / 16, packed.data());
    const std::byte* rows[] = {packed.data()};
    float y[16];
    kernels().decode_fp8(m.packed.data(), m.packed.data(), m.k / 64, rows, 1, 1.0f, y, 16);
    for (int64_t r = 0; r < 16; ++r) ASSERT_EQ(y[r], m.At(r, c)) << r << "," << c;
  }
}

TEST_P(IsaTest, ExpandsEveryCodeUnderEveryScaleExactly) {
  TestMatrix m;
  m.n = 16;
  m.k = 16 * 128;
  for (int64_t r = 0; r < m.n; ++r) {
    for (int64_t c = 0; c < m.k; ++c) m.codes.push_back(static_cast<uint8_t>((c + r) % 16));
    for (int64_t b = 0; b < 128; ++b) m.scales.push_back(static_cast<uint8_t>((b + r) % 0x7F));
  }
  NaivePack(m);
  const int64_t tiles = m.k / 64;
  AlignedBytes panel(tiles * kBf16TileBytes);
  kernels().expand_nvfp4(m.packed.data(), nullptr, tiles, panel.data());
  for (int64_t r = 0; r < 16; ++r) {
    for (int64_t c = 0; c < m.k; ++c) {
      uint16_t bits;
      std::memcpy(&bits, panel.data() + c / 2 * 64 + r * 4 + c % 2 * 2, 2);
      ASSERT_EQ(static_cast<double>(ToFloat(Bf16{bits})), m.At(r, c)) << r << "," << c;
    }
  }
}

TEST_P(IsaTest, ActivationFunctionsAreWithinAFewUlp) {
  const GatedActivation kinds[] = {{}, {.limit = 7, .alpha = 1.702f, .beta = 1}, {.limit = 2.5f}};
  for (const GatedActivation& how : kinds) {
    for (float from = -120; from < 120; from += 0.37f) {
      float gate[16], up[16], h[16];
      for (int i = 0; i < 16; ++i) {
        gate[i] = from + static_cast<float>(i) * 0.021f;
        up[i] = static_cast<float>(i - 8) * 1.3f;
      }
      kernels().gated_activation(how, gate, up, 1, h);
      for (int i = 0; i < 16; ++i) {
        const double g = std::min<double>(gate[i], how.limit);
        const double u = std::max(-double{how.limit}, std::min<double>(up[i], how.limit));
        const double z = double{how.alpha} * g;
        const double truth = (u + how.beta) * g / (1 + std::exp(-z));
        // alpha * g is rounded before exp, which makes |z| half-ulps of its error.
        const double bound = std::abs(truth) * kEpsilon * (16 + std::abs(z)) + 1e-34;
        ASSERT_NEAR(h[i], truth, bound) << "gate " << gate[i] << " up " << up[i];
      }
    }
  }
}

TEST_P(IsaTest, ActivationFunctionsLetNansThrough) {
  float gate[16] = {}, up[16] = {}, h[16];
  gate[3] = up[5] = std::numeric_limits<float>::quiet_NaN();
  gate[5] = up[3] = 1;
  kernels().gated_activation({.limit = 7}, gate, up, 1, h);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(std::isnan(h[i]), i == 3 || i == 5) << i;
}

/// Both ways of multiplying a strip, at the kernels' own interface, for every number of tokens and
/// strips.
TEST_P(IsaTest, DecodeAndPanelsAreWithinTheFp32Bound) {
  Random random(3);
  for (TileFormat format : {TileFormat::kNvfp4, TileFormat::kFp8, TileFormat::kBf16}) {
    for (int64_t k : {16, 64, 80, 400}) {
      const TestMatrix m = format == TileFormat::kFp8
                               ? RandomFp8(random, kFp8StaticTensor, 48, k, 2e-5f)
                               : RandomMatrix(random, format, 48, k, 2e-5f);
      const int64_t tiles = (k + 63) / 64, padded = tiles * 64;
      constexpr int64_t kTokens = 19;
      std::vector<float> x = RandomFloats(random, kTokens * padded);
      for (int64_t t = 0; t < kTokens; ++t) {
        std::fill(x.begin() + t * padded + k, x.begin() + (t + 1) * padded, 0.0f);
      }
      AlignedBytes packed(x.size() * kernels().activation_bytes);
      kernels().pack_bf16(x.data(), kTokens * padded / 16, packed.data());
      const std::byte* rows[kTokens];
      for (int64_t t = 0; t < kTokens; ++t) {
        rows[t] = packed.data() + t * padded * kernels().activation_bytes;
      }
      const PackedMatrix view = m.view();
      AlignedBytes expanded(3 * tiles * kBf16TileBytes);
      const std::byte* panels[3];
      for (int s = 0; s < 3; ++s) {
        panels[s] = expanded.data() + s * tiles * kBf16TileBytes;
        if (format == TileFormat::kBf16) {
          panels[s] = view.strip(s);
        } else {
          const auto expand =
              format == TileFormat::kNvfp4 ? kernels().expand_nvfp4 : kernels().expand_fp8;
          expand(view.strip(s), view.strip(0), tiles, expanded.data() + s * tiles * kBf16TileBytes);
        }
      }
      const auto check = [&](const std::vector<float>& y, int64_t tokens, int strips, int first) {
        for (int64_t t = 0; t < tokens; ++t) {
          const auto xt = ActivationTruth(x.data() + t * padded, k, {});
          for (int r = 0; r < 16 * strips; ++r) {
            const Truth truth = DotTruth(m, first * 16 + r, xt);
            ASSERT_NEAR(y[t * 50 + r], truth.value, truth.bound)
                << "k " << k << " token " << t << " of " << tokens << " row " << r;
          }
          ASSERT_TRUE(std::isnan(y[t * 50 + 16 * strips])) << "wrote beyond its rows";
        }
      };
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const bool nvfp4 = format == TileFormat::kNvfp4;
      const int most = nvfp4 ? kernels().nvfp4_decode_tokens : kDecodeTokens;
      std::vector<float> alone;  // a token's bits do not depend on the others
      for (int tokens = 1; tokens <= most; ++tokens) {
        std::vector<float> y(tokens * 50, nan);
        const auto decode = format == TileFormat::kNvfp4 ? kernels().decode_nvfp4
                            : format == TileFormat::kFp8 ? kernels().decode_fp8
                                                         : kernels().decode_bf16;
        decode(view.strip(1), view.strip(2), tiles, rows, tokens, m.global, y.data(), 50);
        check(y, tokens, 1, 1);
        if (tokens == 1) alone = y;
        EXPECT_EQ(0, std::memcmp(y.data(), alone.data(), 16 * sizeof(float))) << tokens;
      }
      for (int strips = 1; strips <= 3; ++strips) {
        for (int64_t tokens = 1; tokens <= kTokens; ++tokens) {
          std::vector<float> y(tokens * 50, nan);
          kernels().panel_gemm(panels, strips, tokens % 2 == 0, tiles, rows, tokens, m.global,
                               y.data(), 50);
          check(y, tokens, strips, 0);
        }
      }
    }
  }
}

TEST_P(IsaTest, AddScaledAddsToEveryElementAndNoOther) {
  Random random(4);
  for (int64_t groups : {1, 3, 7}) {
    const std::vector<float> x = RandomFloats(random, 16 * groups);
    const std::vector<float> before = RandomFloats(random, 16 * groups + 1);
    std::vector<float> y = before;
    kernels().add_scaled(x.data(), 0.37f, groups, y.data());
    for (int64_t i = 0; i < 16 * groups; ++i) {
      const double product = double{0.37f} * x[i];
      const double bound = kEpsilon * (std::abs(product) + std::abs(before[i] + product));
      ASSERT_NEAR(y[i], before[i] + product, bound) << i;
    }
    EXPECT_EQ(y[16 * groups], before[16 * groups]);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, IsaTest, testing::ValuesIn(IsasOfThisMachine()), IsaTestName);

}  // namespace
}  // namespace nibble::kernels::cpu
