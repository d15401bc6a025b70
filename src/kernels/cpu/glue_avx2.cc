#if defined(__x86_64__)

#include "kernels/cpu/glue.h"
#include "kernels/cpu/target.h"

NIBBLE_TARGET_BEGIN("avx2")
namespace nibble::kernels::cpu {
namespace {
constexpr int64_t kWideBytes = 32;
constexpr int kBlockRows = 4, kBlockWides = 2;
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueAvx2 = kTable;
}  // namespace nibble::kernels::cpu
NIBBLE_TARGET_END

#endif  // __x86_64__
