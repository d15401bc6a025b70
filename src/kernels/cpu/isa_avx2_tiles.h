#pragma once

// From the file's rows to tiles, with AVX2. Unnamed namespace in a header on purpose: see
// isa_avx512_common.h.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/target.h"
#include "layout/cpu_tile.h"

NIBBLE_TARGET_BEGIN("avx2,fma,f16c")

namespace nibble::kernels::cpu {
namespace {

inline __m256i LoadTwoRows(const uint8_t* low, const uint8_t* high) {
  return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(high),
                             reinterpret_cast<const __m128i*>(low));
}
inline void Store(std::byte* p, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}

/// The 16 bytes at p of each of 8 rows, as four columns of 32 bits: column[c] holds row r's in its
/// lane r. Rows 4 i + j meet in half i of vector j, so that a transposition within halves is enough.
inline void LoadColumns(const uint8_t* p, int64_t stride, __m256i* column) {
  __m256i v[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) v[j] = LoadTwoRows(p + j * stride, p + (j + 4) * stride);
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpacklo_epi32(v[2], v[3]);
  const __m256i c = _mm256_unpackhi_epi32(v[0], v[1]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  column[0] = _mm256_unpacklo_epi64(a, b);
  column[1] = _mm256_unpackhi_epi64(a, b);
  column[2] = _mm256_unpacklo_epi64(c, d);
  column[3] = _mm256_unpackhi_epi64(c, d);
}

/// Nibbles 0 1 2 3 4 5 6 7 of each lane as 0 2 4 6 1 3 5 7.
inline __m256i EvenNibblesFirst(__m256i x) {
  // In each 16 bits the two inner nibbles change places, then in each 32 the two inner bytes.
  const __m256i inner = _mm256_set1_epi32(0x00F000F0);
  const __m256i swap = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi32(x, 4)), inner);
  x = _mm256_xor_si256(x, _mm256_or_si256(swap, _mm256_slli_epi32(swap, 4)));
  const __m256i bytes = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  return _mm256_shuffle_epi8(x, bytes);
}

/// Four scales a row, rows 0 to 7 and 8 to 15, as [4 groups][16 rows].
inline void StoreScales(__m256i first, __m256i second, std::byte* out) {
  const __m256i bytes = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m256i lanes = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  first = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(first, bytes), lanes);
  second = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(second, bytes), lanes);
  const __m256i even = _mm256_unpacklo_epi64(first, second);  // groups 0 and 2
  const __m256i odd = _mm256_unpackhi_epi64(first, second);   // groups 1 and 3
  Store(out, _mm256_permute2x128_si256(even, odd, 0x20));
  Store(out + 32, _mm256_permute2x128_si256(even, odd, 0x31));
}

// A strip is one piece of the file, but read in 16 streams, which is more than a core follows by
// itself: tile by tile the strip behind is fetched. Measured on Zen 5, from memory to a buffer in L2,
// one core: NVFP4 from 5 (AVX2) and 17 (AVX-512) to 30 GB/s, FP8 from 21 to 30. bf16 is faster
// without.

void TileNvfp4(const uint8_t* rows, int64_t stride, const uint8_t* scales, int64_t scale_stride,
               int64_t tiles, std::byte* out) {
  const __m256i each_row = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                              _mm256_set1_epi32(static_cast<int>(scale_stride)));
  __m256i by_row[2][4];
  const uint8_t* next = rows + kStripRows * stride;
  const uint8_t* next_scales = scales + kStripRows * scale_stride;
  for (int64_t tile = 0; tile < tiles; ++tile, rows += 32, scales += 4, out += kNvfp4TileBytes) {
    FetchLines(next + tile * 512, 512);
    FetchLines(next_scales + tile * 64, 64);
    const bool fours = tile < tiles / 4 * 4;  // four tiles' scales at once, while a row has so many
    for (int half = 0; half < 2; ++half) {
      const uint8_t* from = rows + half * 8 * stride;
      const uint8_t* its_scales = scales + half * 8 * scale_stride;
      if (fours && tile % 4 == 0) LoadColumns(its_scales, scale_stride, by_row[half]);
      if (!fours) {
        by_row[half][tile % 4] =
            _mm256_i32gather_epi32(reinterpret_cast<const int*>(its_scales), each_row, 1);
      }
      for (int z = 0; z < 2; ++z) {
        __m256i column[4];
        LoadColumns(from + z * 16, stride, column);
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          Store(out + z * 256 + c * 64 + half * 32, EvenNibblesFirst(column[c]));
        }
      }
    }
    StoreScales(by_row[0][tile % 4], by_row[1][tile % 4], out + 512);
  }
}

void TileFp8(const uint8_t* rows, int64_t stride, const uint8_t*, int64_t, int64_t tiles,
             std::byte* out) {
  const __m256i low = _mm256_set1_epi32(0xFFFF);
  const uint8_t* next = rows + kStripRows * stride;
  for (int64_t i = 0; i < tiles * (kFp8TileBytes / 256); ++i, rows += 16, out += 256) {
    __m256i first[4], second[4];  // rows 0 to 7, 8 to 15; a column is two pairs of each
    FetchLines(next + i * 256, 256);
    LoadColumns(rows, stride, first);
    LoadColumns(rows + 8 * stride, stride, second);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m256i pair0 =
          _mm256_packus_epi32(_mm256_and_si256(first[c], low), _mm256_and_si256(second[c], low));
      const __m256i pair1 =
          _mm256_packus_epi32(_mm256_srli_epi32(first[c], 16), _mm256_srli_epi32(second[c], 16));
      // Packing works within halves: rows 0-3, 8-11, 4-7, 12-15.
      Store(out + c * 64, _mm256_permute4x64_epi64(pair0, 0xD8));
      Store(out + c * 64 + 32, _mm256_permute4x64_epi64(pair1, 0xD8));
    }
  }
}

void TileBf16(const uint8_t* rows, int64_t stride, const uint8_t*, int64_t, int64_t tiles,
              std::byte* out) {
  for (int64_t i = 0; i < tiles * (kBf16TileBytes / 256); ++i, rows += 16, out += 256) {
    for (int half = 0; half < 2; ++half) {
      __m256i column[4];
      LoadColumns(rows + half * 8 * stride, stride, column);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) Store(out + c * 64 + half * 32, column[c]);
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::cpu

NIBBLE_TARGET_END
