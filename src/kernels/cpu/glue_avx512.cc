#include "kernels/cpu/glue.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
namespace nibble::kernels::cpu {
namespace {
#include "kernels/cpu/glue_body.h"
}  // namespace
extern const GlueKernels kGlueAvx512 = kTable;
}  // namespace nibble::kernels::cpu
#pragma GCC pop_options
