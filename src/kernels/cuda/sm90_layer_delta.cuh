#pragma once

#include "kernels/cuda/delta_decode.cuh"
#include "kernels/cuda/sm90_layer_awaited.cuh"

// Gated DeltaNet of one token as a step of sm90_layer_decode.cu: the arithmetic of delta_decode.cu. Two
// blocks share a value head, each with half of the rows of its state; who reads the output norms it.

namespace nibble::cuda::layer {

inline constexpr int kHeadDim = 128;   // of keys and of values
inline constexpr int kDeltaParts = 2;  // blocks of a head
inline constexpr int kPartRows = kHeadDim / kDeltaParts;

struct DeltaShared {
  alignas(16) float q[kHeadDim];
  alignas(16) float k[kHeadDim];
  alignas(16) float v[kPartRows];
  float beta, decay;
};

/// Four channels of a row: convolved, and of q and k to length `scale` (0: as they are).
__device__ __forceinline__ void PrepareChannels(const delta::Args& a, const delta::Rows& r, int row,
                                                int channel, float scale, bool keep,
                                                const float* own, float* to) {
  using namespace delta;
  const Taps<4> taps(a, channel);
  Raw<4> x[kMaxTaps];
#pragma unroll
  for (int j = 0; j < kMaxTaps - 1; ++j) {
    const int at = row - (kMaxTaps - 1) + j;
    x[j].pair[0] = x[j].pair[1] = 0;
    if (r.position(at) >= 0 && row - at < a.taps) x[j] = LoadRaw<4>(r.Ring(a, at) + channel);
  }
  Raw<4>& last = x[kMaxTaps - 1];
  Bf16* const ring = r.Ring(a, row) + channel;
  if (row < r.kept) {
    last = LoadRaw<4>(ring);
  } else {
    const float4 v = Await4(own + channel);
    last.pair[0] = PairOfBf16s(v.x, v.y), last.pair[1] = PairOfBf16s(v.z, v.w);
    if (keep) *reinterpret_cast<uint2*>(ring) = make_uint2(last.pair[0], last.pair[1]);
  }
  float y[4];
  ConvSilu(taps, x, y);
  if (scale != 0) UnitLength(y, scale);
  *reinterpret_cast<float4*>(to) = make_float4(y[0], y[1], y[2], y[3]);
}

/// A row's beta and e^g, by a thread.
__device__ __forceinline__ void PrepareGates(const delta::Args& a, const delta::Rows& r, int row,
                                             int head, bool keep, const float* own,
                                             DeltaShared& s) {
  const float a_log = __ldg(a.a_log + head), dt_bias = __ldg(a.dt_bias + head);
  Bf16* const ring = r.Ring(a, row) + a.channels + head;
  float b, alpha;
  if (row < r.kept) {
    b = delta::Float(delta::LoadOne(ring)), alpha = delta::Float(delta::LoadOne(ring + a.v_heads));
  } else {
    const float* const from = own + a.channels + a.v_heads * kHeadDim + head;
    b = Await(from), alpha = Await(from + a.v_heads);
    if (keep) ring[0] = delta::Round(b), ring[a.v_heads] = delta::Round(alpha);
  }
  s.beta = delta::Beta(b);
  s.decay = expf(delta::LogDecay(alpha, a_log, dt_bias));
}

/// By the first kDeltaParts * v_heads blocks, all threads: `in`, awaited, to `out`, stored to be awaited.
__device__ __forceinline__ void MixDelta(const delta::Args& a, const DeltaSequence& sequence,
                                         DeltaShared& s, const float* in, float* out) {
  using namespace delta;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head = blockIdx.x / kDeltaParts, part = blockIdx.x % kDeltaParts;
  const int key_head = head / (a.v_heads / a.k_heads), keys = a.k_heads * kHeadDim;
  const bool first = part == 0, first_of_key = first && head % (a.v_heads / a.k_heads) == 0;
  const int values = head * kHeadDim + part * kPartRows;  // this block's first
  const Rows r(a, sequence);
  float* const state = a.state +
                       static_cast<int64_t>(r.s.slot) * a.v_heads * (kHeadDim * kHeadDim) +
                       (values + threadIdx.x / kLanes) * kHeadDim + threadIdx.x % kLanes * 4;
  StateRows<kHeadDim, 1, kPartRows> rows;
  if (r.s.start == 0) {
    rows.Zero();
  } else {
    rows.Load(state);
  }
  const bool tentative = r.s.tentative != 0;
#pragma unroll 1
  for (int row = 0; row <= r.kept; ++row) {
    const bool own = row == r.kept;
    if (warp < 2) {
      PrepareChannels(a, r, row, warp * keys + key_head * kHeadDim + lane * 4,
                      warp == 0 ? rsqrtf(static_cast<float>(kHeadDim)) : 1.0f, first_of_key, in,
                      (warp == 0 ? s.q : s.k) + lane * 4);
    } else if (warp == 2) {
      if (lane < kPartRows / 4) {
        PrepareChannels(a, r, row, 2 * keys + values + lane * 4, 0, true, in, s.v + lane * 4);
      }
    } else if (warp == 3 && lane == 0) {
      PrepareGates(a, r, row, head, first, in, s);
    }
    __syncthreads();
    if (own && tentative && (r.kept > 0 || r.s.start == 0)) rows.Store(state);
    rows.Update(s.k, s.v, s.beta, s.decay);
    if (!own) __syncthreads();
  }
  float q[kHeadDim / kLanes], o[1];
  rows.Read(s.q, q);
  rows.Dots(q, o);
  if (threadIdx.x % kLanes == 0) StoreAwaited(out + values + threadIdx.x / kLanes, o[0]);
  if (!tentative) rows.Store(state);
}

/// Eight numbers of MixDelta's output o: norm(o) silu(z). By 16 lanes a head.
__device__ __forceinline__ uint4 AwaitMixed(const delta::Args& a, const float* in, const float* out,
                                            int eight) {
  const float* const z = in + a.channels + eight * 8;
  const float4* const norm = reinterpret_cast<const float4*>(a.norm) + eight % (kHeadDim / 8) * 2;
  float y[8], o[8];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 v = Await4(z + 4 * i), w = __ldg(norm + i);
    y[4 * i] = delta::Silu(v.x) * w.x, y[4 * i + 1] = delta::Silu(v.y) * w.y;
    y[4 * i + 2] = delta::Silu(v.z) * w.z, y[4 * i + 3] = delta::Silu(v.w) * w.w;
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 v = Await4(out + eight * 8 + 4 * i);
    o[4 * i] = v.x, o[4 * i + 1] = v.y, o[4 * i + 2] = v.z, o[4 * i + 3] = v.w;
  }
#pragma unroll
  for (float v : o) squares = fmaf(v, v, squares);
  const uint32_t lanes = 0xFFFFu << (threadIdx.x & 16);
#pragma unroll
  for (int mask = 1; mask < kHeadDim / 8; mask *= 2) {
    squares += __shfl_xor_sync(lanes, squares, mask);
  }
  const float inverse = rsqrtf(squares / kHeadDim + a.norm_eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) y[i] *= o[i] * inverse;
  return make_uint4(ToPair(y[0], y[1]), ToPair(y[2], y[3]), ToPair(y[4], y[5]), ToPair(y[6], y[7]));
}

}  // namespace nibble::cuda::layer
