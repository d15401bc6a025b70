#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <set>

#include "checkpoint/test_shard.h"
#include "kernels/cpu/isa.h"
#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "rig.h"
#include "synth/synthesize.h"
#include "synth/write_checkpoint.h"

// A mixed checkpoint against its dequantized twin: sixteen-bit weights that hold exactly what the
// quantized ones mean, and linears that quantize their inputs to FP8 where the config declares it.
// Nothing of scheme/ or weights/ makes the twin, and its multiplications are the test's own.

namespace nibble {
namespace {

using checkpoint::CheckpointParts;
using checkpoint::DType;
using checkpoint::TensorInfo;
using golden::Rig;

/// The checkpoint with every global scale rounded to a power of two, so that dequantized weights
/// are bf16 numbers; its twin; and the inputs that the label quantizes.
class Twins {
 public:
  explicit Twins(CheckpointParts parts) : quantized_(std::move(parts)) {
    for (TensorInfo& t : quantized_.tensors) {
      if (IsScalar(t)) RoundToPowerOfTwo(&t);
    }
    twin_ = quantized_;
    twin_.tensors.clear();
    std::erase_if(twin_.config.object(),
                  [](const auto& member) { return member.first == "quantization_config"; });
    twin_.hf_quant_config.reset();
    for (const TensorInfo& t : quantized_.tensors) Dequantize(t);
  }

  const CheckpointParts& quantized() const { return quantized_; }
  const CheckpointParts& twin() const { return twin_; }
  /// By module: the scale of its FP8 input.
  const std::map<std::string, double>& fp8_inputs() const { return fp8_inputs_; }

 private:
  static bool IsScalar(const TensorInfo& t) {
    return t.data.size() <= 4 && t.name.find("scale") != std::string::npos;
  }
  static double Value(const TensorInfo& t) {
    if (t.dtype == DType::kBf16) return LoadBf16(t.data.data());
    float value = 0;
    std::memcpy(&value, t.data.data(), 4);
    return value;
  }
  const TensorInfo* Find(const std::string& name) const {
    for (const TensorInfo& t : quantized_.tensors) {
      if (t.name == name) return &t;
    }
    return nullptr;
  }

  void RoundToPowerOfTwo(TensorInfo* t) {
    const auto value = static_cast<float>(std::exp2(std::round(std::log2(Value(*t)))));
    std::vector<std::byte>& bytes = storage_.emplace_back(t->data.size());
    const uint16_t half = ToBf16(value).bits;
    if (t->dtype == DType::kBf16)
      std::memcpy(bytes.data(), &half, 2);
    else
      std::memcpy(bytes.data(), &value, 4);
    t->data = bytes;
  }

  void AddTwin(const std::string& name, uint64_t n, uint64_t k, const auto& weight) {
    std::vector<std::byte>& bytes = storage_.emplace_back(2 * n * k);
    for (uint64_t i = 0; i < n * k; ++i) {
      const double value = weight(i);
      const Bf16 bf16 = ToBf16(static_cast<float>(value));
      NIBBLE_CHECK(static_cast<double>(ToFloat(bf16)) == value, "a weight that bf16 cannot hold");
      std::memcpy(bytes.data() + 2 * i, &bf16.bits, 2);
    }
    TensorInfo twin;
    twin.name = name + ".weight";
    twin.dtype = DType::kBf16;
    twin.shape = {n, k};
    twin.data = bytes;
    twin_.tensors.push_back(std::move(twin));
  }

  void Dequantize(const TensorInfo& t) {
    const auto code = [&](uint64_t i) { return std::to_integer<unsigned>(t.data[i]); };
    const std::string module = t.name.substr(0, t.name.rfind('.'));
    if (t.dtype == DType::kU8) {
      const TensorInfo* scales = Find(module + ".weight_scale");
      const TensorInfo* multiplies = Find(module + ".weight_scale_2");
      const double global =
          multiplies ? Value(*multiplies) : 1 / Value(*Find(module + ".weight_global_scale"));
      const uint64_t k = 2 * t.shape[1];
      AddTwin(module, t.shape[0], k, [&](uint64_t i) {
        const unsigned e2m1 = (code(i / 2) >> (i % 2 * 4)) & 15;  // low nibble first
        const auto scale = std::to_integer<uint8_t>(scales->data[i / 16]);
        return static_cast<double>(DecodeE2m1(e2m1)) * kE4m3[scale] * global;
      });
    } else if (t.dtype == DType::kF8E4m3 && t.name.ends_with(".weight")) {
      const double scale = Value(*Find(module + ".weight_scale"));
      AddTwin(module, t.shape[0], t.shape[1],
              [&](uint64_t i) { return static_cast<double>(kE4m3[code(i)]) * scale; });
      fp8_inputs_[module] = Value(*Find(module + ".input_scale"));
    } else if (t.name.find("_scale") == std::string::npos) {
      twin_.tensors.push_back(t);
    }
  }

  CheckpointParts quantized_, twin_;
  std::map<std::string, double> fp8_inputs_;
  std::deque<std::vector<std::byte>> storage_;
};

/// Multiplications in double of 16-bit weights, with inputs rounded as FP8 has them.
class Fp8InputOperators : public kernels::HostOperators {
 public:
  Fp8InputOperators(Backend glue, CpuIsa isa, ThreadPool& pool,
                    const std::map<std::string, double>& inputs)
      : HostOperators(glue, isa, pool), inputs_(inputs) {}

  void Linear(const PreparedLinear& linear, kernels::Matrix x, kernels::Matrix y) override {
    int64_t column = 0;
    for (const PreparedLinearShard& shard : linear.shards) {
      for (int64_t t = 0; t < x.rows; ++t) {
        const std::vector<double> in = Input(std::string(shard.name), Row(x, t), x.cols);
        Multiply(shard.weight, in, Row(y, t) + column);
      }
      column += shard.n;
    }
  }

  void Experts(const PreparedExperts& e, kernels::Matrix x, const kernels::Routing& routing,
               kernels::Matrix y) override {
    const size_t width = static_cast<size_t>(e.intermediate);
    for (int64_t t = 0; t < x.rows; ++t) {
      std::vector<double> sum(static_cast<size_t>(y.cols));
      for (int k = 0; k < routing.top_k; ++k) {
        const int32_t id = routing.experts[t * routing.top_k + k];
        const std::string name = fmt::format("{}.{}.", e.name, id);
        std::vector<double> gate(width), up(width), out(sum.size());
        Multiply(e.gate[id], Input(name + "gate_proj", Row(x, t), x.cols), gate.data());
        Multiply(e.up[id], Input(name + "up_proj", Row(x, t), x.cols), up.data());
        for (size_t i = 0; i < width; ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        Multiply(e.down[id], Input(name + "down_proj", gate.data(), e.intermediate), out.data());
        const double weight = routing.weights[t * routing.top_k + k];
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * out[i];
      }
      for (size_t i = 0; i < sum.size(); ++i) Row(y, t)[i] = static_cast<float>(sum[i]);
    }
  }

 private:
  static float* Row(kernels::Matrix m, int64_t row) {
    return static_cast<float*>(m.data) + row * m.cols;
  }

  std::vector<double> Input(const std::string& module, const auto* x, int64_t k) const {
    std::vector<double> in(x, x + k);
    const auto found = inputs_.find(module);
    if (found == inputs_.end()) return in;
    for (double& v : in) v = kE4m3[EncodeE4m3(v / found->second)] * found->second;
    return in;
  }

  static void Multiply(const PreparedWeight& weight, const std::vector<double>& x, auto* out) {
    const auto& w = std::get<CanonicalBf16>(std::get<CanonicalWeight>(weight));
    for (int64_t n = 0; n < w.n; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < w.k; ++k)
        sum +=
            static_cast<double>(LoadBf16(w.data + 2 * (n * w.k + k))) * x[static_cast<size_t>(k)];
      out[n] = static_cast<std::remove_reference_t<decltype(*out)>>(sum);
    }
  }

  const std::map<std::string, double>& inputs_;
};

void ExpectTwins(const std::string& name, SourceFormat format, size_t fp8_modules) {
  synth::Options options;
  options.format = format;
  auto parts =
      synth::Synthesize(std::string(NIBBLE_SOURCE_DIR) + "/models/configs/" + name, options);
  ASSERT_TRUE(parts.ok()) << parts.error().Message();
  const Twins twins(*std::move(parts));
  EXPECT_EQ(twins.fp8_inputs().size(), fp8_modules);
  const checkpoint::TestDir dir;
  ASSERT_TRUE(synth::WriteCheckpoint(twins.quantized(), dir.path() + "/quantized").ok());
  ASSERT_TRUE(synth::WriteCheckpoint(twins.twin(), dir.path() + "/twin").ok());
  plan::Wishes wishes = golden::Reference64();
  wishes.kv_dtype = KvDtype::kBf16;  // the twin's config has no word for the other's FP8
  const auto quantized = Rig::Open(dir.path() + "/quantized", wishes, CpuIsa::kScalar);
  ASSERT_TRUE(quantized.ok()) << quantized.error().Message();
  const auto twin = Rig::Open(
      dir.path() + "/twin", wishes, CpuIsa::kScalar, [&](Backend glue, CpuIsa isa, ThreadPool& p) {
        return std::make_unique<Fp8InputOperators>(glue, isa, p, twins.fp8_inputs());
      });
  ASSERT_TRUE(twin.ok()) << twin.error().Message();
  const std::vector<int32_t> ids = {1, 500, 77, 1000, 3, 42, 999, 600};
  const auto a = (*quantized)->Logits(ids, 0), b = (*twin)->Logits(ids, 0);
  ASSERT_EQ(a.size(), ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    // Both sum in double and store activations in float32: equal up to the last bits of those,
    // unless an FP8 code or an expert differed, which would be a thousand times as much.
    EXPECT_LT(golden::RelativeL2(a[i], b[i]), 2e-6) << name << " position " << i;
  }
}

// Of the mini recipe's four layers three are DeltaNet (3 FP8 linears), one attention (4); the
// variant's layers 0 and 3 have 16 experts of 3 FP8 linears besides.
TEST(SynthTwin, ModeloptRecipe) { ExpectTwins("qwen3.6-mini", SourceFormat::kModelopt, 13); }
TEST(SynthTwin, CompressedTensorsRecipe) {
  ExpectTwins("qwen3.6-mini", SourceFormat::kCompressedTensors, 13);
}
TEST(SynthTwin, ModeloptFp8Experts) {
  ExpectTwins("qwen3.6-mini-fp8-experts", SourceFormat::kModelopt, 13 + 2 * 48);
}
TEST(SynthTwin, CompressedTensorsFp8Experts) {
  ExpectTwins("qwen3.6-mini-fp8-experts", SourceFormat::kCompressedTensors, 13 + 2 * 48);
}

}  // namespace
}  // namespace nibble
