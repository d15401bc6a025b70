// AVX-512 with BF16 products (Zen 4, Cooper Lake, Sapphire Rapids and later).
//
// vdpbf16ps takes denormal bf16 inputs as zeros and returns denormal sums as zeros. Weights: a code
// is 0 or at least 0.5, code * block scale 0 or at least 2^-10, and an FP8 code 0 or at least 2^-9, so none
// is ever denormal.
// Activations: what is cut off is below 2^-126 each, and an fp32 sum that holds anything of 2^-102
// or more cannot show it. The global scale is multiplied on afterwards in plain fp32, which flushes
// nothing.

#if defined(__x86_64__)

#include "kernels/cpu/isa_avx512_common.h"
#include "kernels/cpu/isa_avx512_tiles.h"

NIBBLE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")

namespace nibble::kernels::cpu {
namespace {

using Byte = std::byte;

/// The activation pair (k, k+1) at p in every lane: a {1to16} memory operand.
inline __m512bh BroadcastPair(const Byte* p) {
  int pair;
  memcpy(&pair, p, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

void PackBf16(const float* x, int64_t groups, Byte* out) {
  for (int64_t i = 0; i < groups; ++i) {
    const __m512i bits = _mm512_srli_epi32(RoundBf16(_mm512_loadu_ps(x + i * 16)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 32), _mm512_cvtepi32_epi16(bits));
  }
}

void PackNvfp4(const float* x, int64_t groups, float gscale, Byte* out) {
  for (int64_t i = 0; i < groups; ++i) {
    const __m512 value = QuantizeBlock(_mm512_loadu_ps(x + i * 16), gscale);
    const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 32), _mm512_cvtepi32_epi16(bits));
  }
}

void PackFp8(const float* x, int64_t groups, float scale, Byte* out) {
  for (int64_t i = 0; i < groups; ++i) {
    const __m512 value = QuantizeFp8Values(_mm512_loadu_ps(x + i * 16), _mm512_set1_ps(scale));
    const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 32), _mm512_cvtepi32_epi16(bits));
  }
}

/// Nibble n of each 16-bit word as bf16.
inline __m512bh LookUp(__m512i codes, int n, __m512i table) {
  return (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4 * n), table);
}

template <int kTokens>
inline void AddProducts(__m512bh w, const Byte* const (&x)[kTokens], int64_t at,
                        __m512 (&sum)[kTokens]) {
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    sum[t] = _mm512_dpbf16_ps(sum[t], w, BroadcastPair(x[t] + at));
  }
}

/// Codes are multiplied as they are; the sum of each group of 16 k meets its block scale in fp32.
template <int kTokens>
void DecodeNvfp4Tokens(const Byte* strip, const Byte* next, int64_t tiles, const Byte* const* x,
                       float global, float* y, int64_t ldy) {
  const Ahead<kNvfp4TileBytes> ahead(strip, tiles, next);
  const __m512i table = CodesAsBf16();
  const Byte* p[kTokens];
  __m512 sum[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    p[t] = x[t];
    sum[t] = _mm512_setzero_ps();
  }
  for (int64_t tile = 0; tile < tiles; ++tile, strip += kNvfp4TileBytes) {
    ahead.Fetch(strip, tile);
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) {
      const __m512 scale = LoadScales(strip + 512 + group * 16);
      const __m512i z0 = _mm512_loadu_si512(strip + group * 128);
      const __m512i z1 = _mm512_loadu_si512(strip + group * 128 + 64);
      __m512 a[kTokens], b[kTokens];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) a[t] = b[t] = _mm512_setzero_ps();
      if constexpr (kTokens <= 4) {
        // All weights looked up, then token by token; more tokens' sums leave no room for that.
        __m512bh w[8];
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
          w[n] = LookUp(z0, n, table);
          w[n + 4] = LookUp(z1, n, table);
        }
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          const Byte* q = p[t] + tile * 128 + group * 32;
#pragma GCC unroll 4
          for (int n = 0; n < 4; ++n) {
            a[t] = _mm512_dpbf16_ps(a[t], w[n], BroadcastPair(q + 4 * n));
            b[t] = _mm512_dpbf16_ps(b[t], w[n + 4], BroadcastPair(q + 16 + 4 * n));
          }
        }
      } else {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n)
          AddProducts(LookUp(z0, n, table), p, tile * 128 + group * 32 + 4 * n, a);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n)
          AddProducts(LookUp(z1, n, table), p, tile * 128 + group * 32 + 16 + 4 * n, b);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sum[t] = _mm512_fmadd_ps(_mm512_add_ps(a[t], b[t]), scale, sum[t]);
      }
    }
  }
  const __m512 unit = _mm512_set1_ps(kScaleUnit), factor = _mm512_set1_ps(global);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    _mm512_storeu_ps(y + t * ldy, _mm512_mul_ps(_mm512_mul_ps(sum[t], unit), factor));
  }
}

/// Strips of pairs: bf16, or FP8 that becomes bf16 here.
template <int kTokens, TileFormat kFormat>
void DecodePairTokens(const Byte* strip, const Byte* next, int64_t tiles, const Byte* const* x,
                      float global, float* y, int64_t ldy) {
  const Ahead<TileBytes(kFormat)> ahead(strip, tiles, next);
  constexpr int kChains = 4;  // sums in flight a token: one would wait for its own latency
  const Byte* p[kTokens];
  __m512 sum[kTokens][kChains];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    p[t] = x[t];
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) sum[t][c] = _mm512_setzero_ps();
  }
  for (int64_t tile = 0; tile < tiles; ++tile, strip += TileBytes(kFormat)) {
    ahead.Fetch(strip, tile);
#pragma GCC unroll 16
    for (int two = 0; two < 16; ++two) {
      __m512i w[2];
      LoadTwoPairs<kFormat>(strip, two, w);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const int pair = two * 2 + i, c = pair % kChains;
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          const __m512bh b = BroadcastPair(p[t] + tile * 128 + pair * 4);
          sum[t][c] = _mm512_dpbf16_ps(sum[t][c], (__m512bh)w[i], b);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const __m512 total =
        _mm512_add_ps(_mm512_add_ps(sum[t][0], sum[t][1]), _mm512_add_ps(sum[t][2], sum[t][3]));
    _mm512_storeu_ps(y + t * ldy, _mm512_mul_ps(total, _mm512_set1_ps(global)));
  }
}

/// kStrips x kTokens sums in registers: 3 x 8 leaves seven for the weights, and reached 471 of the
/// 485 GFLOP/s that a Zen 5 core has.
template <int kStrips, int kTokens>
void PanelBlock(const Byte* const* panels, bool from_memory, int64_t tiles, const Byte* const* x,
                float global, float* y, int64_t ldy) {
  const Byte *w[kStrips], *p[kTokens];
  __m512 sum[kStrips][kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) p[t] = x[t];
#pragma GCC unroll 3
  for (int s = 0; s < kStrips; ++s) {
    w[s] = panels[s];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[s][t] = _mm512_setzero_ps();
  }
  for (int64_t pair = 0; pair < tiles * (kTileK / 2); ++pair) {
    if (from_memory) {
#pragma GCC unroll 3
      for (int s = 0; s < kStrips; ++s) FetchLineAhead(w[s] + pair * 64);
    }
    __m512bh v[kStrips];
#pragma GCC unroll 3
    for (int s = 0; s < kStrips; ++s) v[s] = (__m512bh)_mm512_loadu_si512(w[s] + pair * 64);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512bh b = BroadcastPair(p[t] + pair * 4);
#pragma GCC unroll 3
      for (int s = 0; s < kStrips; ++s) sum[s][t] = _mm512_dpbf16_ps(sum[s][t], v[s], b);
    }
  }
  const __m512 factor = _mm512_set1_ps(global);
#pragma GCC unroll 3
  for (int s = 0; s < kStrips; ++s) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      _mm512_storeu_ps(y + t * ldy + s * 16, _mm512_mul_ps(sum[s][t], factor));
    }
  }
}

constexpr int kNvfp4Tokens = 8;

#include "kernels/cpu/isa_avx512_drivers.inc"

}  // namespace

const CpuKernels kAvx512Bf16Kernels = {
    .isa = CpuIsa::kAvx512Bf16,
    .nvfp4_panel_tokens = 28,
    .fp8_panel_tokens = 14,
    .bf16_panel_tokens = 5,
    .nvfp4_decode_tokens = kNvfp4Tokens,
    .activation_bytes = 2,
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
