#include "attention_reference.h"

namespace nibble::bench {
namespace {

__device__ double Number(const cuda::PagedKv& c, bool value, int64_t at) {
  const void* const p = value ? c.v : c.k;
  if (c.dtype == KvDtype::kBf16) {
    return __uint_as_float(static_cast<uint32_t>(static_cast<const uint16_t*>(p)[at]) << 16);
  }
  const uint8_t code = static_cast<const uint8_t*>(p)[at];
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7F) == 0x7F) return NAN;
  const double v = exponent ? ldexp(8.0 + mantissa, exponent - 10) : ldexp(double(mantissa), -9);
  return (code & 0x80 ? -v : v) * (value ? c.v_scale : c.k_scale);
}

__device__ double Wide(Bf16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }

__device__ double ToNearestBf16(double v) {
  if (v == 0) return 0;
  int exponent;
  frexp(v, &exponent);
  return ldexp(rint(ldexp(v, 8 - exponent)), exponent - 8);
}

// A block a row and head.
__global__ void Attend(const AttentionReferenceArgs a) {
  __shared__ double raw[256], q[256];
  const cuda::AttentionShape& s = a.shape;
  const int64_t row = blockIdx.x;
  const int head = blockIdx.y, dim = s.head_dim, group = s.n_heads / s.n_kv_heads;
  const int stride = s.gated ? 2 * dim : dim;
  const int64_t width = int64_t(s.n_heads) * stride + 2 * s.n_kv_heads * dim;
  const cuda::StepRow at = a.step.row[row];
  if (at.slot < 0) return;
  const Bf16* const from = a.qkv + row * width + head * stride;
  double squares = 0;
  for (int d = 0; d < dim; ++d) squares += Wide(from[d]) * Wide(from[d]);
  for (int d = threadIdx.x; d < dim; d += blockDim.x) {
    raw[d] = Wide(from[d]) / sqrt(squares / dim + s.norm_eps) * a.q_norm[d];
  }
  __syncthreads();
  const int half = s.rotary_dim / 2;
  for (int d = threadIdx.x; d < dim; d += blockDim.x) {
    double v = raw[d];
    if (d < 2 * half) {
      const double angle = double(at.position) * a.frequency[d % half];
      v = d < half ? raw[d] * cos(angle) - raw[d + half] * sin(angle)
                   : raw[d] * cos(angle) + raw[d - half] * sin(angle);
    }
    q[d] = ToNearestBf16(v);
  }
  __syncthreads();
  const auto place = [&](int position) {
    const int64_t page = a.cache.page_table[int64_t(at.slot) * a.cache.max_pages + position / 64];
    return ((page * s.n_kv_heads + head / group) * 64 + position % 64) * dim;
  };
  const int n = at.position + 1;
  double* const score = a.scratch + (row * s.n_heads + head) * 2 * a.capacity;
  double* const off = score + a.capacity;  // by how much a score may be wrong
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    const int64_t key = place(j);
    double sum = 0, size = 0, most = 0;
    for (int d = 0; d < dim; ++d) {
      const double product = q[d] * Number(a.cache, false, key + d);
      sum += product, size += fabs(product), most = fmax(most, fabs(product));
    }
    // fp32 sums; q's rounding may fall the other way in two dimensions.
    score[j] = sum / sqrt(double(dim));
    off[j] = (size * 0x1p-21 + most * 0x1p-6) / sqrt(double(dim)) + 0x1p-17;
  }
  __syncthreads();
  double largest = -1e300, total = 0;
  for (int j = 0; j < n; ++j) largest = fmax(largest, score[j]);
  for (int j = 0; j < n; ++j) total += exp(score[j] - largest);
  for (int d = threadIdx.x; d < dim; d += blockDim.x) {
    double o = 0, size = 0, wrong = 0;
    for (int j = 0; j < n; ++j) {
      const double p = exp(score[j] - largest) / total, v = Number(a.cache, true, place(j) + d);
      o += p * v, size += p * fabs(v);
    }
    for (int j = 0; j < n; ++j) {
      const double p = exp(score[j] - largest) / total, v = Number(a.cache, true, place(j) + d);
      wrong += p * off[j] * fabs(v - o);
    }
    double gate = 1;
    if (s.gated) gate = 1 / (1 + exp(-Wide(from[dim + d])));
    const int64_t to = (row * s.n_heads + head) * dim + d;
    a.out[to] = o * gate;
    // Weights in bf16, the result in bf16.
    a.bound[to] = gate * (wrong * 1.01 + size * (0x1p-8 + 0x1p-17)) +
                  fabs(o * gate) * (0x1p-8 + 0x1p-18) + 1e-30;
  }
}

}  // namespace

void ReferenceAttention(const AttentionReferenceArgs& args, cudaStream_t stream) {
  Attend<<<dim3(args.step.rows, args.shape.n_heads), 128, 0, stream>>>(args);
}

}  // namespace nibble::bench
