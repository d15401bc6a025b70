// delta_bench [--only TEXT] [THREADS...]: gated DeltaNet on the CPU, one JSON object a line, for
// every ISA of this machine at the shape of Qwen3.5-35B: 16 key heads and 32 value heads of 128.
// "operator" is HostDelta as a model calls it, layer after layer; the others are its parts.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "base/arena.h"
#include "kernels/cpu/isa.h"
#include "kernels/host_delta.h"
#include "timing.h"

namespace nibble::kernels {
namespace {

using bench::Report;

constexpr DeltaShape kShape{16, 32, 128, 128, 4, 1e-6f};
constexpr int64_t kLayers = 30;  // more states than a cache holds, as in the model

std::vector<float> Normal(int64_t count, float scale) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(count);
  for (float& f : v) f = normal(random);
  return v;
}

Vector View(const std::vector<float>& v) { return {v.data(), static_cast<int64_t>(v.size())}; }

/// Multiplications and additions of the recurrence for one token: S k, the update, S q.
constexpr double kFlopPerToken = 7.0 * 32 * 128 * 128;

void BenchOperator(CpuIsa isa, ThreadPool& pool, DeltaForm form) {
  const auto conv = Normal(kShape.taps * kShape.channels(), 0.5f),
             heads = Normal(kShape.v_heads, 1), norm = Normal(kShape.v_dim, 1),
             numbers = Normal(512 * kShape.in_width(), 1);
  auto memory = HugeBuffer::Allocate(512 * (kShape.in_width() + kShape.out_width()) * 4);
  if (!memory) std::exit(1);
  auto* const in = reinterpret_cast<float*>(memory->data());
  float* const out = std::copy(numbers.begin(), numbers.end(), in);
  const DeltaParameters parameters{View(conv), View(heads), View(heads), View(norm)};
  HostDelta delta(form, cpu::GlueFor(isa), pool);
  if (!delta.Allocate({kLayers, 1, 8, kShape})) std::exit(1);
  for (int64_t rows : {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 65, 128, 512}) {
    int64_t position = 0;
    Report(fmt::format("{} operator{}, {} rows", NameOf(isa),
                       form == DeltaForm::kInvariant ? " invariant" : "", rows),
           pool.threads(), rows <= 8 ? 301 : 61, kFlopPerToken * static_cast<double>(rows),
           "GFLOP/s", [&](int round) {
             position += round % kLayers == 0;
             delta.Run(round % kLayers, {0, 0, rows, position, false}, parameters, in, out);
           });
  }
}

/// A layer's parts for 512 rows, one thread.
void BenchParts(CpuIsa isa) {
  constexpr int64_t kRows = 512;
  const cpu::GlueKernels& glue = cpu::GlueFor(isa);
  const int64_t channels = kShape.channels(), width = kShape.out_width();
  const auto w = Normal(kShape.taps * channels, 0.5f), in = Normal((kRows + 3) * channels, 1),
             gates = Normal(2 * kRows * kShape.v_heads, 1), rate(gates);
  std::vector<float> qkv(kRows * channels), o(kRows * width), out(kRows * width),
      g(kRows * kShape.v_heads), beta(g), state(kShape.state_size());
  const std::string name(NameOf(isa));
  const auto part = [&](const char* what, auto body) {
    Report(fmt::format("{} part {}, {} rows", name, what, kRows), 1, 31,
           kFlopPerToken * static_cast<double>(kRows), "GFLOP/s", body);
  };
  part("convolution", [&](int) {
    for (int64_t i = 0; i < kRows; ++i) {
      const float* rows[4];
      for (int64_t j = 0; j < 4; ++j) rows[j] = in.data() + (i + j) * channels;
      glue.conv_silu(rows, 0, channels, w.data(), channels, 4, qkv.data() + i * channels);
    }
  });
  part("unit length", [&](int) {
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t h = 0; h < 32; ++h)
        glue.unit_length(qkv.data() + i * channels + h * 128, 128, h < 16 ? 0.088f : 1);
    }
  });
  part("gates", [&](int) {
    std::copy_n(gates.data(), beta.size(), beta.data());
    glue.delta_gates(gates.data() + beta.size(), rate.data(), kRows * kShape.v_heads, beta.data(),
                     g.data());
  });
  const auto tokens = [&](int64_t h, int64_t i = 0) {
    const float* row = qkv.data() + i * channels;
    return DeltaTokens<float>{kRows,
                              128,
                              128,
                              row + h / 2 * 128,
                              row + 2048 + h / 2 * 128,
                              row + 4096 + h * 128,
                              channels,
                              g.data() + i * 32 + h,
                              beta.data() + i * 32 + h,
                              32,
                              o.data() + i * width + h * 128,
                              width};
  };
  part("recurrence", [&](int) {
    for (int64_t h = 0; h < 32; ++h) glue.delta_rows(tokens(h), state.data() + h * 128 * 128);
  });
  std::vector<float> scratch(glue.delta_scratch(128, 128, 2));
  part("chunks", [&](int) {
    for (int64_t h = 0; h < 32; h += 2) {
      DeltaTokens<float> t = tokens(h);
      glue.delta_load(t, 2, state.data() + h * 128 * 128, scratch.data());
      for (int64_t i = 0; i < kRows; i += t.n) {
        t = tokens(h, i);
        t.n = cpu::kDeltaChunk;
        glue.delta_chunk(t, 2, scratch.data());
      }
      glue.delta_store(t, 2, scratch.data(), state.data() + h * 128 * 128);
    }
  });
  part("gated norm", [&](int) {
    for (int64_t i = 0; i < kRows * 32; ++i) {
      glue.rms_norm(o.data() + i * 128, 128, w.data(), 1e-6f, out.data() + i * 128);
      glue.silu_mul(in.data() + i * 128, out.data() + i * 128, 128, out.data() + i * 128);
    }
  });
}

int Main(int argc, char** argv) {
  const std::vector<int> threads = bench::ParseThreads(argc, argv, {1, AvailableCores()});
  const auto chosen = cpu::ChooseIsa(std::getenv("NIBBLE_ISA"));
  if (!chosen) {
    fmt::print(stderr, "{}\n", chosen.error().Message());
    return 2;
  }
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa > *chosen) break;
    BenchParts(isa);
    for (int n : threads) {
      ThreadPool pool(n);
      BenchOperator(isa, pool, DeltaForm::kInvariant);
      BenchOperator(isa, pool, DeltaForm::kFastest);
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble::kernels

int main(int argc, char** argv) { return nibble::kernels::Main(argc, argv); }
