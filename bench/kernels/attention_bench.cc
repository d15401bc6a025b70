// attention_bench [--only TEXT] [THREADS...]: attention on the CPU as a model calls it, one JSON
// object a line, for every ISA of this machine: the shapes of Qwen3-30B-A3B (32 query heads, 4 kv
// heads of 128) and of Qwen3.5-35B-A3B (16, 2 of 256, gated, a quarter rotated). Layer after layer,
// so that a cache comes from memory. "prefill to N" is the batch of 512 rows that ends there.
// NIBBLE_ISA lowers the best ISA; "limits" are the machine's own, measured in the same run.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdlib>
#include <cstring>
#include <random>

#include "base/read_bandwidth.h"
#include "kernels/cpu/isa.h"
#include "kernels/host_operators.h"
#include "timing.h"

namespace nibble::kernels {
namespace {

using bench::Report;

constexpr int64_t kBatch = 512;

struct Model {
  const char* name;
  AttentionShape shape;
  int64_t frequencies;
};

const Model kModels[] = {{"32/4/128", {32, 4, 128, 1e-6f, false}, 64},
                         {"16/2/256 gated", {16, 2, 256, 1e-6f, true}, 32}};

#if defined(__x86_64__)
constexpr int kChains = 12;

__attribute__((target("avx512f"))) void MultiplyAdd512(int64_t n, float* out) {
  __m512 sum[kChains];
  for (auto& s : sum) s = _mm512_set1_ps(1);
  const __m512 x = _mm512_set1_ps(out[0]);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (auto& s : sum) s = _mm512_fmadd_ps(s, x, x);
  }
  for (int c = 1; c < kChains; ++c) sum[0] = _mm512_add_ps(sum[0], sum[c]);
  _mm512_storeu_ps(out, sum[0]);
}

__attribute__((target("avx2,fma"))) void MultiplyAdd256(int64_t n, float* out) {
  __m256 sum[kChains];
  for (auto& s : sum) s = _mm256_set1_ps(1);
  const __m256 x = _mm256_set1_ps(out[0]);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (auto& s : sum) s = _mm256_fmadd_ps(s, x, x);
  }
  for (int c = 1; c < kChains; ++c) sum[0] = _mm256_add_ps(sum[0], sum[c]);
  _mm256_storeu_ps(out, sum[0]);
}

/// fp32 multiply-adds of one thread, in registers alone.
void BenchPeak(CpuIsa isa) {
  constexpr int64_t kTimes = 1 << 20;
  float out[16] = {0.5f};  // converges to 1, of normal numbers alone
  const auto report = [&](int lanes, auto multiply_add) {
    Report(fmt::format("{} limits, multiply-add", NameOf(isa)), 1, 15,
           2.0 * kTimes * kChains * lanes, "GFLOP/s", [&](int) { multiply_add(kTimes, out); });
  };
  if (isa == CpuIsa::kAvx512) report(16, MultiplyAdd512);
  if (isa == CpuIsa::kAvx2) report(8, MultiplyAdd256);
}
#else
void BenchPeak(CpuIsa) {}
#endif

void BenchRead(ThreadPool& pool) {
  if (!bench::Wanted("limits, plain read")) return;
  std::vector<double> rates;
  for (int i = 0; i < 9; ++i) rates.push_back(PlainReadBandwidth(pool));
  fmt::print(
      "{{\"what\":\"limits, plain read\",\"threads\":{},\"unit\":\"GB/s\",\"wall\":{:.1f}}}\n",
      pool.threads(), bench::Median(rates) * 1e-9);
}

class Bench {
 public:
  Bench(const Model& model, CpuIsa isa, ThreadPool& pool) : model_(model), isa_(isa), pool_(pool) {}

  /// Attention of `rows` rows of which the last is at position end-1.
  void Run(KvDtype dtype, int64_t rows, int64_t end) {
    const std::string what = fmt::format("{} {} {} {} {}", NameOf(isa_), model_.name, NameOf(dtype),
                                         rows == 1 ? "decode at" : "prefill to", end);
    if (!bench::Wanted(what)) return;
    const AttentionShape& shape = model_.shape;
    HostOperators ops(Backend::kCpu, isa_, pool_);
    KvShape kv;
    kv.slots = 1;
    kv.capacity = end;
    kv.kv_width = shape.kv_width();
    kv.head_dim = shape.head_dim;
    kv.dtype = dtype;
    kv.layers = 1;
    // More than a last-level cache, and no more than is needed for that.
    kv.layers = std::max<int64_t>(2, (int64_t{160} << 20) / static_cast<int64_t>(kv.Bytes()));
    if (rows > 1) kv.layers = 2;
    if (!ops.AllocateKv(kv)) std::exit(1);
    Matrix qkv = Rows(ops, rows, shape.qkv_width()), out = Rows(ops, rows, shape.out_width()),
           rope = Rows(ops, rows, 2 * model_.frequencies);
    std::vector<float> ones(shape.head_dim, 1.0f);
    const Vector norm{ones.data(), shape.head_dim};
    const auto attend = [&](int64_t layer, int64_t first, int64_t n) {
      const SequenceRows sequence{0, 0, n, first, false};
      ops.Attention(shape, layer, {&sequence, 1}, norm, norm, rope.Top(n), qkv.Top(n), out.Top(n));
    };
    if (rows > 1) {  // what a batch finds in the cache
      for (int64_t layer = 0; layer < kv.layers; ++layer) {
        for (int64_t p = 0; p + rows < end; p += 32) attend(layer, p, 32);
      }
    }
    const double keys = static_cast<double>(rows) * static_cast<double>(2 * end - rows + 1) / 2;
    const double flop = 4 * keys * static_cast<double>(shape.out_width());
    const double bytes = static_cast<double>(kv.Bytes()) / static_cast<double>(kv.layers);
    const bool decode = rows == 1;
    Report(what, pool_.threads(), decode ? 301 : 9, decode ? bytes : flop,
           decode ? "GB/s" : "GFLOP/s",
           [&](int round) { attend(round % kv.layers, end - rows, rows); });
  }

 private:
  Matrix Rows(HostOperators& ops, int64_t rows, int64_t cols) {
    auto matrix = ops.Allocate(rows, cols);
    if (!matrix) std::exit(1);
    std::normal_distribution<float> normal;
    auto* p = static_cast<float*>(matrix->data);
    for (int64_t i = 0; i < rows * cols; ++i) p[i] = normal(random_);
    return *matrix;
  }

  const Model& model_;
  const CpuIsa isa_;
  ThreadPool& pool_;
  std::mt19937 random_{2};
};

int Main(int argc, char** argv) {
  std::vector<int> threads;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
      bench::only = argv[++i];
    } else {
      threads.push_back(std::max(1, std::atoi(argv[i])));
    }
  }
  if (threads.empty()) threads = {1, AvailableCores()};
  const auto chosen = cpu::ChooseIsa(std::getenv("NIBBLE_ISA"));
  if (!chosen) {
    fmt::print(stderr, "{}\n", chosen.error().Message());
    return 2;
  }
  for (int n : threads) {
    ThreadPool pool(n);
    BenchRead(pool);
    for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
      if (isa > *chosen) break;
      BenchPeak(isa);
      for (const Model& model : kModels) {
        Bench bench(model, isa, pool);
        for (KvDtype dtype : {KvDtype::kF32, KvDtype::kBf16, KvDtype::kFp8}) {
          for (int64_t end : {512, 2048, 8192}) bench.Run(dtype, kBatch, end);
          for (int64_t end : {512, 2048, 8192, 32768}) bench.Run(dtype, 1, end);
        }
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble::kernels

int main(int argc, char** argv) { return nibble::kernels::Main(argc, argv); }
