#pragma once

#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/sm90_moe_prefill_gemm.cuh"

// What the prefill GEMMs do with their accumulators: row g of a tile is a register of lane 4g + t,
// for tokens 8i + 2t and 8i + 2t + 1. Transposed, a lane has two neighbouring features of token
// 8i + lane / 4.

namespace nibble::cuda::prefill {

/// An expert's scales for GEMM1.
template <class K>
struct HiddenScales {
  float gate = 0, up;
  Gscale h{1, 1};
  __device__ HiddenScales(const GemmArgs& a, int expert) {
    constexpr int kShards = K::kGated ? 2 : 1;
    const int last = (expert + 1) * kShards - 1;
    if constexpr (K::kFormat == HopperFormat::kBf16) {
      up = gate = 1;
      return;
    }
    up = __ldg(a.globals + last) * kHopperWeightScale;
    if constexpr (K::kGated) gate = __ldg(a.globals + last - 1) * kHopperWeightScale;
    if constexpr (K::kFp4) {
      up *= Reciprocal(__ldg(a.gscales + last));
      if constexpr (K::kGated) gate *= Reciprocal(__ldg(a.gscales + last - 1));
      h = GscaleOf(__ldg(a.h_gscales + expert));
    }
  }
};

/// The activation and its place: everything of one warp's part of a tile that does not depend on the
/// token. A piece is eight features; a tile has one with a gate, two without.
template <class C, class K>
class HiddenStore {
 public:
  static constexpr int kPieces = K::kGated ? 1 : 2;
  /// A block of 16 is two warps', v and v ^ 1 of a warpgroup: each has eight features of it.
  static constexpr bool kExchange = K::kFp4 && K::kGated;
  using Pieces = uint32_t[C::kM][kPieces];

  __device__ HiddenStore(const GemmArgs& a, const Addresses<C>& s, const Tile& tile,
                         const Consumer<C, K>& c, int turn)
      : a_(a), scales_(a, tile.tokens.expert), t_(c.lane % 4), q_(c.lane / 4) {
    const int first = FeatureOf(tile.row_tile * 16 + c.tile(0), 0);
    const int expert = tile.tokens.expert;
#pragma unroll
    for (int m = 0; m < C::kM; ++m) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        biases_[m][p] = BiasesOf<K::kActivate>(
            a.activation, expert, FeatureOf(tile.row_tile * 16 + c.tile(m), p) + HopperInEight(q_));
      }
    }
    place_ = PairPlace(first % 64 + HopperInEight(2 * t_));
    to_ = a.out + (static_cast<size_t>(first / 64) * a.rows + tile.tokens.first_row + q_) * 128;
    rows_ = first / 64 < a.h_blocks ? tile.tokens.rows - q_ : 0;
    if constexpr (kExchange) {
      const auto buffer = [&](int warp) {
        const int place = (turn & 1) * 4 * C::kWarpgroups + c.group * 4 + warp;
        return s.exchange + (place * (C::kXBytes / 128) + q_) * 4;
      };
      mine_ = buffer(c.warp), other_ = buffer(c.warp ^ 1);
      barrier_ = 1 + c.group * 2 + c.warp / 2;
    }
  }

  /// Tokens 8i + q, transposed.
  template <int N>
  __device__ __forceinline__ void Activate8(float (&acc)[C::kM][N / 2], int i, Pieces& v) const {
#pragma unroll
    for (int m = 0; m < C::kM; ++m) {
      const float* d = acc[m] + 4 * i;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const auto at = [&](int token) {
          const float gate = K::kGated ? d[token] * scales_.gate : 0.0f;
          const float up = d[K::kGated ? 2 + token : 2 * p + token] * scales_.up;
          return Apply<K::kActivate>(a_.activation, biases_[m][p], gate, up);
        };
        v[m][p] = Transpose8x8(PackBf16(at(0), at(1)));
      }
    }
  }

  /// Quantizes n times eight tokens, the first of which is 8i + q. The four lanes of a token share the
  /// making of scales: each makes those of another eight.
  template <int n>
  __device__ __forceinline__ void Quantize(Pieces (&v)[n], int i) const {
    if constexpr (kExchange) {
#pragma unroll
      for (int u = 0; u < n; ++u) {
        const uint32_t amax = MaxOfBlocks(v[u]);
        if (t_ == 0) StoreShared4(mine_ + (i + u) * 32, amax);
      }
      asm volatile("bar.sync %0, 64;" ::"r"(barrier_) : "memory");
    }
#pragma unroll
    for (int base = 0; base < n; base += 4) {
      uint32_t amax = 0;
      if constexpr (kExchange) {
        const int at = (i + min(base + t_, n - 1)) * 32;
        amax = MaxBf16x2(LoadShared4(mine_ + at), LoadShared4(other_ + at));
      } else {
#pragma unroll
        for (int u = base; u < min(base + 4, n); ++u) {
          const uint32_t m = MaxOfBlocks(v[u]);
          if (t_ == u - base) amax = m;
        }
      }
#pragma unroll
      for (int m = 0; m < C::kM; ++m) {
        const float mine = m == 0 ? LowBf16(amax) : HighBf16(amax);
        const BlockScale made = ScaleOfBlock(fmaxf(mine, 0.0f), scales_.h);
#pragma unroll
        for (int u = base; u < min(base + 4, n); ++u) {
          const BlockScale scale = {__shfl_sync(~0u, made.scale, 4 * q_ + u - base),
                                    __shfl_sync(~0u, made.inverse, 4 * q_ + u - base)};
#pragma unroll
          for (int p = 0; p < kPieces; ++p) v[u][m][p] = QuantizePair(v[u][m][p], scale, scale);
        }
      }
    }
  }

  __device__ __forceinline__ void Store(const Pieces& v, int i) const {
    if (8 * i >= rows_) return;
    uint8_t* row = to_ + i * 1024;
    const auto at = [&](int place) { return row + (place ^ q_ << 4); };
    constexpr int kEight = 64;  // eight features further in a row, before the swizzle
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      if constexpr (C::kM == 2) {
        *reinterpret_cast<uint2*>(at(place_ + p * kEight)) = make_uint2(v[0][p], v[1][p]);
      } else {
        *reinterpret_cast<uint32_t*>(at(place_ + p * kEight)) = v[0][p];
      }
    }
  }

 private:
  __device__ static int FeatureOf(int tile, int piece) {
    return K::kGated ? 8 * tile : 16 * tile + 8 * piece;
  }
  /// Of a token's four lanes: the largest magnitude in tile 0 and, in the high half, in tile 1.
  __device__ static uint32_t MaxOfBlocks(const Pieces& v) {
    const auto of_tile = [&](int m) {
      const uint32_t first = v[m][0] & kMagnitudes;
      return kPieces == 1 ? first : MaxBf16x2(first, v[m][kPieces - 1] & kMagnitudes);
    };
    const uint32_t a = of_tile(0), b = C::kM == 2 ? of_tile(C::kM - 1) : 0;
    uint32_t amax = MaxBf16x2(__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632));
    amax = MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 1));
    return MaxBf16x2(amax, __shfl_xor_sync(~0u, amax, 2));
  }

  const GemmArgs& a_;
  const HiddenScales<K> scales_;
  const int t_, q_;
  Biases biases_[C::kM][kPieces];
  int place_, rows_, barrier_ = 0;
  uint32_t mine_ = 0, other_ = 0;
  uint8_t* to_;
};

/// Activation, and h as the next GEMM wants it.
template <class C, class K, int N>
__device__ __forceinline__ void StoreHidden(const GemmArgs& a, const Addresses<C>& s,
                                            const Tile& tile, const Consumer<C, K>& c,
                                            float (&acc)[C::kM][N / 2], int turn) {
  using Store = HiddenStore<C, K>;
  constexpr int kEights = N / 8;
  constexpr int kTogether = Store::kExchange ? kEights : K::kFp4 ? 4 : 1;
  const Store store(a, s, tile, c, turn);
#pragma unroll
  for (int i = 0; i < kEights; i += kTogether) {
    typename Store::Pieces v[kTogether];
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      if (i + u < kEights) store.template Activate8<N>(acc, i + u, v[u]);
    }
    if constexpr (K::kFp4) store.template Quantize<kTogether>(v, i);
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      if (i + u < kEights) store.Store(v[u], i + u);
    }
  }
}

template <class C, class K, int N>
__device__ __forceinline__ void StoreOutput(const GemmArgs& a, const Tile& tile,
                                            const Consumer<C, K>& c, float (&acc)[C::kM][N / 2]) {
  const int t = c.lane % 4, q = c.lane / 4;
  const int column = (tile.row_tile * 2 + c.block()) * 128 + c.warp * 32 + 8 * t;
  float global = 1;
  if constexpr (K::kFormat == HopperFormat::kNvfp4) {
    global = __ldg(a.globals + tile.tokens.expert) * kHopperWeightScale;
  }
  if constexpr (K::kFp4) global *= Reciprocal(__ldg(a.gscales + tile.tokens.expert));
  uint8_t* to =
      a.out + (static_cast<size_t>(tile.tokens.first_row + q) * a.out_columns + column) * 2;
#pragma unroll
  for (int i = 0; i < N / 8; ++i) {
    uint32_t v[2 * C::kM];
#pragma unroll
    for (int m = 0; m < C::kM; ++m) {
      const float* d = acc[m] + 4 * i;
      v[2 * m] = Transpose8x8(PackBf16(d[0] * global, d[1] * global));
      v[2 * m + 1] = Transpose8x8(PackBf16(d[2] * global, d[3] * global));
    }
    if (8 * i + q >= tile.tokens.rows || column >= a.out_columns) continue;
    uint8_t* row = to + static_cast<size_t>(i) * 16 * a.out_columns;
    if constexpr (C::kM == 2) {
      *reinterpret_cast<uint4*>(row) = make_uint4(v[0], v[1], v[2], v[3]);
    } else {
      *reinterpret_cast<uint2*>(row + c.group % 2 * 8) = make_uint2(v[0], v[1]);
    }
  }
}

}  // namespace nibble::cuda::prefill
