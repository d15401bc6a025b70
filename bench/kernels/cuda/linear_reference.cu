#include "linear_reference.h"

namespace nibble::bench {
namespace {

using cuda::Sm90Weight;

__device__ uint64_t Hash(uint64_t v) {
  v += 0x9E3779B97F4A7C15ull;
  v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9ull;
  v = (v ^ v >> 27) * 0x94D049BB133111EBull;
  return v ^ v >> 31;
}

__device__ double E4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double v = exponent ? ldexp(8.0 + mantissa, exponent - 10) : ldexp(mantissa, -9);
  return code & 0x80 ? -v : v;
}

__device__ double WeightAt(const CanonicalLinear& w, int64_t row, int64_t k) {
  const int64_t at = row * w.k + k;
  if (w.weight == Sm90Weight::kNvfp4) {
    const double magnitudes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    const int code = w.codes[at / 2] >> (at % 2 * 4) & 15;
    const double v = magnitudes[code & 7] * E4m3(w.block_scales[at / 16]);
    return code & 8 ? -v : v;
  }
  if (w.weight == Sm90Weight::kBf16) {
    const uint32_t bits = w.codes[2 * at] | w.codes[2 * at + 1] << 8;
    return __uint_as_float(bits << 16);
  }
  const double v = E4m3(w.codes[at]);
  if (w.weight == Sm90Weight::kFp8Channel) return v * w.scales[row];
  if (w.weight == Sm90Weight::kFp8Block128) {
    return v * w.scales[row / 128 * ((w.k + 127) / 128) + k / 128];
  }
  return v;
}

__global__ void Fill(CanonicalLinear w, uint64_t seed) {
  const int64_t n = static_cast<int64_t>(w.n) * w.k;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint64_t r = Hash(seed * 0x10000000000ull + i);
    switch (w.weight) {
      case Sm90Weight::kNvfp4:
        if (i % 2 == 0) w.codes[i / 2] = static_cast<uint8_t>(r);
        if (i % 16 == 0) {
          // Mostly 2^-3 .. 2^5; some zero, subnormal (2^-9) or small.
          const unsigned usual = 0x20 + (r >> 8) % 0x40, odd = (r >> 24) % 12;
          w.block_scales[i / 16] = static_cast<uint8_t>((r >> 16) % 64 == 0 ? odd : usual);
        }
        break;
      case Sm90Weight::kBf16: {
        const float v = (static_cast<int>(r & 0xFFFF) - 0x8000) * 0x1p-14f;
        const uint32_t bits = __float_as_uint(v);
        w.codes[2 * i] = static_cast<uint8_t>(bits >> 16);
        w.codes[2 * i + 1] = static_cast<uint8_t>(bits >> 24);
        break;
      }
      default:
        w.codes[i] = static_cast<uint8_t>((r & 0x7F) == 0x7F ? r & 0x80 : r);
        if (w.subnormal) w.codes[i] &= 0x87;
    }
  }
}

__global__ void Diagonal(CanonicalLinear w) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= w.n || i >= w.k) return;
  const int64_t at = i * w.k + i;
  if (w.weight == Sm90Weight::kNvfp4) {
    w.codes[at / 2] = static_cast<uint8_t>(2 << (at % 2 * 4));
    w.block_scales[at / 16] = 0x38;
  } else if (w.weight == Sm90Weight::kBf16) {
    w.codes[2 * at] = 0x80, w.codes[2 * at + 1] = 0x3F;
  } else {
    w.codes[at] = 0x38;
  }
}

// A warp a row.
__global__ void Multiply(CanonicalLinear w, const double* x, int tokens, double* y,
                         double* magnitude) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= w.n) return;
  for (int first = 0; first < tokens; first += 8) {
    double sum[8] = {}, size[8] = {};
    for (int k = lane; k < w.k; k += 32) {
      const double v = WeightAt(w, row, k);
      for (int t = 0; t < 8 && first + t < tokens; ++t) {
        const double product = v * x[static_cast<int64_t>(first + t) * w.k + k];
        sum[t] += product, size[t] += fabs(product);
      }
    }
    for (int t = 0; t < 8 && first + t < tokens; ++t) {
      for (int o = 16; o; o /= 2) {
        sum[t] += __shfl_xor_sync(~0u, sum[t], o);
        size[t] += __shfl_xor_sync(~0u, size[t], o);
      }
      if (lane == 0) {
        y[static_cast<int64_t>(first + t) * w.n + row] = sum[t];
        magnitude[static_cast<int64_t>(first + t) * w.n + row] = size[t];
      }
    }
  }
}

}  // namespace

void FillRandom(const CanonicalLinear& linear, uint64_t seed, cudaStream_t stream) {
  Fill<<<2048, 256, 0, stream>>>(linear, seed);
}

void FillIdentity(const CanonicalLinear& linear, cudaStream_t stream) {
  const size_t n = static_cast<size_t>(linear.n) * linear.k;
  const size_t bytes = linear.weight == Sm90Weight::kNvfp4  ? n / 2
                       : linear.weight == Sm90Weight::kBf16 ? 2 * n
                                                            : n;
  cudaMemsetAsync(linear.codes, 0, bytes, stream);
  if (linear.block_scales) cudaMemsetAsync(linear.block_scales, 0x38, n / 16, stream);
  Diagonal<<<(linear.n + 255) / 256, 256, 0, stream>>>(linear);
}

void ReferenceLinear(const CanonicalLinear& linear, const double* x, int tokens, double* y,
                     double* magnitude, cudaStream_t stream) {
  Multiply<<<(linear.n + 7) / 8, 256, 0, stream>>>(linear, x, tokens, y, magnitude);
}

}  // namespace nibble::bench
