#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "nibble/error.h"
#include "numerics/bf16.h"

// The small operators between matrix products. Rows are contiguous and 16-byte aligned; columns are a
// multiple of 8, to kNormMaxCols where a row is summed over, else to 2^17. Arithmetic is fp32, bits of
// a row depend on that row alone. Kernels wait for the one ahead before they read or write, and let the
// next one start (and fetch its constants) before that. Only LaunchEmbed waits first: whatever follows
// it in a step starts when all earlier steps are done.
// errors of all launches   kInvalidArgument (shapes, pointers), kDevice

namespace nibble::cuda {

inline constexpr int kNormMaxCols = 8192;

enum class Element : uint8_t { kF32, kBf16 };

/// out[t, :] = table[ids[t], :], out fp32 or bf16; an id outside [0, table_rows) gives zeros.
struct EmbedParams {
  int rows = 0, cols = 0;
  int64_t table_rows = 0;
  const Bf16* table = nullptr;   // [table_rows, cols]
  const int32_t* ids = nullptr;  // device, [rows]
  void* out = nullptr;           // [rows, cols]
  Element out_element = Element::kF32;
};
Result<void> LaunchEmbed(const EmbedParams& params, cudaStream_t stream);

/// out = x / sqrt(mean(x^2) + eps) * weight, by rows. out may be x (same element).
struct RmsNormParams {
  int rows = 0, cols = 0;
  const void* x = nullptr;  // [rows, cols]
  Element x_element = Element::kF32;
  const float* weight = nullptr;  // device, [cols]
  float eps = 1e-6f;
  void* out = nullptr;
  Element out_element = Element::kBf16;
  int64_t out_stride =
      0;  // elements from row to row, a multiple of 8; 0: cols. (A norm that writes
          // half of a wider row saves a Concat.)
};
Result<void> LaunchRmsNorm(const RmsNormParams& params, cudaStream_t stream);

/// residual += y, or with a shared expert y + sigmoid(gate . x) * shared, the sum not rounded between;
/// then out = norm(residual) as above. Without out: the sum alone.
struct AddRmsNormParams {
  int rows = 0, cols = 0;
  float* residual = nullptr;  // [rows, cols]
  const Bf16* y = nullptr;    // [rows, cols]
  // A shared expert, all three or none.
  const Bf16* gate = nullptr;    // [cols]
  const Bf16* x = nullptr;       // [rows, cols]; may be out
  const Bf16* shared = nullptr;  // [rows, cols]
  // The norm that follows, both or none.
  const float* weight = nullptr;  // [cols]
  Bf16* out = nullptr;            // [rows, cols]
  float eps = 1e-6f;
};
Result<void> LaunchAddRmsNorm(const AddRmsNormParams& params, cudaStream_t stream);

/// y[t] += sigmoid(gate . x[t]) * shared[t], rounded to bf16 once.
struct AddSharedExpertParams {
  int rows = 0, cols = 0;
  const Bf16* gate = nullptr;                  // [cols]
  const Bf16 *x = nullptr, *shared = nullptr;  // [rows, cols]
  Bf16* y = nullptr;                           // [rows, cols]
};
Result<void> LaunchAddSharedExpert(const AddSharedExpertParams& params, cudaStream_t stream);

/// out[t] = silu(gate_up[t, :cols]) * gate_up[t, cols:]
struct SiluMulParams {
  int rows = 0, cols = 0;
  const Bf16* gate_up = nullptr;  // [rows, 2 cols]
  Bf16* out = nullptr;            // [rows, cols]
};
Result<void> LaunchSiluMul(const SiluMulParams& params, cudaStream_t stream);

/// out[t] = a[t] | b[t]
struct ConcatParams {
  int rows = 0, a_cols = 0, b_cols = 0;
  const Bf16 *a = nullptr, *b = nullptr;
  Bf16* out = nullptr;  // [rows, a_cols + b_cols]
};
Result<void> LaunchConcat(const ConcatParams& params, cudaStream_t stream);

/// Row index[i] of x becomes row i of out. Rows of `row_bytes`, a multiple of 16.
struct GatherRowsParams {
  int rows = 0;  // of out
  int64_t row_bytes = 0;
  const void* x = nullptr;
  const int32_t* index = nullptr;  // device, [rows]
  void* out = nullptr;
};
Result<void> LaunchGatherRows(const GatherRowsParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
