#pragma once

#include "kernels/cuda/delta.cuh"

// Prefill of gated DeltaNet in chunks (WY form; reference/delta_rule.cc derives it). With S0 the
// state that a chunk finds, G the running sum of g, D_ij = e^(G_i - G_j) for j <= i, K, Q, V its
// rows:
//   T  = (I + strict_lower(diag(beta) (K K^T * D)))^-1 diag(beta)
//   P  = lower(Q K^T * D)
//   V' = T (V - diag(e^G) K S0^T)
//   O  = diag(e^G) Q S0^T + P V'
//   S1 = e^(G_n) S0 + V'^T diag(e^(G_n - G)) K
// T and P need no state: they are made for all chunks at once. The rest is sequential over a
// sequence's chunks, but not over rows of S.
//
// Operands are TF32 (rounded to nearest), sums fp32; T is solved in fp32, S carried in fp32. K and
// Q are rounded once, so that all products see the same ones.
//
// A batch runs in segments of so many rows of each sequence, which bounds the workspace.

namespace nibble::cuda::delta {

struct PrefillArgs {
  Args a;
  int first, length;  // rows of every sequence that this segment runs
  int chunks;         // that there is room for
  float *q, *k;  // [chunks][k_heads][chunk][k_dim], TF32; rows behind a sequence's end are zeros
  float* v;      // [chunks][v_heads][chunk][v_dim]; then o
  float *t, *p;  // [chunks][v_heads][chunk][chunk], TF32, columns in the order of Token()
  float *growth, *fade;  // [chunks][v_heads][chunk]: e^G, e^(G_n - G)
};

/// The product of a mma leaves columns 2t and 2t+1 of eight with lane t of four, and takes rows t
/// and t+4: so what one product gives is what the next one takes, if the tokens of eight are told
/// apart by slot. Of the orders that do, this one has no two lanes in one bank, neither by slots
/// nor by tokens.
__device__ __forceinline__ constexpr int Token(int slot) {
  return (0x57463120 >> (4 * slot)) & 7;  // 0 2 1 3 6 4 7 5
}
__device__ __forceinline__ constexpr int SlotOf(int token) {
  return (0x64753120 >> (4 * token)) & 7;
}

__device__ __forceinline__ float ToTf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return __uint_as_float(r);
}

/// d += a b, 16x8x8, TF32 operands.
__device__ __forceinline__ void MmaTf32(float (&d)[4], const float (&a)[4], float2 b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b.x)), "r"(__float_as_uint(b.y)));
}

/// Rows and chunks of a sequence in a segment.
__device__ __forceinline__ int SegmentRows(const PrefillArgs& f, int n_rows) {
  return max(0, min(n_rows - f.first, f.length));
}

/// A chunk of the segment: which sequence's it is, and its rows [row, row + n) of that sequence.
struct Chunk {
  DeltaSequence s;
  int row = 0, n = 0;  // n = 0: there is no such chunk
};

/// Sequences' chunks follow one another. A whole warp calls it, with the same index.
template <int kChunk>
__device__ __forceinline__ Chunk FindChunk(const PrefillArgs& f, int index) {
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < f.a.n_sequences; base += 32) {
    int n = 0;
    if (base + lane < f.a.n_sequences) {
      n = (SegmentRows(f, __ldcg(&f.a.sequences[base + lane].n_rows)) + kChunk - 1) / kChunk;
    }
    int end = n;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, end, d);
      if (lane >= d) end += other;
    }
    const uint32_t behind = __ballot_sync(~0u, index < end);
    if (behind != 0) {
      const int at = __ffs(behind) - 1;
      const int first = __shfl_sync(~0u, end - n, at);
      Chunk c{LoadSequence(f.a, base + at), f.first + (index - first) * kChunk, 0};
      c.n = min(kChunk, f.first + SegmentRows(f, c.s.n_rows) - c.row);
      return c;
    }
    index -= __shfl_sync(~0u, end, 31);
  }
  return {};
}

/// The index of a sequence's first chunk. A whole warp calls it.
template <int kChunk>
__device__ __forceinline__ int FirstChunk(const PrefillArgs& f, int sequence) {
  int sum = 0;
  for (int i = threadIdx.x % 32; i < sequence; i += 32) {
    sum += (SegmentRows(f, __ldcg(&f.a.sequences[i].n_rows)) + kChunk - 1) / kChunk;
  }
  return __reduce_add_sync(~0u, sum);
}

/// Tokens of a chunk: 64, or 32 where a block may not have the shared memory for that.
int ChunkFor(const kernels::DeltaShape& shape, int shared_bytes);

/// LaunchDeltaPrefill() with chunks of 64 or 32.
Result<void> LaunchPrefill(const DeltaParams& params, int chunk, cudaStream_t stream);

/// The part that is sequential: every chunk of the segment through the states. errors kDevice
Result<void> LaunchScan(const PrefillArgs& f, int chunk, cudaStream_t stream);

}  // namespace nibble::cuda::delta
