// The gated delta rule in chunks, a part of glue_body.h: 64 tokens at a time become matrix products
// (the WY form, as reference/delta_rule.cc derives it). With S0 the state that a chunk finds, G the
// running sum of g, D_ij = e^(G_i - G_j) for j <= i, and K, Q, V the rows of its tokens:
//   V' = beta (V - e^G K S0^T) - strict_lower(beta (K K^T * D)) V'
//   O  = e^G Q S0^T + lower(Q K^T * D) V'
//   S1 = e^(G_n) S0 + V'^T e^(G_n - G) K
// Nothing mixes two columns of V, O or S^T. So those are held as panels of 32 columns, which stay
// in the first-level cache for a whole chunk, and each product is one loop (MultiplyAdd) over rows
// of a panel. A lane adds up in the order of the tokens or of k whatever the width of the machine's
// vectors, so every instruction set gives the same bits.
//
// Before it is included: kWideBytes, the machine's vector; kBlockRows x kBlockWides, the vectors of
// sums that its registers hold.

constexpr int64_t kChunk = kDeltaChunk, kPanel = 32, kBlockCols = kBlockWides * kWide;
static_assert(kPanel % kBlockCols == 0 && kLanes % kBlockRows == 0);

/// softplus as max(x, 0) + log1p(u) with u = e^-|x|; log1p(u) = 2 atanh(u / (2 + u)), whose series
/// is below 2^-29 of it from the ninth term on.
inline Wide Softplus(Wide x) {
  const WideInt positive = x > 0.0f;
  const Wide u = Exp(positive ? -x : x), z = u / (2.0f + u), square = z * z;
  Wide p = Wide{} + 1.0f / 15;
  p = p * square + 1.0f / 13;
  p = p * square + 1.0f / 11;
  p = p * square + 1.0f / 9;
  p = p * square + 1.0f / 7;
  p = p * square + 1.0f / 5;
  p = p * square + 1.0f / 3;
  p = p * square + 1.0f;
  return (positive ? x : Wide{}) + 2.0f * z * p;
}

void DeltaGates(const float* a, const float* rate, int64_t n, float* beta, float* g) {
  for (int64_t i = 0; i < n; i += kWide) {
    StoreWide(beta + i, Sigmoid(LoadWide(beta + i)));
    StoreWide(g + i, -LoadWide(rate + i) * Softplus(LoadWide(a + i)));
  }
}

/// One row of the state through one token. The row is read and written once.
inline float DeltaRow(const float* q, const float* k, float v, float decay, float beta, int64_t n,
                      float* s) {
  Wide read[kPieces] = {}, out[kPieces] = {};
  float lanes[kLanes];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < kPieces; ++p) {
      read[p] += LoadWide(s + i + p * kWide) * LoadWide(k + i + p * kWide);
    }
  }
  __builtin_memcpy(lanes, read, sizeof lanes);
  float total = SumLanes(lanes);
  for (; i < n; ++i) total += s[i] * k[i];
  const float delta = beta * (v - decay * total);
  for (i = 0; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < kPieces; ++p) {
      const int64_t at = i + p * kWide;
      const Wide updated = decay * LoadWide(s + at) + delta * LoadWide(k + at);
      StoreWide(s + at, updated);
      out[p] += updated * LoadWide(q + at);
    }
  }
  __builtin_memcpy(lanes, out, sizeof lanes);
  float o = SumLanes(lanes);
  for (; i < n; ++i) {
    s[i] = decay * s[i] + delta * k[i];
    o += s[i] * q[i];
  }
  return o;
}

void DeltaRows(const DeltaTokens<float>& t, float* state) {
  for (int64_t i = 0; i < t.n; ++i) {
    const float decay = ExpOne(t.g[i * t.gate_stride]), beta = t.beta[i * t.gate_stride];
    const float *q = t.q + i * t.qkv_stride, *k = t.k + i * t.qkv_stride,
                *v = t.v + i * t.qkv_stride;
    for (int64_t r = 0; r < t.v_dim; ++r) {
      t.o[i * t.o_stride + r] = DeltaRow(q, k, v[r], decay, beta, t.k_dim, state + r * t.k_dim);
    }
  }
}

/// What a chunk's matrices are kept in, all of it scratch memory. Rows behind the chunk's n are
/// zeros, also in beta, and change nothing.
struct ChunkMemory {
  int64_t n = 0;                // tokens
  int64_t rows = 0;             // that are computed: n rounded up to kBlockRows
  int64_t padded = 0;           // that are there: n rounded up to 16
  int64_t k_dim = 0;            // a multiple of 16, the last ones zeros
  float *q, *k;                 // [64][k_dim]
  float* k_columns;             // [2 panels][k_dim][32]
  float *kk, *qk;               // [64][64], the lower triangle by blocks
  float *solve, *mix;           // [64][64]: -beta (K K^T * D), Q K^T * D
  float *beta, *growth, *fade;  // [64]: e^G, e^(G_n - G)
  float *sums_high, *sums_low;  // [64]: G in two pieces
  float *v, *o;                 // [64][32]: V, then V'; O
  float* states;                // [heads][panels][k_dim][32]: S^T

  ChunkMemory(float* p, int64_t k_size) : k_dim(k_size) {
    const auto take = [&](int64_t count) {
      float* at = p;
      p += count;
      return at;
    };
    q = take(kChunk * k_dim);
    k = take(kChunk * k_dim);
    k_columns = take(kChunk * k_dim);
    kk = take(kChunk * kChunk);
    qk = take(kChunk * kChunk);
    solve = take(kChunk * kChunk);
    mix = take(kChunk * kChunk);
    beta = take(kChunk);
    growth = take(kChunk);
    fade = take(kChunk);
    sums_high = take(kChunk);
    sums_low = take(kChunk);
    v = take(kChunk * kPanel);
    o = take(kChunk * kPanel);
    states = p;
  }
};

inline int64_t RoundUpTo(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t DeltaScratch(int64_t k_size, int64_t v_dim, int64_t heads) {
  const int64_t k_dim = RoundUpTo(k_size, kLanes);
  return 3 * kChunk * k_dim + 4 * kChunk * kChunk + 5 * kChunk + 2 * kChunk * kPanel +
         heads * RoundUpTo(v_dim, kPanel) * k_dim;
}

/// to[j * to_row + i] = from[i * from_row + j] for i < rows, j < cols.
inline void Transpose(const float* from, int64_t from_row, int64_t rows, int64_t cols, float* to,
                      int64_t to_row) {
  const int64_t whole_rows = rows / 4 * 4, whole_cols = cols / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4) {
    for (int64_t j = 0; j < whole_cols; j += 4) {
      F4 r[4];
      for (int b = 0; b < 4; ++b) {
        __builtin_memcpy(&r[b], from + (i + b) * from_row + j, sizeof(F4));
      }
      const F4 low01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5),
               high01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7),
               low23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5),
               high23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
      const F4 columns[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                             __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                             __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                             __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
      for (int b = 0; b < 4; ++b) __builtin_memcpy(to + (j + b) * to_row + i, &columns[b], 16);
    }
    for (int64_t j = whole_cols; j < cols; ++j) {
      for (int64_t b = i; b < i + 4; ++b) to[j * to_row + b] = from[b * from_row + j];
    }
  }
  for (int64_t i = whole_rows; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) to[j * to_row + i] = from[i * from_row + j];
  }
}

/// `rows` rows of `cols` into [padded][width], zeros around them.
inline void CopyPadded(const float* from, int64_t stride, int64_t rows, int64_t cols, float* to,
                       int64_t padded, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    __builtin_memcpy(to + i * width, from + i * stride, cols * sizeof(float));
    if (cols < width) __builtin_memset(to + i * width + cols, 0, (width - cols) * sizeof(float));
  }
  __builtin_memset(to + rows * width, 0, (padded - rows) * width * sizeof(float));
}

/// sums[r] += sum_l a[r * row + l * step] * b[l], b being columns of a panel.
inline __attribute__((always_inline)) void MultiplyAdd(Wide (&sums)[kBlockRows][kBlockWides],
                                                       const float* a, int64_t row, int64_t step,
                                                       const float* b, int64_t n) {
  for (int64_t l = 0; l < n; ++l, a += step, b += kPanel) {
    Wide right[kBlockWides];
#pragma GCC unroll 8
    for (int c = 0; c < kBlockWides; ++c) right[c] = LoadWide(b + c * kWide);
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
      const float left = a[r * row];
#pragma GCC unroll 8
      for (int c = 0; c < kBlockWides; ++c) sums[r][c] += left * right[c];
    }
  }
}

inline __attribute__((always_inline)) void StoreBlock(const Wide (&sums)[kBlockRows][kBlockWides],
                                                      float* to, int64_t stride) {
#pragma GCC unroll 8
  for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kBlockWides; ++c) StoreWide(to + r * stride + c * kWide, sums[r][c]);
  }
}

/// K K^T and Q K^T, as far right as the triangle reaches.
void KeyProducts(const ChunkMemory& m) {
  for (int64_t i = 0; i < m.rows; i += kBlockRows) {
    const int64_t end = i / kLanes * kLanes + kLanes;  // what Weigh() reads of these rows
    for (int64_t j = 0; j < end; j += kBlockCols) {
      const float* columns = m.k_columns + j / kPanel * m.k_dim * kPanel + j % kPanel;
      for (const bool keys : {true, false}) {
        Wide sums[kBlockRows][kBlockWides] = {};
        MultiplyAdd(sums, (keys ? m.k : m.q) + i * m.k_dim, m.k_dim, 1, columns, m.k_dim);
        StoreBlock(sums, (keys ? m.kk : m.qk) + i * kChunk + j, kChunk);
      }
    }
  }
}

/// The gates of a value head's tokens, and with them its triangular matrices. G is summed in
/// double: after a strong decay, weak ones would be lost in it. Only differences of G that are <= 0
/// meet Exp().
float Weigh(const DeltaTokens<float>& t, const ChunkMemory& m) {
  double sums[kChunk], sum = 0;
  for (int64_t i = 0; i < m.padded; ++i) {
    m.beta[i] = i < m.n ? t.beta[i * t.gate_stride] : 0;
    sum += i < m.n ? static_cast<double>(t.g[i * t.gate_stride]) : 0;
    sums[i] = sum;
    m.growth[i] = m.sums_high[i] = static_cast<float>(sum);
    m.sums_low[i] = static_cast<float>(sum - static_cast<double>(m.sums_high[i]));
  }
  for (int64_t i = 0; i < m.padded; ++i) m.fade[i] = static_cast<float>(sum - sums[i]);
  for (int64_t i = 0; i < m.padded; i += kWide) {
    StoreWide(m.growth + i, Exp(LoadWide(m.growth + i)));
    StoreWide(m.fade + i, Exp(LoadWide(m.fade + i)));
  }
  WideInt lane;
  for (int32_t l = 0; l < kWide; ++l) lane[l] = l;
  for (int64_t i = 0; i < m.rows; ++i) {
    const int64_t end = i / kLanes * kLanes + kLanes;
    for (int64_t j = 0; j < end; j += kWide) {
      const Wide difference =
          (m.sums_high[i] - LoadWide(m.sums_high + j)) + (m.sums_low[i] - LoadWide(m.sums_low + j));
      const WideInt lower = lane <= static_cast<int32_t>(i - j);
      const Wide decay = Exp(lower ? difference : Wide{} - 1000.0f);
      const int64_t at = i * kChunk + j;
      StoreWide(m.solve + at, -m.beta[i] * (LoadWide(m.kk + at) * decay));
      StoreWide(m.mix + at, LoadWide(m.qk + at) * decay);
    }
  }
  return ExpOne(static_cast<float>(sum));
}

/// V' in place of V, by forward substitution: blocks of rows, and within a block row by row.
void SolvePanel(const ChunkMemory& m, const float* state, int64_t col) {
  for (int64_t i = 0; i < m.rows; i += kBlockRows) {
    Wide sums[kBlockRows][kBlockWides] = {};
    MultiplyAdd(sums, m.k + i * m.k_dim, m.k_dim, 1, state + col, m.k_dim);
    float* const rows = m.v + i * kPanel + col;
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
      const float beta = m.beta[i + r], growth = m.growth[i + r];
#pragma GCC unroll 8
      for (int c = 0; c < kBlockWides; ++c) {
        sums[r][c] = beta * (LoadWide(rows + r * kPanel + c * kWide) - growth * sums[r][c]);
      }
    }
    const float* solve = m.solve + i * kChunk;
    MultiplyAdd(sums, solve, kChunk, 1, m.v + col, i);
#pragma GCC unroll 8
    for (int r = 1; r < kBlockRows; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < r; ++j) {
        const float weight = solve[r * kChunk + i + j];
#pragma GCC unroll 8
        for (int c = 0; c < kBlockWides; ++c) sums[r][c] += weight * sums[j][c];
      }
    }
    StoreBlock(sums, rows, kPanel);
  }
}

void OutputPanel(const ChunkMemory& m, const float* state, int64_t col) {
  for (int64_t i = 0; i < m.rows; i += kBlockRows) {
    Wide sums[kBlockRows][kBlockWides] = {};
    MultiplyAdd(sums, m.q + i * m.k_dim, m.k_dim, 1, state + col, m.k_dim);
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kBlockWides; ++c) sums[r][c] *= m.growth[i + r];
    }
    MultiplyAdd(sums, m.mix + i * kChunk, kChunk, 1, m.v + col, i + kBlockRows);
    StoreBlock(sums, m.o + i * kPanel + col, kPanel);
  }
}

void UpdatePanel(const ChunkMemory& m, float decay, float* state, int64_t col) {
  for (int64_t k = 0; k < m.k_dim; k += kBlockRows) {
    float* const rows = state + k * kPanel + col;
    Wide sums[kBlockRows][kBlockWides];
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kBlockWides; ++c) {
        sums[r][c] = decay * LoadWide(rows + r * kPanel + c * kWide);
      }
    }
    MultiplyAdd(sums, m.k + k, 1, m.k_dim, m.v + col, m.n);
    StoreBlock(sums, rows, kPanel);
  }
}

/// A value head whose gates Weigh() has seen, through `cols` columns of its state.
void RunPanel(const ChunkMemory& m, const DeltaTokens<float>& t, int64_t cols, float decay,
              float* state) {
  CopyPadded(t.v, t.qkv_stride, m.n, cols, m.v, m.padded, kPanel);
  for (int64_t col = 0; col < kPanel; col += kBlockCols) SolvePanel(m, state, col);
  for (int64_t col = 0; col < kPanel; col += kBlockCols) OutputPanel(m, state, col);
  for (int64_t i = 0; i < m.n; ++i) {
    __builtin_memcpy(t.o + i * t.o_stride, m.o + i * kPanel, cols * sizeof(float));
    for (int64_t c = 0; c < kPanel; c += kWide) {
      float* const p = m.v + i * kPanel + c;
      StoreWide(p, m.fade[i] * LoadWide(p));
    }
  }
  for (int64_t col = 0; col < kPanel; col += kBlockCols) UpdatePanel(m, decay, state, col);
}

/// Calls run(columns, where S has them, where S^T has them) for every panel.
template <class Float, class Run>
inline void EachPanel(const DeltaTokens<float>& t, int64_t heads, Float* states,
                      const ChunkMemory& m, Run run) {
  const int64_t panels = RoundUpTo(t.v_dim, kPanel) / kPanel;
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = p * kPanel, left = t.v_dim - first;
      run(left < kPanel ? left : kPanel, states + (h * t.v_dim + first) * t.k_dim,
          m.states + (h * panels + p) * m.k_dim * kPanel);
    }
  }
}

void DeltaLoad(const DeltaTokens<float>& t, int64_t heads, const float* states, float* scratch) {
  const ChunkMemory m(scratch, RoundUpTo(t.k_dim, kLanes));
  EachPanel(t, heads, states, m, [&](int64_t cols, const float* s, float* panel) {
    if (cols < kPanel || t.k_dim < m.k_dim) {
      __builtin_memset(panel, 0, m.k_dim * kPanel * sizeof(float));
    }
    Transpose(s, t.k_dim, cols, t.k_dim, panel, kPanel);
  });
}

void DeltaStore(const DeltaTokens<float>& t, int64_t heads, float* scratch, float* states) {
  const ChunkMemory m(scratch, RoundUpTo(t.k_dim, kLanes));
  EachPanel(t, heads, states, m, [&](int64_t cols, float* s, const float* panel) {
    Transpose(panel, kPanel, t.k_dim, cols, s, t.k_dim);
  });
}

void DeltaChunk(const DeltaTokens<float>& t, int64_t heads, float* scratch) {
  ChunkMemory m(scratch, RoundUpTo(t.k_dim, kLanes));
  m.n = t.n;
  m.rows = RoundUpTo(t.n, kBlockRows);
  m.padded = RoundUpTo(t.n, kLanes);
  CopyPadded(t.q, t.qkv_stride, t.n, t.k_dim, m.q, m.padded, m.k_dim);
  CopyPadded(t.k, t.qkv_stride, t.n, t.k_dim, m.k, m.padded, m.k_dim);
  for (int64_t j = 0; j < m.padded; j += kPanel) {
    const int64_t rows = m.padded - j < kPanel ? m.padded - j : kPanel;
    Transpose(m.k + j * m.k_dim, m.k_dim, rows, m.k_dim, m.k_columns + j * m.k_dim, kPanel);
  }
  KeyProducts(m);
  float* state = m.states;
  for (int64_t h = 0; h < heads; ++h) {
    DeltaTokens<float> head = t;
    head.g += h;
    head.beta += h;
    const float decay = Weigh(head, m);
    for (int64_t col = 0; col < t.v_dim; col += kPanel, state += m.k_dim * kPanel) {
      head.v = t.v + h * t.v_dim + col;
      head.o = t.o + h * t.v_dim + col;
      const int64_t left = t.v_dim - col;
      RunPanel(m, head, left < kPanel ? left : kPanel, decay, state);
    }
  }
}
