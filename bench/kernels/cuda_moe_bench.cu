// Checks and times the Hopper expert kernels.
//   cuda_moe_bench check             every kernel against the double reference, odd shapes included
//   cuda_moe_bench small             a few small cases, for compute-sanitizer
//   cuda_moe_bench time [JSON [SHAPES [MIN_TOKENS [MAX_TOKENS [KERNEL]]]]]
//                                    the peers' shapes, as the peers were measured: CUDA graphs over
//                                    rotating weights and uniform random routings
// Exits with 1 when a check fails.

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_moe_reference.h"
#include "h200_peers.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/sm90_pack.h"
#include "layout/hopper_pack.h"

namespace nibble::bench {
namespace {

using cuda::Sm90MoeParams;
using cuda::Sm90MoeShape;

#define BENCH_CUDA(call)                                                               \
  do {                                                                                 \
    if (const cudaError_t e_ = (call); e_ != cudaSuccess) {                            \
      std::printf("FAIL %s: %s (line %d)\n", #call, cudaGetErrorString(e_), __LINE__); \
      std::fflush(stdout);                                                             \
      std::_Exit(2);                                                                   \
    }                                                                                  \
  } while (false)

void Must(const Result<void>& result) {
  if (result) return;
  std::printf("FAIL %s\n", result.error().what.c_str());
  std::fflush(stdout);
  std::_Exit(2);
}

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n = 0) : n_(n) {
    if (n) BENCH_CUDA(cudaMalloc(&p_, n * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& v) : Buffer(v.size()) {
    BENCH_CUDA(cudaMemcpy(p_, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Buffer(Buffer&& o) noexcept : p_(std::exchange(o.p_, nullptr)), n_(std::exchange(o.n_, 0)) {}
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(p_, o.p_), std::swap(n_, o.n_);
    return *this;
  }
  ~Buffer() { cudaFree(p_); }
  T* get() const { return p_; }
  size_t size() const { return n_; }
  void Fill(int byte) { BENCH_CUDA(cudaMemset(p_, byte, n_ * sizeof(T))); }
  std::vector<T> Read() const {
    std::vector<T> v(n_);
    BENCH_CUDA(cudaMemcpy(v.data(), p_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  T* p_ = nullptr;
  size_t n_ = 0;
};

struct Kernel {
  const char* name;
  Result<void> (*launch)(const Sm90MoeParams&, cudaStream_t);
  size_t (*workspace)(const Sm90MoeShape&, int tokens);
  int (*max_tokens)(const Sm90MoeShape&);
};
const Kernel kKernels[] = {
    {"sm90_nvfp4_bf16_experts_decode", cuda::LaunchSm90MoeDecode, cuda::Sm90MoeDecodeWorkspace,
     cuda::Sm90MoeDecodeMaxTokens},
    {"sm90_nvfp4_bf16_experts_prefill", cuda::LaunchSm90MoePrefill, cuda::Sm90MoePrefillWorkspace,
     [](const Sm90MoeShape&) { return 1 << 20; }},
};

// --- weights ---

struct Canonical {
  explicit Canonical(const Sm90MoeShape& s)
      : n(size_t(s.experts) * s.intermediate * s.hidden),
        codes{Buffer<uint8_t>(n / 2), Buffer<uint8_t>(n / 2), Buffer<uint8_t>(n / 2)},
        scales{Buffer<uint8_t>(n / 16), Buffer<uint8_t>(n / 16), Buffer<uint8_t>(n / 16)},
        view{s,
             codes[0].get(),
             scales[0].get(),
             codes[1].get(),
             scales[1].get(),
             codes[2].get(),
             scales[2].get()} {}
  cuda::Sm90PackSource Source(int i) const {
    const size_t e = view.shape.experts;
    return {codes[i].get(), scales[i].get(), n / e / 2, n / e / 16};
  }
  size_t n;
  Buffer<uint8_t> codes[3], scales[3];
  CanonicalExperts view;
};

struct Packed {
  explicit Packed(const Sm90MoeShape& s)
      : w13(s.experts * HopperW13Layout(s.hidden, s.intermediate).bytes()),
        w2(s.experts * HopperW2Layout(s.hidden, s.intermediate).bytes()) {}
  void Pack(const Canonical& c, cudaStream_t stream) {
    const Sm90MoeShape& s = c.view.shape;
    Must(cuda::LaunchSm90PackW13(c.Source(0), c.Source(1), s.experts, s.hidden, s.intermediate,
                                 w13.get(), stream));
    Must(
        cuda::LaunchSm90PackW2(c.Source(2), s.experts, s.hidden, s.intermediate, w2.get(), stream));
  }
  Buffer<uint8_t> w13, w2;
};

// Global scales that bring every stage to about 1, different for every expert, gate and up.
struct Globals {
  explicit Globals(const Sm90MoeShape& s) {
    std::vector<float> one(2 * s.experts), two(s.experts);
    for (int e = 0; e < s.experts; ++e) {
      const float k = 0.3f / std::sqrt(float(s.hidden)), spread = float(e % 7) / 7;
      one[2 * e] = k * (1.5f + 0.5f * spread);
      one[2 * e + 1] = k * (1.3f - 0.6f * spread);
      two[e] = 0.4f / std::sqrt(float(s.intermediate)) * (0.8f + 0.5f * spread);
    }
    g1 = Buffer<float>(one);
    g2 = Buffer<float>(two);
  }
  Buffer<float> g1, g2;
};

// --- routing ---

enum class Routing { kUniform, kSkewed, kOneExpert, kWithInvalid };
const char* NameOf(Routing r) {
  const char* names[] = {"uniform", "skewed", "one-expert", "with-invalid"};
  return names[static_cast<int>(r)];
}

struct Routes {
  Routes(const Sm90MoeShape& s, int tokens, Routing how, uint32_t seed)
      : ids_host(tokens * s.top_k) {
    std::mt19937 random(seed);
    std::vector<float> w(ids_host.size());
    for (int t = 0; t < tokens; ++t) {
      float sum = 0;
      for (int k = 0; k < s.top_k; ++k) {
        int32_t& id = ids_host[t * s.top_k + k];
        const auto taken = [&] { return std::find(&ids_host[t * s.top_k], &id, id) != &id; };
        int tries = 0;
        do {
          id = static_cast<int>(random() % s.experts);
          if (how == Routing::kSkewed && random() % 3) id %= std::max(1, s.experts / 16);
        } while (taken() && ++tries < 200);
        if (how == Routing::kOneExpert && k == 0) id = s.experts - 1;
        sum += w[t * s.top_k + k] = 0.1f + float(random() % 1000) / 1000;
      }
      for (int k = 0; k < s.top_k; ++k) w[t * s.top_k + k] /= sum;
      if (how != Routing::kWithInvalid) continue;
      for (int k = 0; k < s.top_k; ++k) {
        if (random() % 3 == 0 || t == 1) ids_host[t * s.top_k + k] = random() % 2 ? -1 : s.experts;
      }
    }
    ids = Buffer<int32_t>(ids_host);
    weights = Buffer<float>(w);
  }
  int Touched(int experts) const {
    std::vector<char> seen(experts);
    for (int id : ids_host) {
      if (id >= 0 && id < experts) seen[id] = 1;
    }
    return static_cast<int>(std::count(seen.begin(), seen.end(), 1));
  }
  std::vector<int32_t> ids_host;
  Buffer<int32_t> ids;
  Buffer<float> weights;
};

float Float(Bf16 v) { return ToFloat(v); }

// --- checks ---

struct Verdict {
  bool ok = true;
  double rel_l2 = 0, worst = 0;  // worst: of |y - reference| / bound
  std::string why;
};

// Runs the kernel on poisoned memory, twice more for its bits, and compares up to 48 tokens.
Verdict Check(const Kernel& kernel, const Canonical& canonical, Sm90MoeParams p, int repeats,
              cudaStream_t stream) {
  Verdict v;
  const int hidden = p.shape.hidden;
  Buffer<Bf16> y(size_t(p.tokens) * hidden);
  p.y = y.get();
  std::vector<Bf16> first;
  for (int run = 0; run < repeats; ++run) {
    y.Fill(0xFF);
    Must(kernel.launch(p, stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    const std::vector<Bf16> got = y.Read();
    if (run == 0) first = got;
    if (std::memcmp(got.data(), first.data(), got.size() * 2) != 0) {
      v.ok = false;
      v.why = "run " + std::to_string(run) + " gives other bits";
      return v;
    }
  }
  std::vector<int32_t> tokens;
  for (int i = 0, n = std::min(p.tokens, 48); i < n; ++i) {
    tokens.push_back(n == 1 ? 0 : static_cast<int>(int64_t(i) * (p.tokens - 1) / (n - 1)));
  }
  const int count = static_cast<int>(tokens.size());
  Buffer<int32_t> list(tokens);
  Buffer<double> scratch(size_t(count) * p.shape.top_k * p.shape.intermediate * 2);
  Buffer<double> want(size_t(count) * hidden), bound(size_t(count) * hidden);
  Reference(canonical.view, p, list.get(), count, scratch.get(), want.get(), bound.get(), stream);
  BENCH_CUDA(cudaStreamSynchronize(stream));
  BENCH_CUDA(cudaGetLastError());
  const std::vector<double> w = want.Read(), b = bound.Read();
  double difference = 0, norm = 0;
  for (int i = 0; i < count; ++i) {
    for (int r = 0; r < hidden; ++r) {
      const double got = Float(first[size_t(tokens[i]) * hidden + r]),
                   d = got - w[i * size_t(hidden) + r];
      const double share = std::fabs(d) / b[i * size_t(hidden) + r];
      if (!(share <= v.worst)) v.worst = share;
      if (!(share <= 1) && v.ok) {
        v.ok = false;
        v.why = "token " + std::to_string(tokens[i]) + " row " + std::to_string(r) + ": " +
                std::to_string(got) + " for " + std::to_string(w[i * size_t(hidden) + r]) + " +- " +
                std::to_string(b[i * size_t(hidden) + r]);
      }
      difference += d * d, norm += w[i * size_t(hidden) + r] * w[i * size_t(hidden) + r];
    }
  }
  for (const Bf16 value : first) {
    if (!std::isfinite(Float(value)) && v.ok) v.ok = false, v.why = "an element is not finite";
  }
  v.rel_l2 = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  if (!(v.rel_l2 <= 1e-2) && v.ok) v.ok = false, v.why = "relative L2 too large";
  return v;
}

// The GPU's packing against the host's, byte for byte.
bool CheckPacking(const Canonical& c, const Packed& packed, int expert) {
  const Sm90MoeShape& s = c.view.shape;
  const size_t per = c.n / s.experts;
  std::vector<uint8_t> codes[3], scales[3];
  CanonicalNvfp4 m[3];
  for (int i = 0; i < 3; ++i) {
    codes[i].resize(per / 2), scales[i].resize(per / 16);
    BENCH_CUDA(cudaMemcpy(codes[i].data(), c.codes[i].get() + expert * per / 2, per / 2,
                          cudaMemcpyDeviceToHost));
    BENCH_CUDA(cudaMemcpy(scales[i].data(), c.scales[i].get() + expert * per / 16, per / 16,
                          cudaMemcpyDeviceToHost));
    const int64_t n = i == 2 ? s.hidden : s.intermediate, k = i == 2 ? s.intermediate : s.hidden;
    m[i] = {n, k, codes[i].data(), scales[i].data(), 1.0f, {}};
  }
  const auto same = [&](const Buffer<uint8_t>& gpu, const std::vector<std::byte>& host) {
    std::vector<std::byte> got(host.size());
    BENCH_CUDA(cudaMemcpy(got.data(), gpu.get() + expert * host.size(), host.size(),
                          cudaMemcpyDeviceToHost));
    return got == host;
  };
  std::vector<std::byte> w13(HopperW13Layout(s.hidden, s.intermediate).bytes());
  std::vector<std::byte> w2(HopperW2Layout(s.hidden, s.intermediate).bytes());
  PackHopperW13(m[0], m[1], w13);
  PackHopperW2(m[2], w2);
  return same(packed.w13, w13) && same(packed.w2, w2);
}

struct CheckShape {
  Sm90MoeShape shape;
  std::vector<int> tokens;
};

int RunChecks(const std::vector<CheckShape>& shapes, int repeats, cudaStream_t stream) {
  int failed = 0, done = 0;
  double worst = 0, rel = 0;
  for (const CheckShape& c : shapes) {
    const Sm90MoeShape& s = c.shape;
    Canonical canonical(s);
    Packed packed(s);
    Globals globals(s);
    FillRandom(canonical.view, 1 + s.hidden + s.intermediate, stream);
    packed.w13.Fill(0xEE), packed.w2.Fill(0xEE);
    packed.Pack(canonical, stream);
    BENCH_CUDA(cudaStreamSynchronize(stream));
    if (!CheckPacking(canonical, packed, s.experts - 1)) {
      ++failed;
      std::printf("FAIL packing H=%d I=%d\n", s.hidden, s.intermediate);
    }
    for (const Kernel& kernel : kKernels) {
      // One workspace for every number of tokens, as the engine has it.
      Buffer<std::byte> workspace(
          kernel.workspace(s, std::min(c.tokens.back(), kernel.max_tokens(s))));
      workspace.Fill(0);
      for (int tokens : c.tokens) {
        if (tokens > kernel.max_tokens(s)) continue;
        for (Routing how :
             {Routing::kUniform, Routing::kSkewed, Routing::kOneExpert, Routing::kWithInvalid}) {
          Buffer<Bf16> x(size_t(tokens) * s.hidden);
          FillRandomActivations(x.get(), x.size(), 17 + tokens, stream);
          Routes routes(s, tokens, how, 100 + tokens);
          Sm90MoeParams p{s,
                          tokens,
                          x.get(),
                          routes.ids.get(),
                          routes.weights.get(),
                          packed.w13.get(),
                          packed.w2.get(),
                          globals.g1.get(),
                          globals.g2.get(),
                          nullptr,
                          nullptr};
          p.workspace = workspace.get();
          const Verdict v = Check(kernel, canonical, p, repeats, stream);
          ++done, failed += !v.ok;
          worst = std::max(worst, v.worst), rel = std::max(rel, v.rel_l2);
          if (!v.ok) {
            std::printf("FAIL %s E=%d K=%d H=%d I=%d T=%d %s: rel L2 %.2e, %.2f of bound; %s\n",
                        kernel.name, s.experts, s.top_k, s.hidden, s.intermediate, tokens,
                        NameOf(how), v.rel_l2, v.worst, v.why.c_str());
            std::fflush(stdout);
          }
        }
      }
    }
  }
  std::printf(
      "checks: %d done, %d failed; largest relative L2 %.2e, largest share of the bound %.3f\n",
      done, failed, rel, worst);
  return failed;
}

// --- timing ---

struct TimedShape {
  const char* name;
  Sm90MoeShape shape;
};
const TimedShape kTimed[] = {
    {"a", {256, 8, 2048, 512}}, {"b", {128, 8, 2048, 768}}, {"c", {128, 8, 4096, 1536}}};
constexpr double kReadBytesPerUs = 4.392e6, kFlopPerUs = 790e6;

double MedianUs(cudaGraphExec_t graph, int launches, int replays, cudaStream_t stream) {
  cudaEvent_t begin, end;
  BENCH_CUDA(cudaEventCreate(&begin));
  BENCH_CUDA(cudaEventCreate(&end));
  std::vector<double> us;
  for (int i = 0; i < replays + 3; ++i) {
    BENCH_CUDA(cudaEventRecord(begin, stream));
    BENCH_CUDA(cudaGraphLaunch(graph, stream));
    BENCH_CUDA(cudaEventRecord(end, stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    float ms = 0;
    BENCH_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) us.push_back(ms * 1000.0 / launches);
  }
  BENCH_CUDA(cudaEventDestroy(begin));
  BENCH_CUDA(cudaEventDestroy(end));
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

struct Timing {
  double us = 0, floor = 0;
};

// `layers` sets of weights and `routings` routings in turn, as many launches a graph as make it long.
Timing Time(const Kernel& kernel, Sm90MoeParams p, const std::vector<Packed>& layers, uint32_t seed,
            cudaStream_t stream) {
  const Sm90MoeShape& s = p.shape;
  const int routings = p.tokens <= 4 ? 24 : p.tokens <= 16 ? 12 : p.tokens <= 128 ? 8 : 4;
  const int launches = p.tokens <= 4 ? 48 : p.tokens <= 16 ? 24 : p.tokens <= 128 ? 16 : 8;
  std::vector<std::unique_ptr<Routes>> routes;
  double touched = 0;
  for (int i = 0; i < routings; ++i) {
    routes.push_back(std::make_unique<Routes>(s, p.tokens, Routing::kUniform, seed + i));
    touched += double(routes.back()->Touched(s.experts)) / routings;
  }
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) {
    const Packed& layer = layers[i % layers.size()];
    p.w13 = layer.w13.get(), p.w2 = layer.w2.get();
    p.ids = routes[i % routings]->ids.get(), p.weights = routes[i % routings]->weights.get();
    Must(kernel.launch(p, stream));
  }
  BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
  BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  Timing t;
  t.us = MedianUs(exec, launches, p.tokens >= 4096 ? 9 : 20, stream);
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  const double weights = 3.0 * s.hidden * s.intermediate;
  t.floor = std::max(touched * weights * 0.5625 / kReadBytesPerUs,
                     2 * weights * p.tokens * s.top_k / kFlopPerUs);
  return t;
}

double PackGbPerSecond(Packed& packed, const Canonical& canonical, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  packed.Pack(canonical, stream);
  BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
  BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  const double us = MedianUs(exec, 1, 9, stream);
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  return 2.0 * (packed.w13.size() + packed.w2.size()) / us / 1e3;
}

int RunTimings(const char* json_path, const std::string& names, int min_tokens, int max_tokens,
               const char* only, cudaStream_t stream) {
  int failed = 0;
  std::string json;
  std::printf(
      "shape      T  kernel       us  marlin humming    best  best/us   floor  floor/us  rel L2\n");
  for (const TimedShape& timed : kTimed) {
    if (names.find(timed.name) == std::string::npos) continue;
    const Sm90MoeShape& s = timed.shape;
    Canonical canonical(s);
    Globals globals(s);
    std::vector<Packed> layers;
    for (int i = 3; i >= 0; --i) {  // the canonical weights of the last one, layer 3, stay
      layers.emplace_back(s);
      FillRandom(canonical.view, i, stream);
      layers.back().Pack(canonical, stream);
    }
    BENCH_CUDA(cudaStreamSynchronize(stream));
    std::printf("%s: packing %.0f GB/s read and written\n", timed.name,
                PackGbPerSecond(layers.back(), canonical, stream));
    Buffer<Bf16> x(size_t(max_tokens) * s.hidden), y(size_t(max_tokens) * s.hidden);
    FillRandomActivations(x.get(), x.size(), 5, stream);
    for (int tokens = min_tokens; tokens <= max_tokens; tokens *= 2) {
      for (const Kernel& kernel : kKernels) {
        if (tokens > kernel.max_tokens(s) || (only && !std::strstr(kernel.name, only))) continue;
        Routes routes(s, tokens, Routing::kUniform, 9);
        Sm90MoeParams p{s,
                        tokens,
                        x.get(),
                        routes.ids.get(),
                        routes.weights.get(),
                        layers.back().w13.get(),
                        layers.back().w2.get(),
                        globals.g1.get(),
                        globals.g2.get(),
                        y.get(),
                        nullptr};
        Buffer<std::byte> workspace(kernel.workspace(s, tokens));
        workspace.Fill(0);
        p.workspace = workspace.get();
        const Verdict v = Check(kernel, canonical, p, 2, stream);
        if (!v.ok) ++failed, std::printf("FAIL %s T=%d: %s\n", kernel.name, tokens, v.why.c_str());
        const Timing t = Time(kernel, p, layers, 1000 + tokens, stream);
        const PeerPoint peer = PeersAt(timed.name, tokens).value_or(PeerPoint{});
        const char* part = std::strrchr(kernel.name, '_') + 1;
        std::printf("%-5s %6d  %-7s %8.2f %7.1f %7.1f %7.1f  %6.2fx %8.2f  %6.1f%%  %.2e%s\n",
                    timed.name, tokens, part, t.us, peer.marlin, peer.humming, peer.best(),
                    peer.best() / t.us, t.floor, 100 * t.floor / t.us, v.rel_l2,
                    v.ok ? "" : " FAIL");
        std::fflush(stdout);
        char row[512];
        std::snprintf(row, sizeof row,
                      "%s\n  {\"shape\": \"%s\", \"tokens\": %d, \"kernel\": \"%s\", \"us\": %.2f, "
                      "\"marlin\": %.2f, \"humming\": %.2f, \"best_peer\": %.2f, \"ratio\": %.3f, "
                      "\"floor_us\": %.2f, \"rel_l2\": %.3e}",
                      json.empty() ? "" : ",", timed.name, tokens, kernel.name, t.us, peer.marlin,
                      peer.humming, peer.best(), peer.best() / t.us, t.floor, v.rel_l2);
        json += row;
      }
    }
  }
  if (json_path) {
    if (std::FILE* f = std::fopen(json_path, "w")) {
      std::fprintf(f, "[%s\n]\n", json.c_str());
      std::fclose(f);
    }
  }
  return failed;
}

int Main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  cudaDeviceProp device;
  BENCH_CUDA(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  cudaStream_t stream;
  BENCH_CUDA(cudaStreamCreate(&stream));
  if (verb == "small") {
    return RunChecks({{{8, 2, 80, 48}, {20, 3, 20}}, {{16, 4, 2048, 256}, {1, 9}}}, 1, stream) != 0;
  }
  if (verb == "check") {
    int failed =
        RunChecks({{{256, 8, 2048, 512}, {128, 1, 2, 3, 4, 5, 7, 16, 33, 64, 100, 1000, 4097}},
                   {{128, 8, 2048, 768}, {1, 3, 8, 29, 64, 128, 777, 2500}},
                   {{128, 8, 4096, 1536}, {1, 6, 13, 64, 300, 2100}},
                   {{32, 4, 2880, 2880}, {1, 4, 31, 64, 511}},
                   {{512, 10, 2048, 512}, {1, 3, 64, 100}},
                   {{64, 6, 2048, 1408}, {1, 5, 40}},
                   {{8, 2, 80, 48}, {1, 5, 64, 511, 3000}},
                   {{60, 4, 1024, 1536}, {2, 17, 61}},
                   {{16, 1, 6144, 176}, {1, 30}}},
                  3, stream);
    failed += RunChecks({{{128, 8, 2048, 768}, {1, 64}}}, 100, stream);
    return failed != 0;
  }
  if (verb == "time") {
    return RunTimings(argc > 2 ? argv[2] : nullptr, argc > 3 ? argv[3] : "abc",
                      argc > 4 ? std::atoi(argv[4]) : 1, argc > 5 ? std::atoi(argv[5]) : 8192,
                      argc > 6 ? argv[6] : nullptr, stream) != 0;
  }
  std::printf("usage: cuda_moe_bench check | small | time [JSON [SHAPES [MIN [MAX [KERNEL]]]]]\n");
  return 2;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
