#include "engine/verify.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "engine/sampler.h"
#include "kernels/reference/reference.h"
#include "numerics/bf16.h"
#include "numerics/nvfp4.h"

namespace nibble::engine {
namespace {

constexpr int kMaxProbedExperts = 16;
constexpr std::array kPrecisions = {Measured::kBf16, Measured::kFp8, Measured::kInt8,
                                    Measured::kFp4};

/// What an activation scale of 1 reaches: 448 * 6.
constexpr double kNvfp4Amax = 2688;

struct Probe {
  int64_t rows = 0;
  int top_k = 1;
  std::vector<float> x;  // [rows, hidden]
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

/// Half of what calibration saw, where it saw something: an input_scale is amax / 2688 for FP4,
/// amax / 448 for FP8.
double AmplitudeOf(const PreparedExperts& e) {
  if (e.quant.a1_gscale) {
    return 0.5 * kNvfp4Amax /
           *std::max_element(e.quant.a1_gscale->begin(), e.quant.a1_gscale->end());
  }
  if (e.quant.a1_scale) {
    return 0.5 * kE4m3Max * *std::min_element(e.quant.a1_scale->begin(), e.quant.a1_scale->end());
  }
  return 1.0;
}

/// One row an expert, one expert a row: what an expert answers is not mixed with another's.
Probe MakeProbe(const PreparedExperts& e) {
  Probe p;
  p.rows = std::min<int64_t>(e.n_experts, kMaxProbedExperts);
  const double a = AmplitudeOf(e);
  p.x.resize(p.rows * e.hidden);
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t i = 0; i < e.hidden; ++i) {
      const int64_t block = i / kNvfp4Group, kind = (block + r) % 3;
      double v = kind == 2              ? 1.0625 * a
                 : i % kNvfp4Group == 0 ? a
                 : kind == 0            ? 0.03 * a
                                        : 0.003 * a;
      if (UniformAt(static_cast<uint64_t>(r) + 1, static_cast<uint64_t>(i)) < 0.5) v = -v;
      p.x[r * e.hidden + i] = RoundToBf16(static_cast<float>(v));
    }
    p.experts.push_back(static_cast<int32_t>(r * e.n_experts / p.rows));
    p.weights.push_back(1.0f);
  }
  return p;
}

double AbsMax(std::span<const double> x) {
  double amax = 0;
  for (double v : x) amax = std::max(amax, std::abs(v));
  return amax;
}

/// How a row would be held in the precisions that have scales.
struct RowScales {
  double gscale = 1;                 // FP4
  std::optional<double> fp8_static;  // FP8; nothing: by amax, over
  size_t fp8_group = 0;              // so many values, or, 0, over the row
};

RowScales ScalesOf(const MoeQuantConfig& declared, int expert, int projection,
                   std::span<const double> row) {
  const bool first = projection != 2;
  const size_t at = first ? static_cast<size_t>(expert * declared.w13_shards +
                                                (declared.w13_shards == 2 ? projection : 0))
                          : static_cast<size_t>(expert);
  RowScales scales;
  // Without a declared scale FP4 gets the one that calibration on the probe would give.
  scales.gscale = kNvfp4Amax / std::max(AbsMax(row), std::numeric_limits<double>::min());
  if (declared.a1_gscale) {
    scales.gscale = first ? (*declared.a1_gscale)[at] : (*declared.a2_gscale)[at];
  }
  if (declared.a1_scale) {
    scales.fp8_static = first ? (*declared.a1_scale)[at] : (*declared.a2_scale)[at];
    scales.gscale = kNvfp4Amax / (kE4m3Max * *scales.fp8_static);
  }
  const auto& activation = declared.scheme.activation;
  if (activation && activation->dtype == ScalarType::kF8E4M3 && activation->scale.group.col > 0) {
    scales.fp8_group = static_cast<size_t>(activation->scale.group.col);
  }
  return scales;
}

void RoundToFp8(const RowScales& scales, std::span<double> row) {
  const size_t group = scales.fp8_group == 0 ? row.size() : scales.fp8_group;
  for (size_t at = 0; at < row.size(); at += group) {
    const std::span<double> part = row.subspan(at, std::min(group, row.size() - at));
    const double scale = scales.fp8_static.value_or(AbsMax(part) / kE4m3Max);
    if (scale == 0) continue;
    for (double& v : part) v = DecodeE4m3(EncodeE4m3(v / scale)) * scale;
  }
}

void RoundRow(Measured precision, const RowScales& scales, std::span<double> row) {
  switch (precision) {
    case Measured::kBf16:
      for (double& v : row) v = RoundToBf16(static_cast<float>(v));
      return;
    case Measured::kFp8:
      return RoundToFp8(scales, row);
    case Measured::kInt8:
      for (size_t at = 0; at < row.size(); at += 32) {
        const std::span<double> block = row.subspan(at, std::min<size_t>(32, row.size() - at));
        const double scale = AbsMax(block) / 127;
        if (scale == 0) continue;
        for (double& v : block) v = std::nearbyint(v / scale) * scale;
      }
      return;
    case Measured::kFp4:
      for (size_t at = 0; at + kNvfp4Group <= row.size(); at += kNvfp4Group) {
        const std::span<double, kNvfp4Group> block(row.data() + at, kNvfp4Group);
        const Nvfp4Block q =
            QuantizeNvfp4Block<double>(std::span<const double, kNvfp4Group>(block), scales.gscale);
        for (int i = 0; i < kNvfp4Group; ++i)
          block[i] = static_cast<double>(Nvfp4Product(q.codes[i], q.scale)) / scales.gscale;
      }
      return;
  }
}

constexpr size_t kWays = kPrecisions.size() * kPrecisions.size();
Measured FirstOf(size_t way) { return kPrecisions[way / kPrecisions.size()]; }
Measured SecondOf(size_t way) { return kPrecisions[way % kPrecisions.size()]; }
Measured LowerOf(size_t way) { return std::max(FirstOf(way), SecondOf(way)); }

/// What the experts answer to the probe, for each way to hold the inputs of their two
/// multiplications. `canonical` holds the checkpoint's own tensors and no activation scale;
/// `declared` those that the label gives the kernel, if any. The ways run as tokens of their own,
/// so that a weight is decoded once for all.
std::vector<std::vector<float>> Expected(const PreparedExperts& canonical,
                                         const MoeQuantConfig& declared, const Probe& probe,
                                         ThreadPool& pool) {
  const int64_t ways = kWays, hidden = canonical.hidden, tokens = probe.rows * ways;
  std::vector<float> x, y(tokens * hidden);
  std::vector<int32_t> experts;
  for (int64_t r = 0; r < probe.rows; ++r) {
    for (int64_t way = 0; way < ways; ++way) {
      x.insert(x.end(), probe.x.begin() + r * hidden, probe.x.begin() + (r + 1) * hidden);
      experts.push_back(probe.experts[r]);
    }
  }
  kernels::reference::Context context;
  context.parallel = [&](int64_t n, const std::function<void(int64_t)>& unit) {
    pool.RunEach(n, [&](int64_t i, int) { unit(i); });
  };
  context.on_expert_input = [&](int expert, int projection, int64_t token, std::span<double> row) {
    const size_t way = static_cast<size_t>(token % ways);
    RoundRow(projection == 2 ? SecondOf(way) : FirstOf(way),
             ScalesOf(declared, expert, projection, row), row);
  };
  const std::vector<float> weights(tokens, 1.0f);
  kernels::reference::Experts(context, canonical, x.data(), tokens, experts.data(), weights.data(),
                              1, y.data());
  std::vector<std::vector<float>> out(kWays);
  for (int64_t t = 0; t < tokens; ++t) {
    out[t % ways].insert(out[t % ways].end(), y.begin() + t * hidden, y.begin() + (t + 1) * hidden);
  }
  return out;
}

/// REFERENCE keeps more than 16 bits, which W4A16 allows: what it answers without any rounding.
std::vector<float> Unrounded(const PreparedExperts& canonical, const Probe& probe) {
  kernels::reference::Context context;
  context.parallel = [](int64_t n, const std::function<void(int64_t)>& unit) {
    for (int64_t i = 0; i < n; ++i) unit(i);
  };
  std::vector<float> y(probe.rows * canonical.hidden);
  kernels::reference::Experts(context, canonical, probe.x.data(), probe.rows, probe.experts.data(),
                              probe.weights.data(), probe.top_k, y.data());
  return y;
}

Result<std::vector<float>> RunKernel(const PreparedExperts& experts, const Probe& probe,
                                     kernels::Operators& operators) {
  NIBBLE_TRY(const kernels::Matrix x, operators.Allocate(probe.rows, experts.hidden));
  NIBBLE_TRY(const kernels::Matrix y, operators.Allocate(probe.rows, experts.hidden));
  NIBBLE_TRY(const kernels::Routing routing, operators.AllocateRouting(probe.rows, probe.top_k));
  operators.WriteMatrix(probe.x, x);
  operators.WriteRouting(probe.experts, probe.weights, routing);
  operators.Experts(experts, x, routing, y);
  std::vector<float> out(probe.rows * experts.hidden, NAN);
  for (int64_t r = 0; r < probe.rows; ++r) {
    operators.ReadRow(y, r, std::span(out).subspan(r * experts.hidden, experts.hidden));
  }
  NIBBLE_CHECK_OK(operators.Finish());
  return out;
}

double RelativeL2(std::span<const float> a, std::span<const float> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  const double relative = std::sqrt(difference / norm);
  return std::isnan(relative) ? HUGE_VAL : relative;
}

/// One layer's experts: as the operators run them, and as the checkpoint holds them.
struct Subject {
  int layer = 0;
  const PreparedExperts* built = nullptr;
  const PreparedExperts* canonical = nullptr;
};

/// Of the model's layers and, behind them, of the MTP module that drafts.
std::vector<Subject> SubjectsOf(const weights::ModelWeights& built,
                                const weights::ModelWeights& canonical) {
  std::vector<Subject> out;
  const auto add = [&](int layer, const weights::LayerWeights& b, const weights::LayerWeights& c) {
    if (b.is_moe) out.push_back({layer, &b.experts, &c.experts});
  };
  const int layers = static_cast<int>(built.layers.size());
  for (int i = 0; i < layers; ++i) add(i, built.layers[i], canonical.layers[i]);
  if (built.mtp) add(layers, built.mtp->layer, canonical.mtp->layer);
  return out;
}

/// The distance of what the kernel answers to what each way would answer.
Result<std::array<double, kWays>> Distances(const Subject& subject, kernels::Operators& operators,
                                            ThreadPool& pool) {
  const MoeQuantConfig& declared = subject.canonical->quant;
  PreparedExperts truth = *subject.canonical;
  truth.quant.scheme.activation.reset();
  for (auto* scales : {&truth.quant.a1_gscale, &truth.quant.a2_gscale, &truth.quant.a1_scale,
                       &truth.quant.a2_scale}) {
    scales->reset();
  }
  // The amplitude is the checkpoint's, whatever the kernel was given.
  const Probe probe = MakeProbe(*subject.canonical);
  NIBBLE_TRY(const std::vector<float> got, RunKernel(*subject.built, probe, operators));
  const std::vector<std::vector<float>> expected = Expected(truth, declared, probe, pool);
  std::array<double, kWays> distances;
  for (size_t way = 0; way < kWays; ++way) distances[way] = RelativeL2(got, expected[way]);
  if (subject.built->backend == Backend::kReference) {
    distances[0] = std::min(distances[0], RelativeL2(got, Unrounded(truth, probe)));
  }
  return distances;
}

LayerProof Judge(const Subject& subject, const std::array<double, kWays>& distances) {
  const size_t nearest = std::min_element(distances.begin(), distances.end()) - distances.begin();
  double next = HUGE_VAL;
  for (size_t way = 0; way < kWays; ++way) {
    if (LowerOf(way) != LowerOf(nearest)) next = std::min(next, distances[way]);
  }
  LayerProof proof;
  proof.layer = subject.layer;
  proof.module = subject.built->name;
  proof.kernel = subject.built->kernel;
  proof.first = FirstOf(nearest);
  proof.second = SecondOf(nearest);
  proof.measured = LowerOf(nearest);
  proof.distance = distances[nearest];
  proof.margin = next / std::max(proof.distance, 1e-9);
  return proof;
}

}  // namespace

std::string_view NameOf(Measured precision) {
  switch (precision) {
    case Measured::kBf16:
      return "bf16";
    case Measured::kFp8:
      return "fp8";
    case Measured::kInt8:
      return "int8";
    case Measured::kFp4:
      return "fp4";
  }
  return "?";
}

bool LayerProof::agrees() const { return nibble::NameOf(declared) == NameOf(measured); }

Result<std::vector<LayerProof>> VerifyExperts(const checkpoint::Checkpoint& checkpoint,
                                              const plan::Plan& plan,
                                              const weights::ModelWeights& weights,
                                              kernels::Operators& operators, ThreadPool& pool,
                                              const std::function<void(int, int)>& progress) {
  NIBBLE_TRY(const weights::ModelWeights canonical, weights::CheckWeights(checkpoint, plan));
  const std::vector<Subject> subjects = SubjectsOf(weights, canonical);
  std::vector<LayerProof> proofs;
  for (const Subject& subject : subjects) {
    NIBBLE_TRY(const auto distances, Distances(subject, operators, pool));
    proofs.push_back(Judge(subject, distances));
    proofs.back().declared = plan.Find(subject.built->name).activation_precision();
    if (progress) progress(static_cast<int>(proofs.size()), static_cast<int>(subjects.size()));
  }
  return proofs;
}

}  // namespace nibble::engine
