#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/delta.h"

// What the kernels of gated DeltaNet are given. Plain C++.

namespace nibble::cuda::delta {

/// Rows of a state's head that make a slice: a block's share in decode, and the unit in which the
/// squares under the output norm are summed.
inline constexpr int kSliceRows = 32;
inline constexpr int kMaxTaps = 4;
inline constexpr int kMaxGroup = 8;  // value heads of a key head

struct Args {
  const DeltaSequence* sequences;
  const Bf16* in;
  Bf16* out;
  float* state;
  Bf16* ring;
  const float *conv, *a_log, *dt_bias, *norm;  // conv [taps][channels]
  int n_sequences, slots;
  int k_heads, v_heads, k_dim, v_dim, taps, decode_rows;
  int channels, in_width, ring_rows, ring_width;
  float norm_eps;
  bool fold_only;  // decode: run the kept rows into the state, and nothing else
};

/// The launch functions' arguments, checked. errors kInvalidArgument
Result<Args> CheckedArgs(const DeltaParams& params);

/// The error of a prefill launch whose workspace does not do. kInvalidArgument
Error RefuseWorkspace(const DeltaParams& params, int64_t chunks);
/// How decode runs: slices of a head in a cluster, or the head in one block; and whether as a
/// programmatic dependent launch. The bits are the same.
struct DecodeForm {
  bool clusters, dependent;
};
/// What the device's code holds, and is best. errors kDevice
Result<DecodeForm> DecodeFormFor(const Args& args);
/// Of arguments that are checked. With fold_only it leaves every slot with the state of position
/// `start`. errors kDevice
Result<void> LaunchDecode(const Args& args, DecodeForm form, cudaStream_t stream);

}  // namespace nibble::cuda::delta
