#include "kernels/cuda/sm90_launch.h"

#include <cmath>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "kernels/cuda/cuda_check.h"

namespace nibble::cuda {
namespace {

std::string_view NameOf(HopperFormat weights) {
  if (weights == HopperFormat::kNvfp4) return "NVFP4";
  return weights == HopperFormat::kFp8 ? "FP8" : "BF16";
}
std::string_view NameOf(Sm90Precision activations) {
  if (activations == Sm90Precision::kBf16) return "bf16";
  return IsFp4(activations) ? "NVFP4" : "FP8";
}

/// Which pairs of formats there are.
bool AreServed(const Sm90MoeShape& s) {
  const bool blocks = s.weight_scales == Fp8Scales::kBlock128;
  switch (s.weights) {
    case HopperFormat::kNvfp4:
      return s.precision == Sm90Precision::kBf16 || IsFp4(s.precision);
    case HopperFormat::kBf16:
      return s.precision == Sm90Precision::kBf16;
    case HopperFormat::kFp8:
      return s.precision == Sm90Precision::kBf16 ||
             (blocks ? s.precision == Sm90Precision::kFp8Group
                     : s.precision == Sm90Precision::kFp8Token || IsStaticFp8(s.precision));
  }
  return false;
}

/// What belongs to one precision, one format or one activation function, and to no other.
Result<void> CheckScalesAndLimit(const Sm90MoeParams& p) {
  const Sm90MoeShape& s = p.shape;
  if (!AreServed(s)) {
    return Err(ErrorCode::kInvalidArgument,
               "experts on a GPU: {} weights with {} activations ({}); expected bf16 activations, "
               "NVFP4 ones of NVFP4 weights, or FP8 ones of FP8 weights, by groups of 128 if the "
               "weights' scales are by block and else not",
               NameOf(s.weights), NameOf(s.precision), static_cast<int>(s.precision));
  }
  const bool nvfp4 = s.weights == HopperFormat::kNvfp4, fp8 = s.weights == HopperFormat::kFp8;
  const bool all = nvfp4 || (fp8 && s.weight_scales == Fp8Scales::kTensor);
  const bool parts = fp8 && s.weight_scales != Fp8Scales::kTensor;
  const bool fp4_input = IsFp4(s.precision), fp8_input = IsStaticFp8(s.precision);
  const struct {
    const char* name;
    const float* given;
    bool wanted;
  } scales[] = {
      {"g1", p.g1, all},
      {"g2", p.g2, all},
      {"w13_scales", p.w13_scales, parts},
      {"w2_scales", p.w2_scales, parts},
      {"a1_gscale", p.a1_gscale, fp4_input},
      {"a2_gscale", p.a2_gscale, fp4_input},
      {"a1_scale", p.a1_scale, fp8_input},
      {"a2_scale", p.a2_scale, fp8_input},
  };
  for (const auto& scale : scales) {
    if ((scale.given != nullptr) == scale.wanted) continue;
    return Err(ErrorCode::kInvalidArgument,
               "experts on a GPU: {} weights with {} activations, and {} is {}; expected it {}",
               NameOf(s.weights), NameOf(s.precision), scale.name,
               scale.given != nullptr ? "given" : "null", scale.wanted ? "given" : "null");
  }
  if (!(p.limit > 0) || !std::isfinite(p.alpha) || !std::isfinite(p.beta)) {
    return Err(ErrorCode::kInvalidArgument,
               "experts on a GPU: limit {}, alpha {}, beta {}; expected a limit above 0 (infinite: "
               "none) and finite numbers",
               p.limit, p.alpha, p.beta);
  }
  return {};
}

bool Aligned(const void* p, uintptr_t unit) {
  return p != nullptr && reinterpret_cast<uintptr_t>(p) % unit == 0;
}

}  // namespace

Result<int> MultiprocessorCount() {
  int device = 0, count = 0;
  NIBBLE_CUDA_TRY(cudaGetDevice(&device));
  NIBBLE_CUDA_TRY(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

Result<void> CheckMoe(const Sm90MoeParams& p, int max_tokens) {
  const Sm90MoeShape& s = p.shape;
  if (s.experts < 1 || s.experts > 1024 || s.top_k < 1 || s.top_k > 32 || s.hidden < 16 ||
      s.hidden % 16 != 0 || s.intermediate < 16 || s.intermediate % 16 != 0) {
    return Err(
        ErrorCode::kInvalidArgument,
        "experts on a GPU: E={} top_k={} H={} I={}, expected E 1..1024, top_k 1..32, H and I "
        "multiples of 16",
        s.experts, s.top_k, s.hidden, s.intermediate);
  }
  if (p.tokens < 1 || p.tokens > max_tokens) {
    return Err(ErrorCode::kInvalidArgument, "experts on a GPU: {} tokens, this kernel takes 1..{}",
               p.tokens, max_tokens);
  }
  if (!Aligned(p.x, 16) || !Aligned(p.y, 16) || !Aligned(p.w13, 128) || !Aligned(p.w2, 128) ||
      !Aligned(p.workspace, 256) || !Aligned(p.ids, 4) || !Aligned(p.weights, 4) ||
      (p.g1 != nullptr && !Aligned(p.g1, 4 * s.shards()))) {
    return Err(ErrorCode::kInvalidArgument,
               "experts on a GPU: a device pointer is null or not aligned (x, y 16; w13, w2 128; "
               "workspace 256; g1 8 bytes, without a gate 4)");
  }
  return CheckScalesAndLimit(p);
}

Result<void> CheckSm90Moe(const Sm90MoeParams& p, int max_tokens) {
  if (p.shape.weights == HopperFormat::kFp8) {
    return Err(ErrorCode::kInvalidArgument,
               "experts on a GPU: FP8 weights, this kernel takes NVFP4 and BF16; the one with "
               "mma.sync takes them");
  }
  return CheckMoe(p, max_tokens);
}

bool Sm90MoeDecodeIsFaster(const Sm90MoeShape& shape, int tokens) {
  return tokens <= Sm90MoeDecodeMaxTokens(shape) &&
         static_cast<int64_t>(tokens) * shape.top_k <= 5 * static_cast<int64_t>(shape.experts);
}

}  // namespace nibble::cuda
