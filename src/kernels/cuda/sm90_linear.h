#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "layout/hopper_tile.h"
#include "nibble/error.h"
#include "numerics/bf16.h"

// Dense linears on Hopper (sm_90a): y[t, :] = the shards' x[t] W^T side by side, in one launch. Shards
// share x and nothing else: each has its weight format, its scales and its own idea of how x is
// quantized.
//
// Products are of bf16 operands that hold the formats' numbers exactly (NVFP4: code * block scale,
// FP8: code), accumulated in fp32; what is left of the scales multiplies the accumulator. x is
// quantized bit for bit as QuantizeNvfp4Block<float> and QuantizeFp8<float> do (numerics/).
//
// Results do not depend on the order in which blocks run. Nothing here allocates, synchronises or
// reads results back, so every launch can be captured in a CUDA graph.

namespace nibble::cuda {

enum class Sm90Weight : uint8_t {
  kNvfp4,        // under `scale`
  kFp8,          // under `scale`
  kFp8Channel,   // a scale a row
  kFp8Block128,  // a scale a block of 128 x 128
  kBf16,
};

enum class Sm90Input : uint8_t {
  kBf16,      // x as it is
  kNvfp4,     // blocks of 16 under the global scale `input_scale`
  kFp8,       // under `input_scale`
  kFp8Token,  // under a scale of its own a token
  kFp8Group,  // a token and 128 k
};

struct Sm90LinearShard {
  Sm90Weight weight = Sm90Weight::kBf16;
  Sm90Input input = Sm90Input::kBf16;
  int n = 0;                         // rows of W, columns of y
  const uint8_t* weights = nullptr;  // HopperLinearLayout(n, k) of the format, 128-byte aligned
  float scale = 1;                   // multiplies: NVFP4's global, FP8's per tensor; else 1
  const float* scales =
      nullptr;            // device: kFp8Channel [n], kFp8Block128 [ceil(n/128), ceil(k/128)]
  float input_scale = 0;  // kNvfp4 and kFp8: 2^-100 .. 2^100; else 0
};

inline constexpr int kSm90LinearShards = 8;

struct Sm90LinearParams {
  int tokens = 0;           // T
  int k = 0;                // a multiple of 16
  const Bf16* x = nullptr;  // [T, k], 16-byte aligned
  int shards = 0;
  Sm90LinearShard shard[kSm90LinearShards];
  Bf16* y = nullptr;               // [T, ldy], of which the shards' columns are written; or
  float* y_f32 = nullptr;          // the same, not rounded to bf16: exactly one of both is given
  int64_t ldy = 0;                 // elements from one token to the next, at least the sum of n
  std::byte* workspace = nullptr;  // 256-byte aligned; decode needs none
  size_t workspace_bytes = 0;
};

/// The largest number of tokens that LaunchSm90LinearDecode takes.
inline constexpr int kSm90LinearDecodeTokens = 16;

/// For few tokens: streams the weights once. Weights are constants: they are asked for before the
/// kernel ahead in the stream has ended, x is not (programmatic dependent launch).
/// errors   kInvalidArgument (shapes, pointers, scales), kDevice
Result<void> LaunchSm90LinearDecode(const Sm90LinearParams& params, cudaStream_t stream);

/// Bytes of workspace for one launch of these shards and tokens. Nothing is expected of its contents.
size_t Sm90LinearPrefillWorkspace(const Sm90LinearParams& params);

/// For many tokens, any number up to 2^20: two or three launches. Needs workspace.
/// errors   as above
Result<void> LaunchSm90LinearPrefill(const Sm90LinearParams& params, cudaStream_t stream);

constexpr HopperFormat FormatOf(Sm90Weight weight) {
  if (weight == Sm90Weight::kNvfp4) return HopperFormat::kNvfp4;
  return weight == Sm90Weight::kBf16 ? HopperFormat::kBf16 : HopperFormat::kFp8;
}

}  // namespace nibble::cuda
