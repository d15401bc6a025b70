#include "kernels/cuda/sm90_launch.h"

#include <cmath>
#include <cstdint>

#include "base/error.h"
#include "kernels/cuda/cuda_check.h"

namespace nibble::cuda {
namespace {

/// What belongs to one precision, one format or one activation function, and to no other.
Result<void> CheckScalesAndLimit(const Sm90MoeParams& p) {
  const bool fp4 = p.shape.precision != Sm90Precision::kBf16;
  const bool nvfp4 = p.shape.weights == HopperFormat::kNvfp4;
  if ((!nvfp4 && p.shape.weights != HopperFormat::kBf16) || (!nvfp4 && fp4) ||
      (p.g1 != nullptr) != nvfp4 || (p.g2 != nullptr) != nvfp4) {
    return Err(ErrorCode::kInvalidArgument,
               "experts on a GPU: weights of format {}, activations in {}, g1 is {} and g2 is {}; "
               "NVFP4 has both scales, BF16 neither and bf16 activations",
               static_cast<int>(p.shape.weights), fp4 ? "NVFP4" : "bf16", p.g1 ? "given" : "null",
               p.g2 ? "given" : "null");
  }
  if ((p.a1_gscale != nullptr) != fp4 || (p.a2_gscale != nullptr) != fp4) {
    return Err(ErrorCode::kInvalidArgument,
               "experts on a GPU: activations in {}, but a1_gscale is {} and a2_gscale is {}; W4A4 "
               "needs both, W4A16 has neither",
               fp4 ? "NVFP4" : "bf16", p.a1_gscale ? "given" : "null",
               p.a2_gscale ? "given" : "null");
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

Result<void> CheckSm90Moe(const Sm90MoeParams& p, int max_tokens) {
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

bool Sm90MoeDecodeIsFaster(const Sm90MoeShape& shape, int tokens) {
  return tokens <= Sm90MoeDecodeMaxTokens(shape) &&
         static_cast<int64_t>(tokens) * shape.top_k <= 5 * static_cast<int64_t>(shape.experts);
}

}  // namespace nibble::cuda
