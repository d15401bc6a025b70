// Attention over a block of a cache, a part of glue_body.h. Both of its products, of queries and
// keys and of weights and values, are one loop (a Products') over the rows of a panel of 32
// columns: a few rows of queries times a few vectors of columns are summed in registers, so that
// what is loaded is used often. A sum is made in the order of k whatever rows are summed beside it.
// Unlike the rest of the glue this multiplies and adds in one rounding where the machine can:
// instruction sets differ in the last bits.
//
// Before it is included: Native, the machine's vector of floats, NativeSet() and
// NativeMultiplyAdd() on it, and kTileRows x kTileWides, the vectors of sums that its registers
// hold.

inline Wide Set(float x) { return (Wide)NativeSet(x); }
inline Wide MultiplyAdd(Wide a, Wide b, Wide c) {
  return (Wide)NativeMultiplyAdd((Native)a, (Native)b, (Native)c);
}

typedef uint32_t WideBits __attribute__((vector_size(kWideBytes)));
typedef uint16_t WideHalves __attribute__((vector_size(kWideBytes / 2)));
typedef uint8_t WideBytes __attribute__((vector_size(kWideBytes / 4)));

/// Cached numbers as floats: the types that a KV cache may have. Load gives the columns at p of the
/// first or, with kRow 1, the second of the rows that lie together.
struct F32Cache {
  static constexpr int64_t kTogether = 1, kBytes = 4;  // of a column: of the rows together
  template <int kRow>
  static Wide Load(const std::byte* p) {
    return LoadWide(reinterpret_cast<const float*>(p));
  }
};
struct Bf16Cache {
  static constexpr int64_t kTogether = 2, kBytes = 4;
  template <int kRow>
  static Wide Load(const std::byte* p) {
    WideBits pairs;
    __builtin_memcpy(&pairs, p, sizeof pairs);
    return (Wide)(kRow == 0 ? pairs << 16 : pairs & 0xFFFF0000);
  }
};
/// e4m3: exponent and mantissa are moved to where a float has them, and the exponent's bias made a
/// float's. Subnormals get an exponent of their own and lose the 1 that it implies. A cache never
/// holds NaN.
struct Fp8Cache {
  static constexpr int64_t kTogether = 2, kBytes = 2;
  template <int kRow>
  static Wide Load(const std::byte* p) {
    WideHalves pairs;
    __builtin_memcpy(&pairs, p, sizeof pairs);
    const WideBits u = __builtin_convertvector(pairs, WideBits) >> 8 * kRow, magnitude = u & 0x7F;
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

template <int64_t kBytes>
inline void FetchRow(const std::byte* p) {
  __builtin_prefetch(p);
  if (kBytes > 64) __builtin_prefetch(p + 64);
}

/// How rows are multiplied with panels of a cache: a Products has the numbers of the rows, queries
/// or, made of them in place, weights, as Left. These are in fp32, whatever the cache keeps.
template <class Cache>
struct FloatProducts {
  typedef float Left;
  static constexpr int64_t kRowBytes = kKvPanel * Cache::kBytes;  // of the rows together
  static constexpr int64_t kTogether = Cache::kTogether, kBytes = Cache::kBytes;

  static int64_t QueryStride(int64_t dim) { return dim; }
  static const float* Queries(const AttendBlock& a, uint32_t*) { return a.q; }
  static void Weights(float*, int64_t) {}

  template <int kRow, int kRows>
  static inline __attribute__((always_inline)) void AddRow(const float* a, int64_t a_row,
                                                           const std::byte* b,
                                                           Wide (&sums)[kRows][kTileWides]) {
    Wide right[kTileWides];
#pragma GCC unroll 16
    for (int c = 0; c < kTileWides; ++c) {
      right[c] = Cache::template Load<kRow>(b + c * kWide * kBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Wide left = Set(a[r * a_row]);
#pragma GCC unroll 16
      for (int c = 0; c < kTileWides; ++c) sums[r][c] = MultiplyAdd(left, right[c], sums[r][c]);
    }
  }

  /// sums[r] += sum_k a[r * a_row + k] * b[k], b being columns of a panel of n rows. kFetch: what
  /// lies at `ahead` will be read next.
  template <bool kFetch, int kRows>
  static inline __attribute__((always_inline)) void Multiply(const float* a, int64_t a_row,
                                                             const std::byte* b, int64_t n,
                                                             const std::byte* ahead,
                                                             Wide (&sums)[kRows][kTileWides]) {
    int64_t k = 0;
    for (; k + kTogether <= n; k += kTogether, b += kRowBytes, ahead += kRowBytes) {
      if (kFetch) FetchRow<kRowBytes>(ahead);
      AddRow<0>(a + k, a_row, b, sums);
      if constexpr (kTogether == 2) AddRow<1>(a + k + 1, a_row, b, sums);
    }
    if (k < n) AddRow<0>(a + k, a_row, b, sums);
  }
};

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
template <class Products, bool kFetch, int kRows>
void ScoreTile(const AttendBlock& a, TileHeight<kRows>, int64_t row,
               const typename Products::Left* queries, const std::byte* panel,
               const std::byte* ahead, float* scores) {
  const Wide scale = Set(a.scale);
  const int64_t stride = Products::QueryStride(a.dim);
  for (int64_t col = 0; col < kKvPanel; col += kTileColumns) {
    Wide sums[kRows][kTileWides] = {};
    const auto* const q = queries + row * stride;
    const std::byte* const columns = panel + col * Products::kBytes;
    if (kFetch && col == 0) {
      Products::template Multiply<true>(q, stride, columns, a.dim, ahead, sums);
    } else {
      Products::template Multiply<false>(q, stride, columns, a.dim, ahead, sums);
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
template <class Products, bool kFetch, int kRows>
void ValueTile(const AttendBlock& a, TileHeight<kRows>, int64_t row,
               const typename Products::Left* weights, const std::byte* panel,
               const std::byte* ahead, const Factors* factors, float* out) {
  const int64_t n = a.seen[row + kRows - 1];
  for (int64_t col = 0; col < kKvPanel; col += kTileColumns) {
    Wide sums[kRows][kTileWides] = {};
    const auto* const w = weights + row * kScoreStride;
    const std::byte* const columns = panel + col * Products::kBytes;
    if (kFetch && col == 0) {
      Products::template Multiply<true>(w, kScoreStride, columns, n, ahead, sums);
    } else {
      Products::template Multiply<false>(w, kScoreStride, columns, n, ahead, sums);
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

/// The parts of AttendBlock::scratch: AttendScratch().
struct AttendMemory {
  float* scores;      // [rows][kScoreStride]; then the weights, as Products have them
  Factors* factors;   // [rows]
  uint32_t* queries;  // [rows][QueryPairs(dim)]
  float* block;       // keys and values

  explicit AttendMemory(const AttendBlock& a)
      : scores(a.scratch),
        factors(reinterpret_cast<Factors*>(scores + a.rows * kScoreStride)),
        queries(reinterpret_cast<uint32_t*>(factors + a.rows)),
        block(a.scratch + RoundUpTo(a.rows * (kScoreStride + 2 + QueryPairs(a.dim)), 16)) {}
};

/// The first tile of a panel fetches the next panel, the others find theirs in a near cache.
template <class KeyProducts, class ValueProducts>
void AttendIn(const AttendBlock& a, const std::byte* keys, const std::byte* values,
              int64_t positions) {
  const AttendMemory memory(a);
  float* const scores = memory.scores;
  const int64_t most = a.seen[a.rows - 1];
  const int64_t key_panel = KeyRows(a.dim) / KeyProducts::kTogether * KeyProducts::kRowBytes;
  const int64_t value_panel = positions / ValueProducts::kTogether * ValueProducts::kRowBytes;
  const auto* const queries = KeyProducts::Queries(a, memory.queries);
  for (int64_t first = 0; first < most; first += kKvPanel) {
    const std::byte* const panel = keys + first / kKvPanel * key_panel;
    const std::byte* const ahead = first + kKvPanel < most ? panel + key_panel : values;
    InTiles<kTileRows>(0, a.rows, [&](auto height, int64_t row) {
      if (a.seen[row + TileRows(height) - 1] <= first) return;
      float* const to = scores + first;
      if (row == 0) return ScoreTile<KeyProducts, true>(a, height, row, queries, panel, ahead, to);
      ScoreTile<KeyProducts, false>(a, height, row, queries, panel, ahead, to);
    });
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    float largest, total;
    float* const row = scores + r * kScoreStride;
    Soften(row, a.seen[r], RoundUpTo(most, kLanes), &largest, &total);
    ValueProducts::Weights(row, RoundUpTo(most, kLanes));
    if (a.first) {
      a.sums.largest[r] = largest;
      a.sums.total[r] = total;
    } else {
      memory.factors[r] = MergeTotals(a.sums.largest + r, a.sums.total + r, largest, total);
    }
  }
  const auto* const weights = reinterpret_cast<const typename ValueProducts::Left*>(scores);
  for (int64_t first = 0; first < a.width; first += kKvPanel) {
    const std::byte* const panel = values + first / kKvPanel * value_panel;
    const std::byte* const ahead = first + kKvPanel < a.width ? panel + value_panel : a.next;
    InTiles<kTileRows>(0, a.rows, [&](auto height, int64_t row) {
      float* const out = a.sums.out + first;
      if (row == 0) {
        return ValueTile<ValueProducts, true>(a, height, row, weights, panel, ahead, memory.factors,
                                              out);
      }
      ValueTile<ValueProducts, false>(a, height, row, weights, panel, ahead, memory.factors, out);
    });
  }
}

/// n rows of panels as floats.
template <class Cache>
void PanelToFloats(const std::byte* from, int64_t n, float* to) {
  for (int64_t k = 0; k < n; k += 2) {
    for (int64_t i = 0; i < kKvPanel; i += kWide, from += kWide * Cache::kBytes) {
      StoreWide(to + k * kKvPanel + i, Cache::template Load<0>(from));
      StoreWide(to + (k + 1) * kKvPanel + i, Cache::template Load<1>(from));
    }
  }
}

/// Many rows read a block's numbers many times: as floats they are made once.
template <class Cache>
void AttendConverted(const AttendBlock& a) {
  const int64_t most = RoundUpTo(a.seen[a.rows - 1], 2), key_rows = KeyRows(a.dim);
  const int64_t row_bytes = kKvPanel * Cache::kBytes / 2;
  float* const keys = AttendMemory(a).block;
  float* const values = keys + kKvBlock * key_rows;
  PanelToFloats<Cache>(a.keys, RoundUpTo(most, kKvPanel) / kKvPanel * key_rows, keys);
  for (int64_t panel = 0; panel < a.width / kKvPanel; ++panel) {
    PanelToFloats<Cache>(a.values + panel * a.positions * row_bytes, most,
                         values + panel * kKvBlock * kKvPanel);
  }
  AttendIn<FloatProducts<F32Cache>, FloatProducts<F32Cache>>(
      a, reinterpret_cast<const std::byte*>(keys), reinterpret_cast<const std::byte*>(values),
      kKvBlock);
}

template <class Cache>
void AttendNarrow(const AttendBlock& a) {
  if (a.rows > 2 * kTileRows) return AttendConverted<Cache>(a);
  AttendIn<FloatProducts<Cache>, FloatProducts<Cache>>(a, a.keys, a.values, a.positions);
}

void Attend(const AttendBlock& a) {
  switch (a.dtype) {
    case KvDtype::kF32:
      return AttendIn<FloatProducts<F32Cache>, FloatProducts<F32Cache>>(a, a.keys, a.values,
                                                                        a.positions);
    case KvDtype::kF32Bf16:
      return AttendIn<FloatProducts<F32Cache>, FloatProducts<Bf16Cache>>(a, a.keys, a.values,
                                                                         a.positions);
    case KvDtype::kBf16:
      return AttendNarrow<Bf16Cache>(a);
    case KvDtype::kFp8:
      return AttendNarrow<Fp8Cache>(a);
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
