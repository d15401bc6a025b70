#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/linear_arrange.h"
#include "kernels/cuda/linear_shard.h"

// What every kernel of dense linears does with a shard: its formats, and where a sum goes.

namespace nibble::cuda::linear {

/// Whether x comes as value * 2^112.
__device__ __forceinline__ bool IsFp8(Sm90Input input) {
  return input != Sm90Input::kBf16 && input != Sm90Input::kNvfp4;
}

/// Calls what with the shard's weight format and whether FP8 weights are to be exact. kBlocks: whether
/// blocks of 128 are among them.
template <bool kBlocks, class F>
__device__ __forceinline__ void WithFormat(const Shard& shard, F what) {
  switch (shard.weight) {
    case Sm90Weight::kNvfp4:
      return what.template operator()<Sm90Weight::kNvfp4, true>();
    case Sm90Weight::kBf16:
      return what.template operator()<Sm90Weight::kBf16, true>();
    case Sm90Weight::kFp8Block128:
      if constexpr (kBlocks) {
        if (IsFp8(shard.format)) return what.template operator()<Sm90Weight::kFp8Block128, false>();
        return what.template operator()<Sm90Weight::kFp8Block128, true>();
      }
      return;
    default:
      if (IsFp8(shard.format)) return what.template operator()<Sm90Weight::kFp8, false>();
      return what.template operator()<Sm90Weight::kFp8, true>();
  }
}

/// What row `row` of a shard and token `token` are multiplied with.
__device__ __forceinline__ float RowScale(const Shard& shard, int row) {
  float scale = shard.scale;
  if (shard.weight == Sm90Weight::kFp8Channel)
    scale *= __ldg(shard.scales + min(row, shard.rows - 1));
  return scale;
}
__device__ __forceinline__ void StoreOne(const Output& out, const Shard& shard, int row, int token,
                                         int tokens, float v) {
  if (row >= shard.rows || token >= tokens) return;
  if (shard.format == Sm90Input::kFp8Token) v *= __ldg(out.token_scale + token);
  const int64_t at = token * out.ldy + shard.column + row;
  if (out.y != nullptr) {
    out.y[at] = __float2bfloat16(v);
  } else {
    out.y_f32[at] = v;
  }
}

}  // namespace nibble::cuda::linear
