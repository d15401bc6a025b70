#include "kernels/cpu/glue.h"

namespace nibble::kernels::cpu {
namespace {
constexpr int64_t kWideBytes = 16;
constexpr int kBlockRows = 4, kBlockWides = 2;
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueBaseline = kTable;
}  // namespace nibble::kernels::cpu
