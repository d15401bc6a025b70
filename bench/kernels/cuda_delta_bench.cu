// Checks and times the kernels of gated DeltaNet.
//   cuda_delta_bench check     decode and prefill against the equations in double; rows taken back
//   cuda_delta_bench small     a few small cases, for compute-sanitizer
//   cuda_delta_bench accuracy  the error of long prompts at the shape of Qwen3.6-35B-A3B
//   cuda_delta_bench time      both at that shape, as CUDA graphs over rotating layers
//   cuda_delta_bench profile   one prefill launch of 8192 rows
// Exits with 1 when a check fails.

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "delta_check.h"
#include "graph_time.h"
#include "kernels/cuda/delta_prefill.cuh"
#include "refusals.h"

namespace nibble::bench {
namespace {

using cuda::DeltaMemory;
using cuda::DeltaParams;

constexpr double kReadBytesPerUs = 4.392e6;

/// Relative errors of one step: fp32's with sums of 128 and the fast exponential; two TF32 operands
/// of products whose errors meet again in the triangular matrices.
constexpr double kDecodeUnit = 0x1p-19, kPrefillUnit = 0x1p-10;

DeltaShape Shape(int k_heads, int v_heads, int k_dim, int v_dim, int taps) {
  return {k_heads, v_heads, k_dim, v_dim, taps, 1e-6f};
}
const DeltaShape kQwen = Shape(16, 32, 128, 128, 4);

// --- a layer's slots beside the truth ---

enum class Path { kDecode, kDecodeWithoutClusters, kPrefill, kPrefillChunks32 };

/// A sequence's next rows in a launch, and how many of its last tentative rows stay (-1: it had
/// none).
struct Turn {
  int slot;
  int rows;
  bool tentative = false;
  int keep = -1;
  bool restart = false;  // from position 0
};

class Stand {
 public:
  Stand(const DeltaShape& shape, DeltaKind kind, int slots, int decode_rows, bool graphs,
        cudaStream_t stream)
      : shape_(shape),
        kind_(kind),
        layer_(shape, kind, 7),
        state_(slots * shape.state_size()),
        ring_(slots * cuda::DeltaRingRows(shape, decode_rows) * cuda::DeltaRingWidth(shape)),
        slots_(slots),
        decode_rows_(decode_rows),
        graphs_(graphs),
        sequences_(kMaxTurns),
        stream_(stream),
        sides_(slots) {
    state_.Fill(0xFF), ring_.Fill(0xFF);
    for (Side& side : sides_) side.truth = std::make_unique<DeltaTruth>(shape, layer_);
  }

  /// One launch of these turns. With a graph, the launch is captured at the largest size so far and
  /// replayed with what has changed in device memory alone.
  void Run(Path path, const std::vector<Turn>& turns) {
    std::vector<DeltaSequence> sequences(kMaxTurns);
    int64_t rows = 1;  // row 0 is nobody's
    for (size_t i = 0; i < turns.size(); ++i) {
      const Turn& turn = turns[i];
      Side& side = sides_[turn.slot];
      if (turn.keep >= 0) Keep(side, turn.keep);
      if (turn.restart) Restart(side);
      sequences[i] = {turn.slot,     static_cast<int>(rows),       turn.rows,
                      side.position, turn.restart ? 0 : side.kept, turn.tentative};
      rows += turn.rows;
    }
    const std::vector<Bf16> in = DeltaInputs(shape_, kind_, rows, ++seed_);
    std::vector<Bf16> out = Launch(path, sequences, static_cast<int>(turns.size()), in, rows);
    for (size_t i = 0; i < turns.size(); ++i) {
      Compare(path, turns[i], sequences[i].first_row, in, out);
    }
  }

  DeltaVerdict Finish() {
    const std::vector<float> state = state_.Read();
    double difference = 0, magnitude = 0;
    for (int slot = 0; slot < slots_; ++slot) {
      const Side& side = sides_[slot];
      if (side.position == 0) continue;  // perhaps never written
      for (int64_t i = 0; i < shape_.state_size(); ++i) {
        const double want = side.truth->state[i], is = state[slot * shape_.state_size() + i];
        const double off = std::abs(is - want);
        difference += off * off, magnitude += want * want;
        Hold(is, want, side.truth->state_error[i / shape_.k_dim] + 1e-30, "state");
      }
    }
    verdict_.state = std::sqrt(difference / std::max(magnitude, 1e-300));
    verdict_.out = std::sqrt(out_difference_ / out_magnitude_);
    verdict_.rounding = std::sqrt(rounding_ / out_magnitude_);
    return verdict_;
  }
  std::vector<float> State() const { return state_.Read(); }
  const std::vector<Bf16>& LastOut() const { return last_out_; }
  /// The inputs that Run() makes next are those after `seed` runs.
  void SetSeed(uint64_t seed) { seed_ = seed; }

 private:
  static constexpr int kMaxTurns = 40;
  struct Side {
    std::unique_ptr<DeltaTruth> truth;  // after the rows that are certain
    int position = 0, pending = 0, kept = 0;
    std::vector<Bf16> tentative;
    double unit = 0;
  };

  void Keep(Side& side, int rows) {
    std::vector<double> out, bound;
    side.truth->Run(side.tentative.data(), rows, side.unit, out, bound);
    side.position += rows, side.kept = rows, side.pending = 0;
  }
  void Restart(Side& side) {
    side.truth = std::make_unique<DeltaTruth>(shape_, layer_);
    side.position = side.pending = side.kept = 0;
  }

  std::vector<Bf16> Launch(Path path, const std::vector<DeltaSequence>& sequences, int count,
                           const std::vector<Bf16>& in, int64_t rows) {
    const int64_t room = graphs_ ? std::max<int64_t>(rows, 4096 / shape_.v_heads) : rows;
    if (in_.size() < size_t(room * shape_.in_width())) {
      in_ = Buffer<Bf16>(room * shape_.in_width());
      out_ = Buffer<Bf16>(room * shape_.out_width());
      graphs_made_ = {};
    }
    in_.Fill(0xFF), out_.Fill(0xFF);
    BENCH_CUDA(cudaMemcpy(in_.get(), in.data(), in.size() * 2, cudaMemcpyHostToDevice));
    sequences_.Write(sequences);
    DeltaParams p;
    p.shape = shape_, p.parameters = layer_.Device();
    p.memory = {state_.get(), ring_.get(), slots_, decode_rows_};
    p.sequences = sequences_.get(), p.n_sequences = graphs_ ? kMaxTurns : count;
    p.rows = graphs_ ? room : rows, p.in = in_.get(), p.out = out_.get();
    const size_t bytes = cuda::DeltaPrefillWorkspace(shape_, p.rows, p.n_sequences);
    if (workspace_.size() < bytes) {
      workspace_ = Buffer<std::byte>(bytes);
      graphs_made_ = {};
    }
    workspace_.Fill(0xFF);
    p.workspace = workspace_.get(), p.workspace_bytes = workspace_.size();
    if (!graphs_) {
      Must(LaunchPath(path, p));
    } else {
      cudaGraphExec_t& graph = graphs_made_[static_cast<int>(path)];
      if (graph == nullptr) graph = Capture(path, p);
      BENCH_CUDA(cudaGraphLaunch(graph, stream_));
    }
    BENCH_CUDA(cudaStreamSynchronize(stream_));
    return out_.Read();
  }

  Result<void> LaunchPath(Path path, const DeltaParams& p) {
    switch (path) {
      case Path::kDecode:
        return cuda::LaunchDeltaDecode(p, stream_);
      case Path::kDecodeWithoutClusters: {
        NIBBLE_TRY(const cuda::delta::Args args, cuda::delta::CheckedArgs(p));
        return cuda::delta::LaunchDecode(args, {false, true}, stream_);
      }
      case Path::kPrefill:
        return cuda::LaunchDeltaPrefill(p, stream_);
      case Path::kPrefillChunks32:
        return cuda::delta::LaunchPrefill(p, 32, stream_);
    }
    return {};
  }

  cudaGraphExec_t Capture(Path path, const DeltaParams& p) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    BENCH_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    Must(LaunchPath(path, p));
    BENCH_CUDA(cudaStreamEndCapture(stream_, &graph));
    BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    BENCH_CUDA(cudaGraphDestroy(graph));
    return exec;
  }

  void Compare(Path path, const Turn& turn, int first_row, const std::vector<Bf16>& in,
               const std::vector<Bf16>& out) {
    Side& side = sides_[turn.slot];
    const bool decodes = path == Path::kDecode || path == Path::kDecodeWithoutClusters;
    side.unit = decodes ? kDecodeUnit : kPrefillUnit;
    const Bf16* rows = in.data() + first_row * shape_.in_width();
    std::vector<double> want, bound;
    if (turn.tentative) {
      DeltaTruth copy = *side.truth;
      copy.Run(rows, turn.rows, side.unit, want, bound);
      side.tentative.assign(rows, rows + turn.rows * shape_.in_width());
      side.pending = turn.rows;
    } else {
      side.truth->Run(rows, turn.rows, side.unit, want, bound);
      side.position += turn.rows, side.pending = side.kept = 0;
    }
    last_out_.clear();
    for (size_t i = 0; i < want.size(); ++i) {
      const Bf16 y = out[first_row * shape_.out_width() + i];
      const double off = std::abs(double(ToFloat(y)) - want[i]);
      out_difference_ += off * off, out_magnitude_ += want[i] * want[i];
      const double rounding = RoundToBf16(float(want[i])) - want[i];
      rounding_ += rounding * rounding;
      Hold(ToFloat(y), want[i], bound[i], "out");
      last_out_.push_back(y);
    }
  }

  void Hold(double is, double want, double bound, const char* what) {
    const double off = std::abs(is - want);
    const double share = off / bound;
    if (!(share <= verdict_.worst)) verdict_.worst = share;
    if (share <= 1 || !verdict_.ok) return;
    verdict_.ok = false;
    char text[120];
    std::snprintf(text, sizeof text, "%s: %.3e, wanted %.3e, off by %.2e, bound %.2e, step %d",
                  what, is, want, off, bound, int(seed_));
    verdict_.why = text;
  }

  const DeltaShape shape_;
  const DeltaKind kind_;
  const DeltaLayer layer_;
  Buffer<float> state_;
  Buffer<Bf16> ring_, in_{0}, out_{0};
  const int slots_, decode_rows_;
  const bool graphs_;
  Buffer<DeltaSequence> sequences_;
  Buffer<std::byte> workspace_{0};
  cudaStream_t stream_;
  std::array<cudaGraphExec_t, 4> graphs_made_{};  // by path
  std::vector<Side> sides_;
  std::vector<Bf16> last_out_;
  uint64_t seed_ = 0;
  DeltaVerdict verdict_;
  double out_difference_ = 0, out_magnitude_ = 0, rounding_ = 0;
};

// --- checks ---

struct Tally {
  int done = 0, failed = 0;
  double worst[2] = {}, state[2] = {}, out = 0;

  void Add(const std::string& name, bool prefill, const DeltaVerdict& v) {
    ++done, failed += !v.ok;
    if (!(v.worst <= worst[prefill])) worst[prefill] = v.worst;
    state[prefill] = std::max(state[prefill], v.state);
    out = std::max(out, v.out);
    if (v.ok) return;
    std::printf("FAIL %s: %.3g of the bound, relative L2 out %.2e state %.2e; %s\n", name.c_str(),
                v.worst, v.out, v.state, v.why.c_str());
    std::fflush(stdout);
  }
};

std::string Name(const DeltaShape& s, DeltaKind kind, const char* what) {
  char text[160];
  std::snprintf(text, sizeof text, "%s, %ld/%ld heads of %ld/%ld, %ld taps, kind %d", what,
                long(s.k_heads), long(s.v_heads), long(s.k_dim), long(s.v_dim), long(s.taps),
                int(kind));
  return text;
}

const DeltaShape kShapes[] = {Shape(4, 4, 128, 128, 4), Shape(2, 4, 128, 64, 3),
                              Shape(1, 4, 64, 128, 2), Shape(2, 4, 64, 64, 4),
                              Shape(4, 8, 128, 128, 4)};
constexpr DeltaKind kKinds[] = {DeltaKind::kPlain, DeltaKind::kStrongDecay, DeltaKind::kLongMemory};

/// Every number of rows, and of them every number kept, then more rows, plain ones among them.
void CheckDecode(const DeltaShape& s, DeltaKind kind, Path path, bool graphs, int decode_rows,
                 Tally& tally, cudaStream_t stream) {
  Stand stand(s, kind, 3, decode_rows, graphs, stream);
  stand.Run(path, {{1, 1}});
  stand.Run(path, {{0, decode_rows}, {1, 1}, {2, 1, true}});
  int keep0 = -1, keep2 = 1;
  for (int n = 1; n <= decode_rows; ++n) {
    for (int kept = 0; kept <= n; ++kept) {
      stand.Run(path,
                {{1, 1}, {2, n, true, keep2}, {0, (n + kept) % decode_rows + 1, false, keep0}});
      keep2 = kept;
    }
    keep0 = -1;
  }
  stand.Run(path, {{2, 1, false, keep2}});
  stand.Run(path, {{0, decode_rows, true, -1, true}, {1, decode_rows, false, -1, true}});
  stand.Run(path, {{0, 1, true, 0}});
  stand.Run(path, {{0, decode_rows, true, 1}});
  stand.Run(path, {{0, 1, false, decode_rows / 2}});
  tally.Add(Name(s, kind, graphs ? "decode in a graph" : "decode"), false, stand.Finish());
}

/// Prompts of many lengths, in several pieces and sequences, and decoding after them.
void CheckPrefill(const DeltaShape& s, DeltaKind kind, Path path, bool graphs, Tally& tally,
                  cudaStream_t stream) {
  Stand stand(s, kind, 4, 4, graphs, stream);
  stand.Run(path, {{0, 1}, {2, 64}});
  stand.Run(path, {{1, 127}, {0, 2}});
  stand.Run(path, {{2, 65}, {0, 63}, {3, 130}});
  stand.Run(Path::kDecode, {{0, 4, true}, {1, 1}, {2, 3}, {3, 2, true}});
  stand.Run(path, {{0, 33, false, 3}, {3, 1, false, 0}, {1, 5}});
  stand.Run(Path::kDecode, {{0, 1}, {1, 4, true}, {3, 1}});
  stand.Run(path, {{2, 300, false, -1, true}, {1, 64, false, 4}});
  stand.Run(Path::kDecode, {{2, 1}, {1, 1}});
  tally.Add(Name(s, kind, graphs ? "prefill in a graph" : "prefill"), true, stand.Finish());
}

/// Rows that were taken back leave no bit behind, and clusters change none.
void CheckBits(const DeltaShape& s, Tally& tally, cudaStream_t stream) {
  const auto run = [&](Path path, bool drafts, std::vector<Bf16>& out) {
    Stand stand(s, DeltaKind::kPlain, 2, 4, false, stream);
    stand.Run(path, {{0, 3}});
    if (drafts) {
      stand.SetSeed(50);
      stand.Run(path, {{0, 4, true}});
      stand.Run(path, {{0, 3, true, 0}});
    }
    stand.SetSeed(1);
    if (drafts) {
      stand.Run(path, {{0, 4, true, 0}});
      stand.Run(path, {{0, 2, false, 4}});
    } else {
      stand.Run(path, {{0, 4}});
      stand.Run(path, {{0, 2}});
    }
    out = stand.LastOut();
    tally.Add("bits", false, stand.Finish());
    return stand.State();
  };
  std::vector<Bf16> out[3];
  const auto plain = run(Path::kDecode, false, out[0]);
  const auto drafts = run(Path::kDecode, true, out[1]);
  const auto alone = run(Path::kDecodeWithoutClusters, true, out[2]);
  for (const auto* other : {&drafts, &alone}) {
    const int i = other == &drafts ? 1 : 2;
    const size_t bytes = size_t(s.state_size()) * sizeof(float);
    const bool same = out[0] == out[i] && std::memcmp(plain.data(), other->data(), bytes) == 0;
    ++tally.done, tally.failed += !same;
    if (!same)
      std::printf("FAIL %s: bits differ\n",
                  Name(s, DeltaKind::kPlain, i == 1 ? "drafts" : "no clusters").c_str());
  }
}

struct Refused {
  const char* what;
  void (*spoil)(DeltaParams&);
};

int CheckRefusals() {
  static float number = 0;
  alignas(256) static std::byte some[256];
  DeltaParams good;
  good.shape = kQwen;
  good.parameters = {
      {reinterpret_cast<float*>(some), 4 * 8192}, {&number, 32}, {&number, 32}, {&number, 128}};
  good.memory = {reinterpret_cast<float*>(some), reinterpret_cast<Bf16*>(some), 1, 4};
  good.sequences = reinterpret_cast<DeltaSequence*>(some), good.n_sequences = 1, good.rows = 1;
  good.in = reinterpret_cast<Bf16*>(some), good.out = reinterpret_cast<Bf16*>(some);
  good.workspace = some, good.workspace_bytes = size_t(1) << 40;
  const std::vector<Refused> cases = {
      {"k_dim 96", [](DeltaParams& p) { p.shape.k_dim = 96; }},
      {"v_dim 32", [](DeltaParams& p) { p.shape.v_dim = 32; }},
      {"5 taps", [](DeltaParams& p) { p.shape.taps = 5; }},
      {"1 tap", [](DeltaParams& p) { p.shape.taps = 1; }},
      {"6 value heads", [](DeltaParams& p) { p.shape.v_heads = 6, p.shape.k_heads = 3; }},
      {"32 to 3 heads", [](DeltaParams& p) { p.shape.k_heads = 3; }},
      {"32 to 2 heads", [](DeltaParams& p) { p.shape.k_heads = 2; }},
      {"no convolution", [](DeltaParams& p) { p.parameters.conv.data = nullptr; }},
      {"a short norm", [](DeltaParams& p) { p.parameters.norm.n = 64; }},
      {"9 decode rows", [](DeltaParams& p) { p.memory.decode_rows = 9; }},
      {"no slots", [](DeltaParams& p) { p.memory.slots = 0; }},
      {"no sequences", [](DeltaParams& p) { p.n_sequences = 0; }},
      {"no rows", [](DeltaParams& p) { p.rows = 0; }},
      {"no state", [](DeltaParams& p) { p.memory.state = nullptr; }},
      {"a ring that is not aligned", [](DeltaParams& p) { ++p.memory.ring; }},
      {"an input that is not aligned", [](DeltaParams& p) { ++p.in; }},
      {"no output", [](DeltaParams& p) { p.out = nullptr; }}};
  const std::vector<Refused> prefill = {
      {"no workspace", [](DeltaParams& p) { p.workspace = nullptr; }},
      {"a small workspace", [](DeltaParams& p) { p.workspace_bytes = 1000; }}};
  struct Kernel {
    const char* name;
    Result<void> (*launch)(const DeltaParams&, cudaStream_t);
  };
  return CountAccepted(Kernel{"decode", cuda::LaunchDeltaDecode}, good, cases) +
         CountAccepted(Kernel{"prefill", cuda::LaunchDeltaPrefill}, good, cases) +
         CountAccepted(Kernel{"prefill", cuda::LaunchDeltaPrefill}, good, prefill);
}

int RunChecks(bool small, cudaStream_t stream) {
  Tally tally;
  for (const DeltaShape& s : kShapes) {
    for (DeltaKind kind : kKinds) {
      if (small && (&s != &kShapes[1] || kind != DeltaKind::kPlain)) continue;
      CheckDecode(s, kind, Path::kDecode, false, small ? 3 : 8, tally, stream);
      CheckPrefill(s, kind, Path::kPrefill, false, tally, stream);
      CheckPrefill(s, kind, Path::kPrefillChunks32, false, tally, stream);
      if (kind != DeltaKind::kPlain) continue;
      CheckDecode(s, kind, Path::kDecode, true, 4, tally, stream);
      CheckDecode(s, kind, Path::kDecodeWithoutClusters, false, 3, tally, stream);
      CheckPrefill(s, kind, Path::kPrefill, true, tally, stream);
      CheckBits(s, tally, stream);
    }
  }
  if (!small) {
    for (DeltaKind kind : kKinds) {
      CheckDecode(kQwen, kind, Path::kDecode, false, 4, tally, stream);
      Stand stand(kQwen, kind, 3, 4, false, stream);
      stand.Run(Path::kPrefill, {{0, 1000}, {2, 300}, {1, 65}});
      stand.Run(Path::kDecode, {{2, 1}, {0, 4, true}, {1, 2}});
      stand.Run(Path::kDecode, {{0, 2, false, 3}});
      tally.Add(Name(kQwen, kind, "prefill and decode"), true, stand.Finish());
    }
    tally.failed += CheckRefusals();
    const DeltaShape s = Shape(2, 4, 128, 128, 4);
    for (DeltaKind kind : kKinds) {
      Stand stand(s, kind, 2, 4, false, stream);
      stand.Run(Path::kPrefill, {{1, 6000}, {0, 4100}});
      stand.Run(Path::kPrefill, {{1, 100}});
      tally.Add(Name(s, kind, "long prompts"), true, stand.Finish());
    }
  }
  std::printf(
      "checks: %d done, %d failed; decode: %.3f of the bound, state %.2e; prefill: %.3f of the "
      "bound, state %.2e; relative L2 of out %.2e\n",
      tally.done, tally.failed, tally.worst[0], tally.state[0], tally.worst[1], tally.state[1],
      tally.out);
  return tally.failed;
}

/// Relative L2 errors against the equations in double.
int RunAccuracy(cudaStream_t stream) {
  for (DeltaKind kind : kKinds) {
    for (int rows : {1, 2, 64, 65, 1000, 8192}) {
      if (rows == 8192 && kind == DeltaKind::kStrongDecay) continue;
      for (Path path : {Path::kPrefill, Path::kDecode}) {
        if (path == Path::kDecode && rows > 65) continue;
        Stand stand(kQwen, kind, 1, 8, false, stream);
        if (path == Path::kPrefill) {
          stand.Run(path, {{0, rows}});
        } else {
          for (int done = 0; done < rows; done += 8)
            stand.Run(path, {{0, std::min(8, rows - done)}});
        }
        const DeltaVerdict v = stand.Finish();
        std::printf(
            "{\"path\": \"%s\", \"kind\": %d, \"rows\": %d, \"out_rel_l2\": %.3e, "
            "\"bf16_rounding\": %.3e, \"state_rel_l2\": %.3e, \"of_bound\": %.3f}\n",
            path == Path::kPrefill ? "prefill" : "decode", int(kind), rows, v.out, v.rounding,
            v.state, v.worst);
        std::fflush(stdout);
      }
    }
  }
  return 0;
}

// --- timing ---

/// Launches over layers whose states and inputs together are more than L2 holds.
class Timer {
 public:
  Timer(int layers, int slots, int64_t rows, cudaStream_t stream)
      : layers_(layers),
        slots_(slots),
        rows_(rows),
        layer_(kQwen, DeltaKind::kPlain, 3),
        state_(size_t(layers) * slots * kQwen.state_size()),
        ring_(size_t(layers) * slots * cuda::DeltaRingRows(kQwen, 8) * cuda::DeltaRingWidth(kQwen)),
        in_(size_t(rows) * kQwen.in_width()),
        out_(size_t(rows) * kQwen.out_width()),
        sequences_(slots),
        stream_(stream) {
    state_.Fill(0), ring_.Fill(0x3C);
    const auto some = DeltaInputs(kQwen, DeltaKind::kPlain, std::min<int64_t>(rows, 256), 5);
    for (int64_t t = 0; t < rows; t += 256) {
      const size_t n = std::min<int64_t>(256, rows - t) * kQwen.in_width();
      BENCH_CUDA(
          cudaMemcpy(in_.get() + t * kQwen.in_width(), some.data(), n * 2, cudaMemcpyHostToDevice));
    }
  }

  double Time(bool prefill, int sequences, int rows, int kept, bool tentative) {
    std::vector<DeltaSequence> list(slots_);
    for (int i = 0; i < sequences; ++i) {
      list[i] = {i, i * rows, rows, prefill ? 0 : 100, kept, tentative};
    }
    sequences_.Write(list);
    DeltaParams p;
    p.shape = kQwen, p.parameters = layer_.Device(), p.sequences = sequences_.get();
    p.n_sequences = sequences, p.rows = int64_t(rows) * sequences;
    p.in = in_.get(), p.out = out_.get();
    const size_t bytes = cuda::DeltaPrefillWorkspace(kQwen, p.rows, sequences);
    if (prefill && workspace_.size() < bytes) workspace_ = Buffer<std::byte>(bytes);
    p.workspace = workspace_.get(), p.workspace_bytes = workspace_.size();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    BENCH_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < layers_; ++i) {
      p.memory = {state_.get() + size_t(i) * slots_ * kQwen.state_size(),
                  ring_.get() + size_t(i) * slots_ * cuda::DeltaRingRows(kQwen, 8) *
                                    cuda::DeltaRingWidth(kQwen),
                  slots_, 8};
      Must((prefill ? cuda::LaunchDeltaPrefill : cuda::LaunchDeltaDecode)(p, stream_));
    }
    BENCH_CUDA(cudaStreamEndCapture(stream_, &graph));
    BENCH_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    const double us = MedianUs(exec, prefill ? 7 : 20, stream_) / layers_;
    BENCH_CUDA(cudaGraphExecDestroy(exec));
    BENCH_CUDA(cudaGraphDestroy(graph));
    return us;
  }

 private:
  const int layers_, slots_;
  const int64_t rows_;
  const DeltaLayer layer_;
  Buffer<float> state_;
  Buffer<Bf16> ring_, in_, out_;
  Buffer<DeltaSequence> sequences_;
  Buffer<std::byte> workspace_{0};
  cudaStream_t stream_;
};

int RunTimings(cudaStream_t stream) {
  {
    Timer warm(1, 1, 8192, stream);  // the clocks take their time
    for (int i = 0; i < 30; ++i) warm.Time(true, 1, 8192, 0, false);
  }
  const double state = double(kQwen.state_size()) * 4;
  const auto row = [&](const char* path, int sequences, int rows, int kept, bool tentative,
                       double us, double bytes) {
    const double floor = bytes / kReadBytesPerUs;
    std::printf(
        "{\"path\": \"%s\", \"sequences\": %d, \"rows\": %d, \"kept\": %d, \"tentative\": %d, "
        "\"us\": %.2f, \"bytes\": %.0f, \"floor_us\": %.2f, \"fraction\": %.3f}\n",
        path, sequences, rows, kept, int(tentative), us, bytes, floor, floor / us);
    std::fflush(stdout);
  };
  for (int sequences : {1, 2, 4, 8, 16, 32, 64}) {
    const Timer timer_sets(sequences < 16 ? 60 : 4, sequences, int64_t(sequences) * 8, stream);
    Timer& timer = const_cast<Timer&>(timer_sets);
    const auto decode = [&](int rows, int kept, bool tentative) {
      const double us = timer.Time(false, sequences, rows, kept, tentative);
      const bool writes = !tentative || kept > 0;
      const double io = rows * 2.0 * (kQwen.in_width() + kQwen.out_width());
      row("decode", sequences, rows, kept, tentative, us, sequences * (state * (1 + writes) + io));
    };
    decode(1, 0, false);
    decode(4, 0, true);
    decode(4, 2, true);
    decode(4, 4, true);
    if (sequences == 1) decode(2, 2, true), decode(8, 8, true), decode(8, 0, false);
  }
  for (int rows : {16, 64, 256, 1024, 2048, 8192}) {
    Timer timer(rows > 1000 ? 2 : 8, 1, rows, stream);
    const double io = rows * 2.0 * (kQwen.in_width() + kQwen.out_width());
    row("prefill", 1, rows, 0, false, timer.Time(true, 1, rows, 0, false), 2 * state + io);
  }
  for (int sequences : {4, 16}) {
    const int rows = 8192 / sequences;
    Timer timer(2, sequences, 8192, stream);
    const double io = 8192 * 2.0 * (kQwen.in_width() + kQwen.out_width());
    row("prefill", sequences, rows, 0, false, timer.Time(true, sequences, rows, 0, false),
        2 * state * sequences + io);
  }
  return 0;
}

int Main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  cudaStream_t stream;
  BENCH_CUDA(cudaStreamCreate(&stream));
  if (verb == "check") return RunChecks(false, stream) != 0;
  if (verb == "small") return RunChecks(true, stream) != 0;
  if (verb == "accuracy") return RunAccuracy(stream);
  if (verb == "time") return RunTimings(stream);
  if (verb == "profile") {
    Timer timer(1, 1, 8192, stream);
    std::printf("%.1f us\n", timer.Time(true, 1, 8192, 0, false));
    return 0;
  }
  std::printf("usage: cuda_delta_bench check | small | accuracy | time | profile\n");
  return 2;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
