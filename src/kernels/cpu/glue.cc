#include "kernels/cpu/glue.h"

namespace nibble::kernels::cpu {

const GlueKernels& GlueFor(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return kGlueBaseline;
    case CpuIsa::kAvx2:
      return kGlueAvx2;
    case CpuIsa::kAvx512:
    case CpuIsa::kAvx512Bf16:
      return kGlueAvx512;
  }
  return kGlueBaseline;
}

}  // namespace nibble::kernels::cpu
