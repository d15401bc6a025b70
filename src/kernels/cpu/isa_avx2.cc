// AVX2 with FMA and F16C: weights become fp32 in registers, activations are bf16 values held as
// fp32.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/isa_avx2_tiles.h"
#include "kernels/cpu/target.h"
#include "layout/cpu_tile.h"

NIBBLE_TARGET_BEGIN("avx2,fma,f16c")

namespace nibble::kernels::cpu {
namespace {

using Byte = std::byte;

// 2 x 5 sums, 2 weights and 1 activation: a sixth token would fill 15 of 16 registers, and g++ 12
// then spills (83 GFLOP/s instead of 115 on Zen 5).
constexpr int kPanelTokens = 5;

inline __m256i Load(const Byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline __m256 Broadcast(const Byte* p) {
  float value;
  memcpy(&value, p, sizeof value);
  return _mm256_set1_ps(value);
}
/// (x[k], x[k+1]) four times.
inline __m256 BroadcastPair(const Byte* p) {
  double pair;
  memcpy(&pair, p, sizeof pair);
  return _mm256_castpd_ps(_mm256_set1_pd(pair));
}
inline __m256 LowHalves(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 HighHalves(__m256i pairs) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
}
// Eight rows of a half group as bf16. A row's 8 codes are the nibbles of one 32-bit lane, in the
// order k = 0 2 4 6 1 3 5 7. Two lookups give the low and the high bytes of the bf16 values of the
//       low nibbles (k = 0 4 1 5), two those of the high ones (2 6 3 7); interleaving the bytes
//       makes 16-bit values of them:
//   v[0]: rows 0 1 | 4 5, v[1]: rows 2 3 | 6 7, a row being the two 32-bit lanes (k0, k4) (k1, k5)
//   v[2], v[3]: the same rows with (k2, k6) (k3, k7)
// So the low halves of v[0] are, in lanes of fp32, k = 0 1 0 1 | 0 1 0 1, which BroadcastPair(x +
// 0) meets; and so on.
struct HalfGroup {
  __m256i v[4];
};

inline HalfGroup LookUp(__m256i codes) {
  const __m256i low_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40, 0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40));
  const __m256i high_bytes = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40, -0x80, -0x41, -0x41, -0x41,
                    -0x40, -0x40, -0x40, -0x40));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i first = _mm256_and_si256(codes, nibble);
  const __m256i second = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
  const __m256i first_low = _mm256_shuffle_epi8(low_bytes, first);
  const __m256i first_high = _mm256_shuffle_epi8(high_bytes, first);
  const __m256i second_low = _mm256_shuffle_epi8(low_bytes, second);
  const __m256i second_high = _mm256_shuffle_epi8(high_bytes, second);
  return {{_mm256_unpacklo_epi8(first_low, first_high), _mm256_unpackhi_epi8(first_low, first_high),
           _mm256_unpacklo_epi8(second_low, second_high),
           _mm256_unpackhi_epi8(second_low, second_high)}};
}

/// Block scales of 8 rows times 2^-8: see LoadScales in isa_avx512_common.h.
inline __m256 LoadScales(const Byte* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 7));
}
constexpr float kScaleUnit = 256;

/// Weight j (of k = 0, 4, 2, 6, each with its odd neighbour) of rows `quad` (0: rows 0 1 4 5, 1:
/// rows 2 3 6 7).
inline __m256 WeightPair(const HalfGroup& h, int j, int quad) {
  const __m256i v = h.v[(j / 2) * 2 + quad];
  return j % 2 == 0 ? LowHalves(v) : HighHalves(v);
}
constexpr int kPairK[4] = {0, 4, 2, 6};

/// One group of 16 k for 8 rows: adds to sum[t][quad], whose lanes are (row, parity of k).
template <int kTokens>
inline void DecodeGroup(const Byte* codes, const Byte* scales, const Byte* const* x, int64_t offset,
                        __m256 (*sum)[2]) {
  __m256 part[kTokens][2];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) part[t][0] = part[t][1] = _mm256_setzero_ps();
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const HalfGroup group = LookUp(Load(codes + half * 64));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256 w0 = WeightPair(group, j, 0), w1 = WeightPair(group, j, 1);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const __m256 b = BroadcastPair(x[t] + offset + (half * 8 + kPairK[j]) * 4);
        part[t][0] = _mm256_fmadd_ps(w0, b, part[t][0]);
        part[t][1] = _mm256_fmadd_ps(w1, b, part[t][1]);
      }
    }
  }
  const __m256 s = LoadScales(scales);
  const __m256 s0 = _mm256_unpacklo_ps(s, s), s1 = _mm256_unpackhi_ps(s, s);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    sum[t][0] = _mm256_fmadd_ps(part[t][0], s0, sum[t][0]);
    sum[t][1] = _mm256_fmadd_ps(part[t][1], s1, sum[t][1]);
  }
}

template <int kTokens>
void DecodeNvfp4Tokens(const Byte* strip, const Byte* next, int64_t tiles, const Byte* const* x,
                       float global, float* y, int64_t ldy) {
  const Ahead<kNvfp4TileBytes> ahead(strip, tiles, next);
  __m256 top[kTokens][2], bottom[kTokens][2];  // rows 0..7 and 8..15
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    top[t][0] = top[t][1] = bottom[t][0] = bottom[t][1] = _mm256_setzero_ps();
  }
  for (int64_t tile = 0; tile < tiles; ++tile, strip += kNvfp4TileBytes) {
    ahead.Fetch(strip, tile);
    for (int group = 0; group < 4; ++group) {
      const Byte *codes = strip + group * 128, *scales = strip + 512 + group * 16;
      const int64_t offset = tile * 256 + group * 64;
      DecodeGroup<kTokens>(codes, scales, x, offset, top);
      DecodeGroup<kTokens>(codes + 32, scales + 8, x, offset, bottom);
    }
  }
  const __m256 unit = _mm256_set1_ps(kScaleUnit), factor = _mm256_set1_ps(global);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {  // hadd joins the parities and leaves the rows in order
    const __m256 a = _mm256_mul_ps(_mm256_hadd_ps(top[t][0], top[t][1]), unit);
    const __m256 b = _mm256_mul_ps(_mm256_hadd_ps(bottom[t][0], bottom[t][1]), unit);
    _mm256_storeu_ps(y + t * ldy, _mm256_mul_ps(a, factor));
    _mm256_storeu_ps(y + t * ldy + 8, _mm256_mul_ps(b, factor));
  }
}

void DecodeNvfp4(const Byte* strip, const Byte* next, int64_t tiles, const Byte* const* x,
                 int tokens, float global, float* y, int64_t ldy) {
  switch (tokens) {
    case 1:
      return DecodeNvfp4Tokens<1>(strip, next, tiles, x, global, y, ldy);
    case 2:
      return DecodeNvfp4Tokens<2>(strip, next, tiles, x, global, y, ldy);
    case 3:
      return DecodeNvfp4Tokens<3>(strip, next, tiles, x, global, y, ldy);
    default:
      return DecodeNvfp4Tokens<4>(strip, next, tiles, x, global, y, ldy);
  }
}

/// A pair of k for 16 rows, 32 bytes of FP8 at p, as the bf16 pairs of rows 0..7 and 8..15: see
/// isa_avx512_common.h.
inline void LoadFp8Pair(const Byte* p, __m256i* pairs) {
  const __m256i high_bytes = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0x3C, 0x3D, 0x3E, 0x3F, 0x40, 0x41, 0x42, 0x43, -0x44, -0x43, -0x42, -0x41,
                    -0x40, -0x3F, -0x3E, -0x3D));
  const __m256i tiny_high_bytes =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, -0x80,
                                                -0x45, -0x45, -0x45, -0x44, -0x44, -0x44, -0x44));
  const __m256i tiny_low_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      0, 0, -0x80, -0x40, 0, 0x20, 0x40, 0x60, 0, 0, -0x80, -0x40, 0, 0x20, 0x40, 0x60));
  const __m256i codes = _mm256_permute4x64_epi64(Load(p), 0xD8);  // quarters 0 2 1 3
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i lower = _mm256_and_si256(codes, nibble);
  const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
  const __m256i tiny = _mm256_or_si256(lower, upper);
  const __m256i is_tiny =
      _mm256_cmpeq_epi8(_mm256_and_si256(codes, _mm256_set1_epi8(0x78)), _mm256_setzero_si256());
  const __m256i high = _mm256_blendv_epi8(_mm256_shuffle_epi8(high_bytes, upper),
                                          _mm256_shuffle_epi8(tiny_high_bytes, tiny), is_tiny);
  const __m256i low = _mm256_blendv_epi8(_mm256_slli_epi16(lower, 4),
                                         _mm256_shuffle_epi8(tiny_low_bytes, tiny), is_tiny);
  pairs[0] = _mm256_unpacklo_epi8(low, high);
  pairs[1] = _mm256_unpackhi_epi8(low, high);
}

/// One strip of bf16 or FP8 tiles against kTokens tokens, as decoding reads it (from memory) and as
/// panels are multiplied (from L2).
template <int kTokens, bool kFromMemory, TileFormat kFormat = TileFormat::kBf16>
void StripBlock(const Byte* strip, const Byte* next, int64_t tiles, const Byte* const* x,
                float global, float* y, int64_t ldy) {
  constexpr int64_t kPairBytes = TileBytes(kFormat) / (kTileK / 2);
  [[maybe_unused]] const Ahead<TileBytes(kFormat)> ahead(strip, tiles, next);
  const Byte* p[kTokens];
  __m256 sum[kTokens][2];
#pragma GCC unroll 5
  for (int t = 0; t < kTokens; ++t) {
    p[t] = x[t];
    sum[t][0] = sum[t][1] = _mm256_setzero_ps();
  }
  for (int64_t pair = 0; pair < tiles * (kTileK / 2); ++pair, strip += kPairBytes) {
    if constexpr (kFromMemory) {
      if (pair % 32 == 0) ahead.Fetch(strip, pair / 32);
    }
    __m256i rows[2];
    if constexpr (kFormat == TileFormat::kFp8) {
      LoadFp8Pair(strip, rows);
    } else {
      rows[0] = Load(strip);
      rows[1] = Load(strip + 32);
    }
    __m256 w0 = LowHalves(rows[0]), w1 = LowHalves(rows[1]);
#pragma GCC unroll 5
    for (int t = 0; t < kTokens; ++t) {
      const __m256 b = Broadcast(p[t] + pair * 8);
      sum[t][0] = _mm256_fmadd_ps(w0, b, sum[t][0]);
      sum[t][1] = _mm256_fmadd_ps(w1, b, sum[t][1]);
    }
    w0 = HighHalves(rows[0]);
    w1 = HighHalves(rows[1]);
#pragma GCC unroll 5
    for (int t = 0; t < kTokens; ++t) {
      const __m256 b = Broadcast(p[t] + pair * 8 + 4);
      sum[t][0] = _mm256_fmadd_ps(w0, b, sum[t][0]);
      sum[t][1] = _mm256_fmadd_ps(w1, b, sum[t][1]);
    }
  }
  const __m256 factor = _mm256_set1_ps(global);
#pragma GCC unroll 5
  for (int t = 0; t < kTokens; ++t) {
    _mm256_storeu_ps(y + t * ldy, _mm256_mul_ps(sum[t][0], factor));
    _mm256_storeu_ps(y + t * ldy + 8, _mm256_mul_ps(sum[t][1], factor));
  }
}

template <TileFormat kFormat>
void DecodePairs(const Byte* strip, const Byte* next, int64_t tiles, const Byte* const* x,
                 int tokens, float global, float* y, int64_t ldy) {
  switch (tokens) {
    case 1:
      return StripBlock<1, true, kFormat>(strip, next, tiles, x, global, y, ldy);
    case 2:
      return StripBlock<2, true, kFormat>(strip, next, tiles, x, global, y, ldy);
    case 3:
      return StripBlock<3, true, kFormat>(strip, next, tiles, x, global, y, ldy);
    default:
      return StripBlock<4, true, kFormat>(strip, next, tiles, x, global, y, ldy);
  }
}

void PanelGemm(const Byte* const* panels, int strips, bool from_memory, int64_t tiles,
               const Byte* const* x, int64_t tokens, float global, float* y, int64_t ldy) {
  using Block =
      void (*)(const Byte*, const Byte*, int64_t, const Byte* const*, float, float*, int64_t);
  constexpr Block kBlocks[2][kPanelTokens] = {
      {StripBlock<1, false>, StripBlock<2, false>, StripBlock<3, false>, StripBlock<4, false>,
       StripBlock<5, false>},
      {StripBlock<1, true>, StripBlock<2, true>, StripBlock<3, true>, StripBlock<4, true>,
       StripBlock<5, true>}};
  // Blocks of near-equal size: 6 tokens as 3 + 3, for a block of one token would leave most of the
  // multipliers waiting.
  for (int64_t blocks = (tokens + kPanelTokens - 1) / kPanelTokens; blocks > 0; --blocks) {
    const int64_t n = (tokens + blocks - 1) / blocks;
    for (int s = 0; s < strips; ++s)
      kBlocks[from_memory][n - 1](panels[s], panels[s] + tiles * kBf16TileBytes, tiles, x, global,
                                  y + s * 16, ldy);
    from_memory = false;
    x += n;
    y += n * ldy;
    tokens -= n;
  }
}

/// Eight rows of a half group, as the bf16 products of code and scale, into their four pairs of the
/// panel.
inline void ExpandHalfGroup(const Byte* codes, __m256 scale, Byte* panel) {
  const HalfGroup group = LookUp(Load(codes));
  const __m256 s0 = _mm256_unpacklo_ps(scale, scale), s1 = _mm256_unpackhi_ps(scale, scale);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    // Products have at most 6 significant bits: cutting off their low halves, which are zero, is
    // the conversion.
    const __m256i p0 = _mm256_castps_si256(_mm256_mul_ps(WeightPair(group, j, 0), s0));
    const __m256i p1 = _mm256_castps_si256(_mm256_mul_ps(WeightPair(group, j, 1), s1));
    const __m256i pairs = _mm256_packus_epi32(_mm256_srli_epi32(p0, 16), _mm256_srli_epi32(p1, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + kPairK[j] / 2 * 64), pairs);
  }
}

void ExpandNvfp4(const Byte* strip, const Byte* next, int64_t tiles, Byte* panel) {
  const Ahead<kNvfp4TileBytes> ahead(strip, tiles, next);
  const __m256 unit = _mm256_set1_ps(kScaleUnit);
  for (int64_t i = 0; i < tiles; ++i, strip += kNvfp4TileBytes, panel += kBf16TileBytes) {
    ahead.Fetch(strip, i);
    for (int group = 0; group < 4; ++group) {
      const Byte *codes = strip + group * 128, *scales = strip + 512 + group * 16;
      const __m256 top = _mm256_mul_ps(LoadScales(scales), unit);
      const __m256 bottom = _mm256_mul_ps(LoadScales(scales + 8), unit);
      for (int half = 0; half < 2; ++half) {
        Byte* out = panel + group * 512 + half * 256;
        ExpandHalfGroup(codes + half * 64, top, out);
        ExpandHalfGroup(codes + half * 64 + 32, bottom, out + 32);
      }
    }
  }
}

void ExpandFp8(const Byte* strip, const Byte* next, int64_t tiles, Byte* panel) {
  const Ahead<kFp8TileBytes> ahead(strip, tiles, next);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    ahead.Fetch(strip, tile);
    for (int64_t pair = 0; pair < kTileK / 2; ++pair, strip += 32, panel += 64) {
      __m256i rows[2];
      LoadFp8Pair(strip, rows);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel), rows[0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + 32), rows[1]);
    }
  }
}

/// x rounded to bf16, in the high halves: nearest-even on the bits, as ToBf16. A NaN stays one.
inline __m256 RoundBf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return HighHalves(_mm256_castps_si256(_mm256_blendv_ps(
      _mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), _mm256_cmp_ps(x, x, _CMP_UNORD_Q))));
}

void PackBf16(const float* x, int64_t groups, Byte* out) {
  for (int64_t i = 0; i < groups * 2; ++i) {
    _mm256_storeu_ps(reinterpret_cast<float*>(out) + i * 8, RoundBf16(_mm256_loadu_ps(x + i * 8)));
  }
}

inline __m256 Magnitude(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

/// The largest |x| of a block, NaNs left out.
inline float MaxMagnitude(__m256 x0, __m256 x1) {
  const __m256 a0 = _mm256_and_ps(Magnitude(x0), _mm256_cmp_ps(x0, x0, _CMP_ORD_Q));
  const __m256 a1 = _mm256_and_ps(Magnitude(x1), _mm256_cmp_ps(x1, x1, _CMP_ORD_Q));
  const __m256 m = _mm256_max_ps(a0, a1);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

// RoundE4m3 and RoundE2m1: as in isa_avx512_common.h.
inline float RoundE4m3(float x) {
  if (!(x < 448.0f)) return 448.0f;
  if (x < 0x1p-6f) return (x + 0x1p14f) - 0x1p14f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFFu;
  memcpy(&x, &bits, sizeof x);
  return x;
}

inline __m256 RoundE2m1(__m256 x) {
  const __m256 ordered = _mm256_cmp_ps(x, x, _CMP_ORD_Q);
  const __m256 a = _mm256_min_ps(Magnitude(x), _mm256_set1_ps(6));  // a NaN becomes 6
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 22), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x1FFFFF)));
  const __m256 large = _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_set1_epi32(0x3FFFFF), up));
  const __m256 magic = _mm256_set1_ps(0x1p22f);  // its ulp is 0.5
  const __m256 small = _mm256_sub_ps(_mm256_add_ps(a, magic), magic);
  const __m256 is_small = _mm256_cmp_ps(a, _mm256_set1_ps(1), _CMP_LT_OQ);
  const __m256 sign = _mm256_and_ps(_mm256_and_ps(x, ordered), _mm256_set1_ps(-0.0f));
  return _mm256_or_ps(_mm256_blendv_ps(large, small, is_small), sign);
}

/// QuantizeNvfp4Block<float>, operation by operation.
void PackNvfp4(const float* x, int64_t groups, float gscale, Byte* out) {
  constexpr float kSixth = static_cast<float>(1.0 / 6.0);
  for (int64_t i = 0; i < groups; ++i, x += 16, out += 64) {
    __m256 x0 = _mm256_loadu_ps(x), x1 = _mm256_loadu_ps(x + 8);
    const float scale = RoundE4m3(gscale * (MaxMagnitude(x0, x1) * kSixth));
    if (scale == 0) {
      x0 = x1 = _mm256_setzero_ps();
    } else {
      const __m256 inverse = _mm256_set1_ps(1.0f / (scale * (1.0f / gscale)));
      const __m256 factor = _mm256_set1_ps(scale);
      x0 = _mm256_mul_ps(RoundE2m1(_mm256_mul_ps(x0, inverse)), factor);
      x1 = _mm256_mul_ps(RoundE2m1(_mm256_mul_ps(x1, inverse)), factor);
    }
    _mm256_storeu_ps(reinterpret_cast<float*>(out), x0);
    _mm256_storeu_ps(reinterpret_cast<float*>(out) + 8, x1);
  }
}

/// QuantizeFp8<float> and back, as in isa_avx512_common.h.
void PackFp8(const float* x, int64_t groups, float scale, Byte* out) {
  for (int64_t i = 0; i < groups * 2; ++i) {
    const __m256 q = _mm256_div_ps(_mm256_loadu_ps(x + i * 8), _mm256_set1_ps(scale));
    const __m256 a = _mm256_min_ps(Magnitude(q), _mm256_set1_ps(448));  // a NaN becomes 448
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFFF)));
    const __m256 large = _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_set1_epi32(0xFFFFF), up));
    const __m256 magic = _mm256_set1_ps(0x1p14f);  // its ulp is 2^-9
    const __m256 small = _mm256_sub_ps(_mm256_add_ps(a, magic), magic);
    const __m256 is_small = _mm256_cmp_ps(a, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ);
    const __m256 value = _mm256_or_ps(_mm256_blendv_ps(large, small, is_small),
                                      _mm256_and_ps(q, _mm256_set1_ps(-0.0f)));
    const __m256 is_nan = _mm256_cmp_ps(q, q, _CMP_UNORD_Q);
    _mm256_storeu_ps(reinterpret_cast<float*>(out) + i * 8,
                     _mm256_blendv_ps(value, _mm256_set1_ps(__builtin_nanf("")), is_nan));
  }
}

float Largest(const float* x, int64_t groups) {
  __m256 largest = _mm256_setzero_ps();
  for (int64_t i = 0; i < groups * 2;
       ++i) {  // max gives its second operand when the first is a NaN
    largest = _mm256_max_ps(Magnitude(_mm256_loadu_ps(x + i * 8)), largest);
  }
  return MaxMagnitude(largest, largest);
}

/// e^x within 2 ulp: 2^n * e^r, |r| <= ln2 / 2, Taylor to r^7 (next term below 2^-27). Below -87 it
/// stays at e^-87.
inline __m256 Exp(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-87), _mm256_min_ps(_mm256_set1_ps(88), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145751953125f), x);  // ln 2 in two parts
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860682e-6f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1));
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

// min and max give their second operand when either is a NaN: data stand there, so that a NaN comes
// through.
void Gated(const GatedActivation& how, const float* gate, const float* up, int64_t groups,
           float* h) {
  const __m256 limit = _mm256_set1_ps(how.limit);
  for (int64_t i = 0; i < groups * 16; i += 8) {
    const __m256 g = _mm256_min_ps(limit, _mm256_loadu_ps(gate + i));
    const __m256 u =
        _mm256_max_ps(_mm256_set1_ps(-how.limit), _mm256_min_ps(limit, _mm256_loadu_ps(up + i)));
    const __m256 e = Exp(_mm256_mul_ps(_mm256_set1_ps(-how.alpha), g));
    const __m256 glu = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1), e));
    _mm256_storeu_ps(h + i, _mm256_mul_ps(_mm256_add_ps(u, _mm256_set1_ps(how.beta)), glu));
  }
}

void AddScaled(const float* x, float factor, int64_t groups, float* y) {
  const __m256 f = _mm256_set1_ps(factor);
  for (int64_t i = 0; i < groups * 16; i += 8) {
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(_mm256_loadu_ps(x + i), f, _mm256_loadu_ps(y + i)));
  }
}

}  // namespace

const CpuKernels kAvx2Kernels = {
    .isa = CpuIsa::kAvx2,
    .nvfp4_panel_tokens = 10,
    .fp8_panel_tokens = 5,
    .bf16_panel_tokens = 5,
    .nvfp4_decode_tokens = kDecodeTokens,
    .activation_bytes = 4,
    .pack_bf16 = PackBf16,
    .pack_nvfp4 = PackNvfp4,
    .pack_fp8 = PackFp8,
    .largest_magnitude = Largest,
    .decode_nvfp4 = DecodeNvfp4,
    .decode_fp8 = DecodePairs<TileFormat::kFp8>,
    .decode_bf16 = DecodePairs<TileFormat::kBf16>,
    .expand_nvfp4 = ExpandNvfp4,
    .expand_fp8 = ExpandFp8,
    .panel_gemm = PanelGemm,
    .tile_nvfp4 = TileNvfp4,
    .tile_fp8 = TileFp8,
    .tile_bf16 = TileBf16,
    .gated_activation = Gated,
    .add_scaled = AddScaled,
};

}  // namespace nibble::kernels::cpu

NIBBLE_TARGET_END

#endif  // __x86_64__
