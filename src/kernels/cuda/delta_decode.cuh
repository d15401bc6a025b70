#pragma once

#include "kernels/cuda/delta.cuh"

// Decode of gated DeltaNet: what its kernel and sm90_layer_decode.cu share. See delta_decode.cu for the
// whole.

namespace nibble::cuda::delta {

inline constexpr int kLanes = 8;  // that share a row of the state

/// Rows of a sequence in a launch: `kept` of them are run again.
struct Rows {
  DeltaSequence s;
  int kept, n;
  Bf16* ring;      // the slot's
  int ring_first;  // where the ring has the first row that a tap reads

  __device__ Rows(const Args& a, const DeltaSequence& sequence) : s(sequence) {
    kept = min(s.kept, a.decode_rows);
    n = a.fold_only ? kept : kept + min(s.n_rows, a.decode_rows);
    ring = a.ring + static_cast<int64_t>(s.slot) * a.ring_rows * a.ring_width;
    ring_first = static_cast<unsigned>(position(1 - a.taps) + a.ring_rows) % a.ring_rows;
  }
  __device__ int position(int row) const { return s.start - kept + row; }
  /// Without a division: the rows of a launch go round the ring once at most.
  __device__ Bf16* Ring(const Args& a, int row) const {
    int at = ring_first + row + a.taps - 1;
    if (at >= a.ring_rows) at -= a.ring_rows;
    return ring + at * a.ring_width;
  }
  /// A row's inputs.
  __device__ const Bf16* Input(const Args& a, int row) const {
    if (row < kept) return Ring(a, row);
    return a.in + (s.first_row + static_cast<int64_t>(row - kept)) * a.in_width;
  }
};

/// Rows of a head's state in a block's registers: kLanes lanes share one, and every thread has its part of
/// kEach rows, kApart apart. A part is pieces of four numbers, 32 apart.
template <int kKeys, int kEach, int kApart>
struct StateRows {
  static constexpr int kN = kKeys / kLanes;
  float s[kEach][kN];

  __device__ __forceinline__ void Zero() {
#pragma unroll
    for (auto& row : s) {
#pragma unroll
      for (float& x : row) x = 0;
    }
  }
  /// `at`: the lane's first piece of its first row.
  __device__ __forceinline__ void Load(const float* at) {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
#pragma unroll
      for (int j = 0; j < kN; j += 4) {
        const float4 v =
            __ldcg(reinterpret_cast<const float4*>(at + r * kApart * kKeys + j * kLanes));
        s[r][j] = v.x, s[r][j + 1] = v.y, s[r][j + 2] = v.z, s[r][j + 3] = v.w;
      }
    }
  }
  __device__ __forceinline__ void Store(float* at) const {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
#pragma unroll
      for (int j = 0; j < kN; j += 4) {
        __stcg(reinterpret_cast<float4*>(at + r * kApart * kKeys + j * kLanes),
               make_float4(s[r][j], s[r][j + 1], s[r][j + 2], s[r][j + 3]));
      }
    }
  }
  /// The dot products with x; every lane has them.
  __device__ __forceinline__ void Dots(const float (&x)[kN], float (&out)[kEach]) const {
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      float sum[4] = {};
#pragma unroll
      for (int j = 0; j < kN; ++j) sum[j % 4] = __fmaf_rn(s[r][j], x[j], sum[j % 4]);
      out[r] = __fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3]));
    }
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) {
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
        out[r] = __fadd_rn(out[r], __shfl_xor_sync(~0u, out[r], mask));
      }
    }
  }
  /// A lane's pieces of a vector in shared memory.
  __device__ static __forceinline__ void Read(const float* from, float (&x)[kN]) {
#pragma unroll
    for (int j = 0; j < kN; j += 4) {
      const float4 v =
          *reinterpret_cast<const float4*>(from + j * kLanes + threadIdx.x % kLanes * 4);
      x[j] = v.x, x[j + 1] = v.y, x[j + 2] = v.z, x[j + 3] = v.w;
    }
  }
  /// S <- e^g S;  S <- S + beta (v - S k) k^T
  __device__ __forceinline__ void Update(const float* keys, const float* values, float beta,
                                         float decay) {
    float k[kN], delta[kEach];
    Read(keys, k);
    Dots(k, delta);
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const float v = values[r * kApart + threadIdx.x / kLanes];
      delta[r] = __fmul_rn(beta, __fmaf_rn(-decay, delta[r], v));
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        s[r][j] = __fmaf_rn(decay, s[r][j], __fmul_rn(delta[r], k[j]));
      }
    }
  }
  /// o = S q
  __device__ __forceinline__ void Output(const float* queries, float* out) const {
    float q[kN], o[kEach];
    Read(queries, q);
    Dots(q, o);
    if (threadIdx.x % kLanes != 0) return;
#pragma unroll
    for (int r = 0; r < kEach; ++r) out[r * kApart + threadIdx.x / kLanes] = o[r];
  }
};

}  // namespace nibble::cuda::delta
