#pragma once

#include "base/error.h"
#include "weights/model_weights.h"

namespace nibble::weights {

/// Brings all that a model has into the device's memory, which `out` then owns and points into.
/// needs   every linear and all experts planned for HOPPER
/// errors  kOutOfMemory, kDevice
Result<void> PlaceOnDevice(ModelWeights& out, const Progress& progress);

}  // namespace nibble::weights
