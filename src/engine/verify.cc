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

struct Probe {
  int64_t rows = 0;
  int top_k = 1;
  std::vector<float> x;  // [rows, hidden]
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

/// Half of what calibration saw, where it saw something: input_scale = amax / 2688.
double AmplitudeOf(const PreparedExperts& e) {
  if (!e.quant.a1_gscale) return 1.0;
  const float largest_gscale =
      *std::max_element(e.quant.a1_gscale->begin(), e.quant.a1_gscale->end());
  return 0.5 * 2688.0 / largest_gscale;
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

void RoundRow(Measured precision, std::span<double> row, double gscale) {
  switch (precision) {
    case Measured::kBf16:
      for (double& v : row) v = RoundToBf16(static_cast<float>(v));
      return;
    case Measured::kFp8: {
      const double scale = AbsMax(row) / kE4m3Max;
      if (scale == 0) return;
      for (double& v : row) v = DecodeE4m3(EncodeE4m3(v / scale)) * scale;
      return;
    }
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
            QuantizeNvfp4Block<double>(std::span<const double, kNvfp4Group>(block), gscale);
        for (int i = 0; i < kNvfp4Group; ++i)
          block[i] = static_cast<double>(Nvfp4Product(q.codes[i], q.scale)) / gscale;
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
    double gscale = 2688.0 / std::max(AbsMax(row), std::numeric_limits<double>::min());
    if (declared.a1_gscale) {
      const int shard = declared.w13_shards == 2 ? projection : 0;
      gscale = projection == 2 ? (*declared.a2_gscale)[expert]
                               : (*declared.a1_gscale)[expert * declared.w13_shards + shard];
    }
    const size_t way = static_cast<size_t>(token % ways);
    RoundRow(projection == 2 ? SecondOf(way) : FirstOf(way), row, gscale);
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
  std::vector<LayerProof> proofs;
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    if (!weights.layers[i].is_moe) continue;
    const PreparedExperts& experts = weights.layers[i].experts;
    PreparedExperts truth = canonical.layers[i].experts;
    const MoeQuantConfig declared = truth.quant;
    truth.quant.a1_gscale.reset();
    truth.quant.a2_gscale.reset();

    PreparedExperts calibrated = experts;
    calibrated.quant =
        declared;  // the amplitude is the checkpoint's, whatever the kernel was given
    const Probe probe = MakeProbe(calibrated);
    NIBBLE_TRY(const std::vector<float> got, RunKernel(experts, probe, operators));
    std::array<double, kWays> distances;
    const std::vector<std::vector<float>> expected = Expected(truth, declared, probe, pool);
    for (size_t way = 0; way < kWays; ++way) distances[way] = RelativeL2(got, expected[way]);
    if (experts.backend == Backend::kReference)
      distances[0] = std::min(distances[0], RelativeL2(got, Unrounded(truth, probe)));

    const size_t nearest = std::min_element(distances.begin(), distances.end()) - distances.begin();
    double next = HUGE_VAL;
    for (size_t way = 0; way < kWays; ++way) {
      if (LowerOf(way) != LowerOf(nearest)) next = std::min(next, distances[way]);
    }
    LayerProof proof;
    proof.layer = static_cast<int>(i);
    proof.module = experts.name;
    proof.kernel = experts.kernel;
    proof.declared = plan.Find(experts.name).activation_precision();
    proof.first = FirstOf(nearest);
    proof.second = SecondOf(nearest);
    proof.measured = LowerOf(nearest);
    proof.distance = distances[nearest];
    proof.margin = next / std::max(proof.distance, 1e-9);
    proofs.push_back(proof);
    if (progress) progress(static_cast<int>(i) + 1, static_cast<int>(weights.layers.size()));
  }
  return proofs;
}

}  // namespace nibble::engine
