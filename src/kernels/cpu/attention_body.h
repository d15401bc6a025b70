// Attention over a block of a cache, a part of glue_body.h. Both of its products, of queries and
// keys and of weights and values, are one loop (Multiply) over the rows of a panel of 32 columns:
// a few rows of queries times a few vectors of columns are summed in registers, so that what is
// loaded is used often. A sum is made in the order of k whatever rows are summed beside it. Unlike
// the rest of the glue this multiplies and adds in one rounding where the machine can: instruction
// sets differ in the last bits.
//
// Before it is included: Native, the machine's vector of floats, NativeSet() and
// NativeMultiplyAdd() on it, NativeBytes(), which loads bytes as 32-bit integers (GCC 12 would do
// that one by one), and kTileRows x kTileWides, the vectors of sums that its registers hold.

inline Wide Set(float x) { return (Wide)NativeSet(x); }
inline Wide MultiplyAdd(Wide a, Wide b, Wide c) {
  return (Wide)NativeMultiplyAdd((Native)a, (Native)b, (Native)c);
}

typedef uint32_t WideBits __attribute__((vector_size(kWideBytes)));
typedef uint16_t WideHalves __attribute__((vector_size(kWideBytes / 2)));
typedef uint8_t WideBytes __attribute__((vector_size(kWideBytes / 4)));

/// Cached numbers as floats: the types that a KV cache may have.
struct F32Cache {
  static constexpr int64_t kBytes = 4;
  static Wide Load(const std::byte* p) { return LoadWide(reinterpret_cast<const float*>(p)); }
};
struct Bf16Cache {
  static constexpr int64_t kBytes = 2;
  static Wide Load(const std::byte* p) { return LoadWideBf16s(p); }
};
/// e4m3: exponent and mantissa are moved to where a float has them, and the exponent's bias made a
/// float's. Subnormals get an exponent of their own and lose the 1 that it implies. A cache never
/// holds NaN.
struct Fp8Cache {
  static constexpr int64_t kBytes = 1;
  static Wide Load(const std::byte* p) {
    const WideBits u = (WideBits)NativeBytes(p), magnitude = u & 0x7F;
    const WideInt subnormal = (WideInt)magnitude < 8;
    const Wide normal = (Wide)((magnitude << 20) + (120u << 23));
    const Wide shifted = (Wide)((magnitude << 20) + (121u << 23)) - 0x1p-6f;
    return (Wide)((WideBits)(subnormal ? shifted : normal) | (u & 0x80) << 24);
  }
};

/// 2^x for x <= 0 to 2 ulp: the integer is added to the exponent's bits, the fraction in [-0.5,
/// 0.5] goes through Taylor's polynomial, whose next term is below 2^-27. Below -126 it is 0; NaN
/// stays NaN.
inline Wide Exp2(Wide x) {
  const Wide magic = Set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Wide rounded = x + magic;
  const Wide f = x - (rounded - magic);
  Wide p = Set(1.52527338e-5f);
  p = MultiplyAdd(p, f, Set(1.54035304e-4f));
  p = MultiplyAdd(p, f, Set(1.33335581e-3f));
  p = MultiplyAdd(p, f, Set(9.61812911e-3f));
  p = MultiplyAdd(p, f, Set(5.55041087e-2f));
  p = MultiplyAdd(p, f, Set(2.40226507e-1f));
  p = MultiplyAdd(p, f, Set(6.93147181e-1f));
  p = MultiplyAdd(p, f, Set(1.0f));
  const WideInt scaled = (WideInt)p + ((WideInt)rounded << 23);
  const WideInt lost = x < -126.0f;
  return (Wide)(scaled & ~lost);
}
inline float Exp2One(float x) {
  const Wide v = Exp2(Set(x));
  return v[0];
}

inline float LargestLane(const float* lanes) {
  float largest = lanes[0];
  for (int64_t i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

/// sums[r] += sum_k a[r * a_row + k] * b[k], b being columns of a panel of n rows. kFetch: what
/// lies at `ahead` will be read next.
template <class Cache, int kRows, bool kFetch>
inline __attribute__((always_inline)) void Multiply(const float* a, int64_t a_row,
                                                    const std::byte* b, int64_t n,
                                                    const std::byte* ahead,
                                                    Wide (&sums)[kRows][kTileWides]) {
  constexpr int64_t kRowBytes = kKvPanel * Cache::kBytes;
  for (int64_t k = 0; k < n; ++k, b += kRowBytes) {
    if (kFetch) {
      __builtin_prefetch(ahead + k * kRowBytes);
      if (kRowBytes > 64) __builtin_prefetch(ahead + k * kRowBytes + 64);
    }
    Wide right[kTileWides];
#pragma GCC unroll 16
    for (int c = 0; c < kTileWides; ++c) right[c] = Cache::Load(b + c * kWide * Cache::kBytes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Wide left = Set(a[r * a_row + k]);
#pragma GCC unroll 16
      for (int c = 0; c < kTileWides; ++c) sums[r][c] = MultiplyAdd(left, right[c], sums[r][c]);
    }
  }
}

/// Rows that are summed together: as many as registers hold, and the rest by powers of two.
template <int kRows>
struct TileHeight {
  static constexpr int kNext = kRows > 8 ? 8 : kRows > 4 ? 4 : kRows / 2;
};
template <int kRows>
constexpr int TileRows(TileHeight<kRows>) {
  return kRows;
}

/// Calls tile(height, row) for tiles of rows [row, rows).
template <int kRows, class Tile>
inline __attribute__((always_inline)) void InTiles(int64_t row, int64_t rows, Tile tile) {
  for (; row + kRows <= rows; row += kRows) tile(TileHeight<kRows>{}, row);
  if constexpr (kRows > 1) InTiles<TileHeight<kRows>::kNext>(row, rows, tile);
}

constexpr int64_t kTileColumns = kTileWides * kWide;
static_assert(kKvPanel % kTileColumns == 0);

/// Scores of some rows against the keys of a panel.
template <class Cache, bool kFetch, int kRows>
void ScoreTile(const AttendBlock& a, TileHeight<kRows>, int64_t row, const std::byte* panel,
               const std::byte* ahead, float* scores) {
  const Wide scale = Set(a.scale);
  for (int64_t col = 0; col < kKvPanel; col += kTileColumns) {
    Wide sums[kRows][kTileWides] = {};
    const float* const q = a.q + row * a.dim;
    const std::byte* const columns = panel + col * Cache::kBytes;
    if (kFetch && col == 0) {
      Multiply<Cache, kRows, true>(q, a.dim, columns, a.dim, ahead, sums);
    } else {
      Multiply<Cache, kRows, false>(q, a.dim, columns, a.dim, ahead, sums);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < kTileWides; ++c) {
        StoreWide(scores + (row + r) * kScoreStride + col + c * kWide, sums[r][c] * scale);
      }
    }
  }
}

/// What old sums and a block's are multiplied with, so that both go by the larger score.
struct Factors {
  float old_sums, block;
};

/// A row's largest score and its sum, of older blocks and of one more.
inline Factors MergeTotals(float* largest, float* total, float block_largest, float block_total) {
  const float both = *largest > block_largest ? *largest : block_largest;
  const Factors f = {Exp2One(*largest - both), Exp2One(block_largest - both)};
  *largest = both;
  *total = *total * f.old_sums + block_total * f.block;
  return f;
}

/// The same of the sums of values.
inline Wide MergeValues(Wide old_sums, Wide block, Factors f) {
  return MultiplyAdd(block, Set(f.block), old_sums * Set(f.old_sums));
}

/// A row's scores become weights, and zeros from `n` to `end`.
inline void Soften(float* s, int64_t n, int64_t end, float* largest, float* total) {
  const int64_t padded = RoundUpTo(n, kLanes);
  for (int64_t i = n; i < padded; ++i) s[i] = -__builtin_inff();
  Wide most[kPieces], sum[kPieces] = {};
  float lanes[kLanes];
#pragma GCC unroll 4
  for (int p = 0; p < kPieces; ++p) most[p] = LoadWide(s + p * kWide);
  for (int64_t i = kLanes; i < padded; i += kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < kPieces; ++p) {
      const Wide v = LoadWide(s + i + p * kWide);
      most[p] = v > most[p] ? v : most[p];
    }
  }
  __builtin_memcpy(lanes, most, sizeof lanes);
  *largest = LargestLane(lanes);
  const Wide by = Set(*largest);
  for (int64_t i = 0; i < padded; i += kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < kPieces; ++p) {
      const Wide e = Exp2(LoadWide(s + i + p * kWide) - by);
      StoreWide(s + i + p * kWide, e);
      sum[p] += e;
    }
  }
  __builtin_memcpy(lanes, sum, sizeof lanes);
  *total = SumLanes(lanes);
  if (padded < end) __builtin_memset(s + padded, 0, (end - padded) * sizeof(float));
}

/// Sums of a panel's columns of the values, weighed, added to what older blocks gave.
template <class Cache, bool kFetch, int kRows>
void ValueTile(const AttendBlock& a, TileHeight<kRows>, int64_t row, const std::byte* panel,
               const std::byte* ahead, const float* weights, const Factors* factors, float* out) {
  const int64_t n = a.seen[row + kRows - 1];
  for (int64_t col = 0; col < kKvPanel; col += kTileColumns) {
    Wide sums[kRows][kTileWides] = {};
    const float* const w = weights + row * kScoreStride;
    const std::byte* const columns = panel + col * Cache::kBytes;
    if (kFetch && col == 0) {
      Multiply<Cache, kRows, true>(w, kScoreStride, columns, n, ahead, sums);
    } else {
      Multiply<Cache, kRows, false>(w, kScoreStride, columns, n, ahead, sums);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      float* const to = out + (row + r) * a.width + col;
#pragma GCC unroll 16
      for (int c = 0; c < kTileWides; ++c) {
        Wide v = sums[r][c];
        if (!a.first) v = MergeValues(LoadWide(to + c * kWide), v, factors[row + r]);
        StoreWide(to + c * kWide, v);
      }
    }
  }
}

/// The first tile of a panel fetches the next panel, the others find theirs in a near cache.
template <class Cache>
void AttendIn(const AttendBlock& a, const std::byte* keys, const std::byte* values,
              int64_t positions) {
  float* const scores = a.scratch;
  auto* const factors = reinterpret_cast<Factors*>(scores + a.rows * kScoreStride);
  const int64_t most = a.seen[a.rows - 1];
  const int64_t key_panel = a.dim * kKvPanel * Cache::kBytes;
  const int64_t value_panel = positions * kKvPanel * Cache::kBytes;
  for (int64_t first = 0; first < most; first += kKvPanel) {
    const std::byte* const panel = keys + first / kKvPanel * key_panel;
    const std::byte* const ahead = first + kKvPanel < most ? panel + key_panel : values;
    InTiles<kTileRows>(0, a.rows, [&](auto height, int64_t row) {
      if (a.seen[row + TileRows(height) - 1] <= first) return;
      if (row == 0) return ScoreTile<Cache, true>(a, height, row, panel, ahead, scores + first);
      ScoreTile<Cache, false>(a, height, row, panel, ahead, scores + first);
    });
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    float largest, total;
    Soften(scores + r * kScoreStride, a.seen[r], most, &largest, &total);
    if (a.first) {
      a.sums.largest[r] = largest;
      a.sums.total[r] = total;
    } else {
      factors[r] = MergeTotals(a.sums.largest + r, a.sums.total + r, largest, total);
    }
  }
  for (int64_t first = 0; first < a.width; first += kKvPanel) {
    const std::byte* const panel = values + first / kKvPanel * value_panel;
    const std::byte* const ahead = first + kKvPanel < a.width ? panel + value_panel : a.next;
    InTiles<kTileRows>(0, a.rows, [&](auto height, int64_t row) {
      float* const out = a.sums.out + first;
      if (row == 0) {
        return ValueTile<Cache, true>(a, height, row, panel, ahead, scores, factors, out);
      }
      ValueTile<Cache, false>(a, height, row, panel, ahead, scores, factors, out);
    });
  }
}

template <class Cache>
void ToFloats(const std::byte* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += kWide) StoreWide(to + i, Cache::Load(from + i * Cache::kBytes));
}

/// Many rows read a block's numbers many times: as floats they are made once.
template <class Cache>
void AttendConverted(const AttendBlock& a) {
  const int64_t most = a.seen[a.rows - 1];
  float* const keys = a.scratch + RoundUpTo(a.rows * (kScoreStride + 2), 16);
  float* const values = keys + kKvBlock * a.dim;
  ToFloats<Cache>(a.keys, RoundUpTo(most, kKvPanel) * a.dim, keys);
  for (int64_t first = 0; first < a.width; first += kKvPanel) {
    ToFloats<Cache>(a.values + first * a.positions * Cache::kBytes, most * kKvPanel,
                    values + first * kKvBlock);
  }
  AttendIn<F32Cache>(a, reinterpret_cast<const std::byte*>(keys),
                     reinterpret_cast<const std::byte*>(values), kKvBlock);
}

void Attend(const AttendBlock& a) {
  const bool many = a.rows > 2 * kTileRows;
  switch (a.dtype) {
    case KvDtype::kF32:
      return AttendIn<F32Cache>(a, a.keys, a.values, a.positions);
    case KvDtype::kBf16:
      return many ? AttendConverted<Bf16Cache>(a)
                  : AttendIn<Bf16Cache>(a, a.keys, a.values, a.positions);
    case KvDtype::kFp8:
      return many ? AttendConverted<Fp8Cache>(a)
                  : AttendIn<Fp8Cache>(a, a.keys, a.values, a.positions);
  }
}

void MergeSums(const AttendSums& from, int64_t rows, int64_t width, const AttendSums& into) {
  for (int64_t r = 0; r < rows; ++r) {
    const Factors f = MergeTotals(into.largest + r, into.total + r, from.largest[r], from.total[r]);
    const float* const block = from.out + r * width;
    float* const out = into.out + r * width;
    for (int64_t i = 0; i < width; i += kWide) {
      StoreWide(out + i, MergeValues(LoadWide(out + i), LoadWide(block + i), f));
    }
  }
}

void Multiplied(const float* x, int64_t n, float factor, float* out) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) StoreWide(out + i, LoadWide(x + i) * factor);
  for (; i < n; ++i) out[i] = x[i] * factor;
}

/// numerics/bf16.h: nearest, ties to even; NaN stays NaN.
inline WideBits Bf16Codes(Wide x) {
  const WideBits u = (WideBits)x;
  const WideInt nan = (WideInt)(u & 0x7FFFFFFF) > 0x7F800000;
  return nan ? (u >> 16) | 0x40 : (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
}

/// numerics/e4m3.h: nearest, ties to even, saturating; NaN stays NaN.
inline WideBits E4m3Codes(Wide x) {
  const WideBits u = (WideBits)x, magnitude = u & 0x7FFFFFFF;
  const WideBits sign = (u >> 24) & 0x80;
  const WideBits rounded = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3);
  // Steps of 2^-9: adding 2^14 rounds to them.
  const WideBits steps = (WideBits)((Wide)magnitude + 16384.0f) - (WideBits)Set(16384.0f);
  const WideInt subnormal = (Wide)magnitude<0x1p-6f, above = (WideInt)rounded> 0x7E,
                nan = (WideInt)magnitude > 0x7F800000;
  WideBits code = subnormal ? steps : above ? WideBits{} + 0x7E : rounded;
  code = nan ? WideBits{} + 0x7F : code;
  return code | sign;
}

void ToCache(KvDtype dtype, const float* x, int64_t n, float scale, std::byte* out) {
  for (int64_t i = 0; i < n; i += kWide) {
    const Wide v = LoadWide(x + i);
    if (dtype == KvDtype::kF32) {
      __builtin_memcpy(out + 4 * i, &v, sizeof v);
    } else if (dtype == KvDtype::kBf16) {
      const WideHalves codes = __builtin_convertvector(Bf16Codes(v), WideHalves);
      __builtin_memcpy(out + 2 * i, &codes, sizeof codes);
    } else {
      const WideBytes codes = __builtin_convertvector(E4m3Codes(v / scale), WideBytes);
      __builtin_memcpy(out + i, &codes, sizeof codes);
    }
  }
}
