#pragma once

// What isa_avx512.cc and isa_avx512bf16.cc share. Unnamed namespace in a header on purpose: each
// file has its own copy, so that no symbol leaves it (see target.h).

#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/target.h"
#include "layout/cpu_tile.h"

NIBBLE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

namespace nibble::kernels::cpu {
namespace {

/// The 16 E2M1 values as bf16, twice: vpermw ignores index bit 4, so a nibble need not be masked.
inline __m512i CodesAsBf16() {
  const __m256i t =
      _mm256_setr_epi16(0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, -0x8000,
                        -0x4100, -0x4080, -0x4040, -0x4000, -0x3FC0, -0x3F80, -0x3F40);
  return _mm512_broadcast_i64x4(t);
}

/// 16 block scales times 2^-8. An E4M3 byte shifted into a half's exponent and mantissa is that
/// number, subnormals too: the conversion knows no flush to zero. (The sign bit is clear in every
/// block scale.)
inline __m512 LoadScales(const std::byte* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7));
}
constexpr float kScaleUnit = 256;

inline __m512 HighHalves(__m512i pairs) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
}
inline __m512 LowHalves(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

void ExpandNvfp4(const std::byte* strip, const std::byte* next, int64_t tiles, std::byte* panel) {
  const Ahead<kNvfp4TileBytes> ahead(strip, tiles, next);
  const __m512i table = CodesAsBf16();
  const __m512 unit = _mm512_set1_ps(kScaleUnit);
  for (int64_t i = 0; i < tiles; ++i, strip += kNvfp4TileBytes) {
    ahead.Fetch(strip, i);
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) {
      const __m512 scale = _mm512_mul_ps(LoadScales(strip + 512 + group * 16), unit);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m512i codes = _mm512_loadu_si512(strip + group * 128 + half * 64);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n, panel += 64) {
          const __m512i pairs = _mm512_permutexvar_epi16(codes, table);
          codes = _mm512_srli_epi16(codes, 4);
          // Products have at most 6 significant bits: their low halves are zero, and cutting those
          // off is the conversion.
          const __m512i low = _mm512_castps_si512(_mm512_mul_ps(LowHalves(pairs), scale));
          const __m512i high = _mm512_castps_si512(_mm512_mul_ps(HighHalves(pairs), scale));
          _mm512_storeu_si512(panel, _mm512_or_si512(_mm512_srli_epi32(low, 16), high));
        }
      }
    }
  }
}

// E4M3 codes as bf16, by nibbles. 2^n with n = e - 7 is the exponent e + 120 of a bf16, and 120 is
// even: so a bf16's low byte is the code's low nibble moved up, and its high byte follows from the
// high nibble, the sign and the upper three bits of e. Where e is 0 both follow from sign and
// mantissa instead, by a second pair of tables.

/// Two pairs of k for 16 rows, 64 bytes at p, as two vectors of bf16 pairs.
inline void LoadFp8Pairs(const std::byte* p, __m512i* pairs) {
  const __m512i high_bytes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0x3C, 0x3D, 0x3E, 0x3F, 0x40, 0x41, 0x42, 0x43, -0x44,
                                           -0x43, -0x42, -0x41, -0x40, -0x3F, -0x3E, -0x3D));
  const __m512i tiny_high_bytes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, -0x80,
                                           -0x45, -0x45, -0x45, -0x44, -0x44, -0x44, -0x44));
  const __m512i tiny_low_bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(
      0, 0, -0x80, -0x40, 0, 0x20, 0x40, 0x60, 0, 0, -0x80, -0x40, 0, 0x20, 0x40, 0x60));
  // Interleaving low and high bytes works within 128 bits: the first pair's rows go to their lower
  // halves and the second pair's to the upper ones.
  const __m512i codes =
      _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), _mm512_loadu_si512(p));
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i upper = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
  const __m512i tiny =
      _mm512_ternarylogic_epi64(codes, upper, nibble, 0xA8);  // (codes | upper) & 15
  const __mmask64 is_tiny = _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78));
  const __m512i high = _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(high_bytes, upper), is_tiny,
                                                tiny_high_bytes, tiny);
  const __m512i low = _mm512_mask_shuffle_epi8(
      _mm512_slli_epi16(_mm512_and_si512(codes, nibble), 4), is_tiny, tiny_low_bytes, tiny);
  pairs[0] = _mm512_unpacklo_epi8(low, high);
  pairs[1] = _mm512_unpackhi_epi8(low, high);
}

/// Pairs 2 * i and 2 * i + 1 of a tile.
template <TileFormat kFormat>
inline void LoadTwoPairs(const std::byte* tile, int i, __m512i* pairs) {
  if constexpr (kFormat == TileFormat::kFp8) {
    LoadFp8Pairs(tile + i * 64, pairs);
  } else {
    pairs[0] = _mm512_loadu_si512(tile + i * 128);
    pairs[1] = _mm512_loadu_si512(tile + i * 128 + 64);
  }
}

void ExpandFp8(const std::byte* strip, const std::byte* next, int64_t tiles, std::byte* panel) {
  const Ahead<kFp8TileBytes> ahead(strip, tiles, next);
  for (int64_t tile = 0; tile < tiles; ++tile, strip += kFp8TileBytes) {
    ahead.Fetch(strip, tile);
#pragma GCC unroll 4
    for (int i = 0; i < 16; ++i, panel += 128) {
      __m512i pairs[2];
      LoadFp8Pairs(strip + i * 64, pairs);
      _mm512_storeu_si512(panel, pairs[0]);
      _mm512_storeu_si512(panel + 64, pairs[1]);
    }
  }
}

/// x rounded to bf16, in the high halves: nearest-even on the bits, as ToBf16. A NaN stays one.
inline __m512i RoundBf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i rounded = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
  return _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
}

/// The largest |x| of a block, NaNs left out.
inline float MaxMagnitude(__m512 x) {
  const __mmask16 ordered = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
  const __m512 a = _mm512_maskz_mov_ps(ordered, _mm512_abs_ps(x));
  __m256 m = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

/// EncodeE4m3 and back for x >= 0, by the bits: above 2^-6 a number keeps three bits of mantissa,
/// below it multiples of 2^-9.
inline float RoundE4m3(float x) {
  if (!(x < 448.0f)) return 448.0f;
  if (x < 0x1p-6f) return (x + 0x1p14f) - 0x1p14f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFFu;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/// EncodeE2m1 and back: above 1 a number keeps one bit of mantissa, below it multiples of 0.5; both
/// to even, as the codes are.
inline __m512 RoundE2m1(__m512 x) {
  const __mmask16 ordered = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
  const __m512 a = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(6));  // a NaN becomes 6
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 22), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x1FFFFF)));
  const __m512 large = _mm512_castsi512_ps(_mm512_andnot_si512(_mm512_set1_epi32(0x3FFFFF), up));
  const __m512 magic = _mm512_set1_ps(0x1p22f);  // its ulp is 0.5
  const __m512 small = _mm512_sub_ps(_mm512_add_ps(a, magic), magic);
  const __mmask16 is_small = _mm512_cmp_ps_mask(a, _mm512_set1_ps(1), _CMP_LT_OQ);
  const __m512i value = _mm512_castps_si512(_mm512_mask_mov_ps(large, is_small, small));
  const __m512i sign = _mm512_maskz_and_epi32(ordered, _mm512_castps_si512(x),
                                              _mm512_set1_epi32(static_cast<int>(0x80000000u)));
  return _mm512_castsi512_ps(_mm512_or_si512(value, sign));
}

/// One block as code * block scale: QuantizeNvfp4Block<float> operation by operation.
inline __m512 QuantizeBlock(__m512 x, float gscale) {
  constexpr float kSixth = static_cast<float>(1.0 / 6.0);
  const float scale = RoundE4m3(gscale * (MaxMagnitude(x) * kSixth));
  if (scale == 0) return _mm512_setzero_ps();
  const float inverse = 1.0f / (scale * (1.0f / gscale));
  return _mm512_mul_ps(RoundE2m1(_mm512_mul_ps(x, _mm512_set1_ps(inverse))), _mm512_set1_ps(scale));
}

/// QuantizeFp8<float> and back: RoundE4m3 of x / scale, with its sign. A NaN stays one.
inline __m512 QuantizeFp8Values(__m512 x, __m512 scale) {
  const __m512 q = _mm512_div_ps(x, scale);
  const __m512 a = _mm512_min_ps(_mm512_abs_ps(q), _mm512_set1_ps(448));  // a NaN becomes 448
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFFF)));
  const __m512 large = _mm512_castsi512_ps(_mm512_andnot_si512(_mm512_set1_epi32(0xFFFFF), up));
  const __m512 magic = _mm512_set1_ps(0x1p14f);  // its ulp is 2^-9
  const __m512 small = _mm512_sub_ps(_mm512_add_ps(a, magic), magic);
  const __mmask16 is_small = _mm512_cmp_ps_mask(a, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(q, q, _CMP_UNORD_Q);
  const __m512 value = _mm512_or_ps(_mm512_mask_mov_ps(large, is_small, small),
                                    _mm512_and_ps(q, _mm512_set1_ps(-0.0f)));
  return _mm512_mask_mov_ps(value, is_nan, _mm512_set1_ps(__builtin_nanf("")));
}

float Largest(const float* x, int64_t groups) {
  __m512 largest = _mm512_setzero_ps();
  for (int64_t i = 0; i < groups; ++i) {  // max gives its second operand when the first is a NaN
    largest = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i * 16)), largest);
  }
  return MaxMagnitude(largest);
}

/// e^x for 16 numbers within 2 ulp: 2^n * e^r, |r| <= ln2 / 2, Taylor to r^7 (next term below
/// 2^-27).
inline __m512 Exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104), _mm512_min_ps(_mm512_set1_ps(89), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), x);  // ln 2 in two parts
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860682e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1));
  return _mm512_scalef_ps(p, n);
}

// min and max give their second operand when either is a NaN: data stand there, so that a NaN comes
// through.
void Gated(const GatedActivation& how, const float* gate, const float* up, int64_t groups,
           float* h) {
  const __m512 limit = _mm512_set1_ps(how.limit), one = _mm512_set1_ps(1);
  for (int64_t i = 0; i < groups * 16; i += 16) {
    const __m512 g = _mm512_min_ps(limit, _mm512_loadu_ps(gate + i));
    const __m512 u =
        _mm512_max_ps(_mm512_set1_ps(-how.limit), _mm512_min_ps(limit, _mm512_loadu_ps(up + i)));
    const __m512 e = Exp(_mm512_mul_ps(_mm512_set1_ps(-how.alpha), g));
    const __m512 glu = _mm512_div_ps(g, _mm512_add_ps(one, e));
    _mm512_storeu_ps(h + i, _mm512_mul_ps(_mm512_add_ps(u, _mm512_set1_ps(how.beta)), glu));
  }
}

void AddScaled(const float* x, float factor, int64_t groups, float* y) {
  const __m512 f = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < groups * 16; i += 16) {
    _mm512_storeu_ps(y + i, _mm512_fmadd_ps(_mm512_loadu_ps(x + i), f, _mm512_loadu_ps(y + i)));
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu

NIBBLE_TARGET_END
