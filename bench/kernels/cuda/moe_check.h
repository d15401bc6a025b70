#pragma once

#include <string>
#include <vector>

#include "moe_inputs.h"

namespace nibble::bench {

/// How one launch's results compare with the layer in double.
struct Verdict {
  bool ok = true;
  double rel_l2 = 0, worst = 0;  // worst: of |y - reference| / bound
  int64_t codes = 0;             // W4A4, W8A8: elements of h whose code was compared
  int64_t excused = 0;           // of them, not the reference's, but next to a rounding boundary
  std::string why;               // of a failure, the first
};

/// Runs the kernel on poisoned memory, `repeats` times for its bits, and compares up to 48 tokens.
///
/// W4A4: x is quantized on the host by QuantizeNvfp4Block<float>, so its codes must be the kernel's.
/// The kernel's own h is read back and every code compared with that of the h in double; it may
/// differ where that h, or what its block's scale is made from, lies within 2^-7 of a rounding
/// boundary. y is then compared with what follows from the kernel's own codes.
///
/// W8A8 likewise, by QuantizeFp8<float>; a code of h is one of an h within the bounds of the truth, under
/// the kernel's own scale, which must follow from such an h, too.
Verdict Check(const Kernel& kernel, const Canonical& canonical, Sm90MoeParams params,
              const std::vector<int32_t>& ids, int repeats, cudaStream_t stream);

/// The prologues' arithmetic against QuantizeNvfp4Block<float>, on ordinary and on odd numbers. The
/// number of blocks that differ.
int CheckQuantization(cudaStream_t stream);

/// That launches refuse what they cannot do right: shapes, scales of another precision, numbers that
/// are none. The number that were not refused, or not as the caller's mistake.
int CheckRefusals();

/// The GPU's packing against the host's, byte for byte, for one expert; and, with a gate, from a
/// matrix whose rows alternate.
bool CheckPacking(const Canonical& canonical, const Packed& packed, int expert,
                  cudaStream_t stream);

}  // namespace nibble::bench
