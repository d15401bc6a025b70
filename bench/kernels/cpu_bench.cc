// cpu_bench [--only TEXT] [THREADS...]: what the CPU kernels reach, one JSON object a line, for
// every ISA of this machine at the shapes of a 2048 x 768 layer of 128 experts, 8 a token; with
// --only, those whose "what" holds TEXT.
// Speeds are medians: timing.h.

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/arena.h"
#include "kernels/cpu/experts.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/strips.h"
#include "timing.h"

namespace nibble::kernels::cpu {
namespace {

using bench::Median;
using bench::Report;
using bench::Seconds;
using bench::Wanted;

constexpr int64_t kHidden = 2048, kIntermediate = 768, kExperts = 128;
constexpr int kTopK = 8;

HugeBuffer Allocate(size_t bytes) {
  auto buffer = HugeBuffer::Allocate(bytes);
  if (!buffer) {
    fmt::print(stderr, "{}\n", buffer.error().Message());
    std::exit(1);
  }
  return *std::move(buffer);
}

/// Random codes under scales of ordinary size.
void FillNvfp4(HugeBuffer& buffer) {
  std::mt19937_64 random(1);
  for (size_t i = 0; i + 8 <= buffer.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(buffer.data() + i, &word, 8);
  }
  for (size_t tile = 0; tile + kNvfp4TileBytes <= buffer.size(); tile += kNvfp4TileBytes) {
    for (int i = 512; i < kNvfp4TileBytes; ++i) {
      std::byte& scale = buffer.data()[tile + i];
      scale = std::byte{0x28} | (scale & std::byte{0x0F});
    }
  }
}

std::vector<float> Normal(int64_t count) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> v(count);
  for (float& f : v) f = normal(random);
  return v;
}

/// Rows of x packed for `kernels`.
struct PackedRows {
  PackedRows(const CpuKernels& kernels, const std::vector<float>& x, int64_t rows)
      : memory(Allocate(rows * PackedRowBytes(kernels, kHidden))) {
    for (int64_t t = 0; t < rows; ++t) {
      std::byte* row = memory.data() + t * PackedRowBytes(kernels, kHidden);
      PackRow(kernels, x.data() + t * kHidden, kHidden, RowForm{}, row);
      pointers.push_back(row);
    }
  }
  HugeBuffer memory;
  std::vector<const std::byte*> pointers;
};

/// A layer's experts over one buffer, and rounds of routes over them.
struct Layer {
  HugeBuffer weights;
  PreparedExperts prepared;

  Layer() {
    const int64_t up = PackedBytes(TileFormat::kNvfp4, kIntermediate, kHidden);
    const int64_t down = PackedBytes(TileFormat::kNvfp4, kHidden, kIntermediate);
    weights = Allocate(kExperts * (2 * up + down));
    FillNvfp4(weights);
    const std::byte* p = weights.data();
    const auto take = [&](int64_t n, int64_t k, int64_t bytes) {
      const PackedMatrix m{TileFormat::kNvfp4, n, k, p, {}, nullptr};
      p += bytes;
      return m;
    };
    prepared.n_experts = kExperts;
    prepared.hidden = kHidden;
    prepared.intermediate = kIntermediate;
    for (int64_t e = 0; e < kExperts; ++e) {
      prepared.gate.push_back(take(kIntermediate, kHidden, up));
      prepared.up.push_back(take(kIntermediate, kHidden, up));
      prepared.down.push_back(take(kHidden, kIntermediate, down));
    }
    prepared.quant.g1_alphas.assign(kExperts * 2, 0.01f);
    prepared.quant.g2_alphas.assign(kExperts, 0.01f);
  }
  double BytesPerExpert() const { return static_cast<double>(weights.size()) / kExperts; }
};

std::vector<int32_t> Routes(int64_t tokens, int round) {
  std::mt19937 random(static_cast<unsigned>(round));
  std::vector<int32_t> all(kExperts), ids;
  for (int i = 0; i < kExperts; ++i) all[i] = i;
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    ids.insert(ids.end(), all.begin(), all.begin() + kTopK);
  }
  return ids;
}

void BenchRead(ThreadPool& pool, const HugeBuffer& buffer) {
  std::vector<uint64_t> sums(pool.threads() * 8);
  const int64_t lines = static_cast<int64_t>(buffer.size() / 64);
  Report("plain read", pool.threads(), 15, static_cast<double>(buffer.size()), "GB/s", [&](int) {
    pool.Run(lines, [&](int64_t begin, int64_t end, int thread) {
      typedef uint64_t Words __attribute__((vector_size(16), may_alias));
      Words a = {}, b = {}, c = {}, d = {};
      for (int64_t i = begin; i < end; ++i) {
        const auto* p = reinterpret_cast<const Words*>(buffer.data() + i * 64);
        __builtin_prefetch(reinterpret_cast<const char*>(p) + 9216);
        a ^= p[0];
        b ^= p[1];
        c ^= p[2];
        d ^= p[3];
      }
      a ^= b ^ c ^ d;
      sums[thread * 8] += a[0] ^ a[1];
    });
  });
  if (sums[0] == 42) fmt::print("\n");  // the reads are used
}

std::string_view NameOf(TileFormat format) {
  return format == TileFormat::kNvfp4 ? "nvfp4" : format == TileFormat::kFp8 ? "fp8" : "bf16";
}

void BenchDecode(const CpuKernels& k, const Layer& layer, TileFormat format,
                 const PackedRows& rows) {
  const auto decode = format == TileFormat::kNvfp4 ? k.decode_nvfp4
                      : format == TileFormat::kFp8 ? k.decode_fp8
                                                   : k.decode_bf16;
  const std::string name = fmt::format("{} {} decode strip", NameOf(k.isa), NameOf(format));
  const int64_t tiles = kHidden / kTileK, strip_bytes = tiles * TileBytes(format);
  const int64_t strips = static_cast<int64_t>(layer.weights.size()) / strip_bytes;
  const int64_t part = k.isa == CpuIsa::kScalar ? 12 : 3072;
  float y[4 * 48];
  for (int tokens : {1, 2, 4}) {
    Report(fmt::format("{}, {} tokens, memory", name, tokens), 1, 21,
           static_cast<double>(part * strip_bytes), "GB/s", [&](int round) {
             for (int64_t s = 0; s < part; ++s) {
               const int64_t at = (round * part + s) % strips;
               decode(layer.weights.data() + at * strip_bytes,
                      layer.weights.data() + (at + 1) % strips * strip_bytes, tiles,
                      rows.pointers.data(), tokens, 1.0f, y, 48);
             }
           });
  }
  const int64_t hot = (32 * kNvfp4TileBytes) / TileBytes(format);  // strips that stay in L2
  Report(fmt::format("{}, 1 token, L2", name), 1, 21, static_cast<double>(part * strip_bytes),
         "GB/s", [&](int) {
           for (int64_t s = 0; s < part; ++s) {
             decode(layer.weights.data() + s % hot * strip_bytes,
                    layer.weights.data() + (s + 1) % hot * strip_bytes, tiles, rows.pointers.data(),
                    1, 1.0f, y, 48);
           }
         });
}

void BenchStrips(const CpuKernels& k, const Layer& layer) {
  const std::string isa(NameOf(k.isa));
  const int64_t tiles = kHidden / kTileK;
  const auto x = Normal(64 * kHidden);
  PackedRows rows(k, x, 64);
  float y[64 * 48];
  for (TileFormat format : {TileFormat::kNvfp4, TileFormat::kFp8, TileFormat::kBf16}) {
    BenchDecode(k, layer, format, rows);
  }
  HugeBuffer panels = Allocate(3 * PanelBytes(kHidden));
  const std::byte* p[3];
  for (int s = 0; s < 3; ++s) p[s] = panels.data() + s * PanelBytes(kHidden);
  for (TileFormat format : {TileFormat::kFp8, TileFormat::kNvfp4}) {
    const auto expand = format == TileFormat::kNvfp4 ? k.expand_nvfp4 : k.expand_fp8;
    const int64_t strip_bytes = tiles * TileBytes(format);
    Report(fmt::format("{} {} expand strips", isa, NameOf(format)), 1, 21,
           static_cast<double>(96 * 16 * kHidden), "Gweights/s", [&](int) {
             for (int s = 0; s < 96; ++s) {
               expand(layer.weights.data() + s * strip_bytes,
                      layer.weights.data() + (s + 1) * strip_bytes, tiles,
                      panels.data() + s % 3 * PanelBytes(kHidden));
             }
           });
  }
  const int repeats = k.isa == CpuIsa::kScalar ? 1 : 8;
  Report(fmt::format("{} panel gemm 3 strips x 64 tokens", isa), 1, 21,
         2.0 * repeats * 64 * 48 * kHidden, "GFLOP/s", [&](int) {
           for (int i = 0; i < repeats; ++i) {
             k.panel_gemm(p, 3, false, tiles, rows.pointers.data(), 64, 1.0f, y, 48);
           }
         });
}

/// Where panels begin to win: the same strips from memory against n tokens, both ways.
void BenchSwitch(const CpuKernels& k, const Layer& layer, TileFormat format) {
  if (!Wanted(fmt::format("{} {} strip of", NameOf(k.isa), NameOf(format)))) return;
  const auto x = Normal(48 * kHidden);
  PackedRows rows(k, x, 48);
  HugeBuffer panels = Allocate(3 * PanelBytes(kHidden));
  float y[48 * 48];
  constexpr int kGroups = 256;
  const int64_t rows_in_all =
      static_cast<int64_t>(layer.weights.size()) / StripBytes(format, kHidden) * kStripRows;
  const PackedMatrix all{format, rows_in_all, kHidden, layer.weights.data(), {}, nullptr};
  for (int tokens = 3; tokens <= 48; tokens += tokens < 8 ? 1 : tokens < 16 ? 2 : 8) {
    double seconds[2];
    for (bool as_panels : {false, true}) {
      std::vector<double> cpu;
      for (int round = 0; round < 11; ++round) {
        const double c = Seconds(CLOCK_THREAD_CPUTIME_ID);
        for (int64_t g = 0; g < kGroups; ++g) {
          const int64_t first = (round * kGroups + g) % (StripCount(all.n) / 3) * 3;
          StripGroup(k, all, first, 3, as_panels, panels.data(), all.strip(first + 3))
              .Multiply(rows.pointers.data(), RowForm{}, tokens, 1.0f, y, 48);
        }
        cpu.push_back(Seconds(CLOCK_THREAD_CPUTIME_ID) - c);
      }
      seconds[as_panels] = Median(cpu) / kGroups / 3;
    }
    fmt::print(
        "{{\"what\":\"{} {} strip of {} tokens\",\"decode_us\":{:.2f},\"panel_us\":{:.2f}}}\n",
        NameOf(k.isa), NameOf(format), tokens, seconds[0] * 1e6, seconds[1] * 1e6);
  }
}

void BenchExperts(const CpuKernels& k, ThreadPool& pool, Layer& layer, bool w4a4) {
  PreparedExperts& e = layer.prepared;
  e.quant.a1_gscale.reset();
  e.quant.a2_gscale.reset();
  if (w4a4) {
    e.quant.a1_gscale.emplace(kExperts * 2, 400.0f);
    e.quant.a2_gscale.emplace(kExperts, 300.0f);
  }
  Scratch scratch;
  const std::string name = fmt::format("{} experts {}", NameOf(k.isa), w4a4 ? "W4A4" : "W4A16");
  for (int64_t tokens : {1, 4, 16, 64, 512}) {
    if (k.isa == CpuIsa::kScalar && tokens > 4) continue;
    const auto x = Normal(tokens * kHidden);
    std::vector<float> y(tokens * kHidden), weights(tokens * kTopK, 0.125f);
    std::vector<std::vector<int32_t>> routes;
    for (int i = 0; i < 16; ++i) routes.push_back(Routes(tokens, i));
    const auto run = [&](int round) {
      const auto& ids = routes[round % 16];
      if (!Experts(k, pool, scratch, e, x.data(), tokens, ids.data(), weights.data(), kTopK,
                   y.data())) {
        std::exit(1);
      }
    };
    if (Wanted(name)) run(0);
    double touched = 0;
    for (const auto& ids : routes) {
      std::vector<bool> seen(kExperts);
      for (int32_t id : ids) seen[id] = true;
      touched += static_cast<double>(std::count(seen.begin(), seen.end(), true)) / 16;
    }
    const bool by_bytes = tokens <= 16;
    const double work = by_bytes ? touched * layer.BytesPerExpert()
                                 : 6.0 * static_cast<double>(tokens * kTopK) * kHidden *
                                       static_cast<double>(kIntermediate);
    Report(fmt::format("{}, {} tokens", name, tokens), pool.threads(),
           tokens == 1    ? 201
           : tokens <= 16 ? 41
                          : 15,
           work, by_bytes ? "GB/s" : "GFLOP/s", run);
  }
}

void BenchLinear(const CpuKernels& k, ThreadPool& pool, const Layer& layer, TileFormat format,
                 const QuantScheme& scheme = {}) {
  constexpr int64_t kRows = 5120;
  PreparedLinearShard shard;
  shard.n = kRows;
  shard.global = 0.01f;
  shard.activation = scheme.activation;
  if (scheme.activation && scheme.activation->scale.is_static) shard.input_scale = 0.01f;
  const GroupShape group = scheme.weight ? scheme.weight->scale.group : GroupShape{};
  const std::vector<float> scales(ScaleCount(group, kRows, kHidden), 0.01f);
  const std::string kind = scheme.weight ? fmt::format("{} {}", NameOf(format), PairName(scheme))
                                         : std::string(NameOf(format));
  const PreparedLinearShard* shards[] = {&shard};
  const int64_t columns[] = {0};
  const int64_t bytes = PackedBytes(format, kRows, kHidden);
  const int64_t copies = static_cast<int64_t>(layer.weights.size()) / bytes;
  Scratch scratch;
  for (int64_t tokens : {1, 8, 512}) {
    if (k.isa == CpuIsa::kScalar && tokens > 1) continue;
    const auto x = Normal(tokens * kHidden);
    std::vector<float> y(tokens * kRows);
    const double work = tokens <= 8 ? static_cast<double>(bytes)
                                    : 2.0 * static_cast<double>(tokens * kRows) * kHidden;
    Report(
        fmt::format("{} {} linear {}x{}, {} tokens", NameOf(k.isa), kind, kRows, kHidden, tokens),
        pool.threads(), tokens <= 8 ? 101 : 9, work, tokens <= 8 ? "GB/s" : "GFLOP/s",
        [&](int round) {
          shard.weight = PackedMatrix{format,  kRows,
                                      kHidden, layer.weights.data() + round % copies * bytes,
                                      group,   scales.empty() ? nullptr : scales.data()};
          if (!Linear(k, pool, scratch, shards, columns, x.data(), tokens, kHidden, y.data(),
                      kRows)) {
            std::exit(1);
          }
        });
  }
}

int Main(int argc, char** argv) {
  const std::vector<int> threads = bench::ParseThreads(argc, argv, {1, AvailableCores()});
  const auto chosen = ChooseIsa(std::getenv("NIBBLE_ISA"));
  if (!chosen) {
    fmt::print(stderr, "{}\n", chosen.error().Message());
    return 2;
  }
  const DeviceInfo cpu = DescribeCpu(*chosen);
  fmt::print("{{\"cpu\":\"{}\",\"cores\":{},\"isa\":\"{}\"}}\n", cpu.model, cpu.cores,
             NameOf(cpu.isa));
  Layer layer;
  for (int n : threads) {
    ThreadPool pool(n);
    BenchRead(pool, layer.weights);
  }
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (isa > *chosen) break;
    const CpuKernels& k = KernelsFor(isa);
    BenchStrips(k, layer);
    for (TileFormat format : {TileFormat::kNvfp4, TileFormat::kFp8}) {
      if (isa != CpuIsa::kScalar) BenchSwitch(k, layer, format);
    }
    for (int n : threads) {
      ThreadPool pool(n);
      BenchExperts(k, pool, layer, false);
      BenchExperts(k, pool, layer, true);
      BenchLinear(k, pool, layer, TileFormat::kNvfp4);
      BenchLinear(k, pool, layer, TileFormat::kBf16);
      for (const QuantScheme& scheme : kFp8Schemes) {
        BenchLinear(k, pool, layer, TileFormat::kFp8, scheme);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble::kernels::cpu

int main(int argc, char** argv) { return nibble::kernels::cpu::Main(argc, argv); }
