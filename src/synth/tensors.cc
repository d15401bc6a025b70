#include "synth/tensors.h"

#include <cmath>
#include <utility>

#include "base/checked.h"
#include "numerics/bf16.h"

namespace nibble::synth {
namespace {

using checkpoint::DType;
using checkpoint::ModuleKind;
using checkpoint::ModuleSpec;

using Shape = std::vector<uint64_t>;

constexpr float kVectorSpread = 0.0625f;  // of norms and biases
constexpr float kEmbeddingSpread = 0.5f;
constexpr float kLargestActivation = 8;  // what calibration is said to have seen
constexpr float kNvfp4Range = 6 * 448;   // amax under a global scale of 1
constexpr float kFp8ActivationScale = RoundToBf16(kLargestActivation / 448);

Noise Bell(float centre, double spread, Noise::Kind kind = Noise::Kind::kBf16) {
  return {kind, centre, static_cast<float>(spread)};
}

/// The standard deviation that keeps a product over k inputs at the inputs' own size.
double SpreadOf(int64_t k) { return 1 / std::sqrt(static_cast<double>(k)); }

/// Linears that share an input share their global scale, as exporters see to; others differ a
/// little, so that a scale in the wrong place shows.
double ScaleFactor(const std::string& module) {
  std::string name = module;
  for (const auto& [leaf, common] : {std::pair{".gate_proj", ".gate_up"},
                                     {".up_proj", ".gate_up"},
                                     {".q_proj", ".qkv"},
                                     {".k_proj", ".qkv"},
                                     {".v_proj", ".qkv"}}) {
    if (name.ends_with(leaf))
      name.replace(name.size() - std::string_view(leaf).size(), name.npos, common);
  }
  return 1 + static_cast<double>(Hash(0, name) % 64) / 128;
}

class Lister {
 public:
  explicit Lister(const QuantizedModel& model) : m_(model) {}

  Result<std::vector<TensorSpec>> List() {
    for (size_t i = 0; i < m_.modules.size(); ++i) {
      NIBBLE_CHECK_OK(Module(m_.modules[i], m_.schemes[i]));
    }
    return std::move(out_);
  }

 private:
  bool ct() const { return m_.format == SourceFormat::kCompressedTensors; }

  void Add(std::string name, DType dtype, Shape shape, const Noise& noise) {
    out_.push_back({std::move(name), dtype, std::move(shape), noise});
  }
  void AddBf16(std::string name, Shape shape, float centre, double spread) {
    Add(std::move(name), DType::kBf16, std::move(shape), Bell(centre, spread));
  }
  /// A number that a linear has one of: [] in one dialect, [1] in the other.
  /// FP8's are bf16 numbers in either, as compressed-tensors stores them.
  void AddNumber(std::string name, DType dtype, double value) {
    out_.push_back({std::move(name), dtype, ct() ? Shape{1} : Shape{}, static_cast<float>(value)});
  }

  Result<void> Module(const ModuleSpec& module, const QuantScheme& scheme) {
    const auto n = static_cast<uint64_t>(module.n), k = static_cast<uint64_t>(module.k);
    switch (module.kind) {
      case ModuleKind::kEmbedding:
        AddBf16(module.name + ".weight", {n, k}, 0, kEmbeddingSpread);
        return {};
      case ModuleKind::kNorm: {
        const bool around_zero =
            m_.config.zero_centred_norms && !module.name.ends_with("linear_attn.norm");
        AddBf16(module.name + ".weight", {n}, around_zero ? 0 : 1, kVectorSpread);
        return {};
      }
      case ModuleKind::kRouter:
        AddBf16(module.name + ".weight", {n, k}, 0, SpreadOf(module.k));
        return {};
      case ModuleKind::kConv:
        Conv(module);
        return {};
      case ModuleKind::kExperts:
        return Experts(module, scheme);
      case ModuleKind::kLinear:
      case ModuleKind::kLmHead:
        break;
    }
    NIBBLE_CHECK_OK(Linear(module.name, n, k, scheme));
    if (module.has_bias) AddBf16(module.name + ".bias", {n}, 0, kVectorSpread);
    if (m_.fp8_kv_cache && m_.uniform()) KvScale(module.name);
    return {};
  }

  /// The convolution, and DeltaNet's two vectors, which belong to no module of their own: decay =
  /// exp(-exp(A_log) softplus(a + dt_bias)), initialized with exp(A_log) in (0, 16) and a softplus
  /// of 0.001 to 0.1.
  void Conv(const ModuleSpec& module) {
    AddBf16(module.name + ".weight",
            {static_cast<uint64_t>(module.n), 1, static_cast<uint64_t>(module.k)}, 0,
            SpreadOf(module.k));
    const std::string parent = module.name.substr(0, module.name.rfind('.') + 1);
    const auto heads = static_cast<uint64_t>(m_.config.delta_v_heads);
    AddBf16(parent + "A_log", {heads}, 1.4f, 0.55);
    AddBf16(parent + "dt_bias", {heads}, -4.6f, 0.9);
  }

  Result<void> Experts(const ModuleSpec& module, const QuantScheme& scheme) {
    const auto hidden = static_cast<uint64_t>(module.k),
               intermediate = static_cast<uint64_t>(module.moe_intermediate),
               experts = static_cast<uint64_t>(module.experts);
    if (scheme == kBf16Scheme && m_.config.family == checkpoint::ModelFamily::kQwen35Moe) {
      AddBf16(module.name + ".gate_up_proj", {experts, 2 * intermediate, hidden}, 0,
              SpreadOf(module.k));
      AddBf16(module.name + ".down_proj", {experts, hidden, intermediate}, 0,
              SpreadOf(module.moe_intermediate));
      return {};
    }
    for (uint64_t e = 0; e < experts; ++e) {
      const std::string expert = fmt::format("{}.{}.", module.name, e);
      NIBBLE_CHECK_OK(Linear(expert + "gate_proj", intermediate, hidden, scheme));
      NIBBLE_CHECK_OK(Linear(expert + "up_proj", intermediate, hidden, scheme));
      NIBBLE_CHECK_OK(Linear(expert + "down_proj", hidden, intermediate, scheme));
    }
    return {};
  }

  Result<void> Linear(const std::string& name, uint64_t n, uint64_t k, const QuantScheme& scheme) {
    if (scheme == kBf16Scheme) {
      AddBf16(name + ".weight", {n, k}, 0, SpreadOf(static_cast<int64_t>(k)));
      return {};
    }
    return scheme.weight == kNvfp4Static ? Nvfp4(name, n, k, scheme) : Fp8(name, n, k, scheme);
  }

  Result<void> Nvfp4(const std::string& name, uint64_t n, uint64_t k, const QuantScheme& scheme) {
    if (k % 16 != 0)
      return Err(ErrorCode::kUnsupported, "{}: {} inputs are no multiple of NVFP4's 16", name, k);
    const double global =
        SpreadOf(static_cast<int64_t>(k)) / (E2m1Rms() * BlockScaleRms()) * ScaleFactor(name);
    const double input = kLargestActivation / kNvfp4Range;
    Add(name + (ct() ? ".weight_packed" : ".weight"), DType::kU8, {n, k / 2},
        {Noise::Kind::kE2m1Pairs, 0, 0});
    Add(name + ".weight_scale", DType::kF8E4m3, {n, k / 16}, {Noise::Kind::kBlockScales, 0, 0});
    // One dialect multiplies by its global scales, the other divides.
    AddNumber(name + (ct() ? ".weight_global_scale" : ".weight_scale_2"), DType::kF32,
              ct() ? 1 / global : global);
    if (scheme.activation || WritesInputScaleOfW4A16(m_)) {
      AddNumber(name + (ct() ? ".input_global_scale" : ".input_scale"), DType::kF32,
                ct() ? 1 / input : input);
    }
    return {};
  }

  Result<void> Fp8(const std::string& name, uint64_t n, uint64_t k, const QuantScheme& scheme) {
    const double scale = SpreadOf(static_cast<int64_t>(k)) / Fp8CodeRms();
    const std::string scales = name + ".weight_scale";
    const DType dtype = ct() ? DType::kBf16 : DType::kF32;
    const Noise noise =
        Bell(static_cast<float>(scale), scale / 16, ct() ? Noise::Kind::kBf16 : Noise::Kind::kF32);
    Add(name + ".weight", DType::kF8E4m3, {n, k}, {Noise::Kind::kFp8Codes, 0, 0});
    if (scheme.weight == kFp8StaticTensor) {
      AddNumber(scales, dtype, RoundToBf16(static_cast<float>(scale * ScaleFactor(name))));
    } else if (scheme.weight == kFp8StaticChannel) {
      Add(scales, dtype, ct() ? Shape{n, 1} : Shape{n}, noise);
    } else if (scheme.weight == kFp8StaticBlock128) {
      const uint64_t rows = DivUp(n, 128), columns = DivUp(k, 128);
      Add(scales, dtype, ct() ? Shape{rows, columns} : Shape{rows, 1, columns, 1}, noise);
    } else {
      return Err(ErrorCode::kUnsupported, "{}: no exporter writes weights of {}", name,
                 ToString(*scheme.weight));
    }
    if (scheme.activation && scheme.activation->scale.is_static)
      AddNumber(name + ".input_scale", dtype, kFp8ActivationScale);
    return {};
  }

  /// Calibrated scales of an FP8 cache, beside the linears whose outputs it holds. Mixed exports
  /// only say FP8.
  void KvScale(const std::string& module) {
    for (const char which : {'k', 'v'}) {
      if (!module.ends_with(fmt::format("self_attn.{}_proj", which)) ||
          module.starts_with("mtp.")) {
        continue;
      }
      const std::string attention = module.substr(0, module.rfind('.'));
      if (ct()) {
        AddNumber(fmt::format("{}.{}_scale", attention, which), DType::kBf16, kFp8ActivationScale);
      } else {
        AddNumber(fmt::format("{}.{}_scale", module, which), DType::kF32, kFp8ActivationScale);
      }
    }
  }

  const QuantizedModel& m_;
  std::vector<TensorSpec> out_;
};

}  // namespace

uint64_t TensorSpec::bytes() const {
  uint64_t bits = BitsOf(dtype);
  for (const uint64_t dim : shape) bits *= dim;
  return bits / 8;
}

std::string_view TensorSpec::key() const {
  constexpr std::string_view kPacked = "_packed";  // compressed-tensors' codes
  std::string_view text = name;
  if (text.ends_with(kPacked)) text.remove_suffix(kPacked.size());
  return text;
}

bool QuantizedModel::uniform() const {
  const QuantScheme* first = nullptr;
  for (const QuantScheme& scheme : schemes) {
    if (scheme == kBf16Scheme) continue;
    if (first != nullptr && *first != scheme) return false;
    first = &scheme;
  }
  return true;
}

bool QuantizedModel::quantized() const {
  for (const QuantScheme& scheme : schemes) {
    if (scheme != kBf16Scheme) return true;
  }
  return false;
}

bool WritesInputScaleOfW4A16(const QuantizedModel& model) {
  return model.format == SourceFormat::kModelopt && !model.uniform();
}

Result<std::vector<TensorSpec>> ListTensors(const QuantizedModel& model) {
  return Lister(model).List();
}

}  // namespace nibble::synth
