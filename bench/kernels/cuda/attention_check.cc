#include "attention_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "attention_reference.h"
#include "kernels/cuda/attention_rows.h"
#include "numerics/fp8.h"

namespace nibble::bench {
namespace {

using cuda::AttentionParams;
using cuda::AttentionShape;
using cuda::kKvPage;
using cuda::StepRow;
using cuda::StepSequence;

Bf16 RandomBf16(std::mt19937& random, float size) {
  return ToBf16(size * (float(random() % 4001) / 1000 - 2));
}

constexpr float kKScale = 0.031f, kVScale = 0.017f;

int64_t PlaceOf(const AttentionData& d, int slot, int position, int head) {
  const int64_t pages = d.table_host.size() / d.c.sequences.size();
  const int64_t page = d.table_host[slot * pages + position / kKvPage];
  return ((page * d.c.shape.n_kv_heads + head) * kKvPage + position % kKvPage) * d.c.shape.head_dim;
}

/// The number that a cache holds, scales included.
double Cached(const std::vector<uint8_t>& bytes, int64_t at, KvDtype dtype, float scale) {
  if (dtype == KvDtype::kBf16) return LoadBf16(bytes.data() + 2 * at);
  return double(DecodeE4m3(bytes[at])) * scale;
}

/// k of a row and head, in double, and the size of what it was made of.
void ExactKey(const AttentionData& d, int64_t row, int head, std::vector<double>& k,
              std::vector<double>& size) {
  const AttentionShape& s = d.c.shape;
  const Bf16* const from =
      d.qkv_host.data() + row * s.qkv_width() + s.q_width() + head * s.head_dim;
  std::vector<double> x(s.head_dim);
  double squares = 0;
  for (int i = 0; i < s.head_dim; ++i) squares += std::pow(double(ToFloat(from[i])), 2);
  for (int i = 0; i < s.head_dim; ++i) {
    x[i] = ToFloat(from[i]) / std::sqrt(squares / s.head_dim + s.norm_eps) * d.k_norm_host[i];
  }
  k = x;
  for (int i = 0; i < s.head_dim; ++i) size[i] = std::fabs(x[i]);
  const int half = s.rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    const double angle = double(d.rows_host[row].position) * d.frequency_host[i];
    k[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
    k[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
    size[i] = size[i + half] = std::fabs(x[i]) + std::fabs(x[i + half]);
  }
}

/// Whether `got` is x rounded to what the cache holds.
bool IsRounded(double got, double x, double size, KvDtype dtype, float scale) {
  const double slack = size * 0x1p-20;
  if (dtype == KvDtype::kBf16) return std::fabs(got - x) <= std::fabs(x) * 0x1p-8 + slack + 1e-38;
  const double y = std::clamp(x / scale, -448.0, 448.0);
  const double half_step = std::exp2(std::max(-6.0, std::floor(std::log2(std::fabs(y)))) - 4);
  return std::fabs(got / scale - y) <= half_step + slack / scale;
}

std::string CheckCache(const AttentionData& d) {
  const AttentionShape& s = d.c.shape;
  std::vector<uint8_t> want_k = d.k_host, want_v = d.v_host;
  const std::vector<uint8_t> k = d.k.Read(), v = d.v.Read();
  const int element = d.c.dtype == KvDtype::kBf16 ? 2 : 1;
  std::vector<double> key(s.head_dim), size(s.head_dim);
  for (size_t row = 0; row < d.rows_host.size(); ++row) {
    const StepRow at = d.rows_host[row];
    if (at.slot < 0) continue;
    for (int head = 0; head < s.n_kv_heads; ++head) {
      ExactKey(d, row, head, key, size);
      const int64_t place = PlaceOf(d, at.slot, at.position, head);
      const Bf16* const value =
          d.qkv_host.data() + row * s.qkv_width() + s.q_width() + s.kv_width() + head * s.head_dim;
      for (int i = 0; i < s.head_dim; ++i) {
        if (!IsRounded(Cached(k, place + i, d.c.dtype, kKScale), key[i], size[i], d.c.dtype,
                       kKScale)) {
          return "key of row " + std::to_string(row) + " dimension " + std::to_string(i);
        }
        if (element == 2) {
          std::memcpy(want_v.data() + 2 * (place + i), value + i, 2);
        } else {
          want_v[place + i] = QuantizeFp8<float>(ToFloat(value[i]), kVScale);
        }
      }
      std::memcpy(want_k.data() + place * element, k.data() + place * element,
                  s.head_dim * element);
    }
  }
  if (k != want_k) return "keys of other positions were touched";
  if (v != want_v) return "values are not exactly the rows', or others were touched";
  return {};
}

}  // namespace

AttentionData::AttentionData(const AttentionCase& the_case, int the_room)
    : c(the_case), room((the_room + kKvPage - 1) / kKvPage * kKvPage) {
  const AttentionShape& s = c.shape;
  std::mt19937 random(c.seed);
  const int n = static_cast<int>(c.sequences.size()), a_slot = room / kKvPage;
  // Page 0 is nobody's, and no position's number.
  pages = n * a_slot + 1;
  table_host.resize(n * a_slot);
  std::iota(table_host.begin(), table_host.end(), 1);
  std::shuffle(table_host.begin(), table_host.end(), random);
  table = Buffer<int32_t>(table_host);
  const auto norm = [&](float size) {
    std::vector<float> w(s.head_dim);
    for (float& x : w) x = size * (0.7f + float(random() % 600) / 1000);
    return w;
  };
  q_norm_host = norm(c.sharp), k_norm_host = norm(1);
  for (int i = 0; i < s.rotary_dim / 2; ++i) {
    frequency_host.push_back(static_cast<float>(std::pow(1e6, -2.0 * i / s.rotary_dim)));
  }
  q_norm = Buffer<float>(q_norm_host), k_norm = Buffer<float>(k_norm_host);
  frequency = Buffer<float>(frequency_host);
  int64_t total = c.padding;
  for (const auto& q : c.sequences) total += q.n_rows;
  qkv_host.resize(total * s.qkv_width());
  for (Bf16& x : qkv_host) x = RandomBf16(random, 1);
  qkv = Buffer<Bf16>(qkv_host.size()), out = Buffer<Bf16>(total * s.out_width());
  rope = Buffer<float>(std::max<int64_t>(4, total * s.rotary_dim));
  rows = Buffer<StepRow>(total);
  sequences = Buffer<StepSequence>(n + (c.padding ? 1 : 0));
  const int64_t bytes =
      int64_t(pages) * s.n_kv_heads * kKvPage * s.head_dim * (c.dtype == KvDtype::kBf16 ? 2 : 1);
  k = Buffer<uint8_t>(bytes), v = Buffer<uint8_t>(bytes);
  workspace =
      Buffer<std::byte>(cuda::AttentionDecodeWorkspace(s, n + 1, std::min(max_rows(), 8), room));
  Place(c);
}

void AttentionData::Place(const AttentionCase& placed) {
  c.sequences = placed.sequences;
  const AttentionShape& s = c.shape;
  rows_host.clear(), sequences_host.clear();
  std::mt19937 random(c.seed + 1);
  const int element = c.dtype == KvDtype::kBf16 ? 2 : 1;
  k_host.assign(k.size(), 0xFF), v_host.assign(v.size(), 0xFF);
  for (int slot = 0; slot < static_cast<int>(c.sequences.size()); ++slot) {
    const auto& q = c.sequences[slot];
    sequences_host.push_back({slot, static_cast<int>(rows_host.size()), q.n_rows, q.start});
    for (int i = 0; i < q.n_rows; ++i) rows_host.push_back({q.start + i, slot});
    for (int position = 0; position < q.start; ++position) {
      for (int head = 0; head < s.n_kv_heads; ++head) {
        const int64_t place = PlaceOf(*this, slot, position, head);
        for (int i = 0; i < s.head_dim; ++i) {
          const Bf16 x = RandomBf16(random, 1), y = RandomBf16(random, 1);
          if (element == 2) {
            std::memcpy(k_host.data() + 2 * (place + i), &x, 2);
            std::memcpy(v_host.data() + 2 * (place + i), &y, 2);
          } else {
            k_host[place + i] = QuantizeFp8<float>(ToFloat(x), kKScale);
            v_host[place + i] = QuantizeFp8<float>(ToFloat(y), kVScale);
          }
        }
      }
    }
  }
  for (int i = 0; i < c.padding; ++i) rows_host.push_back({0, -1});
  if (c.padding) sequences_host.push_back({0, 0, 0, 0});
  rows.Write(rows_host), sequences.Write(sequences_host);
}

void AttentionData::Reset() {
  qkv.Write(qkv_host), k.Write(k_host), v.Write(v_host);
  out.Fill(0xFF), workspace.Fill(0xFF);
  rope.Fill(0xFF);
}

int AttentionData::max_rows() const {
  int most = 1;
  for (const auto& q : c.sequences) most = std::max(most, q.n_rows);
  return most;
}

AttentionParams AttentionData::Params() const {
  AttentionParams p;
  p.shape = c.shape;
  p.step = {static_cast<int>(rows.size()), static_cast<int>(sequences.size()), rows.get(),
            sequences.get()};
  p.q_norm = q_norm.get(), p.k_norm = k_norm.get(), p.rope = rope.get();
  p.qkv = qkv.get(), p.out = out.get();
  const bool fp8 = c.dtype == KvDtype::kFp8;
  p.cache = {k.get(),           v.get(),     c.dtype,       fp8 ? kKScale : 1,
             fp8 ? kVScale : 1, table.get(), room / kKvPage};
  p.capacity = room;
  p.workspace = workspace.get(), p.workspace_bytes = workspace.size();
  return p;
}

namespace {

Result<void> Launch(const AttentionParams& p, int max_rows, AttentionKernel kernel,
                    cudaStream_t stream) {
  switch (kernel) {
    case AttentionKernel::kDecode:
      return cuda::LaunchAttentionDecode(p, max_rows, stream);
    case AttentionKernel::kPrefill:
      return cuda::LaunchAttentionPrefill(p, stream);
    default:
      break;
  }
  if (auto prepared = cuda::LaunchPrepareAttention(p, stream); !prepared) return prepared;
  return cuda::LaunchAttentionRows(p, stream);
}

}  // namespace

void RunAttention(const AttentionData& data, AttentionKernel kernel, cudaStream_t stream) {
  const AttentionParams p = data.Params();
  if (p.shape.rotary_dim) {
    Must(cuda::LaunchRopeTable(
        {p.step, p.shape.rotary_dim / 2, data.frequency.get(), data.rope.get()}, stream));
  }
  Must(Launch(p, data.max_rows(), kernel, stream));
}

namespace {

std::vector<Bf16> RunOnce(AttentionData& data, AttentionKernel kernel, cudaStream_t stream) {
  data.Reset();
  RunAttention(data, kernel, stream);
  BENCH_CUDA(cudaStreamSynchronize(stream));
  return data.out.Read();
}

/// Bits of rows that are somebody's.
bool Same(const std::vector<Bf16>& a, const std::vector<Bf16>& b, size_t n) {
  return std::memcmp(a.data(), b.data(), n * sizeof(Bf16)) == 0;
}

/// The graph captured now, replayed with the sequences moved, against a direct launch.
bool ReplaysElsewhere(AttentionData& data, AttentionKernel kernel, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  RunAttention(data, kernel, stream);
  BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
  BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  AttentionCase moved = data.c;
  std::reverse(moved.sequences.begin(), moved.sequences.end());
  for (auto& q : moved.sequences) {
    q.start = std::max(0, std::min(data.room - q.n_rows, q.start + (q.start % 2 ? -37 : 29)));
  }
  data.Place(moved);
  const size_t n = (data.rows_host.size() - data.c.padding) * data.c.shape.out_width();
  const std::vector<Bf16> direct = RunOnce(data, kernel, stream);
  const std::vector<uint8_t> k = data.k.Read();
  data.Reset();
  BENCH_CUDA(cudaGraphLaunch(exec, stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  const bool same = Same(direct, data.out.Read(), n) && k == data.k.Read();
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  return same;
}

/// One sequence's rows [first, first + n) of the whole, as a batch of their own, after the whole ran.
bool SameAlone(AttentionData& data, const std::vector<Bf16>& whole, int sequence, int first, int n,
               AttentionKernel kernel, cudaStream_t stream) {
  const StepSequence q = data.sequences_host[sequence];
  const AttentionShape& s = data.c.shape;
  AttentionParams p = data.Params();
  const StepSequence alone{q.slot, 0, n, q.start + first};
  std::vector<StepRow> rows;
  for (int i = 0; i < n; ++i) rows.push_back({q.start + first + i, q.slot});
  const Buffer<StepSequence> device_sequence(std::vector<StepSequence>{alone});
  const Buffer<StepRow> device_rows(rows);
  const int64_t row = q.first_row + first;
  const auto begin = data.qkv_host.begin() + row * s.qkv_width();
  const Buffer<Bf16> qkv(std::vector<Bf16>(begin, begin + int64_t(n) * s.qkv_width()));
  Buffer<Bf16> out(size_t(n) * s.out_width());
  out.Fill(0xFF);
  p.step = {n, 1, device_rows.get(), device_sequence.get()};
  p.qkv = qkv.get(), p.out = out.get();
  p.rope = data.rope.get() + row * s.rotary_dim;
  // Decode: a smaller grid, too.
  p.capacity = kernel == AttentionKernel::kDecode ? q.start + first + n : p.capacity;
  Must(Launch(p, n, kernel, stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  const std::vector<Bf16> got = out.Read();
  return std::memcmp(got.data(), whole.data() + row * s.out_width(), got.size() * 2) == 0;
}

}  // namespace

AttentionVerdict CheckAttention(const AttentionCase& c, AttentionKernel kernel,
                                cudaStream_t stream) {
  AttentionVerdict verdict;
  const auto fail = [&](std::string why) {
    if (verdict.ok) verdict.why = std::move(why);
    verdict.ok = false;
  };
  int room = 1;
  for (const auto& q : c.sequences) room = std::max(room, q.start + q.n_rows);
  AttentionData data(c, room);
  const AttentionShape& s = c.shape;
  const size_t rows = data.rows_host.size(), n = (rows - c.padding) * s.out_width();
  const std::vector<Bf16> first = RunOnce(data, kernel, stream);
  if (!Same(first, RunOnce(data, kernel, stream), n)) fail("other bits");
  if (const std::string why = CheckCache(data); !why.empty()) fail(why);

  const Buffer<Bf16> qkv(data.qkv_host);
  Buffer<double> scratch(rows * s.n_heads * 2 * data.room), want(rows * s.out_width()),
      bound(rows * s.out_width());
  const AttentionParams p = data.Params();
  ReferenceAttention({s, p.step, p.q_norm, data.frequency.get(), qkv.get(), p.cache, data.room,
                      scratch.get(), want.get(), bound.get()},
                     stream);
  BENCH_CUDA(cudaStreamSynchronize(stream));
  const std::vector<double> w = want.Read(), b = bound.Read();
  double difference = 0, norm = 0;
  for (size_t i = 0; i < n; ++i) {
    const double got = ToFloat(first[i]), share = std::fabs(got - w[i]) / b[i];
    difference += (got - w[i]) * (got - w[i]), norm += w[i] * w[i];
    if (!(share <= verdict.worst)) verdict.worst = share;
    if (share <= 1) continue;
    fail("row " + std::to_string(i / s.out_width()) + " head " +
         std::to_string(i % s.out_width() / s.head_dim) + " dimension " +
         std::to_string(i % s.head_dim) + ": " + std::to_string(got) + " for " +
         std::to_string(w[i]) + " +- " + std::to_string(b[i]));
  }
  verdict.rel_l2 = std::sqrt(difference / norm);
  // bf16 weights and results: each about 2^-8 / sqrt(12).
  if (!(verdict.rel_l2 < 4e-3)) fail("relative L2 " + std::to_string(verdict.rel_l2));

  for (int i = 0; i < static_cast<int>(c.sequences.size()); ++i) {
    const int count = c.sequences[i].n_rows, half = count / 2;
    if (count == 0) continue;
    if (!SameAlone(data, first, i, 0, count, kernel, stream)) fail("other bits alone");
    if (kernel != AttentionKernel::kDecode && half > 0 &&
        (!SameAlone(data, first, i, 0, half, kernel, stream) ||
         !SameAlone(data, first, i, half, count - half, kernel, stream))) {
      fail("other bits in two chunks");
    }
  }
  if (!ReplaysElsewhere(data, kernel, stream)) fail("a graph replayed elsewhere has other bits");
  return verdict;
}

}  // namespace nibble::bench
