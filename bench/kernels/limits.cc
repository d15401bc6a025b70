#include "limits.h"

#include "kernels/cpu/isa.h"
#include "kernels/cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble::bench {

#if defined(__x86_64__)

namespace {

// Twelve sums in registers are more than these instructions' latency times their throughput.
constexpr int kSums = 12, kSteps = 20000;

// kSteps times kSums instructions. The sums pass through an empty asm statement each step, so that
// nothing is folded or left out, and the loops over them are unrolled, so that they stay in
// registers.
#define BURST(Name, Vector, zero, multiply_add)                              \
  void Name() {                                                              \
    Vector sums[kSums];                                                      \
    _Pragma("GCC unroll 12") for (int k = 0; k < kSums; ++k) sums[k] = zero; \
    for (int i = 0; i < kSteps; ++i) {                                       \
      _Pragma("GCC unroll 12") for (int k = 0; k < kSums; ++k) {             \
        sums[k] = multiply_add;                                              \
        asm volatile("" : "+v"(sums[k]));                                    \
      }                                                                      \
    }                                                                        \
  }

NIBBLE_TARGET_BEGIN("avx2,fma")
BURST(FmaYmm, __m256, _mm256_setzero_ps(),
      _mm256_fmadd_ps(_mm256_set1_ps(1), _mm256_set1_ps(2), sums[k]))
NIBBLE_TARGET_END

NIBBLE_TARGET_BEGIN("avx512f")
BURST(FmaZmm, __m512, _mm512_setzero_ps(),
      _mm512_fmadd_ps(_mm512_set1_ps(1), _mm512_set1_ps(2), sums[k]))
NIBBLE_TARGET_END

NIBBLE_TARGET_BEGIN("avx512f,avx512bf16")
BURST(DotBf16Zmm, __m512, _mm512_setzero_ps(),
      _mm512_dpbf16_ps(sums[k], (__m512bh)_mm512_set1_epi32(0x3F803F80),
                       (__m512bh)_mm512_set1_epi32(0x40004000)))
NIBBLE_TARGET_END

NIBBLE_TARGET_BEGIN("avx512f,avx512vnni")
BURST(DotInt8Zmm, __m512i, _mm512_setzero_si512(),
      _mm512_dpbusd_epi32(sums[k], _mm512_set1_epi32(0x01010101), _mm512_set1_epi32(0x02020202)))
NIBBLE_TARGET_END

Limit Make(const char* name, void (*burst)(), int products, bool present) {
  return {name, burst, 2.0 * products * kSums * kSteps, present};
}

}  // namespace

std::vector<Limit> Limits() {
  using kernels::cpu::HasIsa;
  const bool avx512 = HasIsa(CpuIsa::kAvx512);
  return {Make("fma_f32_ymm", FmaYmm, 8, HasIsa(CpuIsa::kAvx2)),
          Make("fma_f32_zmm", FmaZmm, 16, avx512),
          Make("vdpbf16ps_zmm", DotBf16Zmm, 32, HasIsa(CpuIsa::kAvx512Bf16)),
          Make("vpdpbusd_zmm", DotInt8Zmm, 64, avx512 && __builtin_cpu_supports("avx512vnni"))};
}

#else

std::vector<Limit> Limits() { return {}; }

#endif

}  // namespace nibble::bench
