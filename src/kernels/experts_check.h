#pragma once

#include "base/error.h"
#include "layout/prepared.h"

namespace nibble::kernels {

/// What an expert kernel asks before it is built: that what it was given agrees with itself and
/// with the catalogue's row of its name. A stale activation scale cannot come this far (the W4A16
/// config has no place for one); if it did, it would end here.
/// errors  kInternal naming module and contradiction:
///         - the kernel is no row of the catalogue, or another backend's
///         - its activation precision is not that of the quantization config, or the config's
///           scheme is not the row's
///         - fp4 activations from a checkpoint that declares 16 bits, in either source format; bf16
///           ones with activation scales
///         - the weights' stored type is not the scheme's (the weight decides, never the
///           activation)
///         - scales that do not count one an expert and shard
Result<void> CheckExperts(const PreparedExperts& experts);

}  // namespace nibble::kernels
