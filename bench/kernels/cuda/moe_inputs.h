#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda_moe_reference.h"
#include "device_buffer.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/tile_pack.h"
#include "layout/hopper_pack.h"

// What the checks and the timings give the kernels: weights, scales, routings.

namespace nibble::bench {

using cuda::Sm90Activation;
using cuda::Sm90MoeParams;
using cuda::Sm90MoeShape;
using cuda::Sm90Precision;

struct Kernel {
  const char* name;
  Result<void> (*launch)(const Sm90MoeParams&, cudaStream_t);
  size_t (*workspace)(const Sm90MoeShape&, int tokens);
  int (*max_tokens)(const Sm90MoeShape&);
  Result<void> (*hidden)(const Sm90MoeParams&, Bf16*, cudaStream_t);
};
extern const Kernel kKernels[3];

// --- weights: gate, up, down ---

struct Canonical {
  explicit Canonical(const Sm90MoeShape& s)
      : n(size_t(s.experts) * s.intermediate * s.hidden),
        bf16(s.weights == HopperFormat::kBf16),
        code_bytes(bf16 ? 2 * n : n / 2),
        codes{Buffer<uint8_t>(code_bytes), Buffer<uint8_t>(code_bytes),
              Buffer<uint8_t>(code_bytes)},
        scales{Buffer<uint8_t>(n / 16), Buffer<uint8_t>(n / 16), Buffer<uint8_t>(n / 16)},
        view{s,           codes[0].get(), ScalesOf(0), codes[1].get(),
             ScalesOf(1), codes[2].get(), ScalesOf(2)} {}
  uint8_t* ScalesOf(int i) const { return bf16 ? nullptr : scales[i].get(); }
  cuda::TilePackSource Source(int i) const {
    const size_t e = view.shape.experts;
    return {codes[i].get(), ScalesOf(i), code_bytes / e, n / e / 16};
  }
  size_t n;  // elements of a matrix of all experts
  bool bf16;
  size_t code_bytes;
  Buffer<uint8_t> codes[3], scales[3];
  CanonicalExperts view;
};

inline HopperLayout W13LayoutOf(const Sm90MoeShape& s) {
  return s.gated() ? HopperW13Layout(s.hidden, s.intermediate)
                   : HopperW1Layout(s.hidden, s.intermediate);
}

struct Packed {
  explicit Packed(const Sm90MoeShape& s)
      : w13(s.experts * W13LayoutOf(s).bytes(s.weights)),
        w2(s.experts * HopperW2Layout(s.hidden, s.intermediate).bytes(s.weights)) {}
  void Pack(const Canonical& c, cudaStream_t stream) {
    const Sm90MoeShape& s = c.view.shape;
    if (s.gated()) {
      Must(cuda::LaunchTilePackW13(c.Source(0), c.Source(1), s.experts, s.hidden, s.intermediate,
                                   w13.get(), stream));
    } else {
      Must(cuda::LaunchTilePackW1(c.Source(1), s.experts, s.hidden, s.intermediate, w13.get(),
                                  stream));
    }
    Must(
        cuda::LaunchTilePackW2(c.Source(2), s.experts, s.hidden, s.intermediate, w2.get(), stream));
  }
  Buffer<uint8_t> w13, w2;
};

// --- scales ---

/// Global scales that bring every stage to about 1, different for every expert, gate and up; gscales
/// as unequal as the shape's precision says; biases.
struct Scales {
  /// `tiny`: x is a thousandth, the inputs' scales and g2 are about 2e-5.
  Scales(const Sm90MoeShape& s, bool tiny) {
    const float x = tiny ? 1e-3f : 1.0f;
    std::vector<float> one, two, a_one, a_two, bias1, bias2;
    for (int e = 0; e < s.experts; ++e) {
      const float k = 0.3f / std::sqrt(float(s.hidden)) / x, spread = float(e % 7) / 7;
      if (s.gated()) one.push_back(k * (1.5f + 0.5f * spread));
      one.push_back(k * (1.3f - 0.6f * spread));
      two.push_back(0.4f / std::sqrt(float(s.intermediate)) * (0.8f + 0.5f * spread) * x);
      for (int i = 0; i < s.shards(); ++i) {
        const bool by_expert = s.precision >= Sm90Precision::kFp4Expert;
        const bool by_shard = s.precision == Sm90Precision::kFp4Shard;
        a_one.push_back(2688.0f / 49 / x * (by_expert ? 0.7f + float(e % 5) / 8 : 1.0f) *
                        (by_shard && i ? 0.61f : 1.0f));
      }
      a_two.push_back(2688.0f / 40 * (0.6f + float(e % 6) / 7));
    }
    std::mt19937 random(3);
    const auto value = [&] { return float(random() % 2001) / 1000 - 1; };
    bias1.resize(size_t(s.experts) * s.shards() * s.intermediate);
    bias2.resize(size_t(s.experts) * s.hidden);
    for (float& v : bias1) v = value();
    for (float& v : bias2) v = value() * x;
    g1 = Buffer<float>(one), g2 = Buffer<float>(two);
    a1 = Buffer<float>(a_one), a2 = Buffer<float>(a_two);
    b13 = Buffer<float>(bias1), b2 = Buffer<float>(bias2);
  }
  void Give(Sm90MoeParams& p, bool biases) const {
    const bool nvfp4 = p.shape.weights == HopperFormat::kNvfp4;
    p.g1 = nvfp4 ? g1.get() : nullptr, p.g2 = nvfp4 ? g2.get() : nullptr;
    const bool fp4 = p.shape.precision != Sm90Precision::kBf16;
    p.a1_gscale = fp4 ? a1.get() : nullptr, p.a2_gscale = fp4 ? a2.get() : nullptr;
    p.b13 = biases ? b13.get() : nullptr, p.b2 = biases ? b2.get() : nullptr;
  }
  Buffer<float> g1, g2, a1, a2, b13, b2;
};

// --- routing ---

enum class Routing { kUniform, kSkewed, kOneExpert, kWithInvalid };
const char* NameOf(Routing r);

struct Routes {
  Routes(const Sm90MoeShape& s, int tokens, Routing how, uint32_t seed);
  int Touched(int experts) const;
  std::vector<int32_t> ids_host;
  Buffer<int32_t> ids;
  Buffer<float> weights;
};

}  // namespace nibble::bench
