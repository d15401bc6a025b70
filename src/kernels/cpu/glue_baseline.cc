#include "kernels/cpu/glue.h"

namespace nibble::kernels::cpu {
namespace {
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueBaseline = kTable;
}  // namespace nibble::kernels::cpu
