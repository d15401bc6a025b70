// In a build without CUDA. None of the members can be called: nothing makes an arena.
#include "kernels/cuda/cuda.h"

namespace nibble::cuda {
namespace {

Error NotBuilt() {
  Error error = Err(ErrorCode::kDevice, "this build has no CUDA");
  error.hint = "build with -DNIBBLE_CUDA=ON, or run on the CPU";
  return error;
}

}  // namespace

Result<DeviceInfo> DescribeDevice() { return NotBuilt(); }

uint64_t DeviceArena::BytesOfLinear(const CanonicalWeight&) { return 0; }
uint64_t DeviceArena::BytesOfExperts(const PreparedExperts&) { return 0; }
uint64_t DeviceArena::BytesOfRaw(uint64_t) { return 0; }
Result<std::unique_ptr<DeviceArena>> DeviceArena::Make(uint64_t) { return NotBuilt(); }
DeviceArena::~DeviceArena() = default;
Result<const std::byte*> DeviceArena::Place(std::span<const std::byte>) { return NotBuilt(); }
Result<HopperMatrix> DeviceArena::PlaceLinear(const CanonicalWeight&) { return NotBuilt(); }
Result<HopperExperts> DeviceArena::PlaceExperts(const PreparedExperts&) { return NotBuilt(); }
Result<void> DeviceArena::Finish() { return NotBuilt(); }

Result<std::unique_ptr<kernels::Operators>> MakeOperators(const OperatorsOptions&) {
  return NotBuilt();
}

}  // namespace nibble::cuda
