#include <cuda_bf16.h>

#include "cuda_moe_reference.h"

namespace nibble::bench {
namespace {

constexpr double kRoundBf16 = 1.0 / 256;  // twice the unit roundoff: a rounding may meet a tie
constexpr double kRoundFp32 = 1.0 / (1 << 23);

__device__ uint32_t Hash(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  x ^= x >> 33;
  return static_cast<uint32_t>(x);
}

__global__ void RandomCodes(uint8_t* codes, size_t n, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n / 4;
       i += size_t{gridDim.x} * blockDim.x) {
    reinterpret_cast<uint32_t*>(codes)[i] = Hash(seed * 0x9E3779B97F4A7C15ull + i);
  }
}

__global__ void RandomE4m3(uint8_t* codes, size_t n, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t r = Hash(seed * 0x9E3779B97F4A7C15ull + i);
    codes[i] = static_cast<uint8_t>(r % 127 | (r >> 24 & 0x80));
  }
}

__global__ void RandomScales(uint8_t* scales, size_t n, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t r = Hash(seed * 0x9E3779B97F4A7C15ull + i);
    uint8_t scale = 0x28 + r % 0x19;
    if ((r >> 16) % 64 == 0) scale = (r >> 24) % 9;
    if ((r >> 16) % 1024 == 5) scale = 0x7E;
    scales[i] = scale;
  }
}

__global__ void RandomActivations(__nv_bfloat16* x, size_t n, uint64_t seed, float factor) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t a = Hash(seed * 77777 + 2 * i), b = Hash(seed * 77777 + 2 * i + 1);
    float v = (static_cast<float>(a) + static_cast<float>(b)) * (2.45f / 4294967296.0f) - 2.45f;
    if ((a ^ b) % 512 == 0) v *= 20;
    x[i] = __float2bfloat16(v * factor);
  }
}

__device__ double E2m1(unsigned code) {
  const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -values[code & 7] : values[code & 7];
}

__device__ double E4m3(unsigned byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  const double v = exponent ? ldexp(8.0 + mantissa, exponent - 10) : ldexp(double(mantissa), -9);
  return byte & 0x80 ? -v : v;
}

/// The matrices of one projection of all experts, [rows, columns] each, and FP8's scales of all that they
/// are among: of `matrices` an expert it is number `index`.
struct Projection {
  const uint8_t *codes, *block_scales;
  const float* scales;
  int rows, columns, matrices, index;
};

__device__ double Fp8ScaleAt(cuda::Fp8Scales shared, const Projection& m, int expert, int row,
                             int k) {
  if (m.scales == nullptr) return 1;
  const size_t matrix = size_t(expert) * m.matrices + m.index;
  if (shared == cuda::Fp8Scales::kChannel) return m.scales[matrix * m.rows + row];
  const size_t down = (m.rows + 127) / 128, across = (m.columns + 127) / 128;
  return m.scales[(matrix * down + row / 128) * across + k / 128];
}

/// But for what the whole tensor shares.
__device__ double WeightAt(const cuda::Sm90MoeShape& s, const Projection& m, int expert, int row,
                           int k) {
  const size_t at = (size_t(expert) * m.rows + row) * m.columns + k;
  switch (s.weights) {
    case HopperFormat::kNvfp4:
      return E2m1(m.codes[at / 2] >> (at % 2 * 4) & 15) * E4m3(m.block_scales[at / 16]);
    case HopperFormat::kFp8:
      return E4m3(m.codes[at]) * Fp8ScaleAt(s.weight_scales, m, expert, row, k);
    case HopperFormat::kBf16:
      break;
  }
  return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(m.codes)[at]);
}

__device__ double WarpSum(double v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

/// A value and what a kernel's may differ from it by.
struct Approximate {
  double value, off;
};

/// act(gate, up). Silu and its kin rise by at most 1.1 times their argument, whatever alpha; __expf
/// and the fast division are within a few ulp for these arguments.
__device__ Approximate ActivateExactly(const cuda::Sm90MoeParams& p, Approximate gate,
                                       Approximate up) {
  const double limit = p.limit;
  up.value = fmax(fmin(up.value, limit), -limit);
  if (!p.shape.gated()) {
    const double v = fmax(up.value, 0.0), h = v * v;
    return {h, (2 * v + up.off) * up.off + h * kRoundFp32};
  }
  gate.value = fmin(gate.value, limit);
  const bool silu = p.shape.activation == cuda::Sm90Activation::kSilu;
  const double alpha = silu ? 1.0 : p.alpha, beta = silu ? 0.0 : p.beta;
  const double g = gate.value / (1 + exp(-alpha * gate.value)), u = up.value + beta;
  const double g_off = 1.1 * gate.off + fabs(g) * 16 * kRoundFp32;
  const double u_off = up.off + fabs(u) * kRoundFp32;
  return {g * u, g_off * (fabs(u) + u_off) + fabs(g) * u_off};
}

// One warp a (token, k, feature): the activation between the GEMMs.
__global__ void HiddenKernel(CanonicalExperts e, cuda::Sm90MoeParams p, const int32_t* tokens,
                             int count, const double* inputs, double* out) {
  const int lane = threadIdx.x % 32, features = e.shape.intermediate, hidden = e.shape.hidden;
  const size_t warp = (blockIdx.x * size_t{blockDim.x} + threadIdx.x) / 32;
  if (warp >= size_t(count) * e.shape.top_k * features) return;
  const int feature = warp % features, shards = p.shape.shards();
  const size_t slot = warp / features;
  const int token = tokens[slot / e.shape.top_k];
  const int expert = p.ids[token * e.shape.top_k + slot % e.shape.top_k];
  if (expert < 0 || expert >= e.shape.experts) return;
  Approximate parts[2] = {};  // gate, up
  for (int i = 2 - shards; i < 2; ++i) {
    const int shard = i - (2 - shards);
    const Projection m = {i ? e.up_codes : e.gate_codes,
                          i ? e.up_scales : e.gate_scales,
                          p.w13_scales,
                          features,
                          hidden,
                          shards,
                          shard};
    const double* x = inputs + (slot * shards + shard) * hidden;
    double sum = 0, magnitude = 0;
    for (int k = lane; k < hidden; k += 32) {
      const double v = x[k] * WeightAt(e.shape, m, expert, feature, k);
      sum += v, magnitude += fabs(v);
    }
    const double global = p.g1 ? p.g1[expert * shards + shard] : 1.0;
    const double bias = p.b13 ? p.b13[(size_t(expert) * shards + shard) * features + feature] : 0.0;
    parts[i].value = WarpSum(sum) * global + bias;
    parts[i].off =
        WarpSum(magnitude) * global * kRoundFp32 * (hidden + 8) + fabs(bias) * kRoundFp32;
  }
  const Approximate h = ActivateExactly(p, parts[0], parts[1]);
  if (lane == 0) out[2 * warp] = h.value, out[2 * warp + 1] = h.off + fabs(h.value) * kRoundBf16;
}

__global__ void OutputKernel(CanonicalExperts e, cuda::Sm90MoeParams p, const int32_t* tokens,
                             int count, const double* hidden, double* y, double* bound) {
  const int lane = threadIdx.x % 32, features = e.shape.intermediate;
  const size_t warp = (blockIdx.x * size_t{blockDim.x} + threadIdx.x) / 32;
  if (warp >= size_t(count) * e.shape.hidden) return;
  const int row = warp % e.shape.hidden;
  const int index = warp / e.shape.hidden, token = tokens[index];
  const Projection m = {e.down_codes, e.down_scales, p.w2_scales, e.shape.hidden, features, 1, 0};
  double total = 0, off = 0;
  for (int k = 0; k < e.shape.top_k; ++k) {
    const int route = token * e.shape.top_k + k, expert = p.ids[route];
    if (expert < 0 || expert >= e.shape.experts) continue;
    const double* h = hidden + (size_t(index) * e.shape.top_k + k) * features * 2;
    double sum = 0, sum_off = 0, magnitude = 0;
    for (int i = lane; i < features; i += 32) {
      const double w = WeightAt(e.shape, m, expert, row, i);
      sum += w * h[2 * i], magnitude += fabs(w * h[2 * i]), sum_off += fabs(w) * h[2 * i + 1];
    }
    const double scale = (p.g2 ? double(p.g2[expert]) : 1.0) * p.weights[route];
    const double bias =
        p.b2 ? double(p.b2[size_t(expert) * e.shape.hidden + row]) * p.weights[route] : 0.0;
    sum = WarpSum(sum) * scale;
    magnitude = WarpSum(magnitude) * fabs(scale), sum_off = WarpSum(sum_off) * fabs(scale);
    total += sum + bias;
    off += fabs(bias) * 4 * kRoundFp32 + sum_off + magnitude * kRoundFp32 * (features + 16) +
           fabs(sum) * kRoundBf16;
  }
  if (lane == 0) y[warp] = total, bound[warp] = off + fabs(total) * kRoundBf16 + 1e-30;
}

unsigned WarpBlocks(size_t warps) { return static_cast<unsigned>((warps + 7) / 8); }

}  // namespace

void FillRandom(const CanonicalExperts& e, uint64_t seed, cudaStream_t stream) {
  const size_t n = size_t(e.shape.experts) * e.shape.intermediate * e.shape.hidden;
  uint8_t* const codes[3] = {e.gate_codes, e.up_codes, e.down_codes};
  uint8_t* const scales[3] = {e.gate_scales, e.up_scales, e.down_scales};
  for (int i = 0; i < 3; ++i) {
    if (e.shape.weights == HopperFormat::kFp8) {
      RandomE4m3<<<2048, 256, 0, stream>>>(codes[i], n, 6 * seed + i);
      continue;
    }
    if (scales[i] == nullptr) {
      const int k = i == 2 ? e.shape.intermediate : e.shape.hidden;
      FillRandomActivations(reinterpret_cast<Bf16*>(codes[i]), n, 6 * seed + i,
                            1 / sqrtf(static_cast<float>(k)), stream);
      continue;
    }
    RandomCodes<<<2048, 256, 0, stream>>>(codes[i], n / 2, 6 * seed + i);
    RandomScales<<<2048, 256, 0, stream>>>(scales[i], n / 16, 6 * seed + 3 + i);
  }
}

void FillRandomActivations(Bf16* x, size_t n, uint64_t seed, float factor, cudaStream_t stream) {
  RandomActivations<<<512, 256, 0, stream>>>(reinterpret_cast<__nv_bfloat16*>(x), n, seed, factor);
}

void ReferenceHidden(const CanonicalExperts& e, const cuda::Sm90MoeParams& params,
                     const int32_t* tokens, int count, const double* inputs, double* hidden,
                     cudaStream_t stream) {
  const size_t warps = size_t(count) * e.shape.top_k * e.shape.intermediate;
  HiddenKernel<<<WarpBlocks(warps), 256, 0, stream>>>(e, params, tokens, count, inputs, hidden);
}

void ReferenceOutput(const CanonicalExperts& e, const cuda::Sm90MoeParams& params,
                     const int32_t* tokens, int count, const double* hidden, double* y,
                     double* bound, cudaStream_t stream) {
  OutputKernel<<<WarpBlocks(size_t(count) * e.shape.hidden), 256, 0, stream>>>(
      e, params, tokens, count, hidden, y, bound);
}

}  // namespace nibble::bench
