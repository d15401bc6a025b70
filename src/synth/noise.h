#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/dtype.h"

namespace nibble::synth {

/// What random numbers a tensor holds.
struct Noise {
  enum class Kind : uint8_t {
    kE2m1Pairs,    // two e2m1 codes a byte, each of the sixteen as likely
    kBlockScales,  // e4m3, none negative: 64 to 448, as calibrated ones are
    kFp8Codes,     // e4m3, bell-shaped, none NaN
    kBf16,         // bell-shaped around `centre` with the standard deviation `spread`
    kF32,          // the same
  };
  Kind kind = Kind::kBf16;
  float centre = 0, spread = 0;

  auto operator<=>(const Noise&) const = default;
};

/// The root mean square of the codes of NVFP4 weights, of their block scales, and of FP8 codes.
double E2m1Rms();
double BlockScaleRms();
double Fp8CodeRms();

/// The bytes of synthetic tensors: views into a few small pools of random numbers, one a kind, so
/// that a checkpoint of 20 GB costs a hundred MB. A pool's pages are mapped again and again, one
/// copy behind the other, until the largest tensor fits behind any place of the first copy. Two
/// tensors are views at different places, and rows of one tensor a pool's size apart are equal.
/// Deterministic: seed, largest tensor and name decide every byte, on every machine.
/// threads  one caller at a time; what the views show is never written again
class NoisePools {
 public:
  explicit NoisePools(uint64_t seed) : seed_(seed) {}

  /// Tells how large a tensor of that kind will be. All of them must be told before the first View.
  void Expect(const Noise& noise, uint64_t bytes);

  /// `bytes` random bytes that belong to `name`, 64-byte aligned; they live as long as the pools.
  /// errors  kOutOfMemory
  Result<std::span<const std::byte>> View(const Noise& noise, std::string_view name,
                                          uint64_t bytes);

  /// One number of its own, as BF16 or F32.
  std::span<const std::byte> Scalar(float value, checkpoint::DType dtype);

 private:
  class Pool;
  struct Entry {
    uint64_t largest = 0;
    std::shared_ptr<const Pool> pool;
  };

  uint64_t seed_;
  std::map<Noise, Entry> pools_;
  std::deque<std::array<std::byte, 4>> scalars_;
};

/// A number that seed and text decide, all bits equally likely.
uint64_t Hash(uint64_t seed, std::string_view text);

}  // namespace nibble::synth
