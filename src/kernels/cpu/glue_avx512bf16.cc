#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/cpu/glue.h"
#include "kernels/cpu/target.h"

NIBBLE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace nibble::kernels::cpu {
namespace {
constexpr int64_t kWideBytes = 64;
constexpr int kBlockRows = 8, kBlockWides = 2;
constexpr int kTileRows = 12, kTileWides = 2;
typedef __m512 Native;
inline Native NativeSet(float x) { return _mm512_set1_ps(x); }
inline Native NativeMultiplyAdd(Native a, Native b, Native c) { return _mm512_fmadd_ps(a, b, c); }
#include "kernels/cpu/glue_body.h"

// Attention over keys or values of 16 or 8 bits by products of bf16 pairs, summed in fp32: queries
// or weights are rounded to bf16. Where keys are fp32, scores are computed in it: their error goes
// into an exponential, while that of weights and values is averaged over positions.

/// Pairs as the cache keeps them.
struct Bf16Pairs {
  static constexpr int64_t kBytes = 4;  // of a column
  static __m512i Load(const std::byte* p) { return _mm512_loadu_si512(p); }
};
/// e4m3 as bf16, exactly: 3 bits of mantissa move up, the exponent's bias becomes bf16's. The eight
/// numbers below 2^-6 are looked up.
struct Fp8Pairs {
  static constexpr int64_t kBytes = 2;
  static __m512i Load(const std::byte* p) {
    const __m512i u = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i magnitude = _mm512_and_si512(u, _mm512_set1_epi16(0x7F));
    const __m512i subnormals = _mm512_broadcast_i32x4(
        _mm_setr_epi16(0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60));
    const __m512i normal =
        _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    const __m512i code = _mm512_mask_permutexvar_epi16(
        normal, _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8)), magnitude, subnormals);
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(u, _mm512_set1_epi16(0x80)), 8);
    return _mm512_or_si512(code, sign);
  }
};

/// n floats as bf16; those behind them up to a multiple of 16 as zeros.
inline void RoundToPairs(const float* from, int64_t n, uint32_t* to) {
  for (int64_t i = 0; i < n; i += kLanes, to += kLanes / 2) {
    const auto real = static_cast<__mmask16>(n - i < kLanes ? (1 << (n - i)) - 1 : 0xFFFF);
    const __m256bh codes = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(real, from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)codes);
  }
}

template <class Pairs>
struct Bf16Products {
  typedef uint32_t Left;  // a pair
  static constexpr int64_t kTogether = 2, kBytes = Pairs::kBytes, kRowBytes = kKvPanel * kBytes;

  static int64_t QueryStride(int64_t dim) { return QueryPairs(dim); }
  static const uint32_t* Queries(const AttendBlock& a, uint32_t* memory) {
    for (int64_t r = 0; r < a.rows; ++r) {
      RoundToPairs(a.q + r * a.dim, a.dim, memory + r * QueryPairs(a.dim));
    }
    return memory;
  }
  static void Weights(float* row, int64_t n) {
    RoundToPairs(row, n, reinterpret_cast<uint32_t*>(row));
  }

  template <bool kFetch, int kRows>
  static inline __attribute__((always_inline)) void Multiply(const uint32_t* a, int64_t a_row,
                                                             const std::byte* b, int64_t n,
                                                             const std::byte* ahead,
                                                             Wide (&sums)[kRows][kTileWides]) {
    for (int64_t k = 0; k < n; k += 2, ++a, b += kRowBytes, ahead += kRowBytes) {
      if (kFetch) FetchRow<kRowBytes>(ahead);
      __m512i right[kTileWides];
#pragma GCC unroll 16
      for (int c = 0; c < kTileWides; ++c) right[c] = Pairs::Load(b + c * kWide * kBytes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512i left = _mm512_set1_epi32(static_cast<int>(a[r * a_row]));
#pragma GCC unroll 16
        for (int c = 0; c < kTileWides; ++c) {
          sums[r][c] = _mm512_dpbf16_ps(sums[r][c], (__m512bh)left, (__m512bh)right[c]);
        }
      }
    }
  }
};
typedef Bf16Products<Bf16Pairs> ByBf16;
typedef Bf16Products<Fp8Pairs> ByFp8;

/// Many rows read a block's numbers many times: as bf16 they are made once.
void AttendFp8(const AttendBlock& a) {
  if (a.rows <= 2 * kTileRows) {
    return AttendIn<ByFp8, ByFp8>(a, a.keys, a.values, a.positions);
  }
  const int64_t most = RoundUpTo(a.seen[a.rows - 1], kKvPanel), key_rows = KeyRows(a.dim);
  const auto convert = [](const std::byte* from, int64_t rows, std::byte* to) {
    for (int64_t i = 0; i < rows * kKvPanel; i += 32) {
      _mm512_storeu_si512(to + 2 * i, Fp8Pairs::Load(from + i));
    }
  };
  auto* const keys = reinterpret_cast<std::byte*>(AttendMemory(a).block);
  std::byte* const values = keys + kKvBlock * key_rows * 2;
  convert(a.keys, most / kKvPanel * key_rows, keys);
  for (int64_t panel = 0; panel < a.width / kKvPanel; ++panel) {
    convert(a.values + panel * a.positions * kKvPanel, RoundUpTo(a.seen[a.rows - 1], 2),
            values + panel * kKvBlock * kKvPanel * 2);
  }
  AttendIn<ByBf16, ByBf16>(a, keys, values, kKvBlock);
}

void AttendByBf16(const AttendBlock& a) {
  switch (a.dtype) {
    case KvDtype::kF32:
      return Attend(a);
    case KvDtype::kF32Bf16:
      return AttendIn<FloatProducts<F32Cache>, ByBf16>(a, a.keys, a.values, a.positions);
    case KvDtype::kBf16:
      return AttendIn<ByBf16, ByBf16>(a, a.keys, a.values, a.positions);
    case KvDtype::kFp8:
      return AttendFp8(a);
  }
}

constexpr GlueKernels WithAttend(GlueKernels table, void (*attend)(const AttendBlock&)) {
  table.attend = attend;
  return table;
}
}  // namespace
extern const GlueKernels kGlueAvx512Bf16 = WithAttend(kTable, AttendByBf16);
}  // namespace nibble::kernels::cpu
NIBBLE_TARGET_END

#endif  // __x86_64__
