#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "device_buffer.h"
#include "kernels/cuda/delta.h"

// Gated DeltaNet in double, row by row from its equations (kernels/operators.h), with a bound on
// what fp32 or TF32 arithmetic may differ from it by; and a stand that runs launches beside it.

namespace nibble::bench {

using cuda::DeltaSequence;
using kernels::DeltaShape;

/// What the inputs are like.
enum class DeltaKind {
  kPlain,
  kStrongDecay,  // e^g from 1 down to 0 within a few rows
  kLongMemory,   // e^g and beta near 1, and keys that are nearly parallel
};

/// Parameters of a layer, on the host and the device.
struct DeltaLayer {
  DeltaLayer(const DeltaShape& shape, DeltaKind kind, uint64_t seed);
  kernels::DeltaParameters Device() const;

  std::vector<float> conv, a_log, dt_bias, norm;
  Buffer<float> d_conv, d_a_log, d_dt_bias, d_norm;
};

/// Rows of the input projection, bf16.
std::vector<Bf16> DeltaInputs(const DeltaShape& shape, DeltaKind kind, int64_t rows, uint64_t seed);

/// One sequence in double. `unit` is the arithmetic's relative error of one operation on a row of
/// the state; the bound adds up those errors as the recurrence passes them on: I - beta k k^T
/// lengthens no error, and e^g shortens it.
class DeltaTruth {
 public:
  DeltaTruth(const DeltaShape& shape, const DeltaLayer& layer);

  /// The next rows: out [rows, out_width] and bound alike.
  void Run(const Bf16* in, int64_t rows, double unit, std::vector<double>& out,
           std::vector<double>& bound);

  std::vector<double> state;        // [v_heads][v_dim][k_dim]
  std::vector<double> state_error;  // [v_heads][v_dim]: of the rows' lengths

 private:
  void RunHead(int64_t head, const std::vector<double>& x, const Bf16* in, int64_t rows,
               double unit, double* out, double* bound);

  const DeltaShape shape_;
  const DeltaLayer& layer_;
  std::vector<double> history_;  // [taps-1][channels]
};

struct DeltaVerdict {
  bool ok = true;
  double worst = 0;                         // |y - truth| / bound
  double out = 0, rounding = 0, state = 0;  // relative L2; rounding: the truth's own, to bf16
  std::string why;
};

}  // namespace nibble::bench
