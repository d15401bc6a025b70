#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "layout/hopper_tile.h"
#include "nibble/error.h"
#include "numerics/bf16.h"

// The routed experts of one layer on Hopper (sm_90a), NVFP4 or BF16 weights; with FP8 weights, too, where
// moe_mma.h runs them:
//   y[t] = sum_k weight[t,k] * (down[e] act(gate[e] x[t] + b13, up[e] x[t] + b13) + b2[e]),
//   e = ids[t,k]
// Products are of bf16 activations and exact bf16 weights (code * block scale), accumulated in fp32;
// the global scales multiply the accumulator. Between the two multiplications the activation is
// rounded to bf16.
//
// W4A4 is the same with both activations quantized to NVFP4, block for block as QuantizeNvfp4Block
// <float> (numerics/nvfp4.h) does: x as given, h after its rounding to bf16. Code * block scale is
// exact in bf16, so the multiplications are the same, too, and lose nothing; 1 / gscale goes onto the
// accumulator.
//
// Results do not depend on the order in which blocks run: the same input gives the same bits. Nothing
// here allocates, synchronises or reads results back, so every launch can be captured in a CUDA graph.
//
// BF16 weights are multiplied as they are, with bf16 activations: there are no global scales.
//
// FP8 weights are e4m3 codes, exact in bf16, under scales of their tensor, rows or blocks; activations
// are bf16, or quantized bit for bit as QuantizeFp8<float> (numerics/fp8.h) does: x as given, h after its
// rounding to bf16. Both scales multiply fp32 sums.
//
// Two kernels read one packed form (layout/hopper_tile.h): decode, one persistent launch for few
// tokens, and prefill, a grouped GEMM over tokens sorted by expert.

namespace nibble::cuda {

/// Computed in fp32 from g and u, gate and up; both are first clamped, g to at most `limit` and u to
/// +-limit.
enum class Sm90Activation : uint8_t {
  kSilu,    // g sigmoid(g) u
  kSwiglu,  // g sigmoid(alpha g) (u + beta)
  kRelu2,   // max(u, 0)^2; there is no gate
};

/// Of the activations. The kinds of kFp4 say which of the layer's gscales of x are equal; those of FP8
/// under static scales likewise.
enum class Sm90Precision : uint8_t {
  kBf16,       // W4A16, W8A16, or BF16 weights
  kFp4Layer,   // W4A4, one gscale for all experts
  kFp4Expert,  // one for gate and up of an expert
  kFp4Shard,   // any; x is quantized and multiplied twice
  kFp8Layer,   // W8A8, static
  kFp8Expert,
  kFp8Shard,
  kFp8Token,  // W8A8, under a scale of its own a token
  kFp8Group,  // a token and 128 k
};
constexpr bool IsFp4(Sm90Precision p) {
  return p == Sm90Precision::kFp4Layer || p == Sm90Precision::kFp4Expert ||
         p == Sm90Precision::kFp4Shard;
}
constexpr bool IsStaticFp8(Sm90Precision p) {
  return p == Sm90Precision::kFp8Layer || p == Sm90Precision::kFp8Expert ||
         p == Sm90Precision::kFp8Shard;
}
constexpr bool IsDynamicFp8(Sm90Precision p) {
  return p == Sm90Precision::kFp8Token || p == Sm90Precision::kFp8Group;
}

/// What shares a scale of FP8 weights: g1 and g2, or w13_scales and w2_scales.
enum class Fp8Scales : uint8_t { kTensor, kChannel, kBlock128 };

struct Sm90MoeShape {
  int experts = 0;       // E, at most 1024
  int top_k = 0;         // K, at most 32
  int hidden = 0;        // H, a multiple of 16
  int intermediate = 0;  // I, a multiple of 16
  Sm90Activation activation = Sm90Activation::kSilu;
  Sm90Precision precision = Sm90Precision::kBf16;
  HopperFormat weights = HopperFormat::kNvfp4;
  Fp8Scales weight_scales = Fp8Scales::kTensor;  // FP8 weights'

  bool operator==(const Sm90MoeShape&) const = default;
  constexpr bool gated() const { return activation != Sm90Activation::kRelu2; }
  constexpr int shards() const { return gated() ? 2 : 1; }
};

/// Device pointers. The weights are 128-byte aligned, x and y 16-byte.
struct Sm90MoeParams {
  Sm90MoeShape shape;
  int tokens = 0;                  // T
  const Bf16* x = nullptr;         // [T, H]
  const int32_t* ids = nullptr;    // [T, K]; an id outside [0, E) is skipped
  const float* weights = nullptr;  // [T, K], the router's
  const uint8_t* w13 = nullptr;    // [E] HopperW13Layout(H, I), without a gate HopperW1Layout
  const uint8_t* w2 = nullptr;     // [E] HopperW2Layout(H, I)
  const float* g1 = nullptr;       // [E, shards]: NVFP4's global scales of gate and up, FP8's of a
                                   // tensor; else null
  const float* g2 = nullptr;       // [E]: of down, likewise
  Bf16* y = nullptr;               // [T, H], written whole; does not alias x
  std::byte* workspace = nullptr;  // 256-byte aligned, see below

  // W4A4 alone, else null: what an activation is multiplied with before its block scale is taken;
  // between 2^-100 and 2^100.
  const float* a1_gscale = nullptr;  // [E, shards]
  const float* a2_gscale = nullptr;  // [E]

  // FP8 weights by channel, [E, shards, I] and [E, H], and by block of 128 x 128,
  // [E, shards, ceil(I/128), ceil(H/128)] and [E, ceil(H/128), ceil(I/128)]; else null.
  const float *w13_scales = nullptr, *w2_scales = nullptr;
  // Static W8A8 alone, else null: between 2^-100 and 2^100.
  const float* a1_scale = nullptr;  // [E, shards]
  const float* a2_scale = nullptr;  // [E]

  // The activation function's. No limit is an infinite one; null biases are none.
  float alpha = 1, beta = 0, limit = std::numeric_limits<float>::infinity();
  const float* b13 = nullptr;  // [E, shards, I]
  const float* b2 = nullptr;   // [E, H]
};

/// Bytes of workspace for launches of this shape and up to `tokens` tokens. It is zeroed once, when it
/// is made, and every completed launch leaves it ready for the next. One launch at a time may use it;
/// after a launch that failed, zero it again.
size_t Sm90MoeDecodeWorkspace(const Sm90MoeShape& shape, int tokens);
size_t Sm90MoePrefillWorkspace(const Sm90MoeShape& shape, int tokens);

/// The largest number of tokens that the decode kernel takes for this shape; 0: none.
int Sm90MoeDecodeMaxTokens(const Sm90MoeShape& shape);

/// Which of the two kernels is faster: decode while the experts have few routes each. Measured on an
/// H200 (docs/performance.md): decode wins at 4 routes an expert, prefill at 8.
bool Sm90MoeDecodeIsFaster(const Sm90MoeShape& shape, int tokens);

/// One launch that streams the touched experts once per 8 routes. Needs the whole device's
/// multiprocessors at once (cooperative launch). Its blocks may start before the kernel ahead of it in
/// the stream has ended, and wait for that end (programmatic dependent launch). W4A4 of other shapes
/// than H 2048 and 4096, or with another activation than kSilu, quantizes x in a small launch ahead.
/// errors   kInvalidArgument (shape, pointers, tokens), kDevice
Result<void> LaunchSm90MoeDecode(const Sm90MoeParams& params, cudaStream_t stream);

/// Six launches: count and sort the routes by expert, scatter x, two GEMMs, sum over top-k.
/// errors   as above
Result<void> LaunchSm90MoePrefill(const Sm90MoeParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
