// Checks and times the launch that goes from one mixer to the next, and on through DeltaNets.
//   cuda_layer_bench check          against the launches of its parts one after the other, which have their
//                                   own checks; "small": fewer cases
//   cuda_layer_bench time           both, as CUDA graphs over eight layers' weights, microseconds a layer
// Exits with 1 when a check fails.

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "graph_time.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/sm90_layer_decode.h"
#include "linear_check.h"
#include "moe_inputs.h"

namespace nibble::bench {
namespace {

constexpr int kHidden = cuda::kSm90LayerHidden;

struct LayerCase {
  const char* name;
  Sm90MoeShape experts;  // with the shared one
  bool shared = false;
  int k = 0;  // of out
  ShardSpec out;
  std::vector<ShardSpec> in;     // none: the last layer
  int k_heads = 0, v_heads = 0;  // of the DeltaNet between it and the next in a launch
  int layers = 1;                // in a launch
};

kernels::DeltaShape DeltaOf(const LayerCase& c) {
  kernels::DeltaShape d;
  d.k_heads = c.k_heads, d.v_heads = c.v_heads, d.k_dim = d.v_dim = 128, d.taps = 4;
  d.norm_eps = 1e-6f;
  return d;
}

/// A layer's weights.
struct LayerWeights {
  LayerWeights(const LayerCase& c, uint64_t seed, cudaStream_t stream)
      : of(c),
        out({c.out}, c.k, seed, false, false, stream),
        scales(c.experts, false),
        packed(c.experts) {
    if (!c.in.empty()) {
      in = std::make_unique<LinearWeights>(c.in, kHidden, seed + 1, false, false, stream);
    }
    {
      Canonical canonical(c.experts);
      FillRandom(canonical.view, seed + 2, stream);
      packed.Pack(canonical, stream);
      BENCH_CUDA(cudaStreamSynchronize(stream));
    }
    out.KeepPacked();
    if (in) in->KeepPacked();
    std::mt19937 random(static_cast<uint32_t>(seed));
    std::vector<Bf16> w(size_t(c.experts.experts) * kHidden);
    for (Bf16& v : w) v = ToBf16((float(random() % 2001) / 1000 - 1) * 0.05f);
    for (size_t i = kHidden; i < w.size(); ++i) {
      if (i / kHidden % 6 == 1) w[i] = w[i - kHidden];  // equal logits
    }
    router = Buffer<Bf16>(w);
    std::vector<float> n(kHidden);
    for (Buffer<float>* norm : {&mid, &next}) {
      for (float& v : n) v = 0.5f + float(random() % 1000) / 1000;
      *norm = Buffer<float>(n);
    }
    if (c.v_heads == 0) return;
    const kernels::DeltaShape d = DeltaOf(c);
    const auto make = [&](int64_t count, float low, float high) {
      std::vector<float> v(static_cast<size_t>(count));
      for (float& x : v) x = low + (high - low) * float(random() % 1001) / 1000;
      return Buffer<float>(v);
    };
    conv = make(d.taps * d.channels(), -1, 1);
    a_log = make(d.v_heads, -1, 1), dt_bias = make(d.v_heads, -1, 1),
    norm = make(d.v_dim, 0.5, 1.5);
  }
  LayerCase of;
  LinearWeights out;
  std::unique_ptr<LinearWeights> in;
  Scales scales;
  Packed packed;
  Buffer<Bf16> router;
  Buffer<float> mid, next, conv, a_log, dt_bias, norm;
  float out_factor = 1;  // brings what out adds to about 1, which is what the experts add
};

/// What a step works on.
struct State {
  State(const LayerCase& c, uint32_t seed)
      : attended(c.k),
        y(kHidden),
        normed(kHidden),
        residual(kHidden),
        layer_work(cuda::Sm90LayerWorkspace(c.experts)),
        moe_work(cuda::Sm90MoeDecodeWorkspace(c.experts, 1)),
        route_work(cuda::RouteWorkspace(1, c.experts.experts)),
        ids(c.experts.top_k),
        weights(c.experts.top_k) {
    for (const ShardSpec& s : c.in) columns += s.n;
    mixer_in = Buffer<Bf16>(std::max(columns, 1));
    layer_work.Fill(0), moe_work.Fill(0), route_work.Fill(0);
    std::mt19937 random(seed);
    const auto value = [&] { return float(random() % 2001) / 1000 - 1; };
    first_residual.resize(residual.size());
    for (float& v : first_residual) v = value();
    std::vector<Bf16> x(attended.size());
    for (Bf16& v : x) v = ToBf16(value());
    attended.Write(x);
    if (c.v_heads == 0) return;
    const kernels::DeltaShape d = DeltaOf(c);
    ring_size = cuda::DeltaRingRows(d, cuda::kDeltaDecodeRows) * cuda::DeltaRingWidth(d);
    state_size = d.state_size();
    first_states.resize(size_t(kSlots * c.layers * state_size));
    first_rings.resize(size_t(kSlots * c.layers * ring_size));
    for (float& v : first_states) v = value() * 0.1f;
    for (Bf16& v : first_rings) v = ToBf16(value());
    states = Buffer<float>(first_states);
    rings = Buffer<Bf16>(first_rings);
    delta_out = Buffer<Bf16>(size_t(d.out_width()));
    // At the beginning; behind rows; with kept ones; with those and tentative.
    cuda::DeltaSequence q{1, 0, 1, 0, 0, 0};
    if (seed % 4 != 1) q.start = 2 + int(seed) * 7;
    if (seed % 4 == 3) q.kept = 2;
    if (seed % 4 == 0) q.kept = 1, q.tentative = 1;
    sequence = Buffer<cuda::DeltaSequence>(std::vector{q});
  }
  /// As before a launch: its results poisoned.
  void Begin() {
    residual.Write(first_residual);
    y.Fill(0xFF), normed.Fill(0xFF), mixer_in.Fill(0xFF);
    if (state_size == 0) return;
    states.Write(first_states), rings.Write(first_rings), delta_out.Fill(0xFF);
  }
  static constexpr int kSlots = 2;
  int64_t state_size = 0, ring_size = 0;
  std::vector<float> first_states;
  std::vector<Bf16> first_rings;
  Buffer<float> states;
  Buffer<Bf16> rings, delta_out;
  Buffer<cuda::DeltaSequence> sequence;
  int columns = 0;
  std::vector<float> first_residual;
  Buffer<Bf16> attended, y, normed, mixer_in;
  Buffer<float> residual;
  Buffer<std::byte> layer_work, moe_work, route_work;
  Buffer<int32_t> ids;
  Buffer<float> weights;
};

/// Layer i of a launch.
cuda::Sm90LayerParams ParamsOf(const LayerWeights& w, const State& s, int i = 0) {
  cuda::Sm90LayerParams p;
  const LayerCase& c = w.of;
  p.out = w.out.Params();
  p.out.tokens = 1, p.out.x = s.attended.get(), p.out.y = s.y.get(), p.out.ldy = kHidden;
  p.out.shard[0].scale *= w.out_factor;
  p.residual = s.residual.get();
  p.mid_weight = w.mid.get(), p.next_weight = w.next.get();
  cuda::RouteParams& r = p.route;
  r.tokens = 1, r.hidden = kHidden, r.shared = c.shared, r.renormalize = true;
  r.experts = c.experts.experts - c.shared, r.top_k = c.experts.top_k - c.shared;
  r.x = s.normed.get(), r.weight = w.router.get(), r.ids = s.ids.get(), r.weights = s.weights.get();
  r.workspace = s.route_work.get(), r.workspace_bytes = s.route_work.size();
  Sm90MoeParams& e = p.experts;
  e.shape = c.experts, e.tokens = 1;
  e.w13 = w.packed.w13.get(), e.w2 = w.packed.w2.get();
  w.scales.Give(e, false);
  e.x = s.normed.get(), e.ids = r.ids, e.weights = r.weights, e.y = s.y.get();
  e.workspace = s.moe_work.get();
  p.normed = s.normed.get();
  p.has_in = w.in != nullptr;
  if (p.has_in) {
    p.in = w.in->Params();
    p.in.tokens = 1, p.in.x = s.normed.get(), p.in.y = s.mixer_in.get();
    p.in.ldy = s.columns;
  }
  if (i == 0) return p;
  cuda::DeltaParams& d = p.delta.emplace();
  d.shape = DeltaOf(c);
  d.parameters.conv = {w.conv.get(), int64_t(w.conv.size())};
  d.parameters.a_log = {w.a_log.get(), int64_t(w.a_log.size())};
  d.parameters.dt_bias = {w.dt_bias.get(), int64_t(w.dt_bias.size())};
  d.parameters.norm = {w.norm.get(), int64_t(w.norm.size())};
  d.memory.state = s.states.get() + i * State::kSlots * s.state_size;
  d.memory.ring = s.rings.get() + i * State::kSlots * s.ring_size;
  d.memory.slots = State::kSlots, d.memory.decode_rows = cuda::kDeltaDecodeRows;
  d.sequences = s.sequence.get(), d.n_sequences = 1, d.rows = 1;
  d.in = s.mixer_in.get(), d.out = s.delta_out.get();
  p.out.x = d.out;
  return p;
}

using Run = std::vector<cuda::Sm90LayerParams>;
/// c.layers of them, from `first` on.
Run RunOf(const std::vector<std::unique_ptr<LayerWeights>>& layers, size_t first, const State& s) {
  Run run;
  for (int i = 0; i < layers[first]->of.layers; ++i) {
    run.push_back(ParamsOf(*layers[(first + size_t(i)) % layers.size()], s, i));
  }
  return run;
}

/// The same by its parts.
void LaunchParts(const cuda::Sm90LayerParams& p, cudaStream_t stream) {
  if (p.delta) Must(cuda::LaunchDeltaDecode(*p.delta, stream));
  cuda::AddRmsNormParams n;
  n.rows = 1, n.cols = kHidden;
  n.residual = p.residual, n.y = p.out.y, n.out = p.normed, n.eps = p.eps;
  Must(cuda::LaunchSm90LinearDecode(p.out, stream));
  n.weight = p.mid_weight;
  Must(cuda::LaunchAddRmsNorm(n, stream));
  Must(cuda::LaunchRoute(p.route, stream));
  Must(cuda::LaunchSm90MoeDecode(p.experts, stream));
  n.weight = p.next_weight;
  Must(cuda::LaunchAddRmsNorm(n, stream));
  if (p.has_in) Must(cuda::LaunchSm90LinearDecode(p.in, stream));
}

struct Results {
  std::vector<float> residual;
  std::vector<Bf16> normed, mixer_in;
  std::vector<float> states;
  std::vector<Bf16> rings;
  bool operator==(const Results& o) const {
    return std::memcmp(states.data(), o.states.data(), states.size() * 4) == 0 &&
           std::memcmp(rings.data(), o.rings.data(), rings.size() * 2) == 0 &&
           std::memcmp(residual.data(), o.residual.data(), residual.size() * 4) == 0 &&
           std::memcmp(normed.data(), o.normed.data(), normed.size() * 2) == 0 &&
           std::memcmp(mixer_in.data(), o.mixer_in.data(), mixer_in.size() * 2) == 0;
  }
};
Results ResultsOf(const State& s, cudaStream_t stream) {
  BENCH_CUDA(cudaStreamSynchronize(stream));
  Results r{s.residual.Read(), s.normed.Read(), s.mixer_in.Read()};
  if (s.columns == 0) r.mixer_in.clear();
  if (s.state_size > 0) r.states = s.states.Read(), r.rings = s.rings.Read();
  return r;
}

/// Sets out_factor.
void Balance(LayerWeights& w, cudaStream_t stream) {
  const State s(w.of, 1);
  Must(cuda::LaunchSm90LinearDecode(ParamsOf(w, s).out, stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  double squares = 0;
  for (const Bf16 v : s.y.Read()) squares += double(ToFloat(v)) * ToFloat(v);
  w.out_factor = static_cast<float>(1 / std::sqrt(squares / kHidden));
}

double Number(float v) { return v; }
double Number(Bf16 v) { return ToFloat(v); }

/// Relative L2 distance; infinite where something is no number.
template <class T>
double Distance(const std::vector<T>& got, const std::vector<T>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = Number(got[i]), w = Number(want[i]);
    if (!std::isfinite(g)) return INFINITY;
    difference += (g - w) * (g - w), norm += w * w;
  }
  return norm > 0 ? std::sqrt(difference / norm) : 0;
}

std::vector<LayerCase> Cases(bool small) {
  using enum Sm90Weight;
  using In = Sm90Input;
  const auto experts = [](int e, int k, int i, Sm90Precision precision) {
    return Sm90MoeShape{e, k, kHidden, i, Sm90Activation::kSilu, precision};
  };
  const auto kFp4 = Sm90Precision::kFp4Layer, kBy = Sm90Precision::kFp4Expert;
  const auto kA16 = Sm90Precision::kBf16;
  std::vector<LayerCase> cases = {
      {"shared",
       experts(9, 3, 256, kA16),
       true,
       512,
       {kFp8, In::kFp8, kHidden},
       {{kFp8, In::kFp8, 300}, {kBf16, In::kBf16, 32}, {kBf16, In::kBf16, 7}}},
      {"both",
       experts(40, 7, 256, kFp4),
       true,
       256,
       {kNvfp4, In::kNvfp4, kHidden},
       {{kNvfp4, In::kNvfp4, 96}}},
      {"W4A4",
       experts(8, 8, 384, kFp4),
       false,
       256,
       {kNvfp4, In::kNvfp4, kHidden},
       {{kNvfp4, In::kNvfp4, 96}}},
      {"narrow",
       experts(17, 5, 256, kA16),
       true,
       256,
       {kFp8, In::kFp8, kHidden},
       {{kFp8, In::kFp8, 512},
        {kFp8, In::kFp8, 256},
        {kBf16, In::kBf16, 4},
        {kBf16, In::kBf16, 4}}},
      {"delta",
       experts(9, 3, 256, kA16),
       true,
       512,
       {kFp8, In::kFp8, kHidden},
       {{kFp8, In::kFp8, 1024},
        {kFp8, In::kFp8, 512},
        {kBf16, In::kBf16, 4},
        {kBf16, In::kBf16, 4}},
       2,
       4,
       3},
      {"last", experts(12, 2, 512, kBy), false, 64, {kBf16, In::kBf16, kHidden}, {}},
  };
  if (small) return cases;
  cases.push_back({"35B",
                   experts(257, 9, 512, kA16),
                   true,
                   4096,
                   {kFp8, In::kFp8, kHidden},
                   {{kFp8, In::kFp8, 8192},
                    {kFp8, In::kFp8, 4096},
                    {kBf16, In::kBf16, 32},
                    {kBf16, In::kBf16, 32}}});
  cases.push_back(cases.back());
  cases.back().name = "35B x 4", cases.back().k_heads = 16, cases.back().v_heads = 32;
  cases.back().layers = 4;
  cases.push_back({"35B attn",
                   experts(257, 9, 512, kA16),
                   true,
                   4096,
                   {kFp8, In::kFp8, kHidden},
                   {{kFp8, In::kFp8, 8192}, {kFp8, In::kFp8, 512}, {kFp8, In::kFp8, 512}}});
  cases.push_back(
      {"30B",
       experts(128, 8, 768, kFp4),
       false,
       4096,
       {kNvfp4, In::kNvfp4, kHidden},
       {{kNvfp4, In::kNvfp4, 4096}, {kNvfp4, In::kNvfp4, 512}, {kNvfp4, In::kNvfp4, 512}}});
  cases.push_back({"30B a16",
                   experts(128, 8, 768, kA16),
                   false,
                   4096,
                   {kNvfp4, In::kBf16, kHidden},
                   {{kNvfp4, In::kBf16, 5120}}});
  cases.push_back({"formats",
                   experts(512, 32, 256, kBy),
                   false,
                   4096,
                   {kFp8Block128, In::kFp8Group, kHidden},
                   {{kFp8Channel, In::kFp8Token, 777},
                    {kFp8Block128, In::kFp8Group, 1000},
                    {kNvfp4, In::kNvfp4, 33},
                    {kFp8, In::kFp8, 1}}});
  cases.push_back({"odd",
                   experts(61, 31, 1024, kA16),
                   true,
                   4096,
                   {kFp8Channel, In::kFp8Token, kHidden},
                   {{kBf16, In::kBf16, 5000}}});
  return cases;
}

int RunChecks(bool small, cudaStream_t stream) {
  int done = 0, failed = 0;
  for (const LayerCase& c : Cases(small)) {
    std::vector<std::unique_ptr<LayerWeights>> layers;
    for (int i = 0; i < c.layers; ++i) {
      layers.push_back(std::make_unique<LayerWeights>(c, 100 + 10 * uint64_t(i), stream));
      Balance(*layers.back(), stream);
    }
    for (uint32_t seed = 1; seed <= (small && c.layers == 1 ? 1 : 4); ++seed) {
      State s(c, seed);
      const Run launch = RunOf(layers, 0, s);
      s.Begin();
      for (const cuda::Sm90LayerParams& p : launch) LaunchParts(p, stream);
      const Results want = ResultsOf(s, stream);
      bool same = true;
      Results first;
      for (int run = 0; run < (small ? 3 : 100); ++run) {
        s.Begin();
        Must(cuda::LaunchSm90LayerDecode(launch, s.layer_work.get(), stream));
        const Results got = ResultsOf(s, stream);
        if (run == 0) first = got;
        same = same && got == first;
      }
      // Another norm in the last bit turns roundings to bf16, and codes of W4A4 with them.
      const bool fp4 = c.experts.precision != Sm90Precision::kBf16;
      const double limit = fp4 ? 0.02 : 0.004;
      const double r = Distance(first.residual, want.residual),
                   n = Distance(first.normed, want.normed),
                   i = Distance(first.mixer_in, want.mixer_in),
                   t = Distance(first.states, want.states), g = Distance(first.rings, want.rings);
      const bool ok = same && r <= limit && n <= limit && i <= limit && t <= limit && g <= limit;
      ++done, failed += !ok;
      std::printf(
          "%s %-8s seed %u: relative L2 to the parts %.1e residual, %.1e normed, %.1e next, %.1e "
          "states, %.1e rings%s\n",
          ok ? "ok  " : "FAIL", c.name, seed, r, n, i, t, g, same ? "" : "; other bits");
      std::fflush(stdout);
    }
  }
  std::printf("checks: %d done, %d failed\n", done, failed);
  return failed;
}

// --- timing ---

double Time(const std::vector<std::unique_ptr<LayerWeights>>& layers, const State& s, bool parts,
            cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  BENCH_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  constexpr int kRounds = 4;
  for (int round = 0; round < kRounds; ++round) {
    for (size_t first = 0; first < layers.size(); first += size_t(layers[0]->of.layers)) {
      const Run launch = RunOf(layers, first, s);
      if (!parts) {
        Must(cuda::LaunchSm90LayerDecode(launch, s.layer_work.get(), stream));
        continue;
      }
      for (const cuda::Sm90LayerParams& p : launch) LaunchParts(p, stream);
    }
  }
  BENCH_CUDA(cudaStreamEndCapture(stream, &graph));
  BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  const double us = MedianUs(exec, 20, stream) / (kRounds * double(layers.size()));
  BENCH_CUDA(cudaGraphExecDestroy(exec));
  BENCH_CUDA(cudaGraphDestroy(graph));
  return us;
}

/// Of one case, or of all.
void RunTimings(const std::string& only, cudaStream_t stream) {
  std::printf("layer      parts us  one launch us\n");
  for (const LayerCase& c : Cases(false)) {
    if (!only.empty() && only != c.name) continue;
    if (std::strncmp(c.name, "35B", 3) != 0 && std::strncmp(c.name, "30B", 3) != 0) continue;
    std::vector<std::unique_ptr<LayerWeights>> layers;
    for (int i = 0; i < 8; ++i) layers.push_back(std::make_unique<LayerWeights>(c, 10 * i, stream));
    State s(c, 3);
    s.Begin();
    const double parts = Time(layers, s, true, stream);
    s.Begin();
    std::printf("%-8s %10.2f %14.2f\n", c.name, parts, Time(layers, s, false, stream));
    std::fflush(stdout);
  }
}

int Main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  cudaStream_t stream;
  BENCH_CUDA(cudaStreamCreate(&stream));
  if (verb == "check" || verb == "small") return RunChecks(verb == "small", stream) != 0;
  if (verb == "time") {
    RunTimings(argc > 2 ? argv[2] : "", stream);
    return 0;
  }
  std::printf("usage: cuda_layer_bench check | small | time [LAYER]\n");
  return 2;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
