// The attention kernels of every instruction set against plain loops in double, over caches
// laid out here and poisoned wherever nothing may be read.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include "base/arena.h"
#include "kernels/cpu/attention_truth.h"
#include "kernels/cpu/glue.h"
#include "kernels/cpu/glue_test_support.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels::cpu {
namespace {

constexpr KvDtype kDtypes[] = {KvDtype::kF32, KvDtype::kF32Bf16, KvDtype::kBf16, KvDtype::kFp8};

int64_t RoundUpTo(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/// x as a cache of that type returns it.
float Cached(KvDtype dtype, float x) {
  if (dtype == KvDtype::kBf16) return RoundToBf16(x);
  return dtype == KvDtype::kFp8 ? DecodeE4m3(EncodeE4m3(x)) : x;
}

void Put(KvDtype dtype, float x, int64_t at, std::vector<std::byte>& to) {
  const Bf16 half = ToBf16(x);
  const uint8_t code = EncodeE4m3(x);
  const void* from = &x;
  if (dtype == KvDtype::kBf16) from = &half;
  if (dtype == KvDtype::kFp8) from = &code;
  std::memcpy(to.data() + at * BytesOf(dtype), from, static_cast<size_t>(BytesOf(dtype)));
}

/// n positions of a kv head and the rows that read them: row r sees all but the last rows-1-r, and
/// at least one.
struct Problem {
  KvDtype dtype = KvDtype::kF32;
  int64_t rows = 1, n = 1, dim = 1;
  std::vector<float> q, k, v;  // [rows, dim], [n, dim]

  Problem(KvDtype type, int64_t n_rows, int64_t positions, int64_t head_dim, uint64_t seed = 1)
      : dtype(type),
        rows(n_rows),
        n(positions),
        dim(head_dim),
        q(RandomNormal(n_rows * head_dim, seed)),
        k(RandomNormal(positions * head_dim, seed + 1, 1.5f)),
        v(RandomNormal(positions * head_dim, seed + 2, 2)) {
    for (float& x : k) x = Cached(KeysOf(type), x);
    for (float& x : v) x = Cached(ValuesOf(type), x);
    if (KeysOf(type) == KvDtype::kF32) return;
    for (float& x : q) x = RoundToBf16(x);  // so that only weights are rounded by the kernels
  }
  int64_t Seen(int64_t row) const { return std::max<int64_t>(1, n - (rows - 1 - row)); }
  int64_t width() const { return RoundUpTo(dim, kKvPanel); }
};

/// The cache's panels, of a slot that has room for `room` positions. Everything that is no number
/// of the problem, or a zero that widens a value or completes a pair, is NaN.
struct Panels {
  std::vector<std::byte> keys, values;
  int64_t room;

  Panels(const Problem& p, int64_t slack) : room(RoundUpTo(p.n, kKvPanel) + slack * kKvPanel) {
    const KvDtype of_keys = KeysOf(p.dtype), of_values = ValuesOf(p.dtype);
    const int64_t key_rows = RoundUpTo(p.dim, 2);
    keys.resize(static_cast<size_t>(room * key_rows * BytesOf(of_keys)));
    values.resize(static_cast<size_t>(room * p.width() * BytesOf(of_values)));
    for (int64_t i = 0; i < room * key_rows; ++i) Put(of_keys, kPoison, i, keys);
    for (int64_t i = 0; i < room * p.width(); ++i) Put(of_values, kPoison, i, values);
    const auto in_panel = [](KvDtype dtype, int64_t row, int64_t column) {
      return dtype == KvDtype::kF32 ? row * kKvPanel + column
                                    : row / 2 * 2 * kKvPanel + column * 2 + row % 2;
    };
    for (int64_t j = 0; j < p.n; ++j) {
      for (int64_t d = 0; d < key_rows; ++d) {
        Put(of_keys, d < p.dim ? p.k[j * p.dim + d] : 0,
            j / kKvPanel * kKvPanel * key_rows + in_panel(of_keys, d, j % kKvPanel), keys);
      }
    }
    for (int64_t j = 0; j < (of_values == KvDtype::kF32 ? p.n : RoundUpTo(p.n, 2)); ++j) {
      const int64_t block = j / kKvBlock * kKvBlock, positions = std::min(kKvBlock, room - block);
      for (int64_t d = 0; d < p.width(); ++d) {
        Put(of_values, j < p.n && d < p.dim ? p.v[j * p.dim + d] : 0,
            block * p.width() + d / kKvPanel * kKvPanel * positions +
                in_panel(of_values, j - block, d % kKvPanel),
            values);
      }
    }
  }
};

enum class Order { kInTurn, kMerged };

/// Rows [first, last) of the problem by the kernels.
std::vector<float> Attend(const GlueKernels& glue, const Problem& p, const Panels& panels,
                          int64_t first, int64_t last, Order order = Order::kInTurn) {
  const int64_t rows = last - first, width = p.width();
  const int64_t blocks = (p.Seen(last - 1) + kKvBlock - 1) / kKvBlock;
  const int64_t scratch_floats = AttendScratch(rows, p.dim, width);
  auto scratch = HugeBuffer::Allocate(static_cast<size_t>(scratch_floats + 1) * 4);
  auto* const memory = reinterpret_cast<float*>(scratch->data());
  std::fill(memory, memory + scratch_floats + 1, kPoison);
  std::vector<float> largest(rows + 1, kPoison), total(largest), out(rows * width + 1, kPoison);
  std::vector<float> largest1(largest), total1(total), out1(out);
  std::vector<int32_t> seen(rows);
  AttendBlock a;
  a.dtype = p.dtype;
  a.dim = p.dim;
  a.width = width;
  a.scale = static_cast<float>(std::numbers::log2e / std::sqrt(static_cast<double>(p.dim)));
  a.seen = seen.data();
  a.scratch = memory;
  const AttendSums all{largest.data(), total.data(), out.data()};
  const AttendSums apart{largest1.data(), total1.data(), out1.data()};
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t position = b * kKvBlock;
    int64_t r0 = first;
    while (p.Seen(r0) <= position) ++r0;
    for (int64_t r = r0; r < last; ++r)
      seen[r - r0] = static_cast<int32_t>(std::min(p.Seen(r) - position, kKvBlock));
    a.keys = panels.keys.data() + position * RoundUpTo(p.dim, 2) * BytesOf(KeysOf(p.dtype));
    a.values = panels.values.data() + position * width * BytesOf(ValuesOf(p.dtype));
    a.positions = std::min(kKvBlock, panels.room - position);
    a.next = a.keys;
    a.q = p.q.data() + r0 * p.dim;
    a.rows = last - r0;
    const bool merged = b > 0 && order == Order::kMerged;
    a.first = b == 0 || merged;
    a.sums = (merged ? apart : all).From(r0 - first, width);
    glue.attend(a);
    if (merged) glue.merge_sums(a.sums, a.rows, width, all.From(r0 - first, width));
  }
  EXPECT_TRUE(std::isnan(memory[scratch_floats]) && std::isnan(largest[rows]) &&
              std::isnan(total[rows]) && std::isnan(out[rows * width]))
      << "written behind the end";
  std::vector<float> result(rows * p.dim, kPoison);
  for (int64_t r = 0; r < rows; ++r)
    glue.multiplied(out.data() + r * width, p.dim, 1 / total[r], result.data() + r * p.dim);
  return result;
}

void ExpectTruth(CpuIsa isa, const Problem& p, const std::vector<float>& got) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const AttentionTruth truth(
        p.q.data() + r * p.dim, p.dim, p.Seen(r), [&](int64_t j) { return p.k.data() + j * p.dim; },
        [&](int64_t j) { return p.v.data() + j * p.dim; }, {0, RoundingOf(isa, p.dtype).weight});
    for (int64_t d = 0; d < p.dim; ++d) {
      ASSERT_NEAR(got[r * p.dim + d], truth.values[d], truth.bounds[d] + 1e-37)
          << NameOf(isa) << " " << NameOf(p.dtype) << " n " << p.n << " dim " << p.dim << " row "
          << r << " at " << d;
    }
  }
}

TEST(CpuAttention, FollowsDoubleOverEveryKindOfCache) {
  struct Case {
    int64_t rows, n, dim;
  };
  for (const Case& c :
       {Case{1, 1, 64}, Case{1, 37, 128}, Case{2, 2, 1}, Case{3, 100, 50}, Case{4, 31, 6},
        Case{5, 300, 256}, Case{7, 128, 33}, Case{8, 1000, 128}, Case{11, 129, 96},
        Case{12, 33, 64}, Case{13, 16, 16}, Case{24, 127, 17}, Case{25, 257, 128}, Case{40, 40, 37},
        Case{96, 400, 64}, Case{150, 140, 20}}) {
    for (const KvDtype dtype : kDtypes) {
      const Problem p(dtype, c.rows, c.n, c.dim, static_cast<uint64_t>(c.rows * 7 + c.n));
      for (const int64_t slack : {0, 3}) {
        const Panels panels(p, slack);
        for (CpuIsa isa : GlueIsas()) {
          ExpectTruth(isa, p, Attend(GlueFor(isa), p, panels, 0, p.rows));
        }
      }
    }
  }
}

TEST(CpuAttention, CompanyAndOrderChangeNoBit) {
  for (const KvDtype dtype : kDtypes) {
    const Problem p(dtype, 61, 300, 70);
    const Panels panels(p, 1);
    for (CpuIsa isa : GlueIsas()) {
      const GlueKernels& glue = GlueFor(isa);
      const auto whole = Attend(glue, p, panels, 0, p.rows);
      EXPECT_EQ(Attend(glue, p, panels, 0, p.rows, Order::kMerged), whole) << NameOf(isa);
      for (int64_t part : {1, 2, 3, 6, 7, 12, 13, 24, 30}) {
        std::vector<float> parts;
        for (int64_t first = 0; first < p.rows; first += part) {
          const auto some = Attend(glue, p, panels, first, std::min(first + part, p.rows),
                                   part % 2 ? Order::kInTurn : Order::kMerged);
          parts.insert(parts.end(), some.begin(), some.end());
        }
        EXPECT_EQ(parts, whole) << NameOf(isa) << " " << NameOf(dtype) << " parts of " << part;
      }
    }
  }
}

TEST(CpuAttention, OneScoreAboveAllOthersTakesItsValue) {
  for (CpuIsa isa : GlueIsas()) {
    for (int64_t top : {0, 5, 127, 128, 255, 299}) {
      Problem p(KvDtype::kF32, 1, 300, 16);
      std::fill(p.q.begin(), p.q.end(), 0.0f);
      std::fill(p.k.begin(), p.k.end(), 0.0f);
      p.q[3] = 200;
      p.k[top * p.dim + 3] = 200;  // a score of 10000
      const auto got = Attend(GlueFor(isa), p, Panels(p, 0), 0, 1);
      const auto wanted = p.v.begin() + top * p.dim;
      EXPECT_EQ(got, std::vector<float>(wanted, wanted + p.dim)) << NameOf(isa) << " " << top;
    }
  }
}

TEST(CpuAttention, EqualScoresGiveTheMean) {
  for (CpuIsa isa : GlueIsas()) {
    for (const float score : {0.0f, 30.0f, -3e4f}) {
      Problem p(KvDtype::kF32, 2, 333, 16);
      for (float& q : p.q) q = score;
      for (float& k : p.k) k = 0.25f;
      for (float& v : p.v) v = std::abs(v);
      const auto got = Attend(GlueFor(isa), p, Panels(p, 0), 0, 2);
      for (int64_t d = 0; d < p.dim; ++d) {
        double sum = 0;
        for (int64_t j = 0; j < p.n; ++j) sum += p.v[j * p.dim + d];
        EXPECT_NEAR(got[p.dim + d], sum / 333, sum / 333 * 200 * 0x1p-24) << NameOf(isa);
      }
    }
  }
}

TEST(CpuAttention, ScoresThatRiseOrFallFromBlockToBlock) {
  for (const float step : {-0.2f, -0.02f, 0.02f, 0.2f})
    for (const KvDtype dtype : kDtypes) {
      Problem p(dtype, 3, 700, 32);
      for (int64_t j = 0; j < p.n; ++j)
        p.k[j * p.dim] = Cached(KeysOf(dtype), step * static_cast<float>(j));
      for (int64_t r = 0; r < p.rows; ++r) p.q[r * p.dim] = 4;
      for (CpuIsa isa : GlueIsas()) {
        ExpectTruth(isa, p, Attend(GlueFor(isa), p, Panels(p, 0), 0, 3));
      }
    }
}

TEST(CpuAttention, AWeightOfAlmostNothingCounts) {
  for (int64_t j : {3, 299})  // in the block of the largest score, and in the other
    for (const KvDtype dtype : {KvDtype::kF32, KvDtype::kF32Bf16, KvDtype::kBf16}) {
      Problem p(dtype, 1, 300, 16);
      std::fill(p.k.begin(), p.k.end(), 0.0f);
      std::fill(p.v.begin(), p.v.end(), 0.0f);
      p.q[5] = 16;
      p.k[j * p.dim + 5] = -20;  // a score of -80
      p.v[j * p.dim] = Cached(ValuesOf(dtype), 1e30f);
      for (CpuIsa isa : GlueIsas()) {
        ExpectTruth(isa, p, Attend(GlueFor(isa), p, Panels(p, 0), 0, 1));
      }
    }
}

TEST(CpuAttention, NanIsNotHidden) {
  for (CpuIsa isa : GlueIsas())
    for (const KvDtype dtype : {KvDtype::kF32, KvDtype::kF32Bf16, KvDtype::kBf16}) {
      Problem p(dtype, 2, 200, 16);
      p.k[150 * p.dim + 2] = kPoison;
      for (float v : Attend(GlueFor(isa), p, Panels(p, 0), 0, 2)) {
        EXPECT_TRUE(std::isnan(v)) << NameOf(isa);
      }
    }
}

TEST(CpuAttention, AnFp8CacheReadsEveryCode) {
  for (int first = 0; first < 256; first += 16) {
    Problem p(KvDtype::kFp8, 1, 1, 16);
    for (int i = 0; i < 16; ++i) {
      const auto code = static_cast<uint8_t>(first + i);
      p.v[i] = IsNanE4m3(code) ? 0 : DecodeE4m3(code);
    }
    for (CpuIsa isa : GlueIsas()) {
      EXPECT_EQ(Attend(GlueFor(isa), p, Panels(p, 0), 0, 1), p.v) << NameOf(isa) << first;
    }
  }
}

/// Numbers that rounding may get wrong: the cache's own, what lies halfway between them, the floats
/// next to either, and any bits at all.
std::vector<float> HardToRound() {
  std::vector<float> out;
  const auto add = [&](float x) {
    for (const float sign : {1.0f, -1.0f}) {
      out.insert(out.end(), {sign * x, sign * std::nextafter(x, 0.0f),
                             sign * std::nextafter(x, std::numeric_limits<float>::infinity())});
    }
  };
  for (int code = 0; code < 0x7F; ++code) {
    const float x = DecodeE4m3(static_cast<uint8_t>(code));
    add(x);
    if (code < 0x7E) add((x + DecodeE4m3(static_cast<uint8_t>(code + 1))) / 2);
  }
  for (const float x : {464.0f, 480.0f, 1e9f, 3e38f, 1e-40f, 1.00390625f, 1.01171875f}) add(x);
  out.insert(out.end(), {std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity(), kPoison, -kPoison});
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    const auto bits = static_cast<uint32_t>(random());
    float x;
    std::memcpy(&x, &bits, 4);
    out.push_back(x);
  }
  while (out.size() % 16) out.push_back(1);
  return out;
}

TEST(CpuAttention, TheCacheKeepsWhatItsTypeSays) {
  const auto x = HardToRound();
  const auto n = static_cast<int64_t>(x.size());
  for (CpuIsa isa : GlueIsas()) {
    for (const float scale : {1.0f, 0.37f}) {
      std::vector<float> f32(x.size(), kPoison);
      std::vector<uint16_t> bf16(x.size());
      std::vector<uint8_t> fp8(x.size());
      const auto bytes = [](auto& v) { return reinterpret_cast<std::byte*>(v.data()); };
      GlueFor(isa).to_cache(KvDtype::kF32, x.data(), n, scale, bytes(f32));
      GlueFor(isa).to_cache(KvDtype::kBf16, x.data(), n, scale, bytes(bf16));
      GlueFor(isa).to_cache(KvDtype::kFp8, x.data(), n, scale, bytes(fp8));
      EXPECT_EQ(0, std::memcmp(f32.data(), x.data(), x.size() * 4));
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(bf16[i], ToBf16(x[i]).bits) << NameOf(isa) << " " << x[i];
        ASSERT_EQ(fp8[i], EncodeE4m3(x[i] / scale))
            << NameOf(isa) << " " << x[i] << " by " << scale;
      }
    }
  }
}

TEST(CpuAttention, Multiplied) {
  for (int64_t n : {1, 15, 16, 33, 128}) {
    const auto x = RandomNormal(n, 4);
    for (CpuIsa isa : GlueIsas()) {
      std::vector<float> out(n + 1, kPoison);
      GlueFor(isa).multiplied(x.data(), n, 0.3f, out.data());
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(out[i], x[i] * 0.3f);
      EXPECT_TRUE(std::isnan(out[n]));
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu
