#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/error.h"
#include "kernels/operators.h"
#include "layout/canonical.h"
#include "layout/prepared.h"
#include "layout/words.h"

// All that the engine knows of CUDA, without a header of CUDA's. A build without it has no_cuda.cc, in
// which every function is the error that says so.

namespace nibble::cuda {

/// This machine's first CUDA device.
/// errors  kDevice: no device, no driver, or a build without CUDA
Result<DeviceInfo> DescribeDevice();

/// A model's weights in the memory of the device: taken once, filled matrix by matrix. Matrices go
/// over in the file's form and are packed there; the file's form needs no second place.
class DeviceArena {
 public:
  /// What one matrix takes here, and a layer's experts, with its alignment.
  static uint64_t BytesOfLinear(const CanonicalWeight& weight);
  static uint64_t BytesOfExperts(const PreparedExperts& experts);
  static uint64_t BytesOfRaw(uint64_t bytes);

  /// errors  kOutOfMemory, naming what was asked for and what is free; kDevice
  static Result<std::unique_ptr<DeviceArena>> Make(uint64_t bytes);
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  /// errors of all  kDevice. More than Make() was asked for is our own bug.
  Result<const std::byte*> Place(std::span<const std::byte> bytes);
  Result<HopperMatrix> PlaceLinear(const CanonicalWeight& weight);
  /// The weights that gate, up and down name, under the scales of the layer's config.
  Result<HopperExperts> PlaceExperts(const PreparedExperts& experts);
  /// Waits for all of it.
  Result<void> Finish();

  uint64_t used() const { return used_; }

 private:
  DeviceArena() = default;
  std::byte* Take(uint64_t bytes);
  Result<const uint8_t*> Stage(std::span<const uint8_t> bytes);

  std::byte *memory_ = nullptr, *staging_ = nullptr;
  uint64_t bytes_ = 0, used_ = 0, staged_ = 0;
};

struct OperatorsOptions {
  bool graphs = true;  // repeat small steps as CUDA graphs
};

/// The operators on the device. Activations are bf16, the residual stream and logits fp32.
/// errors  kDevice
Result<std::unique_ptr<kernels::Operators>> MakeOperators(const OperatorsOptions& options);

}  // namespace nibble::cuda
