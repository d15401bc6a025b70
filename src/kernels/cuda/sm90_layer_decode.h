#pragma once

#include <cuda_runtime_api.h>

#include <optional>
#include <span>

#include "kernels/cuda/delta.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/sm90_linear.h"
#include "kernels/cuda/sm90_moe.h"

namespace nibble::cuda {

inline constexpr int kSm90LayerHidden = 2048;  // of the models it is for
inline constexpr int kSm90LayersAtOnce = 4;    // in one launch

/// What lies between two mixers (attention, DeltaNet) of one token, in one launch on Hopper:
///
///   y = out(attended); residual += y; normed = norm(residual) * mid_weight
///   y = experts(normed), routed to by softmax(router normed); residual += y
///   normed = norm(residual) * next_weight; in(normed)
///
/// the same as LaunchSm90LinearDecode, LaunchAddRmsNorm, LaunchRoute, LaunchSm90MoeDecode,
/// LaunchAddRmsNorm and LaunchSm90LinearDecode one after the other, in the same precision (sums of norms
/// and of weights run in another order). What is saved is that each waits for the one ahead to leave the
/// multiprocessors: here weights are asked for while the step before them is still under way.
///
/// A launch may go on through a DeltaNet, as LaunchDeltaDecode, to the next of these.
struct Sm90LayerParams {
  std::optional<DeltaParams> delta;    // the mixer, from the layer before in the same launch
  Sm90LinearParams out;                // x: attended; y, nobody's before and after, is not used
  float* residual = nullptr;           // [2048]
  const float* mid_weight = nullptr;   // [2048]
  RouteParams route;                   // x, ids, weights and workspace are not used
  Sm90MoeParams experts;               // x, ids, weights and y are not used
  const float* next_weight = nullptr;  // [2048]
  Bf16* normed = nullptr;              // [2048], of next_weight
  bool has_in = false;
  Sm90LinearParams in;  // x is not used
  float eps = 1e-6f;
};

/// Bytes of a launch's workspace: zeroed once, every completed launch leaves it fit for the next one of
/// the same shape. 256-byte aligned.
size_t Sm90LayerWorkspace(const Sm90MoeShape& shape);

/// Whether the launch takes these shapes and formats on this device: H 2048, one token, NVFP4 experts with
/// silu and neither bias nor clamp, weights that are renormalized, and matrices that fit.
bool Sm90LayerFits(const Sm90LayerParams& params);
/// Whether one launch can go on from `before` to this: one row, one sequence, heads of 128, whose in and
/// out are the projections' own, and layers alike in all but their weights. Both fit.
bool Sm90LayerFollows(const Sm90LayerParams& params, const Sm90LayerParams& before);

/// Needs the whole device's multiprocessors at once (cooperative launch). Weights are asked for before
/// the kernel ahead has ended, all else after.
/// errors   kInvalidArgument (shapes, pointers), kDevice
Result<void> LaunchSm90LayerDecode(std::span<const Sm90LayerParams> layers, std::byte* workspace,
                                   cudaStream_t stream);

}  // namespace nibble::cuda
