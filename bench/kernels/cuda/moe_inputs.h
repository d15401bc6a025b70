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

using cuda::Fp8Scales;
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
  Result<void> (*hidden_scales)(const Sm90MoeParams&, float*, cudaStream_t);  // dynamic W8A8's
};
extern const Kernel kKernels[4];

// --- weights: gate, up, down ---

struct Canonical {
  explicit Canonical(const Sm90MoeShape& s)
      : n(size_t(s.experts) * s.intermediate * s.hidden),
        format(s.weights),
        code_bytes(format == HopperFormat::kNvfp4 ? n / 2
                   : format == HopperFormat::kFp8 ? n
                                                  : 2 * n),
        codes{Buffer<uint8_t>(code_bytes), Buffer<uint8_t>(code_bytes),
              Buffer<uint8_t>(code_bytes)},
        scales{Buffer<uint8_t>(n / 16), Buffer<uint8_t>(n / 16), Buffer<uint8_t>(n / 16)},
        view{s,           codes[0].get(), ScalesOf(0), codes[1].get(),
             ScalesOf(1), codes[2].get(), ScalesOf(2)} {}
  uint8_t* ScalesOf(int i) const {
    return format == HopperFormat::kNvfp4 ? scales[i].get() : nullptr;
  }
  cuda::TilePackSource Source(int i) const {
    const size_t e = view.shape.experts;
    return {codes[i].get(), ScalesOf(i), code_bytes / e, n / e / 16, 1, format};
  }
  size_t n;  // elements of a matrix of all experts
  HopperFormat format;
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

/// Scales that bring every stage to about 1, different for every expert, gate and up; those of x as
/// unequal as the shape's precision says; biases.
struct Scales {
  /// `tiny`: x is a thousandth, the inputs' scales and g2 are about 2e-5.
  Scales(const Sm90MoeShape& s, bool tiny) {
    const float x = tiny ? 1e-3f : 1.0f;
    const bool fp8 = s.weights == HopperFormat::kFp8;
    const float codes = fp8 ? 106.0f / 3 : 1.0f;  // how much larger e4m3's are, whatever they mean
    std::vector<float> one, two, a_one, a_two, bias1, bias2;
    for (int e = 0; e < s.experts; ++e) {
      const float k = 0.3f / std::sqrt(float(s.hidden)) / x / codes, spread = float(e % 7) / 7;
      if (s.gated()) one.push_back(k * (1.5f + 0.5f * spread));
      one.push_back(k * (1.3f - 0.6f * spread));
      two.push_back(0.4f / std::sqrt(float(s.intermediate)) * (0.8f + 0.5f * spread) * x / codes);
      for (int i = 0; i < s.shards(); ++i) {
        const bool by_shard =
            s.precision == Sm90Precision::kFp4Shard || s.precision == Sm90Precision::kFp8Shard;
        const bool by_expert = by_shard || s.precision == Sm90Precision::kFp4Expert ||
                               s.precision == Sm90Precision::kFp8Expert;
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
    if (fp8) {
      // An NVFP4 gscale brings 2688 to where an FP8 scale has 448.
      for (float& v : a_one) v = 6 / v;
      for (float& v : a_two) v = 6 / v;
      w13 = Buffer<float>(Parts(s, one, s.intermediate, s.hidden, random));
      w2 = Buffer<float>(Parts(s, two, s.hidden, s.intermediate, random));
    }
    g1 = Buffer<float>(one), g2 = Buffer<float>(two);
    a1 = Buffer<float>(a_one), a2 = Buffer<float>(a_two);
    b13 = Buffer<float>(bias1), b2 = Buffer<float>(bias2);
  }
  /// What rows or blocks of [n, k] matrices have, about as large as the matrix's; one in 16 is zero.
  static std::vector<float> Parts(const Sm90MoeShape& s, const std::vector<float>& of, int n, int k,
                                  std::mt19937& random) {
    const auto blocks = [](int count) { return size_t(count + 127) / 128; };
    const size_t parts = s.weight_scales == Fp8Scales::kChannel ? size_t(n) : blocks(n) * blocks(k);
    std::vector<float> out;
    for (float all : of) {
      for (size_t i = 0; i < parts; ++i) {
        out.push_back(random() % 16 == 0 ? 0 : all * (0.5f + float(random() % 1000) / 1000));
      }
    }
    return out;
  }
  void Give(Sm90MoeParams& p, bool biases) const {
    const bool fp8 = p.shape.weights == HopperFormat::kFp8;
    const bool parts = fp8 && p.shape.weight_scales != Fp8Scales::kTensor;
    const bool all = !parts && p.shape.weights != HopperFormat::kBf16;
    p.g1 = all ? g1.get() : nullptr, p.g2 = all ? g2.get() : nullptr;
    p.w13_scales = parts ? w13.get() : nullptr, p.w2_scales = parts ? w2.get() : nullptr;
    const bool fp4 = IsFp4(p.shape.precision), fixed = IsStaticFp8(p.shape.precision);
    p.a1_gscale = fp4 ? a1.get() : nullptr, p.a2_gscale = fp4 ? a2.get() : nullptr;
    p.a1_scale = fixed ? a1.get() : nullptr, p.a2_scale = fixed ? a2.get() : nullptr;
    p.b13 = biases ? b13.get() : nullptr, p.b2 = biases ? b2.get() : nullptr;
  }
  Buffer<float> g1, g2, w13, w2, a1, a2, b13, b2;
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
