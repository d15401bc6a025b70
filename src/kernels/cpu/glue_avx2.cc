#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/cpu/glue.h"
#include "kernels/cpu/target.h"

NIBBLE_TARGET_BEGIN("avx2,fma")
namespace nibble::kernels::cpu {
namespace {
constexpr int64_t kWideBytes = 32;
constexpr int kBlockRows = 4, kBlockWides = 2;
constexpr int kTileRows = 6, kTileWides = 2;
typedef __m256 Native;
inline Native NativeSet(float x) { return _mm256_set1_ps(x); }
inline Native NativeMultiplyAdd(Native a, Native b, Native c) { return _mm256_fmadd_ps(a, b, c); }
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueAvx2 = kTable;
}  // namespace nibble::kernels::cpu
NIBBLE_TARGET_END

#endif  // __x86_64__
