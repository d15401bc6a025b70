// The body of GlueKernels, included once by each glue_<isa>.cc inside its target region and its
// unnamed namespace. GCC's vector extension spreads the 16 lanes over whatever registers that
// target has. delta_body.h and attention_body.h say what each must define first.

typedef float F16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef float F4 __attribute__((vector_size(16)));
// A machine's register. What is computed lane by lane is computed in these; variables of a wider
// type would live in memory.
typedef float Wide __attribute__((vector_size(kWideBytes)));
typedef int32_t WideInt __attribute__((vector_size(kWideBytes)));

constexpr int64_t kLanes = 16, kWide = kWideBytes / 4;
constexpr int kPieces = kLanes / kWide;          // registers that hold the 16 lanes
constexpr int kDotBlock = kPieces == 1 ? 4 : 2;  // rows of either side whose sums fit registers

inline F16 Load(const float* p) {
  F16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void Store(float* p, F16 v) { __builtin_memcpy(p, &v, sizeof v); }
inline Wide LoadWide(const float* p) {
  Wide v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void StoreWide(float* p, Wide v) { __builtin_memcpy(p, &v, sizeof v); }
/// Any address: a mapped tensor need not be aligned.
inline F16 LoadBf16s(const void* p) {
  H16 h;
  __builtin_memcpy(&h, p, sizeof h);
  return (F16)(__builtin_convertvector(h, U16) << 16);
}
inline Wide LoadWideBf16s(const void* p) {
  typedef uint16_t Halves __attribute__((vector_size(kWideBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kWideBytes)));
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return (Wide)(__builtin_convertvector(h, Words) << 16);
}
inline float LoadBf16One(const void* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

/// Lanes are summed as a fixed tree: halves of 8, of 4, of 2, of 1.
inline float SumLanes(const float* lanes) {
  F4 quarter[4];
  __builtin_memcpy(quarter, lanes, sizeof quarter);
  const F4 four = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
inline float Sum(F16 v) {
  float lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof v);
  return SumLanes(lanes);
}

/// exp(x) for x <= 0 to 2 ulp: 2^n by the exponent bits, 2^f by a polynomial on [-0.5, 0.5] (Taylor
/// coefficients of 2^f; the seventh term is below 2^-24 there). Below -87 it is 0.
inline Wide Exp(Wide x) {
  const Wide magic = Wide{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Wide scaled = x * 1.44269504f;
  const Wide n = (scaled + magic) - magic;
  const Wide f = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two pieces
  Wide p = Wide{} + 1.0f / 5040;
  p = p * f + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const WideInt bits = (__builtin_convertvector(n, WideInt) + 127) << 23;
  const WideInt keep = x > -87.0f;
  return (Wide)((WideInt)(p * (Wide)bits) & keep);
}
inline float ExpOne(float x) {
  const Wide v = Exp(Wide{} + x);
  return v[0];
}

inline float SumOfSquares(const float* x, int64_t n) {
  Wide sum[kPieces] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < kPieces; ++p) {
      const Wide v = LoadWide(x + i + p * kWide);
      sum[p] += v * v;
    }
  }
  float lanes[kLanes];
  __builtin_memcpy(lanes, sum, sizeof lanes);
  float total = SumLanes(lanes);
  for (; i < n; ++i) total += x[i] * x[i];
  return total;
}

void RmsNorm(const float* x, int64_t n, const float* w, float eps, float* out) {
  const float mean = SumOfSquares(x, n) / static_cast<float>(n);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) {
    StoreWide(out + i, LoadWide(x + i) * inverse * LoadWide(w + i));
  }
  for (; i < n; ++i) out[i] = x[i] * inverse * w[i];
}

void Add(float* x, const float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(x + i, Load(x + i) + Load(y + i));
  for (; i < n; ++i) x[i] += y[i];
}

/// By exp of a non-positive number alone, so that nothing overflows.
inline Wide Sigmoid(Wide g) {
  const WideInt positive = g > 0.0f;
  const Wide e = Exp(positive ? -g : g);
  return (positive ? Wide{} + 1.0f : e) / (1.0f + e);
}
inline Wide Silu(Wide g) { return g * Sigmoid(g); }

void SiluMul(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide)
    StoreWide(out + i, Silu(LoadWide(gate + i)) * LoadWide(up + i));
  for (; i < n; ++i) {
    const Wide v = Silu(Wide{} + gate[i]);
    out[i] = v[0] * up[i];
  }
}

void FromBf16s(const uint8_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(out + i, LoadBf16s(x + 2 * i));
  for (; i < n; ++i) out[i] = LoadBf16One(x + 2 * i);
}

void RotateHalves(float* head, const float* cosines, const float* sines, int64_t frequencies) {
  int64_t i = 0;
  for (; i + kWide <= frequencies; i += kWide) {
    const Wide a = LoadWide(head + i), b = LoadWide(head + frequencies + i),
               c = LoadWide(cosines + i), s = LoadWide(sines + i);
    StoreWide(head + i, a * c - b * s);
    StoreWide(head + frequencies + i, b * c + a * s);
  }
  for (; i < frequencies; ++i) {
    const float a = head[i], b = head[frequencies + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[frequencies + i] = b * cosines[i] + a * sines[i];
  }
}

/// Dot products of kTokens rows of x and kRows of w, each summed as one alone would be.
template <int kTokens, int kRows>
inline void DotBlock(const float* x, int64_t ldx, const uint8_t* w, int64_t n, float* out,
                     int64_t ldo) {
  constexpr int64_t kAhead = 2048;  // bytes: w comes from memory where few tokens share it
  Wide sum[kTokens][kRows][kPieces] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(w + 2 * (r * n + i) + kAhead);
#pragma GCC unroll 4
    for (int p = 0; p < kPieces; ++p) {
      Wide v[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) v[r] = LoadWideBf16s(w + 2 * (r * n + i + p * kWide));
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const Wide a = LoadWide(x + t * ldx + i + p * kWide);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[t][r][p] += a * v[r];
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) {
      float lanes[kLanes];
      __builtin_memcpy(lanes, sum[t][r], sizeof lanes);
      float total = SumLanes(lanes);
      for (int64_t j = i; j < n; ++j) total += x[t * ldx + j] * LoadBf16One(w + 2 * (r * n + j));
      out[t * ldo + r] = total;
    }
  }
}

template <int kTokens>
inline void DotRows(const float* x, int64_t ldx, const uint8_t* w, int64_t rows, int64_t n,
                    float* out, int64_t ldo) {
  int64_t r = 0;
  for (; r + kDotBlock <= rows; r += kDotBlock) {
    DotBlock<kTokens, kDotBlock>(x, ldx, w + 2 * r * n, n, out + r, ldo);
  }
  for (; r < rows; ++r) DotBlock<kTokens, 1>(x, ldx, w + 2 * r * n, n, out + r, ldo);
}

void DotsBf16(const float* x, int64_t tokens, int64_t ldx, const uint8_t* w, int64_t rows,
              int64_t n, float* out, int64_t ldo) {
  int64_t t = 0;
  for (; t + kDotBlock <= tokens; t += kDotBlock) {
    DotRows<kDotBlock>(x + t * ldx, ldx, w, rows, n, out + t * ldo, ldo);
  }
  for (; t < tokens; ++t) DotRows<1>(x + t * ldx, ldx, w, rows, n, out + t * ldo, ldo);
}

float ExpAndSum(float* x, int64_t n) {
  float largest = x[0];
  for (int64_t i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 4
    for (int64_t p = 0; p < kLanes; p += kWide) {
      const Wide e = Exp(LoadWide(x + i + p) - largest);
      StoreWide(x + i + p, e);
      StoreWide(lanes + p, LoadWide(lanes + p) + e);
    }
  }
  float total = SumLanes(lanes);
  for (; i < n; ++i) total += x[i] = ExpOne(x[i] - largest);
  return total;
}

void MulSigmoid(float* x, const float* gate, int64_t n) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide)
    StoreWide(x + i, LoadWide(x + i) * Sigmoid(LoadWide(gate + i)));
  for (; i < n; ++i) {
    const Wide v = Sigmoid(Wide{} + gate[i]);
    x[i] *= v[0];
  }
}

void AddGated(float* y, const float* x, float gate, int64_t n) {
  const Wide sigmoid = Sigmoid(Wide{} + gate);
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) StoreWide(y + i, LoadWide(y + i) + sigmoid * LoadWide(x + i));
  for (; i < n; ++i) y[i] += sigmoid[0] * x[i];
}

/// A convolution of kTaps; 0: of any number.
template <int kTaps>
inline void ConvSiluOf(const float* const* rows, int64_t first, int64_t n, const float* w,
                       int64_t channels, int64_t any_taps, float* out) {
  const int64_t taps = kTaps ? kTaps : any_taps;
  w += first;
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) {
    Wide sum = {};
    for (int64_t j = 0; j < taps; ++j) {
      sum += LoadWide(w + j * channels + i) * LoadWide(rows[j] + first + i);
    }
    StoreWide(out + i, Silu(sum));
  }
  for (; i < n; ++i) {
    float sum = 0;
    for (int64_t j = 0; j < taps; ++j) sum += w[j * channels + i] * rows[j][first + i];
    const Wide v = Silu(Wide{} + sum);
    out[i] = v[0];
  }
}

void ConvSilu(const float* const* rows, int64_t first, int64_t n, const float* w, int64_t channels,
              int64_t taps, float* out) {
  if (taps == 4) return ConvSiluOf<4>(rows, first, n, w, channels, taps, out);
  ConvSiluOf<0>(rows, first, n, w, channels, taps, out);
}

void UnitLength(float* x, int64_t n, float scale) {
  const float factor = scale / __builtin_sqrtf(SumOfSquares(x, n) + 1e-6f);
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) StoreWide(x + i, LoadWide(x + i) * factor);
  for (; i < n; ++i) x[i] *= factor;
}

#include "kernels/cpu/delta_body.h"

#include "kernels/cpu/attention_body.h"

constexpr GlueKernels kTable = {
    RmsNorm,    Add,        SiluMul,   FromBf16s,    RotateHalves, DotsBf16,   Attend,
    MergeSums,  Multiplied, ToCache,   ExpAndSum,    MulSigmoid,   AddGated,   ConvSilu,
    UnitLength, DeltaGates, DeltaRows, DeltaScratch, DeltaLoad,    DeltaChunk, DeltaStore};
