// attention_bench [--only TEXT] [THREADS...]: attention on the CPU as a model calls it, one JSON
// object a line, for every ISA of this machine: the shapes of Qwen3-30B-A3B (32 query heads, 4 kv
// heads of 128) and of Qwen3.5-35B-A3B (16, 2 of 256, gated, a quarter rotated). Layer after layer,
// so that a cache comes from memory. "prefill to N" is the batch of 512 rows that ends there.
// NIBBLE_ISA lowers the best ISA; "limits" are the machine's own, measured in the same run.

#include <cstdlib>
#include <random>
#include <string_view>

#include "base/read_bandwidth.h"
#include "kernels/cpu/isa.h"
#include "kernels/host_operators.h"
#include "limits.h"
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

/// fp32 multiply-adds of one thread, in registers alone.
void BenchPeak(CpuIsa isa) {
  constexpr int kBursts = 64;
  const std::string_view wanted = isa == CpuIsa::kAvx512 ? "fma_f32_zmm"
                                  : isa == CpuIsa::kAvx2 ? "fma_f32_ymm"
                                                         : "";
  for (const bench::Limit& limit : bench::Limits()) {
    if (limit.name != wanted) continue;
    Report(fmt::format("{} limits, multiply-add", NameOf(isa)), 1, 15, kBursts * limit.operations,
           "GFLOP/s", [&](int) {
             for (int i = 0; i < kBursts; ++i) limit.burst();
           });
  }
}

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
      ops.Begin(StepKind::kForward, {}, {&sequence, 1});
      ops.Attention(shape, layer, norm, norm, rope.Top(n), qkv.Top(n), out.Top(n));
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
  const std::vector<int> threads = bench::ParseThreads(argc, argv, {1, AvailableCores()});
  const auto chosen = cpu::ChooseIsa(std::getenv("NIBBLE_ISA"));
  if (!chosen) {
    fmt::print(stderr, "{}\n", chosen.error().Message());
    return 2;
  }
  for (int n : threads) {
    ThreadPool pool(n);
    BenchRead(pool);
    for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
      if (isa > *chosen) break;
      BenchPeak(isa);
      for (const Model& model : kModels) {
        Bench bench(model, isa, pool);
        for (KvDtype dtype : {KvDtype::kF32, KvDtype::kF32Bf16, KvDtype::kBf16, KvDtype::kFp8}) {
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
