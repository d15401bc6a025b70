#pragma once

#include "kernels/cuda/sm90_moe_decode.cuh"

// GEMM1 of the decode kernel: gate and up, the activation function, h.

namespace nibble::cuda::decode {

template <class S>
__device__ __forceinline__ __nv_bfloat16* RowOfH(const Args& a, const S& s, int route) {
  return LayerOf(a, s).h + static_cast<size_t>(2 * route + s.odd_launch) * a.padded_intermediate;
}

/// Copies one word to shared memory without holding a register for it.
__device__ __forceinline__ void CopyWord(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(SharedAddress(to)), "l"(from)
               : "memory");
}

/// What the epilogue needs of an expert: copied to shared memory long before, without a register that
/// would have to wait for it.
template <class N>
struct ItemScales {
  static constexpr int kCount = N::kFp4 ? 5 : N::kScaled ? 2 : 0;
  template <class S>
  static __device__ __forceinline__ void Ask(const Args& a, S& s, const Place& p, const Work& w,
                                             int item) {
    if (item >= w.items || p.lane >= kCount) return;
    const int expert = UnpackItem(s.item[w.first_listed + item]).expert;
    const int shards = N::kGated ? 2 : 1;
    const int shard = N::kGated ? p.lane % 2 : 0;
    const float* from = LayerOf(a, s).g1 + expert * shards + shard;
    if (N::kFp4 && p.lane >= 2) from = LayerOf(a, s).a1 + expert * a.a1_step + shard;
    if (N::kFp4 && p.lane == 4) from = LayerOf(a, s).a2 + expert;
    CopyWord(&s.scales[p.warp][p.lane], from);
  }
  float gate, up;
  Gscale h{1, 1};
  template <class S>
  __device__ __forceinline__ ItemScales(const S& s, const Place& p) {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
    const float* v = s.scales[p.warp];
    if constexpr (!N::kScaled) {
      gate = up = 1;
      return;
    }
    gate = v[0] * kHopperWeightScale, up = v[1] * kHopperWeightScale;
    if constexpr (N::kFp4) gate *= Reciprocal(v[2]), up *= Reciprocal(v[3]), h = GscaleOf(v[4]);
    __syncwarp();  // the next may be asked for
  }
};

/// Few tokens: brings this warp's part of their x into L1 before anything is known of the experts. It
/// would come late behind the weights.
template <class C, class N>
__device__ __forceinline__ void TouchX(const Args& a, typename C::Smem& s, const Place& p) {
  if constexpr (N::kFp4 && !C::kAnyShape) {
    constexpr int kSectors = 4 * C::kXSteps;  // of 32 bytes, a token
    const int sectors = a.tokens * kSectors;
    if (sectors > 64) return;
#pragma unroll 1
    for (int i = p.lane; i < sectors; i += 32) {
      CopyWord(&s.touched[p.warp][i / 32][p.lane],
               a.x + static_cast<size_t>(i / kSectors) * a.hidden + p.k_part * C::kXSteps * 64 +
                   i % kSectors * 16);
    }
    if (p.lane == 0) CopyWord(&s.scales[p.warp][ItemScales<N>::kCount], a.layer.a1);
  }
}

/// Quantizes 16 features of eight routes: a lane has feature HopperInEight(g) of either eight, for
/// routes 2t and 2t + 1.
__device__ __forceinline__ void QuantizeHidden(uint32_t (&both)[2], const Gscale& g) {
  uint32_t amax = MaxBf16x2(both[0] & kMagnitudes, both[1] & kMagnitudes);
#pragma unroll
  for (int o = 4; o < 32; o <<= 1) amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, o));
  const BlockScale low = ScaleOfBlock(fmaxf(LowBf16(amax), 0.0f), g);
  const BlockScale high = ScaleOfBlock(fmaxf(HighBf16(amax), 0.0f), g);
#pragma unroll
  for (int m = 0; m < 2; ++m) both[m] = QuantizePair(both[m], low, high);
}

/// Stores 16 features of h, four of a route at a time: both[m] is feature 8m + HopperInEight(g) of
/// routes 2t and 2t + 1. A GEMM2 lane takes its 16 k's of a 64-block as two 16-byte loads 64 bytes
/// apart, hence the slots. The four features are one 8-byte store and its low word is never zero: a
/// zero tells GEMM2 that they are not there yet, so neither a fence nor a counter is needed. (-0 for
/// +0 changes no sum.)
template <class N, class S>
__device__ __forceinline__ void StoreHidden(const Args& a, S& s, const Place& p, const Item& it,
                                            int group, uint32_t (&both)[2], const Gscale& g) {
  if constexpr (N::kFp4) QuantizeHidden(both, g);
  uint32_t pair[2];  // features of g & ~1 and g | 1 of route 2t + g % 2
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const uint32_t other = __shfl_xor_sync(~0u, both[m], 4);
    pair[m] = __byte_perm(both[m], other, p.g % 2 ? 0x3276 : 0x5410);
  }
  // Lanes of g < 4 store the first eight features, the others the second.
  const uint32_t other = __shfl_xor_sync(~0u, p.g < 4 ? pair[1] : pair[0], 16);
  const uint32_t low = p.g < 4 ? pair[0] : other, high = p.g < 4 ? other : pair[1];
  const int column = 2 * p.t + p.g % 2;
  if (column >= it.routes) return;
  const int slot = HiddenSlot(group % 4 * 16 + p.g / 4 * 8 + p.g / 2 % 2 * 4);
  StoreRelaxed(RowOfH(a, s, s.route[it.first + column]) + group / 4 * 64 + slot,
               low != 0 ? low : 0x80008000u, high);
}

/// Adds up a task's partial sums, applies the activation and stores h.
template <class N, class S>
__device__ __forceinline__ void FinishTask(const Args& a, S& s, const Place& p, const Work& w,
                                           int i, int item, int task) {
  constexpr int kPartialBuffers = S::kPartialBuffers;
  const int buffer = i % kPartialBuffers;
  const Item it = UnpackItem(s.item[w.first_listed + item]);
  const auto biases = [&](int feature) {
    return BiasesOf<N::kActivate>(a.activation, it.expert, feature + HopperInEight(p.g));
  };
  constexpr int kGroupsATask = N::kGated ? 1 : 2;
  Biases bias[kGroupsATask][2];
#pragma unroll
  for (int b = 0; b < 2 * kGroupsATask; ++b) {
    bias[b / 2][b % 2] = biases(task * 16 * kGroupsATask + 8 * b);
  }
  BarrierWait(SharedAddress(&s.partial_full[p.group][buffer]), i / kPartialBuffers & 1);
  float sum[kTaskTiles][4] = {};
#pragma unroll
  for (int k = 0; k < kGroupWarps; ++k) {
#pragma unroll
    for (int r = 0; r < kTaskTiles; ++r) {
      const float4 v = s.partial[p.group][buffer][k][r][p.lane];
      sum[r][0] += v.x, sum[r][1] += v.y, sum[r][2] += v.z, sum[r][3] += v.w;
    }
  }
  BarrierArrive(SharedAddress(&s.partial_empty[p.group][buffer]));
  const ItemScales<N> scales(s, p);
  const float gate = scales.gate, up = scales.up;
  uint32_t both[2];
  if constexpr (N::kGated) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float h[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        h[c] = Apply<N::kActivate>(a.activation, bias[0][m], sum[m][c] * gate, sum[m][2 + c] * up);
      }
      both[m] = PackBf16(h[0], h[1]);
    }
    StoreHidden<N>(a, s, p, it, task, both, scales.h);
  } else {
#pragma unroll
    for (int r = 0; r < kTaskTiles; ++r) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        both[m] =
            PackBf16(Apply<N::kActivate>(a.activation, bias[r][m], 0.0f, sum[r][2 * m] * up),
                     Apply<N::kActivate>(a.activation, bias[r][m], 0.0f, sum[r][2 * m + 1] * up));
      }
      StoreHidden<N>(a, s, p, it, 2 * task + r, both, scales.h);
    }
  }
}

/// The token whose activations lane group g of an item multiplies; lanes past the last route repeat
/// it, and their results are dropped.
template <class C>
__device__ __forceinline__ const __nv_bfloat16* RowOfX(const Args& a, const typename C::Smem& s,
                                                       const Item& it, int g) {
  const int route = s.route[it.first + min(g, it.routes - 1)];
  return a.x + static_cast<size_t>(route / a.by_top_k) * a.hidden;
}

__device__ __forceinline__ uint4 LoadX(const __nv_bfloat16* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}
__device__ __forceinline__ void LoadX(uint32_t (&x)[8], const __nv_bfloat16* from) {
  Store8(x, LoadX(from), LoadX(from + 8));
}
/// Of shared memory.
__device__ __forceinline__ void LoadSharedX(uint32_t (&x)[8], const __nv_bfloat16* from) {
  const auto* const p = reinterpret_cast<const uint4*>(from);
  Store8(x, p[0], p[1]);
}

/// An item's activations, as many steps as a warp keeps.
template <class C, int kSteps>
__device__ __forceinline__ void LoadItem(const Args& a, const typename C::Smem& s, const Place& p,
                                         const Work& w, const Item& it, uint32_t (&x)[kSteps][8]) {
  const __nv_bfloat16* from = RowOfX<C>(a, s, it, p.g) + w.step1 * 64 + 16 * p.t;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) LoadX(x[k], from + 64 * k);
}

/// The same in NVFP4, for at most kRoutes < 8 routes. What a lane loads for a step is one block. The
/// lanes of a t share out the item's blocks, quantize and exchange them; where there are fewer blocks
/// than lanes, two lanes take a half each.
template <class C, int kRoutes, int kSteps>
__device__ __forceinline__ void LoadShared(const Args& a, const typename C::Smem& s, const Place& p,
                                           const Work& w, const Item& it, const Gscale& g,
                                           uint32_t (&x)[kSteps][8]) {
  constexpr bool kHalves = kRoutes * kSteps < 8;
  constexpr int kTurns = kHalves ? 1 : kRoutes * kSteps / 8, kApart = kHalves ? 4 : 8 / kRoutes;
  static_assert(!kHalves || (kRoutes == 1 && kSteps == 4));
  const __nv_bfloat16* row = RowOfX<C>(a, s, it, p.g % kRoutes) + w.step1 * 64 + 16 * p.t;
  if constexpr (kHalves) {
    const uint4 v = LoadX(row + p.g % 4 * 64 + p.g / 4 * 8);
    uint32_t mine[4] = {v.x, v.y, v.z, v.w};
    const uint32_t amax = MaxOfPairs(mine);
    QuantizeBlock(mine, MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 16)), g);
#pragma unroll
    for (int i = 0; i < 8 * kSteps; ++i) {
      x[i / 8][i % 8] = __shfl_sync(~0u, mine[i % 4], 4 * (i / 8 + i % 8 / 4 * 4) + p.t);
    }
  } else {
    uint32_t mine[kTurns][8];
#pragma unroll
    for (int i = 0; i < kTurns; ++i) LoadX(mine[i], row + (i * kApart + p.g / kRoutes) * 64);
#pragma unroll
    for (int i = 0; i < kTurns; ++i) QuantizeBlock(mine[i], g);
#pragma unroll
    for (int i = 0; i < 8 * kSteps; ++i) {
      const int k = i / 8;
      const int lane = 4 * (k % kApart * kRoutes + p.g % kRoutes) + p.t;
      x[k][i % 8] = __shfl_sync(~0u, mine[k / kApart][i % 8], lane);
    }
  }
}

template <class C, int kSteps>
__device__ __forceinline__ void LoadQuantized(const Args& a, const typename C::Smem& s,
                                              const Place& p, const Work& w, const Item& it,
                                              uint32_t (&x)[kSteps][8]) {
  const Gscale g = GscaleOf(__ldg(LayerOf(a, s).a1 + it.expert * a.a1_step));
  if (it.routes == 1) return LoadShared<C, 1>(a, s, p, w, it, g, x);
  if (it.routes == 2) return LoadShared<C, 2>(a, s, p, w, it, g, x);
  if (kSteps == 4 && it.routes <= 4) return LoadShared<C, 4>(a, s, p, w, it, g, x);
  LoadItem<C>(a, s, p, w, it, x);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) QuantizeBlock(x[k], g);
}

/// One token's part of x in NVFP4, as an item wants it, into shared memory: eight numbers a lane.
template <class C>
__device__ __forceinline__ const __nv_bfloat16* QuantizeForItem(const Args& a, typename C::Smem& s,
                                                                const Place& p, const Work& w,
                                                                const Item& it) {
  static_assert(C::kXSteps * 64 == C::Smem::kQuantized);
  const Gscale g = GscaleOf(__ldg(LayerOf(a, s).a1 + it.expert * a.a1_step));
  const uint4 v = reinterpret_cast<const uint4*>(s.x + w.step1 * 64)[p.lane];
  uint32_t q[4] = {v.x, v.y, v.z, v.w};
  const uint32_t amax = MaxOfPairs(q);
  QuantizeBlock(q, MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 1)), g);
  reinterpret_cast<uint4*>(s.quantized[p.warp])[p.lane] = make_uint4(q[0], q[1], q[2], q[3]);
  __syncwarp();
  return s.quantized[p.warp];
}

/// Any shape: the activations of one unit, quantized for `shard` unless they come so.
template <class N, int kUnit>
__device__ __forceinline__ void LoadUnit(const Args& a, const Place& p, int expert, int shard,
                                         const __nv_bfloat16* row, int step, int steps,
                                         uint32_t (&x)[kUnit][8]) {
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    const int at = (step + k) * 64 + 16 * p.t;
    const uint4* from = reinterpret_cast<const uint4*>(row + at);
    const bool inside = k < steps && at < a.hidden;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    Store8(x[k], inside ? __ldg(from) : zero, inside ? __ldg(from + 1) : zero);
  }
  if constexpr (N::kFp4) {
    if (a.x_passes == 0) return;
    const Gscale g = GscaleOf(__ldg(a.layer.a1 + expert * a.a1_step + shard));
#pragma unroll
    for (int k = 0; k < kUnit; ++k) QuantizeBlock(x[k], g);
  }
}

/// `first`: how many tasks the group has had before.
template <class C, class N>
__device__ __forceinline__ void Gemm1(const Args& a, typename C::Smem& s, const Place& p,
                                      const Work& w, WeightStream<C>& stream, int first = 0) {
  constexpr int kUnit = C::kUnitSteps1, kSteps = C::kAnyShape ? kUnit : C::kXSteps;
  // x out of shared memory step by step: short code, since it runs once or twice, cold.
  constexpr bool kShort = C::kSharedX;
  constexpr int kPartialBuffers = C::Smem::kPartialBuffers;
  uint32_t x[kSteps][8];
  int item = w.first_task_item, task = w.first_task - item * a.tasks, item_in_x = -1;
  // Warp j of the group finishes tasks j, j + 8, …, each one task late: its partial sums have come.
  int finish_item = item, finish_task = task + kGroups * ((p.k_part - first) & (kGroupWarps - 1));
  while (finish_task >= a.tasks) finish_task -= a.tasks, ++finish_item;
  ItemScales<N>::Ask(a, s, p, w, finish_item);
  const __nv_bfloat16* row = nullptr;
  int expert = 0;
  const int end = first + w.tasks1;
#pragma unroll 1
  for (int i = first; i <= end; ++i) {
    if (i < end) {
      if (item != item_in_x) {
        item_in_x = item;
        const Item it = UnpackItem(s.item[w.first_listed + item]);
        if constexpr (C::kAnyShape) {
          row = RowOfX<C>(a, s, it, p.g);
          expert = it.expert;
        } else if constexpr (kShort) {
          row = (N::kFp4 ? QuantizeForItem<C>(a, s, p, w, it) : s.x + w.step1 * 64) + 16 * p.t;
        } else if constexpr (N::kFp4) {
          LoadQuantized<C>(a, s, p, w, it, x);
        } else {
          LoadItem<C>(a, s, p, w, it, x);
        }
      }
      float acc[kTaskTiles][4] = {};
      constexpr int kUnroll = C::kAnyShape ? 1 : C::kXSteps / kUnit;
      const int units = C::kAnyShape ? w.units1 : kUnroll;
#pragma unroll kUnroll
      for (int u = 0; u < units; ++u) {
        int steps = kUnit;
        if constexpr (C::kAnyShape) {
          steps = min(kUnit, w.steps1 - u * kUnit);
          LoadUnit<N>(a, p, expert, 0, row, w.step1 + u * kUnit, steps, x);
        }
        const uint8_t* unit = stream.Wait();
        if (i == first && u == 0) stream.Fill(true);
        const auto multiply_step = [&](int k, const uint32_t(&b)[8], uint32_t rows) {
#pragma unroll
          for (int r = 0; r < kTaskTiles; ++r) {
            MultiplyTile<C::kFormat>(unit + (k * kTaskTiles + r) * C::kTileBytes, p.lane, b, acc[r],
                                     rows);
          }
        };
        const auto multiply = [&](uint32_t rows) {
          if constexpr (kShort) {
#pragma unroll 1
            for (int k = 0; k < kUnit; ++k) {
              uint32_t b[8];
              LoadSharedX(b, row + 64 * (u * kUnit + k));
              multiply_step(k, b, rows);
            }
          } else {
#pragma unroll
            for (int k = 0; k < kUnit; ++k) {
              if (C::kAnyShape && k >= steps) break;
              multiply_step(k, x[C::kAnyShape ? k : u * kUnit + k], rows);
            }
          }
        };
        if constexpr (C::kAnyShape && N::kFp4 && N::kGated) {
          const bool twice = a.x_passes == 2;
          multiply(twice ? 0x00FFu : 0xFFFFu);
          if (twice) {
            LoadUnit<N>(a, p, expert, 1, row, w.step1 + u * kUnit, steps, x);
            multiply(0xFF00u);
          }
        } else {
          multiply(0xFFFFu);
        }
        stream.Release();
      }
      const int buffer = i % kPartialBuffers;
      if (i >= kPartialBuffers) {
        BarrierWait(SharedAddress(&s.partial_empty[p.group][buffer]),
                    (i / kPartialBuffers - 1) & 1);
      }
#pragma unroll
      for (int r = 0; r < kTaskTiles; ++r) {
        s.partial[p.group][buffer][p.k_part][r][p.lane] =
            make_float4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
      }
      BarrierArrive(SharedAddress(&s.partial_full[p.group][buffer]));
      task += kGroups;
      if (task >= a.tasks) task -= a.tasks, ++item;
    }
    if (i > first && (i - 1) % kGroupWarps == p.k_part) {
      FinishTask<N>(a, s, p, w, i - 1, finish_item, finish_task);
      finish_task += kGroups * kGroupWarps;
      while (finish_task >= a.tasks) finish_task -= a.tasks, ++finish_item;
      ItemScales<N>::Ask(a, s, p, w, finish_item);
    }
  }
}

}  // namespace nibble::cuda::decode
