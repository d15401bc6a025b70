#include "kernels/cpu/cpu_kernels.h"

namespace nibble::kernels::cpu {

const CpuKernels& KernelsFor(CpuIsa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      return kAvx2Kernels;
    case CpuIsa::kAvx512:
      return kAvx512Kernels;
    case CpuIsa::kAvx512Bf16:
      return kAvx512Bf16Kernels;
#endif
    default:
      return kScalarKernels;
  }
}

}  // namespace nibble::kernels::cpu
