#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/cpu/glue.h"
#include "kernels/cpu/target.h"

NIBBLE_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq")
namespace nibble::kernels::cpu {
namespace {
constexpr int64_t kWideBytes = 64;
constexpr int kBlockRows = 8, kBlockWides = 2;
constexpr int kTileRows = 12, kTileWides = 2;
typedef __m512 Native;
inline Native NativeSet(float x) { return _mm512_set1_ps(x); }
inline Native NativeMultiplyAdd(Native a, Native b, Native c) { return _mm512_fmadd_ps(a, b, c); }
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueAvx512 = kTable;
}  // namespace nibble::kernels::cpu
NIBBLE_TARGET_END

#endif  // __x86_64__
