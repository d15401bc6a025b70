// Checks and times the expert kernels. Kernels: decode and prefill are Hopper's, mma is the portable one
// and fp8 the same with FP8 weights.
//   cuda_moe_bench check [KERNEL]    every kernel against the double reference, odd shapes included
//   cuda_moe_bench small [KERNEL]    a few small cases, for compute-sanitizer
//   cuda_moe_bench time [JSON [SHAPES [MIN_TOKENS [MAX_TOKENS [KERNEL]]]]]
//                                    the peers' shapes, as the peers were measured: CUDA graphs over
//                                    rotating weights and uniform random routings; W4A16 and W4A4
//                                    in turn
// Exits with 1 when a check fails.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "graph_time.h"
#include "h200_peers.h"
#include "moe_check.h"
#include "moe_inputs.h"

namespace nibble::bench {
namespace {

// --- checks ---

struct CheckCase {
  Sm90MoeShape shape;
  std::vector<int> tokens;
  bool biases = false, tiny = false;
  float alpha = 1, beta = 0, limit = std::numeric_limits<float>::infinity();
};

struct Tally {
  int done = 0, failed = 0;
  double worst = 0, rel = 0;
  int64_t codes = 0, excused = 0;
  void Add(const Verdict& v) {
    ++done, failed += !v.ok;
    worst = std::max(worst, v.worst), rel = std::max(rel, v.rel_l2);
    codes += v.codes, excused += v.excused;
  }
};

std::string Describe(const Sm90MoeShape& s) {
  const char* precisions[] = {"bf16",           "NVFP4",        "NVFP4 by expert",
                              "NVFP4 by shard", "FP8",          "FP8 by expert",
                              "FP8 by shard",   "FP8 by token", "FP8 by group"};
  const char* activations[] = {"silu", "swiglu", "relu2"};
  const char* weights[] = {"NVFP4", "FP8", "BF16"};
  const char* shared[] = {"", " by channel", " by block"};
  char text[160];
  std::snprintf(text, sizeof text, "E=%d K=%d H=%d I=%d %s weights %s%s activations %s", s.experts,
                s.top_k, s.hidden, s.intermediate, activations[static_cast<int>(s.activation)],
                weights[static_cast<int>(s.weights)], shared[static_cast<int>(s.weight_scales)],
                precisions[static_cast<int>(s.precision)]);
  return text;
}

// One kernel, one workspace for every number of tokens, as an engine has it.
void CheckKernel(const Kernel& kernel, const CheckCase& c, const Canonical& canonical,
                 const Packed& packed, const Scales& scales, int repeats, cudaStream_t stream,
                 Tally& tally) {
  const Sm90MoeShape& s = c.shape;
  if (kernel.max_tokens(s) == 0) return;
  Buffer<std::byte> workspace(kernel.workspace(s, std::min(c.tokens.back(), kernel.max_tokens(s))));
  workspace.Fill(0);
  for (int tokens : c.tokens) {
    if (tokens > kernel.max_tokens(s)) continue;
    for (Routing how :
         {Routing::kUniform, Routing::kSkewed, Routing::kOneExpert, Routing::kWithInvalid}) {
      Buffer<Bf16> x(size_t(tokens) * s.hidden);
      FillRandomActivations(x.get(), x.size(), 17 + tokens, c.tiny ? 1e-3f : 1.0f, stream);
      Routes routes(s, tokens, how, 100 + tokens);
      Sm90MoeParams p;
      p.shape = s, p.tokens = tokens;
      p.x = x.get(), p.ids = routes.ids.get(), p.weights = routes.weights.get();
      p.w13 = packed.w13.get(), p.w2 = packed.w2.get();
      p.workspace = workspace.get();
      p.alpha = c.alpha, p.beta = c.beta, p.limit = c.limit;
      scales.Give(p, c.biases);
      const Verdict v = Check(kernel, canonical, p, routes.ids_host, repeats, stream);
      tally.Add(v);
      if (v.ok) continue;
      std::printf("FAIL %s %s T=%d %s: rel L2 %.2e, %.2f of bound; %s\n", kernel.name,
                  Describe(s).c_str(), tokens, NameOf(how), v.rel_l2, v.worst, v.why.c_str());
      std::fflush(stdout);
    }
  }
}

int RunChecks(const std::vector<CheckCase>& cases, int repeats, const char* only,
              cudaStream_t stream) {
  Tally tally;
  const auto is_meant = [&](const Kernel& kernel) {
    return only == nullptr || std::strstr(kernel.name, only) != nullptr;
  };
  for (const CheckCase& c : cases) {
    const Sm90MoeShape& s = c.shape;
    if (std::none_of(std::begin(kKernels), std::end(kKernels), [&](const Kernel& kernel) {
          return is_meant(kernel) && kernel.max_tokens(s) > 0;
        })) {
      continue;
    }
    Canonical canonical(s);
    Packed packed(s);
    const Scales scales(s, c.tiny);
    FillRandom(canonical.view, 1 + s.hidden + s.intermediate, stream);
    packed.w13.Fill(0xEE), packed.w2.Fill(0xEE);
    packed.Pack(canonical, stream);
    BENCH_CUDA(cudaStreamSynchronize(stream));
    if (!CheckPacking(canonical, packed, s.experts - 1, stream)) {
      ++tally.failed;
      std::printf("FAIL packing %s\n", Describe(s).c_str());
    }
    for (const Kernel& kernel : kKernels) {
      if (!is_meant(kernel)) continue;
      CheckKernel(kernel, c, canonical, packed, scales, repeats, stream, tally);
    }
  }
  std::printf(
      "checks: %d done, %d failed; largest relative L2 %.2e, largest share of the bound %.3f; "
      "%lld codes of h compared, %lld excused next to a boundary\n",
      tally.done, tally.failed, tally.rel, tally.worst, static_cast<long long>(tally.codes),
      static_cast<long long>(tally.excused));
  std::fflush(stdout);
  return tally.failed;
}

constexpr auto kSilu = Sm90Activation::kSilu;
constexpr auto kSwiglu = Sm90Activation::kSwiglu;
constexpr auto kRelu2 = Sm90Activation::kRelu2;
constexpr auto kBf16 = Sm90Precision::kBf16;
constexpr auto kFp4Layer = Sm90Precision::kFp4Layer;
constexpr auto kFp4Expert = Sm90Precision::kFp4Expert;
constexpr auto kFp4Shard = Sm90Precision::kFp4Shard;

constexpr auto kTensor = Fp8Scales::kTensor;
constexpr auto kChannel = Fp8Scales::kChannel;
constexpr auto kBlock128 = Fp8Scales::kBlock128;

/// How FP8 weights share scales, and how activations are quantized for them.
constexpr struct {
  Fp8Scales weights;
  Sm90Precision activations;
} kFp8Kinds[] = {
    {kTensor, Sm90Precision::kFp8Layer},   {kTensor, Sm90Precision::kFp8Expert},
    {kTensor, Sm90Precision::kFp8Shard},   {kTensor, Sm90Precision::kFp8Token},
    {kTensor, Sm90Precision::kBf16},       {kChannel, Sm90Precision::kFp8Token},
    {kChannel, Sm90Precision::kFp8Expert}, {kChannel, Sm90Precision::kFp8Shard},
    {kChannel, Sm90Precision::kBf16},      {kBlock128, Sm90Precision::kFp8Group},
    {kBlock128, Sm90Precision::kBf16},
};

/// These cases with FP8 weights, of every kind.
std::vector<CheckCase> OfFp8(const std::vector<CheckCase>& cases) {
  std::vector<CheckCase> out;
  for (const auto& kind : kFp8Kinds) {
    for (CheckCase c : cases) {
      c.shape.weights = HopperFormat::kFp8;
      c.shape.weight_scales = kind.weights, c.shape.precision = kind.activations;
      out.push_back(c);
    }
  }
  return out;
}

std::vector<CheckCase> AllCases() {
  std::vector<CheckCase> cases = {
      {{256, 8, 2048, 512}, {128, 1, 2, 3, 4, 5, 7, 16, 33, 64, 100, 1000, 4097}},
      {{128, 8, 2048, 768}, {1, 3, 8, 29, 64, 128, 777, 2500}},
      {{128, 8, 4096, 1536}, {1, 6, 13, 64, 300, 2100}},
      {{32, 4, 2880, 2880}, {1, 4, 31, 64, 511}},
      {{512, 10, 2048, 512}, {1, 3, 64, 100}},
      {{64, 6, 2048, 1408}, {1, 5, 40}},
      {{8, 2, 80, 48}, {1, 5, 64, 511, 3000}},
      {{60, 4, 1024, 1536}, {2, 17, 61}},
      {{16, 1, 6144, 176}, {1, 30}},
      {{256, 8, 2048, 512, kSilu, kFp4Layer}, {128, 1, 2, 4, 7, 33, 100, 1000, 4097}},
      {{128, 8, 2048, 768, kSilu, kFp4Layer}, {1, 3, 29, 128, 777, 2500}},
      {{128, 8, 4096, 1536, kSilu, kFp4Layer}, {1, 6, 64, 300, 2100}},
      {{32, 4, 2880, 2880, kSilu, kFp4Layer}, {1, 31, 511}},
      {{64, 6, 2048, 1408, kSilu, kFp4Layer}, {1, 5, 40}},
      {{16, 1, 6144, 176, kSilu, kFp4Layer}, {1, 30}},
      {{128, 8, 2048, 768}, {1, 40, 500}, false, true},
      {{128, 8, 2048, 768, kSilu, kFp4Layer}, {1, 40, 500}, false, true},
      {{128, 8, 2048, 768, kSilu, kFp4Expert}, {1, 3, 40, 500, 2500}},
      {{64, 4, 1024, 320, kSilu, kFp4Expert}, {1, 9, 100, 1500}},
      {{128, 8, 2048, 768, kSilu, kFp4Shard}, {1, 40, 500, 2500}},
      {{8, 2, 80, 48, kSilu, kFp4Shard}, {1, 5, 64, 511}},
  };
  // Each other activation function, each way of being odd, in every precision.
  for (Sm90Precision precision : {kBf16, kFp4Layer, kFp4Expert, kFp4Shard}) {
    const auto shape = [&](Sm90MoeShape s, Sm90Activation activation) {
      s.activation = activation, s.precision = precision;
      return s;
    };
    cases.push_back(
        {shape({32, 4, 2880, 2880}, kSwiglu), {1, 7, 64, 600}, true, false, 1.702f, 1, 7});
    cases.push_back({shape({16, 2, 256, 208}, kSwiglu), {1, 40, 900}, true, false, 1.702f, 1, 7});
    cases.push_back({shape({128, 8, 2048, 768}, kSilu), {1, 40, 500}, false, false, 1, 0, 1.5f});
    cases.push_back({shape({64, 6, 2688, 1856}, kRelu2), {1, 7, 64, 900}});
    cases.push_back({shape({16, 2, 96, 80}, kRelu2), {1, 33, 1200}, true, false, 1, 0, 2.5f});
    cases.push_back({shape({32, 4, 1024, 512}, kRelu2), {2, 60, 400}});
  }
  const auto bf16 = [](Sm90MoeShape s, Sm90Activation activation = kSilu) {
    s.activation = activation, s.weights = HopperFormat::kBf16;
    return s;
  };
  cases.insert(cases.end(),
               {{bf16({256, 8, 2048, 512}), {1, 2, 7, 33, 64, 100, 1000, 4097}},
                {bf16({32, 4, 4096, 1536}), {1, 6, 64, 300, 2100}},
                {bf16({8, 2, 256, 128}), {1, 5, 40, 333}},
                {bf16({8, 2, 80, 48}), {1, 5, 64, 511}},
                {bf16({16, 1, 6144, 176}), {1, 30}},
                {bf16({32, 4, 2880, 2880}, kSwiglu), {1, 7, 64, 600}, true, false, 1.702f, 1, 7},
                {bf16({16, 2, 256, 208}, kSwiglu), {1, 40, 900}, true, false, 1.702f, 1, 7},
                {bf16({64, 6, 2688, 1856}, kRelu2), {1, 7, 64, 900}},
                {bf16({16, 2, 96, 80}, kRelu2), {1, 33, 1200}, true, false, 1, 0, 2.5f}});
  const std::vector<CheckCase> fp8 = OfFp8({
      {{256, 8, 2048, 512}, {1, 2, 7, 33, 100, 1000, 4097}},
      {{32, 4, 4096, 1536}, {1, 6, 64, 300, 2100}},
      {{8, 2, 80, 48}, {1, 5, 64, 511}},
      {{16, 1, 6144, 176}, {1, 30}},
      {{128, 8, 2048, 768}, {1, 40, 500}, false, true},
      {{32, 4, 2880, 2880, kSwiglu}, {1, 7, 64, 600}, true, false, 1.702f, 1, 7},
      {{16, 2, 256, 208, kSwiglu}, {1, 40, 900}, true, false, 1.702f, 1, 7},
      {{64, 6, 2688, 1856, kRelu2}, {1, 7, 64, 900}},
      {{16, 2, 96, 80, kRelu2}, {1, 33, 1200}, true, false, 1, 0, 2.5f},
  });
  cases.insert(cases.end(), fp8.begin(), fp8.end());
  return cases;
}

/// Every precision, format and activation function in the smallest layers: for compute-sanitizer and
/// for an emulator.
std::vector<CheckCase> SmallCases() {
  std::vector<CheckCase> cases = {
      {{8, 2, 80, 48}, {1, 70}}, {{4, 3, 256, 128}, {2}}, {{4, 2, 2048, 64}, {2}}};
  for (Sm90Precision precision : {kBf16, kFp4Layer, kFp4Expert, kFp4Shard}) {
    cases.push_back({{4, 2, 80, 64, kSilu, precision}, {5, 10}});
    cases.push_back({{4, 2, 96, 80, kRelu2, precision}, {20}, true, false, 1, 0, 2.5f});
    cases.push_back({{4, 2, 128, 208, kSwiglu, precision}, {3}, true, false, 1.702f, 1, 7});
  }
  // More k blocks than a pipeline has stages, and no multiple of them, in both GEMMs and every tile.
  cases.push_back({{2, 1, 336, 336}, {10, 20, 60}});
  cases.push_back({{2, 1, 336, 336, kSilu, kFp4Shard}, {60}});
  const size_t nvfp4 = cases.size();
  for (size_t i = 0; i < nvfp4; ++i) {
    if (cases[i].shape.precision != kBf16) continue;
    cases.push_back(cases[i]);
    cases.back().shape.weights = HopperFormat::kBf16;
  }
  const std::vector<CheckCase> fp8 = OfFp8({
      {{4, 2, 80, 48}, {1, 9}},
      {{3, 2, 256, 128}, {2}},
      {{4, 2, 96, 80, kRelu2}, {20}, true, false, 1, 0, 2.5f},
      {{4, 2, 128, 208, kSwiglu}, {3}, true, false, 1.702f, 1, 7},
      {{2, 1, 336, 336}, {10, 20, 60}},
  });
  cases.insert(cases.end(), fp8.begin(), fp8.end());
  return cases;
}

// --- timing ---

struct TimedShape {
  const char* name;
  Sm90MoeShape shape;
};
const TimedShape kTimed[] = {
    {"a", {256, 8, 2048, 512}}, {"b", {128, 8, 2048, 768}}, {"c", {128, 8, 4096, 1536}}};
constexpr double kReadBytesPerUs = 4.392e6, kFlopPerUs = 790e6;

struct Timing {
  double us = 0, floor = 0;
};

// The label of the weights' scheme.
const char* NameOf(Sm90Precision precision) {
  return precision == Sm90Precision::kBf16 ? "W4A16" : "W4A4";
}

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
  t.us = MedianUs(exec, p.tokens >= 4096 ? 9 : 20, stream) / launches;
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
  const double us = MedianUs(exec, 9, stream);
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  return 2.0 * (packed.w13.size() + packed.w2.size()) / us / 1e3;
}

struct TimedLayer {
  explicit TimedLayer(const TimedShape& timed, int max_tokens, cudaStream_t stream)
      : canonical(timed.shape),
        scales(timed.shape, false),
        x(size_t(max_tokens) * timed.shape.hidden),
        y(x.size()) {
    for (int i = 3; i >= 0; --i) {  // the canonical weights of the last one stay
      layers.emplace_back(timed.shape);
      FillRandom(canonical.view, i, stream);
      layers.back().Pack(canonical, stream);
    }
    FillRandomActivations(x.get(), x.size(), 5, 1.0f, stream);
    BENCH_CUDA(cudaStreamSynchronize(stream));
  }
  Canonical canonical;
  Scales scales;
  std::vector<Packed> layers;
  Buffer<Bf16> x, y;
};

struct Point {
  Timing first, again;
  double rel_l2 = 0;
};

// W4A16 and W4A4 of one kernel, twice each: the clock falls while the chip works, so the second time
// in the other order.
int TimePoint(const TimedLayer& layer, const Kernel& kernel, Sm90MoeShape s, int tokens,
              Point (&points)[2], cudaStream_t stream) {
  int failed = 0;
  const Routes routes(s, tokens, Routing::kUniform, 9);
  const Sm90Precision precisions[2] = {Sm90Precision::kBf16, Sm90Precision::kFp4Layer};
  for (int turn = 0; turn < 2; ++turn) {
    for (int i : {turn, 1 - turn}) {
      s.precision = precisions[i];
      Sm90MoeParams p;
      p.shape = s, p.tokens = tokens;
      p.x = layer.x.get(), p.y = layer.y.get();
      p.ids = routes.ids.get(), p.weights = routes.weights.get();
      p.w13 = layer.layers.back().w13.get(), p.w2 = layer.layers.back().w2.get();
      layer.scales.Give(p, false);
      Buffer<std::byte> workspace(kernel.workspace(s, tokens));
      workspace.Fill(0);
      p.workspace = workspace.get();
      if (turn == 0) {
        const Verdict v = Check(kernel, layer.canonical, p, routes.ids_host, 2, stream);
        points[i].rel_l2 = v.rel_l2;
        if (!v.ok) {
          ++failed;
          std::printf("FAIL %s %s T=%d: %s\n", kernel.name, NameOf(s.precision), tokens,
                      v.why.c_str());
        }
      }
      (turn == 0 ? points[i].first : points[i].again) =
          Time(kernel, p, layer.layers, 1000 + tokens, stream);
    }
  }
  return failed;
}

int RunTimings(const char* json_path, const std::string& names, int min_tokens, int max_tokens,
               const char* only, cudaStream_t stream) {
  int failed = 0;
  std::string json;
  std::printf(
      "shape      T  kernel    W4A16   again |   W4A4   again   ratio |    best  best/us   floor  "
      "floor/us\n");
  for (const TimedShape& timed : kTimed) {
    if (names.find(timed.name) == std::string::npos) continue;
    TimedLayer layer(timed, max_tokens, stream);
    std::printf("%s: packing %.0f GB/s read and written\n", timed.name,
                PackGbPerSecond(layer.layers.back(), layer.canonical, stream));
    for (int tokens = min_tokens; tokens <= max_tokens; tokens *= 2) {
      for (const Kernel& kernel : kKernels) {
        if (tokens > kernel.max_tokens(timed.shape)) continue;
        if (only && !std::strstr(kernel.name, only)) continue;
        Point points[2];
        failed += TimePoint(layer, kernel, timed.shape, tokens, points, stream);
        const PeerPoint peer = PeersAt(timed.name, tokens).value_or(PeerPoint{});
        const Timing &a16 = points[0].first, &a16_again = points[0].again;
        const Timing &a4 = points[1].first, &a4_again = points[1].again;
        std::printf(
            "%-5s %6d  %-7s %7.2f %7.2f | %7.2f %7.2f  %6.3f | %7.1f  %6.2fx %8.2f  %6.1f%%\n",
            timed.name, tokens, kernel.name, a16.us, a16_again.us, a4.us, a4_again.us,
            (a4.us + a4_again.us) / (a16.us + a16_again.us), peer.best(), peer.best() / a16.us,
            a16.floor, 100 * a16.floor / a16.us);
        std::fflush(stdout);
        char row[512];
        std::snprintf(
            row, sizeof row,
            "%s\n  {\"shape\": \"%s\", \"tokens\": %d, \"kernel\": \"%s\", \"w4a16_us\": %.2f, "
            "\"w4a16_again_us\": %.2f, \"w4a4_us\": %.2f, \"w4a4_again_us\": %.2f, "
            "\"marlin\": %.2f, \"humming\": %.2f, \"best_peer\": %.2f, \"ratio\": %.3f, "
            "\"floor_us\": %.2f, \"w4a16_rel_l2\": %.3e, \"w4a4_rel_l2\": %.3e}",
            json.empty() ? "" : ",", timed.name, tokens, kernel.name, a16.us, a16_again.us, a4.us,
            a4_again.us, peer.marlin, peer.humming, peer.best(), peer.best() / a16.us, a16.floor,
            points[0].rel_l2, points[1].rel_l2);
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
  const char* only = argc > 2 ? argv[2] : nullptr;
  if (verb == "small") return CheckRefusals() + RunChecks(SmallCases(), 1, only, stream) != 0;
  if (verb == "check") {
    int failed = CheckRefusals() + CheckQuantization(stream);
    failed += RunChecks(AllCases(), 3, only, stream);
    failed += RunChecks({{{128, 8, 2048, 768}, {1, 64}},
                         {{128, 8, 2048, 768, kSilu, kFp4Layer}, {1, 64}},
                         {{32, 4, 2880, 2880, kSwiglu, kFp4Layer}, {64}, true, false, 1.702f, 1, 7},
                         {{128, 8, 2048, 768, kSilu, kFp4Shard}, {64}}},
                        100, only, stream);
    return failed != 0;
  }
  if (verb == "time") {
    return RunTimings(argc > 2 ? argv[2] : nullptr, argc > 3 ? argv[3] : "abc",
                      argc > 4 ? std::atoi(argv[4]) : 1, argc > 5 ? std::atoi(argv[5]) : 8192,
                      argc > 6 ? argv[6] : nullptr, stream) != 0;
  }
  std::printf(
      "usage: cuda_moe_bench check [KERNEL] | small [KERNEL] | time [JSON [SHAPES [MIN [MAX "
      "[KERNEL]]]]]\n");
  return 2;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
