// Checks and times the Hopper kernels of dense linears.
//   cuda_linear_bench check          every kernel against the sums in double, odd shapes included
//   cuda_linear_bench small          a few small cases, for compute-sanitizer
//   cuda_linear_bench time [JSON [SHAPES [MIN_TOKENS [MAX_TOKENS]]]]
//                                    the linears of two models, each alone and all in their order, as
//                                    CUDA graphs over rotating weights
// Exits with 1 when a check fails.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "graph_time.h"
#include "kernels/cuda/linear_mma.h"
#include "linear_check.h"

namespace nibble::bench {

const std::vector<LinearKernel> kLinearKernels = {
    {"decode", 1, cuda::kSm90LinearDecodeTokens, cuda::LaunchSm90LinearDecode,
     [](const Sm90LinearParams&) -> size_t { return 0; }},
    {"prefill", 16, 1 << 20, cuda::LaunchSm90LinearPrefill, cuda::Sm90LinearPrefillWorkspace},
    {"mma", 1, 1 << 20, cuda::LaunchLinearMma, cuda::LinearMmaWorkspace},
};

namespace {

using enum Sm90Weight;
using In = Sm90Input;

// --- checks ---

struct LinearCase {
  int k;
  std::vector<ShardSpec> shards;
  std::vector<int> tokens;
  bool tiny = false;
};

std::vector<LinearCase> AllCases() {
  const std::vector<int> few = {1, 2, 5, 8, 9, 16, 17, 40, 64, 100, 260, 1000};
  return {
      {2048,
       {{kFp8, In::kFp8, 8192},
        {kFp8, In::kFp8, 4096},
        {kBf16, In::kBf16, 32},
        {kBf16, In::kBf16, 32}},
       few},
      {4096, {{kFp8, In::kFp8, 2048}}, few},
      {4096, {{kFp8, In::kBf16, 512}}, few},
      {4096, {{kFp8, In::kFp8, 512}, {kFp8, In::kBf16, 256}}, few, true},
      {4096, {{kNvfp4, In::kNvfp4, 2048}}, few},
      {4096, {{kBf16, In::kBf16, 2048}}, few},
      {2048, {{kNvfp4, In::kBf16, 512}, {kNvfp4, In::kBf16, 512}}, few},
      {512, {{kNvfp4, In::kBf16, 2048}}, few},
      {2048,
       {{kNvfp4, In::kNvfp4, 4096}, {kNvfp4, In::kNvfp4, 512}, {kNvfp4, In::kNvfp4, 512}},
       few},
      {2048,
       {{kNvfp4, In::kNvfp4, 1024},
        {kFp8, In::kFp8, 208},
        {kFp8Channel, In::kFp8Token, 97},
        {kFp8Block128, In::kFp8Group, 300},
        {kBf16, In::kBf16, 33},
        {kNvfp4, In::kBf16, 64},
        {kFp8Channel, In::kBf16, 1},
        {kFp8Block128, In::kBf16, 129}},
       few},
      {2048, {{kFp8Block128, In::kFp8Group, 3000}}, {1, 3, 16, 33, 300}},
      {4096, {{kFp8Block128, In::kFp8Group, 1000}, {kFp8Block128, In::kBf16, 520}}, {1, 7, 12, 50}},
      {4096, {{kFp8Channel, In::kFp8Token, 777}}, {1, 6, 11, 30, 129}},
      {80, {{kNvfp4, In::kNvfp4, 40}, {kFp8, In::kFp8, 7}, {kBf16, In::kBf16, 100}}, few},
      {16, {{kNvfp4, In::kNvfp4, 16}, {kFp8Block128, In::kFp8Group, 16}}, {1, 8, 13, 70}},
      {720, {{kFp8Block128, In::kFp8Group, 400}, {kFp8Channel, In::kFp8Token, 50}}, {1, 2, 16, 90}},
      {2880, {{kNvfp4, In::kNvfp4, 640}, {kFp8Block128, In::kFp8Group, 320}}, {1, 3, 10, 64}},
      {8192,
       {{kNvfp4, In::kNvfp4, 512},
        {kFp8, In::kFp8, 256},
        {kFp8Channel, In::kFp8Token, 256},
        {kFp8Block128, In::kFp8Group, 256}},
       {1, 4, 16, 31}},
      {6144, {{kBf16, In::kBf16, 260}, {kNvfp4, In::kBf16, 100}}, {1, 9, 200}},
      {2048,
       {{kNvfp4, In::kNvfp4, 800},
        {kFp8, In::kFp8, 300},
        {kFp8Block128, In::kFp8Group, 300},
        {kFp8Channel, In::kFp8Token, 300}},
       {1, 8, 16, 80},
       true},
      {2048, {{kNvfp4, In::kBf16, 20000}}, {1, 16, 64}},
  };
}

std::vector<LinearCase> SmallCases() {
  return {
      {80, {{kNvfp4, In::kNvfp4, 40}, {kFp8, In::kFp8, 7}, {kBf16, In::kBf16, 100}}, {1, 9, 40}},
      {512, {{kFp8Block128, In::kFp8Group, 150}, {kFp8Channel, In::kFp8Token, 50}}, {1, 8, 70}}};
}

int RunChecks(const std::vector<LinearCase>& cases, int repeats, cudaStream_t stream) {
  int done = 0, failed = 0;
  double worst = 0, rel = 0;
  for (const LinearCase& c : cases) {
    LinearWeights weights(c.shards, c.k, 1 + c.k, false, c.tiny, stream);
    for (const LinearKernel& kernel : kLinearKernels) {
      for (int tokens : c.tokens) {
        if (tokens > kernel.max_tokens) continue;
        for (bool f32 : {false, true}) {
          const LinearVerdict v =
              CheckLinear(kernel, weights, tokens, f32, c.tiny ? 1e-3f : 1.0f, repeats, stream);
          ++done, failed += !v.ok;
          worst = std::max(worst, v.worst);
          if (!f32) rel = std::max(rel, v.rel_l2);
          if (v.ok) continue;
          std::printf("FAIL %s k=%d n=%d (%zu shards) T=%d %s: rel L2 %.2e, %.2f of bound; %s\n",
                      kernel.name, c.k, weights.columns(), c.shards.size(), tokens,
                      f32 ? "f32" : "bf16", v.rel_l2, v.worst, v.why.c_str());
          std::fflush(stdout);
        }
      }
    }
  }
  std::printf(
      "checks: %d done, %d failed; largest relative L2 of bf16 %.2e, largest share of the bound "
      "%.3f\n",
      done, failed, rel, worst);
  std::fflush(stdout);
  return failed;
}

// --- timing ---

struct TimedLinear {
  const char* model;
  const char* name;
  int k;
  std::vector<ShardSpec> shards;
};

std::vector<TimedLinear> Timed() {
  return {
      {"q36",
       "in_proj",
       2048,
       {{kFp8, In::kFp8, 8192},
        {kFp8, In::kFp8, 4096},
        {kBf16, In::kBf16, 32},
        {kBf16, In::kBf16, 32}}},
      {"q36", "out_proj", 4096, {{kFp8, In::kFp8, 2048}}},
      {"q36", "qkv", 2048, {{kFp8, In::kFp8, 8192}, {kFp8, In::kFp8, 512}, {kFp8, In::kFp8, 512}}},
      {"q36", "shared_up", 2048, {{kNvfp4, In::kBf16, 512}, {kNvfp4, In::kBf16, 512}}},
      {"q36", "shared_down", 512, {{kNvfp4, In::kBf16, 2048}}},
      {"q36", "lm_head", 2048, {{kNvfp4, In::kBf16, 248320}}},
      {"q3",
       "qkv",
       2048,
       {{kNvfp4, In::kNvfp4, 4096}, {kNvfp4, In::kNvfp4, 512}, {kNvfp4, In::kNvfp4, 512}}},
      {"q3", "o", 4096, {{kNvfp4, In::kNvfp4, 2048}}},
      {"q3", "lm_head", 2048, {{kBf16, In::kBf16, 151936}}},
      {"q3-a16",
       "qkv",
       2048,
       {{kNvfp4, In::kBf16, 4096}, {kNvfp4, In::kBf16, 512}, {kNvfp4, In::kBf16, 512}}},
      {"q3-a16", "o", 4096, {{kNvfp4, In::kBf16, 2048}}},
      {"q36-a16", "out_proj", 4096, {{kFp8, In::kBf16, 2048}}},
      {"q36-bf16", "in_proj", 2048, {{kBf16, In::kBf16, 12352}}},
      {"q36-bf16", "out_proj", 4096, {{kBf16, In::kBf16, 2048}}},
      {"q36-block", "in_proj", 2048, {{kFp8Block128, In::kFp8Group, 12352}}},
      {"q36-block", "out_proj", 4096, {{kFp8Block128, In::kFp8Group, 2048}}},
  };
}

constexpr double kReadBytesPerUs = 4.392e6, kFlopPerUs = 790e6;

double BytesOf(const TimedLinear& l) {
  double bytes = 0;
  for (const ShardSpec& s : l.shards) {
    bytes += double(HopperLinearBytes(cuda::FormatOf(s.weight), s.n, l.k));
  }
  return bytes;
}
double FlopOf(const TimedLinear& l) {
  double flop = 0;
  for (const ShardSpec& s : l.shards) flop += 2.0 * s.n * l.k;
  return flop;
}

struct Data {
  Buffer<Bf16> x, y;
  Buffer<std::byte> workspace;
};

/// A graph of the launches, in microseconds.
double TimeLaunches(const LinearKernel& kernel, const std::vector<Sm90LinearParams>& launches,
                    int tokens, const Data& data, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (Sm90LinearParams p : launches) {
    p.tokens = tokens;
    p.x = data.x.get(), p.y = data.y.get();
    p.ldy = 0;
    for (int i = 0; i < p.shards; ++i) p.ldy += p.shard[i].n;
    p.workspace = data.workspace.get(), p.workspace_bytes = data.workspace.size();
    Must(kernel.launch(p, stream));
  }
  BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
  BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  const double us = MedianUs(exec, tokens >= 4096 ? 9 : 20, stream);
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  return us;
}

std::vector<LinearWeights> MakeSets(const TimedLinear& l, int sets, cudaStream_t stream) {
  std::vector<LinearWeights> weights;
  for (int i = 0; i < sets; ++i) {
    weights.emplace_back(l.shards, l.k, i, false, false, stream);
    weights.back().KeepPacked();
  }
  return weights;
}

/// What a token takes: `layers` times the linears of a layer, every fourth with its own, then lm_head. Nothing lies between them but the launches' dependence.
struct ModelOrder {
  const char* model;
  int layers;
  std::vector<const char*> usual, fourth;
};
const ModelOrder kModels[] = {
    {"q36",
     40,
     {"in_proj", "out_proj", "shared_up", "shared_down"},
     {"qkv", "out_proj", "shared_up", "shared_down"}},
    {"q3", 48, {"qkv", "o"}, {"qkv", "o"}},
};

template <class Report>
void TimeModel(const ModelOrder& order, const std::vector<TimedLinear>& timed, int min_tokens,
               int max_tokens, const Data& data, Report report, cudaStream_t stream) {
  std::vector<LinearWeights> weights;
  std::vector<Sm90LinearParams> launches;
  double bytes = 0;
  const auto add = [&](const std::string& name) {
    for (const TimedLinear& l : timed) {
      if (l.name != name || std::string(l.model) != order.model) continue;
      weights.push_back(std::move(MakeSets(l, 1, stream)[0]));
      bytes += BytesOf(l);
    }
  };
  for (int i = 0; i < order.layers; ++i) {
    for (const char* name : i % 4 == 3 ? order.fourth : order.usual) add(name);
  }
  add("lm_head");
  for (const LinearWeights& w : weights) launches.push_back(w.Params());
  for (int tokens = min_tokens; tokens <= max_tokens; tokens *= 2) {
    for (const LinearKernel& kernel : kLinearKernels) {
      if (tokens < kernel.min_tokens || tokens > kernel.max_tokens) continue;
      report(TimedLinear{order.model, "model", 0, {}}, kernel.name, tokens,
             static_cast<int>(launches.size()),
             TimeLaunches(kernel, launches, tokens, data, stream), bytes / kReadBytesPerUs);
    }
  }
}

int RunTimings(const char* json_path, const std::string& models, int min_tokens, int max_tokens,
               cudaStream_t stream) {
  std::string json;
  const auto report = [&](const TimedLinear& l, const char* kernel, int tokens, int launches,
                          double us, double floor) {
    std::printf("%-10s %-12s T %5d  %-8s %8.2f us  floor %8.2f us  %5.1f %%\n", l.model, l.name,
                tokens, kernel, us, floor, 100 * floor / us);
    std::fflush(stdout);
    char row[256];
    std::snprintf(
        row, sizeof row,
        "%s\n  {\"model\": \"%s\", \"linear\": \"%s\", \"tokens\": %d, \"kernel\": \"%s\", "
        "\"launches\": %d, \"us\": %.2f, \"floor_us\": %.2f}",
        json.empty() ? "" : ",", l.model, l.name, tokens, kernel, launches, us, floor);
    json += row;
  };
  Data data{Buffer<Bf16>(size_t(max_tokens) * 4096),
            Buffer<Bf16>(size_t(max_tokens <= 64 ? max_tokens : 64) * 248320 +
                         size_t(max_tokens) * 12352),
            Buffer<std::byte>(size_t(256) << 20)};
  data.x.Fill(0x3C), data.workspace.Fill(0);
  const auto chosen = [&](const TimedLinear& l) {
    return models.empty() ||
           ("," + models + ",").find("," + std::string(l.model) + ",") != std::string::npos;
  };
  const std::vector<TimedLinear> timed = Timed();
  for (const TimedLinear& l : timed) {
    if (!chosen(l)) continue;
    // More than L2 holds, several times.
    const int sets = std::clamp(static_cast<int>(300e6 / BytesOf(l)), 2, 40);
    const std::vector<LinearWeights> weights = MakeSets(l, sets, stream);
    std::vector<Sm90LinearParams> launches;
    for (int i = 0; i < std::max(sets, 4); ++i) launches.push_back(weights[i % sets].Params());
    for (int tokens = min_tokens; tokens <= max_tokens; tokens *= 2) {
      if (tokens > 64 && l.shards[0].n > 100000) break;
      for (const LinearKernel& kernel : kLinearKernels) {
        if (tokens < kernel.min_tokens || tokens > kernel.max_tokens) continue;
        const double us = TimeLaunches(kernel, launches, tokens, data, stream) / launches.size();
        report(l, kernel.name, tokens, static_cast<int>(launches.size()), us,
               std::max(BytesOf(l) / kReadBytesPerUs, FlopOf(l) * tokens / kFlopPerUs));
      }
    }
  }
  for (const ModelOrder& order : kModels) {
    if (!chosen({order.model, "", 0, {}})) continue;
    TimeModel(order, timed, min_tokens, std::min(max_tokens, 64), data, report, stream);
  }
  if (json_path) {
    if (std::FILE* f = std::fopen(json_path, "w")) {
      std::fprintf(f, "[%s\n]\n", json.c_str());
      std::fclose(f);
    }
  }
  return 0;
}

int Main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  cudaStream_t stream;
  BENCH_CUDA(cudaStreamCreate(&stream));
  if (verb == "small") return RunChecks(SmallCases(), 1, stream) != 0;
  if (verb == "check") {
    int failed = 0;
    for (const LinearKernel& kernel : kLinearKernels) {
      failed += CheckLinearRefusals(kernel);
      for (int tokens : {1, 4, 8, 13, 16, 70}) {
        if (tokens <= kernel.max_tokens) failed += CheckInputCodes(kernel, tokens, stream);
      }
    }
    failed += RunChecks(AllCases(), 3, stream);
    failed += RunChecks(SmallCases(), 50, stream);
    return failed != 0;
  }
  if (verb == "time") {
    return RunTimings(argc > 2 ? argv[2] : nullptr, argc > 3 ? argv[3] : "",
                      argc > 4 ? std::atoi(argv[4]) : 1, argc > 5 ? std::atoi(argv[5]) : 16,
                      stream);
  }
  std::printf("usage: cuda_linear_bench check | small | time [JSON [MODELS [MIN [MAX]]]]\n");
  return 2;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
