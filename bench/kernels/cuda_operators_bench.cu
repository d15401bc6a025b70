// Checks and times the CUDA operators between matrix products: norms, router, attention, argmax.
//   cuda_operators_bench check [WORD]     against double, odd shapes included; WORD: one kind alone
//   cuda_operators_bench small [WORD]     the small cases of it, for compute-sanitizer and for an emulator
//   cuda_operators_bench time [WORD]      CUDA graphs of launches over rotating data, JSON lines
// Exits with 1 when a check fails.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "attention_check.h"
#include "graph_time.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/sample.h"
#include "linear_check.h"
#include "operators_check.h"

namespace nibble::bench {
namespace {

using cuda::AttentionShape;

// --- checks ---

const AttentionShape kQwen36{16, 2, 256, 64, 1e-6f, true}, kQwen3{32, 4, 128, 128, 1e-6f, false};

std::vector<AttentionCase> DecodeCases() {
  std::vector<AttentionCase> cases;
  const auto add = [&](const AttentionShape& s, std::vector<AttentionCase::Sequence> sequences,
                       float sharp = 1, int padding = 0) {
    for (KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp8}) {
      cases.push_back({s, dtype, sequences, sharp, padding, uint32_t(cases.size() + 1)});
    }
  };
  for (const AttentionShape& s : {kQwen36, kQwen3}) {
    for (int rows = 1; rows <= 8; ++rows) {
      add(s, {{127 + 60 * rows, rows}});
      add(s, {{64 * rows - rows, rows}, {61, rows}});  // over the end of a page
    }
    add(s, {{0, 1}});
    add(s, {{0, 8}, {1, 7}, {63, 1}, {64, 2}, {65, 3}, {511, 8}, {300, 1}}, 1.5f, 2);
    add(s, {{2047, 1}, {16, 1}, {5000, 1}, {129, 1}}, 4, 1);
    add(s, {{8191, 4}}, 2);
    add(s, {{20000, 2}}, 3);
  }
  add({16, 1, 64, 64, 1e-6f, false}, {{100, 1}, {700, 8}, {4200, 3}});
  add({3, 3, 64, 32, 1e-5f, true}, {{100, 5}, {64, 2}});
  add({10, 2, 128, 64, 1e-6f, true}, {{900, 7}, {3, 1}});
  add({8, 8, 128, 0, 1e-6f, false}, {{1000, 1}, {0, 2}});
  add({14, 2, 256, 256, 1e-6f, false}, {{77, 3}, {1300, 8}});
  return cases;
}

std::vector<AttentionCase> PrefillCases() {
  std::vector<AttentionCase> cases;
  const auto add = [&](const AttentionShape& s, std::vector<AttentionCase::Sequence> sequences,
                       float sharp = 1, int padding = 0) {
    for (KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp8}) {
      cases.push_back({s, dtype, sequences, sharp, padding, uint32_t(cases.size() + 50)});
    }
  };
  for (const AttentionShape& s : {kQwen36, kQwen3}) {
    for (int rows : {1, 2, 7, 9, 17, 64, 100, 128, 129, 300}) add(s, {{0, rows}});
    add(s, {{1, 17}, {63, 64}, {100, 1}, {500, 200}, {0, 3}}, 1.5f, 3);
    add(s, {{0, 1000}}, 2);
    add(s, {{3001, 260}}, 4);
    std::vector<AttentionCase::Sequence> many;
    for (int i = 0; i < 40; ++i) many.push_back({i * 7, 1 + i % 5});
    add(s, many);
  }
  add({16, 1, 64, 64, 1e-6f, false}, {{100, 30}, {700, 80}});
  add({3, 3, 64, 32, 1e-5f, true}, {{100, 150}, {64, 2}});
  add({10, 2, 128, 64, 1e-6f, true}, {{900, 70}, {3, 1}});
  return cases;
}

std::vector<AttentionCase> SmallDecodeCases() {
  return {{{4, 2, 64, 32, 1e-6f, true}, KvDtype::kBf16, {{62, 5}, {130, 1}}},
          {{16, 2, 256, 64, 1e-6f, true}, KvDtype::kFp8, {{66, 2}}}};
}

std::vector<AttentionCase> SmallPrefillCases() {
  return {{{4, 2, 128, 128, 1e-6f, true}, KvDtype::kBf16, {{62, 70}, {3, 5}}},
          {{4, 2, 256, 64, 1e-6f, false}, KvDtype::kFp8, {{10, 140}}}};
}

const char* NameOf(AttentionKernel kernel) {
  switch (kernel) {
    case AttentionKernel::kDecode:
      return "decode";
    case AttentionKernel::kPrefill:
      return "prefill";
    default:
      return "portable prefill";
  }
}

int CheckAttentions(const std::vector<AttentionCase>& cases, AttentionKernel kernel,
                    cudaStream_t stream) {
  int failed = 0;
  double worst = 0, rel = 0;
  for (const AttentionCase& c : cases) {
    const AttentionVerdict v = CheckAttention(c, kernel, stream);
    failed += !v.ok;
    worst = std::max(worst, v.worst), rel = std::max(rel, v.rel_l2);
    if (v.ok) continue;
    std::printf("FAIL %s %d heads, %d kv heads of %d, %s, %zu sequences, first %d at %d: %s\n",
                NameOf(kernel), c.shape.n_heads, c.shape.n_kv_heads, c.shape.head_dim,
                c.dtype == KvDtype::kFp8 ? "fp8" : "bf16", c.sequences.size(),
                c.sequences[0].n_rows, c.sequences[0].start, v.why.c_str());
    std::fflush(stdout);
  }
  std::printf(
      "attention %s: %zu checks, %d failed; largest relative L2 %.2e, largest share of the bound "
      "%.3f\n",
      NameOf(kernel), cases.size(), failed, rel, worst);
  std::fflush(stdout);
  return failed;
}

int RunChecks(const std::string& word, bool small, cudaStream_t stream) {
  const int64_t most = small ? 1 << 19 : std::numeric_limits<int64_t>::max();
  int failed = 0;
  const auto tally = [&](const char* name, const std::function<Tally()>& check) {
    if (!word.empty() && word != name) return;
    const Tally t = check();
    failed += t.failed;
    std::printf("%s: %d checks, %d failed; largest share of the bound %.3f\n", name, t.done,
                t.failed, t.worst);
    std::fflush(stdout);
  };
  tally("refusals", [] { return CheckOperatorRefusals(); });
  tally("norm", [&] { return CheckNorms(most, stream); });
  tally("route", [&] { return CheckRoutes(most, stream); });
  tally("argmax", [&] { return CheckArgmaxes(most, stream); });
  tally("rope", [&] { return CheckRopeTables(stream); });
  if (word.empty() || word == "decode") {
    failed += CheckAttentions(small ? SmallDecodeCases() : DecodeCases(), AttentionKernel::kDecode,
                              stream);
  }
  for (AttentionKernel kernel : {AttentionKernel::kPrefill, AttentionKernel::kPortablePrefill}) {
    if (word.empty() || word == "prefill") {
      failed += CheckAttentions(small ? SmallPrefillCases() : PrefillCases(), kernel, stream);
    }
  }
  return failed;
}

// --- timing ---

constexpr double kReadBytesPerUs = 4.392e6, kFlopPerUs = 790e6;

/// A graph of launch(0) … launch(n-1), microseconds of one.
double TimeEach(int n, const std::function<void(int)>& launch, cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < n; ++i) launch(i);
  BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
  BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  const double us = MedianUs(exec, 15, stream) / n;
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  return us;
}

void Report(const std::string& what, double us, double bytes, double flop) {
  const double floor = std::max(bytes / kReadBytesPerUs, flop / kFlopPerUs);
  std::printf(
      "{\"what\": \"%s\", \"us\": %.2f, \"bytes\": %.0f, \"floor_us\": %.2f, \"fraction\": %.3f, "
      "\"tflops\": %.0f}\n",
      what.c_str(), us, bytes, floor, floor / us, flop / us * 1e-6);
  std::fflush(stdout);
}

void TimeNorms(cudaStream_t stream) {
  constexpr int kCols = 2048;
  const Buffer<float> weight(std::vector<float>(kCols, 1.0f));
  const Buffer<Bf16> gate(std::vector<Bf16>(kCols, ToBf16(0.01f)));
  for (int rows : {1, 4, 8, 8192}) {
    const size_t n = size_t(rows) * kCols;
    const int sets = rows > 1000 ? 4 : 32;
    Buffer<float> residual(n * sets);
    Buffer<Bf16> y(n * sets), x(n * sets), shared(n * sets), gate_up(2 * n);
    residual.Fill(0x3C), y.Fill(0x3C), x.Fill(0x3C), shared.Fill(0x3C), gate_up.Fill(0x3C);
    const auto params = [&](int i) {
      cuda::AddRmsNormParams p;
      p.rows = rows, p.cols = kCols;
      p.residual = residual.get() + n * i, p.y = y.get() + n * i;
      p.weight = weight.get(), p.out = x.get() + n * i;
      return p;
    };
    const std::string at = " T=" + std::to_string(rows);
    Report("add_norm" + at,
           TimeEach(
               sets, [&](int i) { Must(cuda::LaunchAddRmsNorm(params(i), stream)); }, stream),
           n * 12.0, 0);
    Report("add_shared_norm" + at,
           TimeEach(
               sets,
               [&](int i) {
                 cuda::AddRmsNormParams p = params(i);
                 p.gate = gate.get(), p.x = x.get() + n * i, p.shared = shared.get() + n * i;
                 Must(cuda::LaunchAddRmsNorm(p, stream));
               },
               stream),
           n * 16.0, 0);
    Report("silu_mul" + at,
           TimeEach(
               sets,
               [&](int) {
                 Must(cuda::LaunchSiluMul({rows, kCols, gate_up.get(), y.get()}, stream));
               },
               stream),
           n * 6.0, 0);
  }
}

void TimeRoutes(cudaStream_t stream) {
  constexpr int kHidden = 2048, kTopK = 8;
  for (int experts : {128, 256}) {
    const int sets = 120;  // more weights than L2 holds
    Buffer<Bf16> weight(size_t(sets) * experts * kHidden);
    std::vector<Bf16> random(size_t(8192) * kHidden);
    for (size_t i = 0; i < random.size(); ++i) {
      random[i] = ToBf16(float(i * 2654435761u % 2001) / 1000 - 1);
    }
    const Buffer<Bf16> x(random);
    for (int i = 0; i < sets; ++i) {
      BENCH_CUDA(cudaMemcpy(weight.get() + size_t(i) * experts * kHidden, random.data() + 977 * i,
                            size_t(experts) * kHidden * 2, cudaMemcpyHostToDevice));
    }
    Buffer<int32_t> ids(8192 * kTopK);
    Buffer<float> weights(8192 * kTopK);
    Buffer<std::byte> workspace(cuda::RouteWorkspace(8192, experts));
    workspace.Fill(0);
    for (int tokens : {1, 2, 4, 8, 16, 64, 512, 2048, 8192}) {
      const double us = TimeEach(
          tokens > 100 ? 8 : sets,
          [&](int i) {
            Must(cuda::LaunchRoute({tokens, experts, kHidden, kTopK, true, false, x.get(),
                                    weight.get() + size_t(i) * experts * kHidden, ids.get(),
                                    weights.get(), workspace.get(), workspace.size()},
                                   stream));
          },
          stream);
      Report("route E=" + std::to_string(experts) + " T=" + std::to_string(tokens), us,
             2.0 * kHidden * (experts + tokens), 2.0 * tokens * experts * kHidden);
    }
  }
}

void TimeArgmaxes(cudaStream_t stream) {
  for (int rows : {1, 4, 8}) {
    const int64_t vocab = 248320;
    const int sets = 80 / rows;
    Buffer<float> logits(sets * rows * vocab);
    logits.Fill(0x3C);
    Buffer<int32_t> ids(rows), flags(rows);
    Buffer<std::byte> workspace(cuda::ArgmaxWorkspace(rows));
    workspace.Fill(0);
    const double us = TimeEach(
        sets,
        [&](int i) {
          Must(cuda::LaunchArgmax({rows, vocab - 200, vocab, logits.get() + i * rows * vocab,
                                   ids.get(), flags.get(), workspace.get(), workspace.size()},
                                  stream));
        },
        stream);
    Report("argmax rows=" + std::to_string(rows), us, 4.0 * rows * vocab, 0);
  }
}

/// Layers of a model one after the other, each with its own cache.
void TimeAttention(const char* model, const AttentionShape& shape, KvDtype dtype,
                   const std::vector<AttentionCase::Sequence>& sequences, bool decode,
                   cudaStream_t stream) {
  int room = 1;
  double keys = 0, pairs = 0, rows = 0;
  for (const auto& q : sequences) {
    room = std::max(room, q.start + q.n_rows);
    keys += q.start + q.n_rows, rows += q.n_rows;
    pairs += double(q.n_rows) * q.start + q.n_rows * (q.n_rows + 1.0) / 2;
  }
  AttentionCase c{shape, dtype, sequences};
  AttentionData data(c, room);
  data.Reset();
  const double bytes = keys * 2 * shape.kv_width() * (dtype == KvDtype::kBf16 ? 2 : 1) +
                       2 * rows * shape.qkv_width();
  const int layers = decode ? std::clamp(static_cast<int>(300e6 / bytes), 4, 48) : 4;
  std::vector<Buffer<uint8_t>> k, v;
  for (int i = 0; i < layers; ++i) {
    k.emplace_back(data.k_host), v.emplace_back(data.v_host);
  }
  Must(cuda::LaunchRopeTable(
      {data.Params().step, shape.rotary_dim / 2, data.frequency.get(), data.rope.get()}, stream));
  const auto launch = [&](int i) {
    cuda::AttentionParams p = data.Params();
    p.cache.k = k[i].get(), p.cache.v = v[i].get();
    if (decode) {
      Must(cuda::LaunchAttentionDecode(p, data.max_rows(), stream));
    } else {
      Must(cuda::LaunchAttentionPrefill(p, stream));
    }
  };
  const double us = TimeEach(layers, launch, stream);
  Report(std::string(decode ? "decode " : "prefill ") + model +
             (dtype == KvDtype::kFp8 ? " fp8" : " bf16") + " sequences=" +
             std::to_string(sequences.size()) + " start=" + std::to_string(sequences[0].start) +
             " rows=" + std::to_string(sequences[0].n_rows),
         us, bytes, decode ? 0 : 4 * pairs * shape.n_heads * shape.head_dim);
}

void TimeAttentions(bool decode, cudaStream_t stream) {
  const struct {
    const char* name;
    AttentionShape shape;
  } models[] = {{"q36", kQwen36}, {"q3", kQwen3}};
  for (const auto& m : models) {
    for (KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp8}) {
      const auto time = [&](std::vector<AttentionCase::Sequence> sequences) {
        TimeAttention(m.name, m.shape, dtype, sequences, decode, stream);
      };
      if (decode) {
        time({{127, 1}});
        time({{2047, 1}});
        time({{2047, 4}});
        time({{32767, 1}});
        time(std::vector<AttentionCase::Sequence>(8, {2047, 1}));
        time(std::vector<AttentionCase::Sequence>(32, {4095, 1}));
      } else {
        time({{0, 2048}});
        time({{0, 8192}});
        time({{24576, 8192}});
      }
    }
  }
}

/// What an attention layer takes beside its experts, all in their order, every layer with its own weights and
/// cache: norm, qkv (BF16), attention, o (BF16), norm, router.
void TimeLayers(const char* model, const AttentionShape& shape, int experts, cudaStream_t stream) {
  constexpr int kHidden = 2048, kLayers = 20, kTopK = 8;
  const AttentionCase c{shape, KvDtype::kBf16, {{2047, 1}}};
  AttentionData data(c, 2048);
  data.Reset();
  std::vector<Buffer<uint8_t>> k, v;
  std::vector<LinearWeights> qkv, o;
  for (int i = 0; i < kLayers; ++i) {
    k.emplace_back(data.k_host), v.emplace_back(data.v_host);
    qkv.emplace_back(
        std::vector<ShardSpec>{{Sm90Weight::kBf16, Sm90Input::kBf16, shape.qkv_width()}}, kHidden,
        i, false, false, stream);
    o.emplace_back(std::vector<ShardSpec>{{Sm90Weight::kBf16, Sm90Input::kBf16, kHidden}},
                   shape.out_width(), i, false, false, stream);
    qkv.back().KeepPacked(), o.back().KeepPacked();
  }
  Buffer<float> residual(kHidden), weights(kTopK);
  Buffer<Bf16> y(kHidden), x(kHidden), router(size_t(kLayers) * experts * kHidden);
  const Buffer<float> norm(std::vector<float>(kHidden, 1.0f));
  Buffer<int32_t> ids(kTopK);
  Buffer<std::byte> workspace(cuda::RouteWorkspace(1, experts));
  residual.Fill(0x3C), y.Fill(0x3C), router.Fill(0x3C), workspace.Fill(0), data.rope.Fill(0x3C);
  const auto add_norm = [&] {
    cuda::AddRmsNormParams p;
    p.rows = 1, p.cols = kHidden, p.residual = residual.get(), p.y = y.get();
    p.weight = norm.get(), p.out = x.get();
    Must(cuda::LaunchAddRmsNorm(p, stream));
  };
  const auto linear = [&](const LinearWeights& w, const Bf16* from, Bf16* to) {
    Sm90LinearParams p = w.Params();
    p.tokens = 1, p.x = from, p.y = to, p.ldy = w.columns();
    Must(cuda::LaunchSm90LinearDecode(p, stream));
  };
  const auto layer = [&](int i) {
    add_norm();
    linear(qkv[i], x.get(), data.qkv.get());
    cuda::AttentionParams p = data.Params();
    p.cache.k = k[i].get(), p.cache.v = v[i].get();
    Must(cuda::LaunchAttentionDecode(p, 1, stream));
    linear(o[i], data.out.get(), y.get());
    add_norm();
    Must(cuda::LaunchRoute({1, experts, kHidden, kTopK, true, false, x.get(),
                            router.get() + size_t(i) * experts * kHidden, ids.get(), weights.get(),
                            workspace.get(), workspace.size()},
                           stream));
  };
  const auto linears = [&](int i) {
    linear(qkv[i], x.get(), data.qkv.get());
    linear(o[i], data.out.get(), y.get());
  };
  const double bytes = 2.0 * kHidden * (shape.qkv_width() + shape.out_width());
  Report(std::string("layer ") + model, TimeEach(kLayers, layer, stream),
         bytes + 2.0 * kHidden * experts + 4.0 * 2048 * shape.kv_width(), 0);
  Report(std::string("its linears ") + model, TimeEach(kLayers, linears, stream), bytes, 0);
}

int RunTimings(const std::string& word, cudaStream_t stream) {
  const auto wanted = [&](const char* name) { return word.empty() || word == name; };
  if (wanted("norm")) TimeNorms(stream);
  if (wanted("route")) TimeRoutes(stream);
  if (wanted("argmax")) TimeArgmaxes(stream);
  if (wanted("layer")) {
    TimeLayers("q36", kQwen36, 256, stream);
    TimeLayers("q3", kQwen3, 128, stream);
  }
  if (wanted("decode")) TimeAttentions(true, stream);
  if (wanted("prefill")) TimeAttentions(false, stream);
  return 0;
}

int Main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "", word = argc > 2 ? argv[2] : "";
  cudaStream_t stream;
  BENCH_CUDA(cudaStreamCreate(&stream));
  if (verb == "check" || verb == "small") return RunChecks(word, verb == "small", stream) != 0;
  if (verb == "time") return RunTimings(word, stream);
  std::printf("usage: cuda_operators_bench check [WORD] | small [WORD] | time [WORD]\n");
  return 2;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
