#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/sm90_moe.h"

// The activation functions between the two multiplications, as policies. kSilu is what most models
// need and has no parameters and no biases; kSwiglu has them all and serves every gated function.

namespace nibble::cuda {

enum class Activate : uint8_t { kSilu, kSwiglu, kRelu2 };
constexpr bool IsGated(Activate kind) { return kind != Activate::kRelu2; }

/// Parameters of kSwiglu and kRelu2. limit is infinite where the model has none.
struct ActivationArgs {
  float alpha, beta, limit;
  const float* bias;  // [E][shards][features], may be null
  int features;       // I, without padding
};

/// The policy for a launch: silu with a limit or biases is a swiglu with alpha 1 and beta 0.
inline Activate ActivateOf(const Sm90MoeParams& p) {
  if (!p.shape.gated()) return Activate::kRelu2;
  const bool plain = p.shape.activation == Sm90Activation::kSilu && std::isinf(p.limit) &&
                     p.b13 == nullptr && p.b2 == nullptr;
  return plain ? Activate::kSilu : Activate::kSwiglu;
}
inline ActivationArgs ActivationOf(const Sm90MoeParams& p) {
  const bool silu = p.shape.activation == Sm90Activation::kSilu;
  return {silu ? 1.0f : p.alpha, silu ? 0.0f : p.beta, p.limit, p.b13, p.shape.intermediate};
}

/// What a feature's gate and up get added, before anything else; 0 past the last feature.
struct Biases {
  float gate = 0, up = 0;
};
template <Activate kKind>
__device__ __forceinline__ Biases BiasesOf(const ActivationArgs& a, int expert, int feature) {
  Biases b;
  if constexpr (kKind != Activate::kSilu) {
    if (a.bias == nullptr || feature >= a.features) return b;
    const float* from = a.bias + static_cast<int64_t>(expert) * a.features * (IsGated(kKind) + 1);
    if constexpr (IsGated(kKind)) {
      b.gate = __ldg(from + feature);
      from += a.features;
    }
    b.up = __ldg(from + feature);
  }
  return b;
}

__device__ __forceinline__ float ClampUp(float v, float limit) {
  return fmaxf(fminf(v, limit), -limit);
}

/// The additions are not to be contracted with the products before them: a compiler that does so for some
/// columns of a tile and not for others gives a route other bits in another column.
template <Activate kKind>
__device__ __forceinline__ float Apply(const ActivationArgs& a, const Biases& b, float gate,
                                       float up) {
  if constexpr (kKind == Activate::kSilu) {
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
  } else if constexpr (kKind == Activate::kSwiglu) {
    gate = fminf(__fadd_rn(gate, b.gate), a.limit);
    up = ClampUp(__fadd_rn(up, b.up), a.limit);
    return __fdividef(gate, 1.0f + __expf(-a.alpha * gate)) * (up + a.beta);
  } else {
    up = fmaxf(ClampUp(__fadd_rn(up, b.up), a.limit), 0.0f);
    return up * up;
  }
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

}  // namespace nibble::cuda
