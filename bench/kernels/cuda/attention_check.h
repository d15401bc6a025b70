#pragma once

#include <cuda_runtime_api.h>

#include <random>
#include <string>
#include <vector>

#include "device_buffer.h"
#include "kernels/cuda/attention.h"

// Checks of attention against double, and what they and the timings give it.

namespace nibble::bench {

struct AttentionCase {
  cuda::AttentionShape shape;
  KvDtype dtype;
  struct Sequence {
    int start, n_rows;
  };
  std::vector<Sequence> sequences;
  float sharp = 1;  // factor of q's norm: how uneven the softmax is
  int padding = 0;  // rows and sequences that are nobody's
  uint32_t seed = 1;
};

/// A case's inputs and cache on the device.
class AttentionData {
 public:
  /// `room`: positions that every slot has pages for, in one random order of all.
  AttentionData(const AttentionCase& c, int room);
  /// The rows of other sequences of the same number and lengths, at other positions.
  void Place(const AttentionCase& c);
  /// qkv, out and the cache as they were before any launch: NaN wherever no position has been.
  void Reset();
  cuda::AttentionParams Params() const;
  int max_rows() const;

  AttentionCase c;
  int room, pages;
  std::vector<cuda::StepRow> rows_host;
  std::vector<cuda::StepSequence> sequences_host;
  std::vector<int32_t> table_host;
  std::vector<Bf16> qkv_host;
  std::vector<float> q_norm_host, k_norm_host, frequency_host;
  std::vector<uint8_t> k_host, v_host;  // the cache before
  Buffer<cuda::StepRow> rows;
  Buffer<cuda::StepSequence> sequences;
  Buffer<int32_t> table;
  Buffer<Bf16> qkv, out;
  Buffer<float> q_norm, k_norm, frequency, rope;
  Buffer<uint8_t> k, v;
  Buffer<std::byte> workspace;
};

/// kPrefill is what LaunchAttentionPrefill chooses on this GPU.
enum class AttentionKernel { kDecode, kPrefill, kPortablePrefill };

/// Rope table and attention.
void RunAttention(const AttentionData& data, AttentionKernel kernel, cudaStream_t stream);

struct AttentionVerdict {
  bool ok = true;
  double rel_l2 = 0, worst = 0;  // worst: of |out - reference| / bound
  std::string why;
};

/// Twice on poisoned memory for its bits; the cache's new and old positions; the result against
/// double; a captured graph replayed at other positions; each sequence alone, and a prefill in two
/// chunks, bit for bit.
AttentionVerdict CheckAttention(const AttentionCase& c, AttentionKernel kernel,
                                cudaStream_t stream);

}  // namespace nibble::bench
