// AVX-512 without BF16 products (Skylake-X to Ice Lake): weights become fp32 in registers,
// activations are bf16 values held as fp32.

#if defined(__x86_64__)

#include "kernels/cpu/isa_avx512_common.h"
#include "kernels/cpu/isa_avx512_tiles.h"

NIBBLE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

namespace nibble::kernels::cpu {
namespace {

using Byte = std::byte;

/// The activation at p in every lane: a {1to16} memory operand.
inline __m512 Broadcast(const Byte* p) {
  float value;
  memcpy(&value, p, sizeof value);
  return _mm512_set1_ps(value);
}

void PackBf16(const float* x, int64_t groups, Byte* out) {
  for (int64_t i = 0; i < groups; ++i) {
    _mm512_storeu_si512(out + i * 64, RoundBf16(_mm512_loadu_ps(x + i * 16)));
  }
}

void PackNvfp4(const float* x, int64_t groups, float gscale, Byte* out) {
  for (int64_t i = 0; i < groups; ++i) {
    _mm512_storeu_ps(out + i * 64, QuantizeBlock(_mm512_loadu_ps(x + i * 16), gscale));
  }
}

void PackFp8(const float* x, int64_t groups, float scale, Byte* out) {
  for (int64_t i = 0; i < groups; ++i) {
    const __m512 value = QuantizeFp8Values(_mm512_loadu_ps(x + i * 16), _mm512_set1_ps(scale));
    _mm512_storeu_ps(out + i * 64, value);
  }
}

/// Codes are multiplied as they are; the sum of each group of 16 k meets its block scale at its
/// end.
template <int kTokens>
void DecodeNvfp4Tokens(const Byte* strip, const Byte* next, int64_t tiles, const Byte* const* x,
                       float global, float* y, int64_t ldy) {
  const Ahead<kNvfp4TileBytes> ahead(strip, tiles, next);
  // vpermps ignores all but index bits 3..0, so a nibble need not be masked.
  const __m512 table =
      _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6);
  const Byte* p[kTokens];
  __m512 sum[kTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    p[t] = x[t];
    sum[t] = _mm512_setzero_ps();
  }
  for (int64_t tile = 0; tile < tiles; ++tile, strip += kNvfp4TileBytes) {
    ahead.Fetch(strip, tile);
#pragma GCC unroll 4
    for (int group = 0; group < 4; ++group) {
      __m512 part[kTokens][2];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) part[t][0] = part[t][1] = _mm512_setzero_ps();
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i codes = _mm512_loadu_si512(strip + group * 128 + half * 64);
#pragma GCC unroll 8
        for (int n = 0; n < 8; ++n) {  // nibbles 0..3 are the even k, 4..7 the odd ones
          const __m512 w = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * n), table);
          const int k = group * 16 + half * 8 + 2 * (n % 4) + n / 4;
#pragma GCC unroll 4
          for (int t = 0; t < kTokens; ++t) {
            part[t][n % 2] =
                _mm512_fmadd_ps(w, Broadcast(p[t] + tile * 256 + k * 4), part[t][n % 2]);
          }
        }
      }
      const __m512 scale = LoadScales(strip + 512 + group * 16);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        sum[t] = _mm512_fmadd_ps(_mm512_add_ps(part[t][0], part[t][1]), scale, sum[t]);
      }
    }
  }
  const __m512 unit = _mm512_set1_ps(kScaleUnit), factor = _mm512_set1_ps(global);
#pragma GCC unroll 4
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
    for (int step = 0; step < 16; ++step) {
      __m512i w[2];
      LoadTwoPairs<kFormat>(strip, step, w);
#pragma GCC unroll 2
      for (int c = 0; c < kChains; c += 2) {
        const int pair = step * 2 + c / 2;
        const __m512 even = LowHalves(w[c / 2]), odd = HighHalves(w[c / 2]);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          const Byte* q = p[t] + tile * 256 + pair * 8;
          sum[t][c] = _mm512_fmadd_ps(even, Broadcast(q), sum[t][c]);
          sum[t][c + 1] = _mm512_fmadd_ps(odd, Broadcast(q + 4), sum[t][c + 1]);
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

/// kStrips x kTokens sums in registers: 3 x 8 leaves seven for the weights.
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
    __m512 v[kStrips];
#pragma GCC unroll 3
    for (int s = 0; s < kStrips; ++s) v[s] = LowHalves(_mm512_loadu_si512(w[s] + pair * 64));
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512 b = Broadcast(p[t] + pair * 8);
#pragma GCC unroll 3
      for (int s = 0; s < kStrips; ++s) sum[s][t] = _mm512_fmadd_ps(v[s], b, sum[s][t]);
    }
#pragma GCC unroll 3
    for (int s = 0; s < kStrips; ++s) v[s] = HighHalves(_mm512_loadu_si512(w[s] + pair * 64));
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512 b = Broadcast(p[t] + pair * 8 + 4);
#pragma GCC unroll 3
      for (int s = 0; s < kStrips; ++s) sum[s][t] = _mm512_fmadd_ps(v[s], b, sum[s][t]);
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

constexpr int kNvfp4Tokens = 4;

#include "kernels/cpu/isa_avx512_drivers.inc"

}  // namespace

const CpuKernels kAvx512Kernels = {
    .isa = CpuIsa::kAvx512,
    .nvfp4_panel_tokens = 12,
    .fp8_panel_tokens = 14,
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
