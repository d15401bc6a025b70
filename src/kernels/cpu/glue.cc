#include "kernels/cpu/glue.h"

namespace nibble::kernels::cpu {

const GlueKernels& GlueFor(CpuIsa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      return kGlueAvx2;
    case CpuIsa::kAvx512:
      return kGlueAvx512;
    case CpuIsa::kAvx512Bf16:
      return kGlueAvx512Bf16;
#endif
    default:
      return kGlueBaseline;
  }
}

}  // namespace nibble::kernels::cpu
