#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "nibble/error.h"
#include "numerics/bf16.h"

namespace nibble::cuda {

inline constexpr int kRouteExperts = 512, kRouteHidden = 8192;  // at most

/// p = softmax over all experts of x W^T (bf16 operands, fp32 sums), the top_k largest by falling
/// weight, equal ones by lower index; divided by their sum if renormalize. With a shared expert every
/// token has a route more, the last, to expert `experts`: its weight is sigmoid(x w), w being the row
/// behind the experts'.
struct RouteParams {
  int tokens = 0;   // 1 .. 2^20
  int experts = 0;  // 1 .. 512
  int hidden = 0;   // a multiple of 8, to 8192
  int top_k = 0;    // 1 .. min(32, experts), with a shared expert 31
  bool renormalize = false;
  bool shared = false;
  const Bf16* x = nullptr;       // [tokens, hidden], 16-byte aligned
  const Bf16* weight = nullptr;  // [rows(), hidden], 16-byte aligned
  int32_t* ids = nullptr;        // [tokens, routes()]
  float* weights = nullptr;      // [tokens, routes()]
  // Zeroed once before its first launch; every launch leaves it so. 256-byte aligned. Launches that
  // may run at the same time need one each.
  std::byte* workspace = nullptr;
  size_t workspace_bytes = 0;

  constexpr int rows() const { return experts + (shared ? 1 : 0); }
  constexpr int routes() const { return top_k + (shared ? 1 : 0); }
};

/// Bytes of workspace for up to `tokens` tokens.
size_t RouteWorkspace(int tokens, int rows);

/// Up to this many tokens are one launch, in which a token's sums do not depend on the others'; with
/// more, two launches on tensor cores, whose sums run in another order (again the same for every
/// token).
inline constexpr int kRouteDecodeTokens = 16;

/// The weights are read before the kernel ahead has ended; all else after.
/// errors   kInvalidArgument (shapes, pointers, workspace), kDevice
Result<void> LaunchRoute(const RouteParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
