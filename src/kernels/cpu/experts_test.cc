#include "kernels/cpu/experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/test_support.h"

namespace nibble::kernels::cpu {
namespace {

struct Layer {
  Activation activation = Activation::kSilu;
  int64_t hidden = 0, intermediate = 0;
  std::vector<TestMatrix> gate, up, down;
  MoeQuantConfig quant;

  bool gated() const { return !gate.empty(); }
  int shards() const { return gated() ? 2 : 1; }
  int64_t experts() const { return static_cast<int64_t>(up.size()); }
  TestForm a1(int64_t e, int shard) const {
    return Form(quant.a1_gscale, quant.a1_scale, e * shards() + shard);
  }
  TestForm a2(int64_t e) const { return Form(quant.a2_gscale, quant.a2_scale, e); }

  TestForm Form(const std::optional<std::vector<float>>& gscale,
                const std::optional<std::vector<float>>& scale, int64_t index) const {
    if (gscale) return {kNvfp4Dynamic, (*gscale)[index]};
    return {quant.scheme.activation, scale ? (*scale)[index] : 0};
  }
};

struct Batch {
  int64_t tokens = 0;
  int top_k = 1;
  std::vector<float> x, weights;
  std::vector<int32_t> ids;
};

enum class Scales {
  kNone,
  kShared,
  kOwn
};  // of activations: W4A16; W4A4 with one for all, or one a projection and expert

Layer RandomLayer(Random& random, Activation activation, TileFormat format, int64_t experts,
                  int64_t hidden, int64_t intermediate, Scales scales) {
  Layer layer;
  layer.activation = activation;
  layer.hidden = hidden;
  layer.intermediate = intermediate;
  const bool gated = activation != Activation::kRelu2NoMul;
  std::uniform_real_distribution<float> ratio(-1, 1);  // of w1's global to w3's: 0.1 .. 10
  if (scales != Scales::kNone) {
    layer.quant.a1_gscale.emplace();
    layer.quant.a2_gscale.emplace();
  }
  for (int64_t e = 0; e < experts; ++e) {
    const float up_global = 0.004f, gate_global = up_global * std::pow(10.0f, ratio(random));
    const float down_global = e % 2 ? 2e-5f : 0.01f;
    if (gated) {
      layer.gate.push_back(RandomMatrix(random, format, intermediate, hidden, gate_global));
      layer.quant.g1_alphas.push_back(gate_global);
    }
    layer.up.push_back(RandomMatrix(random, format, intermediate, hidden, up_global));
    layer.quant.g1_alphas.push_back(up_global);
    layer.down.push_back(RandomMatrix(random, format, hidden, intermediate, down_global));
    layer.quant.g2_alphas.push_back(down_global);
    if (scales == Scales::kNone) continue;
    for (int s = 0; s < (gated ? 2 : 1); ++s) {
      // Gate and up share a scale in every third expert: that row is packed once.
      const float own =
          s == 1 && e % 3 == 0 ? layer.quant.a1_gscale->back() : 200 * (1.1f + ratio(random));
      layer.quant.a1_gscale->push_back(scales == Scales::kShared ? 250.0f : own);
    }
    layer.quant.a2_gscale->push_back(300 * (1.1f + ratio(random)));
  }
  layer.quant.w13_shards = gated ? 2 : 1;
  return layer;
}

/// FP8 experts of any pair; static activation scales own to each expert and projection, or shared.
Layer RandomFp8Layer(Random& random, const QuantScheme& scheme, int64_t experts, int64_t hidden,
                     int64_t intermediate, bool shared) {
  Layer layer;
  layer.hidden = hidden;
  layer.intermediate = intermediate;
  layer.quant.scheme = scheme;
  const bool is_static = scheme.activation && scheme.activation->scale.is_static;
  if (is_static) {
    layer.quant.a1_scale.emplace();
    layer.quant.a2_scale.emplace();
  }
  std::uniform_real_distribution<float> factor(0.3f, 3);
  for (int64_t e = 0; e < experts; ++e) {
    for (auto* list : {&layer.gate, &layer.up}) {
      list->push_back(
          RandomFp8(random, *scheme.weight, intermediate, hidden, 0.002f * factor(random)));
      layer.quant.g1_alphas.push_back(list->back().global);
      if (is_static) layer.quant.a1_scale->push_back(shared ? 0.01f : 0.007f * factor(random));
    }
    layer.down.push_back(
        RandomFp8(random, *scheme.weight, hidden, intermediate, 0.003f * factor(random)));
    layer.quant.g2_alphas.push_back(layer.down.back().global);
    if (is_static) layer.quant.a2_scale->push_back(0.01f * factor(random));
  }
  return layer;
}

/// Each token has experts that differ.
Batch RandomBatch(Random& random, int64_t tokens, int64_t experts, int top_k, int64_t hidden) {
  Batch b{tokens, top_k, RandomFloats(random, tokens * hidden), {}, {}};
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> all;
    for (int32_t e = 0; e < experts; ++e) all.push_back(e);
    std::shuffle(all.begin(), all.end(), random);
    for (int j = 0; j < top_k; ++j) {
      b.ids.push_back(all[j]);
      b.weights.push_back(static_cast<float>(random() % 1000) / 700 - 0.2f);
    }
  }
  return b;
}

std::vector<float> RunExperts(const Layer& layer, const Batch& b, CpuIsa isa, int threads,
                              Scratch& scratch, bool mapped = false) {
  const auto view = [mapped](const TestMatrix& m) { return mapped ? m.mapped_view() : m.view(); };
  PreparedExperts prepared;
  prepared.activation = layer.activation;
  prepared.n_experts = layer.experts();
  prepared.hidden = layer.hidden;
  prepared.intermediate = layer.intermediate;
  for (const TestMatrix& m : layer.gate) prepared.gate.push_back(view(m));
  for (const TestMatrix& m : layer.up) prepared.up.push_back(view(m));
  for (const TestMatrix& m : layer.down) prepared.down.push_back(view(m));
  prepared.quant = layer.quant;
  ThreadPool pool(threads);
  std::vector<float> y(b.tokens * layer.hidden, std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(Experts(KernelsFor(isa), pool, scratch, prepared, b.x.data(), b.tokens, b.ids.data(),
                      b.weights.data(), b.top_k, y.data()));
  return y;
}

double Sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

/// The activation function of two accumulators and how far their errors and its own can move it.
Truth ActivationFunctionTruth(const Layer& layer, Truth gate, Truth up) {
  const MoeQuantConfig& q = layer.quant;
  const double limit = q.clamp_limit ? *q.clamp_limit : std::numeric_limits<double>::infinity();
  const double u = std::clamp(up.value, -limit, limit);
  if (!layer.gated()) {
    const double value = u > 0 ? u * u : 0;
    const double worst = std::abs(u) + up.bound;
    return {value, worst * worst - u * u + 4 * kEpsilon * value + 1e-37};
  }
  const bool oai = layer.activation != Activation::kSilu;
  const double alpha = oai ? q.alpha.value_or(1) : 1, beta = oai ? q.beta.value_or(0) : 0;
  const double g = std::min(gate.value, limit);
  const double glu = g * Sigmoid(alpha * g);
  Truth h;
  h.value = (u + beta) * glu;
  // g sigmoid(alpha g) has no slope beyond 1.1.
  h.bound = 1.1 * gate.bound * (std::abs(u + beta) + up.bound) + std::abs(glu) * up.bound +
            (16 + std::abs(alpha * g)) * kEpsilon * (std::abs(u) + std::abs(beta)) * std::abs(glu) +
            1e-36;
  return h;
}

/// PackedHTruth of FP8: a magnitude and its scale each lie in an interval, so the code's value does.
void PackedFp8Truth(const std::vector<Truth>& h, const TestForm& a2, std::vector<double>* value,
                    std::vector<double>* slack) {
  const int64_t k = static_cast<int64_t>(h.size());
  std::vector<float> nominal, grown, shrunk;
  for (const Truth& t : h) {
    nominal.push_back(static_cast<float>(t.value));
    grown.push_back(static_cast<float>((std::abs(t.value) + t.bound) * (1 + 2 * kEpsilon)));
    shrunk.push_back(static_cast<float>((std::abs(t.value) - t.bound) * (1 - 2 * kEpsilon)));
    if (shrunk.back() < 0) shrunk.back() = 0;
  }
  *value = ActivationTruth(nominal.data(), k, a2);
  slack->assign(k, 0);
  for (int64_t i = 0; i < k; ++i) {
    const double most = Fp8ScaleOf(a2, grown.data(), k, i);
    const double least = Fp8ScaleOf(a2, shrunk.data(), k, i);
    const double high = DecodeE4m3(QuantizeFp8(grown[i] / least, 1.0)) * most;
    const double low = shrunk[i] == 0 ? -high  // its sign is not known
                                      : DecodeE4m3(QuantizeFp8(shrunk[i] / most, 1.0)) * least;
    const double magnitude = std::abs((*value)[i]);
    (*slack)[i] = std::max(high - magnitude, magnitude - low);
  }
}

/// What Down multiplies, and how far each element may be off because h was: where h's uncertainty
/// spans a border of the 16- or 4-bit format, by the distance across it.
void PackedHTruth(const std::vector<Truth>& h, const TestForm& a2, std::vector<double>* value,
                  std::vector<double>* slack) {
  if (a2.key && a2.key->dtype == ScalarType::kF8E4M3) return PackedFp8Truth(h, a2, value, slack);
  std::vector<float> nominal, grown, shrunk;
  for (const Truth& t : h) {
    const double sign = t.value < 0 ? -1 : 1, magnitude = std::abs(t.value);
    nominal.push_back(static_cast<float>(t.value));
    grown.push_back(static_cast<float>(sign * (magnitude + t.bound) * (1 + kEpsilon)));
    shrunk.push_back(static_cast<float>(sign * (magnitude - t.bound) * (1 - kEpsilon)));
  }
  const int64_t k = static_cast<int64_t>(h.size());
  *value = ActivationTruth(nominal.data(), k, a2);
  const auto high = ActivationTruth(grown.data(), k, a2);
  const auto low = ActivationTruth(shrunk.data(), k, a2);
  slack->assign(k, 0);
  for (int64_t i = 0; i < k; ++i) {
    (*slack)[i] = std::max(std::abs(high[i] - (*value)[i]), std::abs(low[i] - (*value)[i]));
  }
  if (!a2.key) return;
  for (int64_t b = 0; b < k;
       b += 16) {  // where the block's scale itself may be another, any code may be
    const auto scale = [&](const std::vector<float>& v) {
      return QuantizeNvfp4Block<float>(std::span<const float, 16>(v.data() + b, 16), a2.scale)
          .scale;
    };
    if (scale(grown) == scale(shrunk)) continue;
    for (int64_t i = b; i < b + 16; ++i) (*slack)[i] += 2 * DecodeE4m3(scale(grown)) / a2.scale;
  }
}

std::vector<Truth> ExpertTruth(const Layer& layer, int64_t e, const float* x) {
  const auto x_up = ActivationTruth(x, layer.hidden, layer.a1(e, layer.shards() - 1));
  const auto x_gate = ActivationTruth(x, layer.hidden, layer.a1(e, 0));
  std::vector<Truth> h;
  for (int64_t i = 0; i < layer.intermediate; ++i) {
    const Truth up = DotTruth(layer.up[e], i, x_up);
    const Truth gate = layer.gated() ? DotTruth(layer.gate[e], i, x_gate) : Truth{};
    h.push_back(ActivationFunctionTruth(layer, gate, up));
  }
  std::vector<double> value, slack;
  PackedHTruth(h, layer.a2(e), &value, &slack);
  std::vector<Truth> y;
  for (int64_t r = 0; r < layer.hidden; ++r) y.push_back(DotTruth(layer.down[e], r, value, slack));
  return y;
}

void ExpectTruth(const Layer& layer, const Batch& b, const std::vector<float>& y) {
  for (int64_t t = 0; t < b.tokens; ++t) {
    std::vector<Truth> sum(layer.hidden);
    for (int j = 0; j < b.top_k; ++j) {
      const auto part = ExpertTruth(layer, b.ids[t * b.top_k + j], b.x.data() + t * layer.hidden);
      const double w = b.weights[t * b.top_k + j];
      for (int64_t r = 0; r < layer.hidden; ++r) {
        sum[r].value += w * part[r].value;
        sum[r].bound += std::abs(w) * (part[r].bound + 8 * kEpsilon * std::abs(part[r].value));
      }
    }
    for (int64_t r = 0; r < layer.hidden; ++r) {
      ASSERT_NEAR(y[t * layer.hidden + r], sum[r].value, sum[r].bound + 1e-36)
          << "token " << t << "/" << b.tokens << " row " << r << " H " << layer.hidden << " I "
          << layer.intermediate << " K " << b.top_k << " E " << layer.experts();
    }
  }
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class ExpertsTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void ExpectAll(const Layer& layer, const Batch& b) {
    Scratch scratch;
    (void)RunExperts(layer, b, GetParam(), 1, scratch);  // one thread or seven needs most scratch:
    const auto y = RunExperts(layer, b, GetParam(), 7, scratch);  // it does not grow below
    ExpectTruth(layer, b, y);
    if (HasFatalFailure()) return;
    for (int threads : {1, 2, 3, 7}) {
      std::memset(scratch.bytes().data(), 0xFF, scratch.bytes().size());
      EXPECT_TRUE(SameBits(RunExperts(layer, b, GetParam(), threads, scratch), y)) << threads;
    }
    Scratch other;
    EXPECT_TRUE(SameBits(RunExperts(layer, b, GetParam(), 2, other, true), y)) << "mapped";
  }
};

TEST_P(ExpertsTest, RandomShapesInEveryPrecisionAreWithinTheirBounds) {
  Random random(21);
  for (int round = 0; round < 24; ++round) {
    const int64_t experts = 1 + random() % 9;
    const int top_k = static_cast<int>(1 + random() % std::min<int64_t>(4, experts));
    const int64_t tokens = round % 4 == 0 ? 1 + random() % 40 : 1 + random() % 6;
    const int64_t hidden = 16 * (1 + random() % 8), intermediate = 16 * (1 + random() % 8);
    const Scales scales = static_cast<Scales>(round % 3);
    const Layer layer = RandomLayer(random, Activation::kSilu, TileFormat::kNvfp4, experts, hidden,
                                    intermediate, scales);
    SCOPED_TRACE(round);
    ExpectAll(layer, RandomBatch(random, tokens, experts, top_k, hidden));
    if (HasFatalFailure()) return;
  }
}

TEST_P(ExpertsTest, EveryFp8PairIsWithinItsBounds) {
  Random random(26);
  for (const QuantScheme& scheme : kFp8Schemes) {
    for (const bool shared : {false, true}) {
      const int64_t experts = 2 + random() % 6;
      const int64_t tokens = shared ? 1 + random() % 30 : 1 + random() % 6;
      const int64_t hidden = 16 * (1 + random() % 12), intermediate = 16 * (1 + random() % 12);
      const Layer layer = RandomFp8Layer(random, scheme, experts, hidden, intermediate, shared);
      SCOPED_TRACE(PairName(scheme));
      ExpectAll(layer, RandomBatch(random, tokens, experts, 2, hidden));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(ExpertsTest, AllTokensToOneFp8ExpertAndTheOthersEmpty) {
  Random random(27);
  for (const QuantScheme& scheme :
       {kFp8Schemes[0], QuantScheme{kFp8StaticBlock128, kFp8Dynamic128}}) {
    for (int64_t tokens : {1, 5, 17}) {
      const Layer layer = RandomFp8Layer(random, scheme, 5, 144, 176, false);
      Batch b = RandomBatch(random, tokens, 5, 1, 144);
      std::fill(b.ids.begin(), b.ids.end(), 3);
      ExpectAll(layer, b);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(ExpertsTest, AllTokensToOneExpertAndTheOthersEmpty) {
  Random random(22);
  for (int64_t tokens : {1, 4, 5, 33}) {
    const Layer layer =
        RandomLayer(random, Activation::kSilu, TileFormat::kNvfp4, 9, 80, 112, Scales::kNone);
    Batch b = RandomBatch(random, tokens, 9, 1, 80);
    std::fill(b.ids.begin(), b.ids.end(), 7);
    ExpectAll(layer, b);
  }
}

TEST_P(ExpertsTest, EveryActivationFunction) {
  Random random(23);
  for (Activation activation : {Activation::kSilu, Activation::kSwigluOai,
                                Activation::kSwigluOaiUninterleave, Activation::kRelu2NoMul}) {
    for (Scales scales : {Scales::kNone, Scales::kOwn}) {
      Layer layer = RandomLayer(random, activation, TileFormat::kNvfp4, 3, 48, 80, scales);
      const Batch b = RandomBatch(random, 9, 3, 2, 48);
      SCOPED_TRACE(NameOf(activation));
      ExpectAll(layer, b);
      layer.quant.clamp_limit = 0.3f;
      layer.quant.alpha = 1.702f;
      layer.quant.beta = 1.0f;
      ExpectAll(layer, b);
    }
  }
}

TEST_P(ExpertsTest, SixteenBitExperts) {
  Random random(24);
  Layer layer = RandomLayer(random, Activation::kSilu, TileFormat::kBf16, 4, 64, 48, Scales::kNone);
  ExpectAll(layer, RandomBatch(random, 3, 4, 2, 64));
  ExpectAll(layer, RandomBatch(random, 30, 4, 2, 64));
}

TEST_P(ExpertsTest, ANanTokenDoesNotReachTheOthers) {
  Random random(25);
  const Layer layer =
      RandomLayer(random, Activation::kSilu, TileFormat::kNvfp4, 2, 32, 32, Scales::kNone);
  Batch b = RandomBatch(random, 12, 2, 2, 32);
  b.x[5 * 32 + 3] = std::numeric_limits<float>::quiet_NaN();
  Scratch scratch;
  const auto y = RunExperts(layer, b, GetParam(), 2, scratch);
  for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 32 == 5) << i;
}

TEST_P(ExpertsTest, MappedWeightsWithANanCodeAreRefused) {
  Random random(33);
  for (const int projection : {0, 1, 2}) {
    for (const int64_t tokens : {1, 20}) {
      Layer layer = RandomFp8Layer(random, kFp8Schemes[0], 4, 64, 48, true);
      TestMatrix& m = (projection == 0 ? layer.gate : projection == 1 ? layer.up : layer.down)[2];
      m.codes[random() % m.codes.size()] = 0x7F;
      WriteFileRows(m);
      PreparedExperts prepared;
      prepared.name = "layer.experts";
      prepared.n_experts = layer.experts();
      prepared.hidden = layer.hidden;
      prepared.intermediate = layer.intermediate;
      for (const TestMatrix& w : layer.gate) prepared.gate.push_back(w.mapped_view());
      for (const TestMatrix& w : layer.up) prepared.up.push_back(w.mapped_view());
      for (const TestMatrix& w : layer.down) prepared.down.push_back(w.mapped_view());
      prepared.quant = layer.quant;
      Batch b = RandomBatch(random, tokens, layer.experts(), 1, layer.hidden);
      const auto run = [&] {
        ThreadPool pool(2);
        Scratch scratch;
        std::vector<float> y(tokens * layer.hidden);
        return Experts(KernelsFor(GetParam()), pool, scratch, prepared, b.x.data(), tokens,
                       b.ids.data(), b.weights.data(), 1, y.data());
      };
      std::fill(b.ids.begin(), b.ids.end(), 1);
      EXPECT_TRUE(run());  // what is not used is not read
      b.ids.back() = 2;
      const auto done = run();
      ASSERT_FALSE(done) << projection;
      EXPECT_EQ(done.error().code, ErrorCode::kCorruptFile);
      EXPECT_NE(done.error().Message().find("layer.experts.2"), std::string::npos);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, ExpertsTest, testing::ValuesIn(IsasOfThisMachine()), IsaTestName);

}  // namespace
}  // namespace nibble::kernels::cpu
