#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device_buffer.h"
#include "kernels/cuda/sm90_linear.h"
#include "kernels/cuda/tile_pack.h"
#include "linear_reference.h"

// Checks of the kernels of linears against the sums in double.

namespace nibble::bench {

using cuda::Sm90Input;
using cuda::Sm90LinearParams;
using cuda::Sm90LinearShard;
using cuda::Sm90Weight;

struct LinearKernel {
  const char* name;
  int min_tokens, max_tokens;  // that it is meant for; it takes fewer, too
  Result<void> (*launch)(const Sm90LinearParams&, cudaStream_t);
  size_t (*workspace)(const Sm90LinearParams&);
};
extern const std::vector<LinearKernel> kLinearKernels;

/// One shard of a case.
struct ShardSpec {
  Sm90Weight weight;
  Sm90Input input;
  int n;
};

/// Weights of one launch on the device, packed, and canonical where asked for.
class LinearWeights {
 public:
  LinearWeights(const std::vector<ShardSpec>& specs, int k, uint64_t seed, bool identity,
                bool tiny_scales, cudaStream_t stream);
  /// Frees the canonical weights.
  void KeepPacked();
  /// All but x, tokens and y.
  Sm90LinearParams Params() const;
  double bytes() const;  // of packed weights
  const CanonicalLinear& canonical(int i) const { return canonical_[i]; }
  int columns() const;

 private:
  std::vector<ShardSpec> specs_;
  int k_;
  bool tiny_;
  std::vector<Buffer<uint8_t>> codes_, block_scales_, packed_;
  std::vector<Buffer<float>> scales_;
  std::vector<CanonicalLinear> canonical_;
};

struct LinearVerdict {
  bool ok = true;
  double worst = 0, rel_l2 = 0;  // worst: of |y - reference| / bound
  std::string why;
};

/// One launch on poisoned memory, `repeats` times for its bits, against the reference; y in fp32 or
/// bf16, its rows farther apart than they need be.
LinearVerdict CheckLinear(const LinearKernel& kernel, const LinearWeights& weights, int tokens,
                          bool f32, float x_factor, int repeats, cudaStream_t stream);

/// The codes of quantized x, seen through identity matrices: every one must be the definition's. The
/// number that are not.
int CheckInputCodes(const LinearKernel& kernel, int tokens, cudaStream_t stream);

/// That launches refuse what they cannot do right. The number that were not refused.
int CheckLinearRefusals(const LinearKernel& kernel);

}  // namespace nibble::bench
