#include "kernels/cpu/glue.h"

namespace nibble::kernels::cpu {
namespace {
constexpr int64_t kWideBytes = 16;
constexpr int kBlockRows = 4, kBlockWides = 2;
constexpr int kTileRows = 4, kTileWides = 2;
typedef float Native __attribute__((vector_size(16)));
inline Native NativeSet(float x) { return Native{x, x, x, x}; }
inline Native NativeMultiplyAdd(Native a, Native b, Native c) { return a * b + c; }
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueBaseline = kTable;
}  // namespace nibble::kernels::cpu
