#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/step.h"
#include "layout/words.h"
#include "nibble/error.h"
#include "numerics/bf16.h"

// Attention over a paged cache of keys and values. Over qkv [rows, q|k|v]: q and k normalised per
// head, rotated in halves over their first rotary_dim dimensions; k and v stored in the cache; o =
// softmax(q k^T / sqrt(head_dim)) v over each row's own and earlier positions; gated: times
// sigmoid(gate). Query head j reads kv head j / (n_heads / n_kv_heads). Normalised q and the softmax's
// weights (at most 1, relative to the largest) are rounded to bf16 for the tensor cores, sums are fp32.

namespace nibble::cuda {

inline constexpr int kKvPage = 64;  // positions a page

/// One layer's cache. Keys and values each are [pages][n_kv_heads][kKvPage][head_dim]; position p of
/// slot s lies in page page_table[s * max_pages + p / kKvPage].
struct PagedKv {
  void *k = nullptr, *v = nullptr;      // 16-byte aligned
  KvDtype dtype = KvDtype::kBf16;       // or kFp8: a number is its code times the scale
  float k_scale = 1, v_scale = 1;       // kFp8 alone; codes are number / scale, saturating
  const int32_t* page_table = nullptr;  // device, [slots, max_pages]
  int max_pages = 0;
};

struct AttentionShape {
  int n_heads = 0, n_kv_heads = 0;  // 1 .. 16 query heads a kv head
  int head_dim = 0;                 // 64, 128, 256
  int rotary_dim = 0;               // a multiple of head_dim / 16, up to head_dim
  float norm_eps = 1e-6f;
  bool gated = false;  // each query head of qkv is followed by its gate

  constexpr int q_stride() const { return gated ? 2 * head_dim : head_dim; }  // from head to head
  constexpr int q_width() const { return n_heads * q_stride(); }
  constexpr int kv_width() const { return n_kv_heads * head_dim; }
  constexpr int qkv_width() const { return q_width() + 2 * kv_width(); }
  constexpr int out_width() const { return n_heads * head_dim; }
};

struct AttentionParams {
  AttentionShape shape;
  Step step;
  const float *q_norm = nullptr, *k_norm = nullptr;  // [head_dim]
  const float* rope = nullptr;  // [rows, rotary_dim]: cos | sin, of LaunchRopeTable
  Bf16* qkv = nullptr;          // [rows, qkv_width]; what it holds afterwards is not said
  Bf16* out = nullptr;          // [rows, out_width]
  PagedKv cache;
  /// Decode: no sequence's start + n_rows is larger. It sizes the grid and nothing else: results do
  /// not depend on it.
  int capacity = 0;
  std::byte* workspace = nullptr;  // 256-byte aligned; nothing is expected of its contents
  size_t workspace_bytes = 0;
};

/// table[t, :] = cos(p_t f_0 …), sin(p_t f_0 …), computed in double and rounded once: within one unit in
/// the last place for any position.
struct RopeTableParams {
  Step step;
  int frequencies = 0;               // rotary_dim / 2
  const float* frequency = nullptr;  // device, [frequencies]
  float* table = nullptr;            // [rows, 2 * frequencies]
};
Result<void> LaunchRopeTable(const RopeTableParams& params, cudaStream_t stream);

/// Sequences may have so many rows in a decode launch.
inline constexpr int kAttentionDecodeRows = 8;

/// For sequences of 1 .. 8 rows (and of none): two launches. `max_rows`: no sequence has more; it sizes
/// the grid. A sequence is split into runs of positions by its own length, start + n_rows, alone: its
/// bits depend on no other sequence.
/// Reads the step's description, the page table and the cache of positions before `start` while
/// kernels ahead still run: they must have been written before a LaunchEmbed or LaunchRopeTable that
/// comes before this launch, which wait for everything ahead of them before anything behind starts.
/// errors   kInvalidArgument (shapes, pointers, workspace), kDevice
Result<void> LaunchAttentionDecode(const AttentionParams& params, int max_rows,
                                   cudaStream_t stream);
size_t AttentionDecodeWorkspace(const AttentionShape& shape, int sequences, int max_rows,
                                int capacity);

/// For sequences of any number of rows: two launches, no workspace. A row's bits depend on its
/// sequence's positions up to it alone, not on how they came in chunks; they differ from decode's, which
/// sums in another order.
/// errors   as above
Result<void> LaunchAttentionPrefill(const AttentionParams& params, cudaStream_t stream);

}  // namespace nibble::cuda
