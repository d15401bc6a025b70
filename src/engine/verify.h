#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "kernels/operators.h"
#include "plan/plan.h"
#include "weights/model_weights.h"

namespace nibble::engine {

/// A precision that activations may have had when they were multiplied, from the highest down.
enum class Measured : uint8_t { kBf16, kFp8, kInt8, kFp4 };
std::string_view NameOf(Measured precision);  // "bf16", "fp8", "int8", "fp4"

/// What one layer's expert kernel was seen to do.
struct LayerProof {
  int layer = 0;  // the MTP module's is the number of layers
  std::string_view module, kernel;
  ActivationPrecision declared = ActivationPrecision::kBf16;
  Measured measured = Measured::kBf16;  // the lower of the two multiplications'
  Measured first = Measured::kBf16, second = Measured::kBf16;
  double distance =
      0;  // relative L2 of the kernel's output to the measured precision's expected output
  double margin = 0;  // distance to the next precision's expected output / distance to its own
  bool agrees() const;
};

/// Proves the plan by its results: runs every layer's expert kernel, through the operators and the
/// very weights that a forward pass uses, on activations that each precision spoils in its own way,
/// and finds out from the output which one ran.
///
/// The probe, by blocks of 16: a and fifteen of 0.03a (FP4 flushes the small ones); a and fifteen
/// of 0.003a (int8 with a scale a 32 flushes them, and so does FP4); sixteen of 1.0625a (e4m3
/// rounds them by 6 %). a is half the layer's calibrated amax, or 1. Expected outputs are
/// REFERENCE's, in double, from the checkpoint's own tensors, for all 16 ways to give the inputs of
/// the two multiplications one of: bf16; e4m3 under the layer's static scales, or dynamic ones of
/// the declared group (a row, where FP8 is not declared); int8 with one scale a 32; NVFP4 under the
/// layer's activation scales (without any: those that calibration on the probe would give). A
/// shortcut in one multiplication alone is thus found too.
///
/// `weights` is what `operators` run; it was made by `plan` from `checkpoint`.
/// errors  those of reading the checkpoint; kOutOfMemory
/// cost    16 experts a layer at most are probed, each in double
Result<std::vector<LayerProof>> VerifyExperts(
    const checkpoint::Checkpoint& checkpoint, const plan::Plan& plan,
    const weights::ModelWeights& weights, kernels::Operators& operators, ThreadPool& pool,
    const std::function<void(int done, int total)>& progress = {});

}  // namespace nibble::engine
