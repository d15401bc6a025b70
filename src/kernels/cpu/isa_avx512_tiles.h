#pragma once

// From the file's rows to tiles, with AVX-512: what isa_avx512.cc and isa_avx512bf16.cc share. Unnamed
// namespace in a header on purpose: see isa_avx512_common.h.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/target.h"
#include "layout/cpu_tile.h"

NIBBLE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

namespace nibble::kernels::cpu {
namespace {

inline __m128i LoadQuad(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

/// The 16 bytes at p of each of 16 rows, as four columns of 32 bits: column[c] holds row r's in its
/// lane r. Rows 4 i + j meet in lane i of vector j, so that a transposition within lanes is enough.
inline void LoadColumns(const uint8_t* p, int64_t stride, __m512i* column) {
  __m512i v[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const uint8_t* row = p + j * stride;
    v[j] = _mm512_castsi128_si512(LoadQuad(row));
    v[j] = _mm512_inserti32x4(v[j], LoadQuad(row + 4 * stride), 1);
    v[j] = _mm512_inserti32x4(v[j], LoadQuad(row + 8 * stride), 2);
    v[j] = _mm512_inserti32x4(v[j], LoadQuad(row + 12 * stride), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpacklo_epi32(v[2], v[3]);
  const __m512i c = _mm512_unpackhi_epi32(v[0], v[1]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  column[0] = _mm512_unpacklo_epi64(a, b);
  column[1] = _mm512_unpackhi_epi64(a, b);
  column[2] = _mm512_unpacklo_epi64(c, d);
  column[3] = _mm512_unpackhi_epi64(c, d);
}

/// Nibbles 0 1 2 3 4 5 6 7 of each lane as 0 2 4 6 1 3 5 7.
inline __m512i EvenNibblesFirst(__m512i x) {
  // In each 16 bits the two inner nibbles change places, then in each 32 the two inner bytes.
  const __m512i inner = _mm512_set1_epi32(0x00F000F0);
  const __m512i swap = _mm512_and_si512(_mm512_xor_si512(x, _mm512_srli_epi32(x, 4)), inner);
  x = _mm512_ternarylogic_epi64(x, swap, _mm512_slli_epi32(swap, 4), 0x96);  // a ^ b ^ c
  const __m512i bytes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  return _mm512_shuffle_epi8(x, bytes);
}

/// Four scales a row, a row a lane, as [4 groups][16 rows].
inline __m512i ScalesByGroup(__m512i rows) {
  const __m512i bytes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(lanes, _mm512_shuffle_epi8(rows, bytes));
}

// A strip is one piece of the file, but read in 16 streams, which is more than a core follows by
// itself: tile by tile the strip behind is fetched. Measured on Zen 5, from memory to a buffer in L2,
// one core: NVFP4 from 5 (AVX2) and 17 (AVX-512) to 30 GB/s, FP8 from 21 to 30. bf16 is faster
// without.

void TileNvfp4(const uint8_t* rows, int64_t stride, const uint8_t* scales, int64_t scale_stride,
               int64_t tiles, std::byte* out) {
  const __m512i each_row =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(static_cast<int>(scale_stride)));
  __m512i by_row[4];
  const uint8_t* next = rows + kStripRows * stride;
  const uint8_t* next_scales = scales + kStripRows * scale_stride;
  for (int64_t tile = 0; tile < tiles; ++tile, rows += 32, scales += 4, out += kNvfp4TileBytes) {
    FetchLines(next + tile * 512, 512);
    FetchLines(next_scales + tile * 64, 64);
    // Four tiles' scales at once, as long as a row has so many.
    if (tile % 4 == 0 && tiles - tile >= 4) LoadColumns(scales, scale_stride, by_row);
    if (tile >= tiles / 4 * 4) by_row[tile % 4] = _mm512_i32gather_epi32(each_row, scales, 1);
    __m512i column[8];
    LoadColumns(rows, stride, column);
    LoadColumns(rows + 16, stride, column + 4);
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) _mm512_storeu_si512(out + c * 64, EvenNibblesFirst(column[c]));
    _mm512_storeu_si512(out + 512, ScalesByGroup(by_row[tile % 4]));
  }
}

void TileFp8(const uint8_t* rows, int64_t stride, const uint8_t*, int64_t, int64_t tiles,
             std::byte* out) {
  // A column is two pairs of each row: the first pair's rows go to the lower half.
  const __m512i pairs = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1,
                                         30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const uint8_t* next = rows + kStripRows * stride;
  for (int64_t i = 0; i < tiles * (kFp8TileBytes / 256); ++i, rows += 16, out += 256) {
    __m512i column[4];
    FetchLines(next + i * 256, 256);
    LoadColumns(rows, stride, column);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      _mm512_storeu_si512(out + c * 64, _mm512_permutexvar_epi16(pairs, column[c]));
    }
  }
}

void TileBf16(const uint8_t* rows, int64_t stride, const uint8_t*, int64_t, int64_t tiles,
              std::byte* out) {
  for (int64_t i = 0; i < tiles * (kBf16TileBytes / 256); ++i, rows += 16, out += 256) {
    __m512i column[4];
    LoadColumns(rows, stride, column);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) _mm512_storeu_si512(out + c * 64, column[c]);
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu

NIBBLE_TARGET_END
