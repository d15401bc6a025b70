#include "kernels/cpu/glue.h"

#pragma GCC push_options
#pragma GCC target("avx2")
namespace nibble::kernels::cpu {
namespace {
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueAvx2 = kTable;
}  // namespace nibble::kernels::cpu
#pragma GCC pop_options
