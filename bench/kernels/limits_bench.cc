// limits_bench [THREADS…]: the multiplications and additions that a core can do at most, with each
// instruction that a product of matrices could be made of: what a kernel's GFLOP/s are a share of.
// JSON lines, one an instruction and number of threads; instructions that the machine lacks are
// left out.
//
// Twelve sums in registers are more than these instructions' latency times their throughput.

#include <cstdlib>

#include "base/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/target.h"
#include "timing.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble::bench {
namespace {

constexpr int kSums = 12, kSteps = 20000, kBursts = 64;

using Burst = void (*)();

#if defined(__x86_64__)

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

#endif

struct Instruction {
  const char* name;
  Burst burst;
  int products;  // multiplications with their additions, an instruction
  bool present;
};

std::vector<Instruction> Instructions() {
#if defined(__x86_64__)
  using kernels::cpu::HasIsa;
  const bool avx512 = HasIsa(CpuIsa::kAvx512);
  return {{"fma_f32_ymm", FmaYmm, 8, HasIsa(CpuIsa::kAvx2)},
          {"fma_f32_zmm", FmaZmm, 16, avx512},
          {"vdpbf16ps_zmm", DotBf16Zmm, 32, HasIsa(CpuIsa::kAvx512Bf16)},
          {"vpdpbusd_zmm", DotInt8Zmm, 64, avx512 && __builtin_cpu_supports("avx512vnni")}};
#else
  return {};
#endif
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  using namespace nibble;
  std::vector<int> threads;
  for (int i = 1; i < argc; ++i) threads.push_back(std::max(1, std::atoi(argv[i])));
  if (threads.empty()) threads = {1, AvailableCores()};
  for (const int n : threads) {
    ThreadPool pool(n);
    for (const bench::Instruction& instruction : bench::Instructions()) {
      if (!instruction.present) continue;
      const double work =
          2.0 * instruction.products * bench::kSums * bench::kSteps * bench::kBursts;
      bench::Report(instruction.name, n, 25, work, "GFLOP/s", [&](int) {
        pool.RunEach(bench::kBursts, [&](int64_t, int) { instruction.burst(); });
      });
    }
  }
}
