#include "weights/model_weights.h"

#include <cmath>
#include <cstring>

#include "base/log.h"
#include "kernels/experts_check.h"
#include "scheme/canonical.h"
#include "weights/cpu_pack.h"
#include "weights/expert_scales.h"

namespace nibble::weights {
namespace {

using checkpoint::Checkpoint;
using checkpoint::DType;
using checkpoint::TensorInfo;
using plan::Plan;
using plan::PlannedModule;

std::string ShapeText(const std::vector<uint64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += fmt::format("{}{}", i ? "," : "", shape[i]);
  return out + "]";
}

/// Reads what a model has besides its multiplications, and collects the packing that the rest
/// needs.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const Plan& plan) : checkpoint_(checkpoint), plan_(plan) {}

  Result<ModelWeights> Read();
  Result<void> Pack(ModelWeights& out, ThreadPool& pool, const Progress& progress);

 private:
  /// A matrix to pack, and the variant that will hold it: stable, because nothing moves after
  /// Read().
  struct Job {
    CanonicalWeight from;
    PreparedWeight* to;
  };

  Result<const TensorInfo*> Find(const std::string& name);
  Result<std::vector<float>> ReadVector(const std::string& name, int64_t n);
  Result<CanonicalBf16> ReadBf16(const std::string& name, int64_t n, int64_t k);
  Result<PreparedLinearShard> ReadShard(const PlannedModule& module,
                                        const std::string& tensor_name);
  Result<PreparedLinear> ReadLinear(std::initializer_list<std::string> names);
  Result<PreparedExperts> ReadExperts(const PlannedModule& module);
  Result<void> ReadLayer(int layer, LayerWeights& out);
  void Collect(Backend backend, PreparedWeight& weight);
  void Collect(PreparedLinear& linear);

  const Checkpoint& checkpoint_;
  const Plan& plan_;
  scheme::CanonicalReport report_;
  std::vector<Job> jobs_;
};

Result<const TensorInfo*> Loader::Find(const std::string& name) {
  const TensorInfo* tensor = checkpoint_.Find(name);
  if (tensor == nullptr) {
    return Error{ErrorCode::kNotFound, fmt::format("tensor \"{}\" is missing", name),
                 checkpoint_.dir(), "the download may be incomplete"};
  }
  report_.used.insert(tensor->name);
  return tensor;
}

Result<std::vector<float>> Loader::ReadVector(const std::string& name, int64_t n) {
  NIBBLE_TRY(const TensorInfo* tensor, Find(name));
  const bool bf16 = tensor->dtype == DType::kBf16, f32 = tensor->dtype == DType::kF32;
  if ((!bf16 && !f32) || tensor->shape != std::vector<uint64_t>{static_cast<uint64_t>(n)}) {
    return Error{ErrorCode::kCorruptFile,
                 fmt::format("tensor \"{}\" is {} {}, expected BF16 or F32 [{}]", name,
                             NameOf(tensor->dtype), ShapeText(tensor->shape), n),
                 checkpoint_.FileOf(*tensor),
                 {}};
  }
  std::vector<float> out(n);
  const auto* bytes = reinterpret_cast<const uint8_t*>(tensor->data.data());
  for (int64_t i = 0; i < n; ++i) {
    if (bf16)
      out[i] = LoadBf16(bytes + 2 * i);
    else
      std::memcpy(&out[i], bytes + 4 * i, 4);
    if (!std::isfinite(out[i])) {
      return Error{ErrorCode::kCorruptFile,
                   fmt::format("tensor \"{}\" holds {} at {}", name, out[i], i),
                   checkpoint_.FileOf(*tensor),
                   {}};
    }
  }
  return out;
}

Result<CanonicalBf16> Loader::ReadBf16(const std::string& name, int64_t n, int64_t k) {
  NIBBLE_TRY(const TensorInfo* tensor, Find(name));
  if (tensor->dtype != DType::kBf16 ||
      tensor->shape != std::vector<uint64_t>{static_cast<uint64_t>(n), static_cast<uint64_t>(k)}) {
    return Error{ErrorCode::kCorruptFile,
                 fmt::format("tensor \"{}\" is {} {}, expected BF16 [{},{}]", name,
                             NameOf(tensor->dtype), ShapeText(tensor->shape), n, k),
                 checkpoint_.FileOf(*tensor),
                 {}};
  }
  return CanonicalBf16{n, k, reinterpret_cast<const uint8_t*>(tensor->data.data())};
}

Result<PreparedLinearShard> Loader::ReadShard(const PlannedModule& module,
                                              const std::string& tensor_name) {
  scheme::ModuleScheme effective = module.declared;
  effective.scheme = module.effective;
  NIBBLE_TRY(CanonicalWeight weight, scheme::ReadLinear(checkpoint_, tensor_name, effective,
                                                        module.spec.n, module.spec.k, &report_));
  PreparedLinearShard shard;
  shard.name = module.spec.name;
  shard.backend = module.kernel->backend;
  shard.kernel = module.kernel->id;
  shard.n = module.spec.n;
  shard.activation = module.effective.activation;
  if (const auto* fp4 = std::get_if<CanonicalNvfp4>(&weight)) {
    shard.global = fp4->global;
    shard.input_scale = fp4->input_scale;
  }
  shard.weight = weight;
  return shard;
}

Result<PreparedLinear> Loader::ReadLinear(std::initializer_list<std::string> names) {
  PreparedLinear linear;
  for (const std::string& name : names) {
    const PlannedModule& module = plan_.Find(name);
    NIBBLE_TRY(PreparedLinearShard shard, ReadShard(module, name));
    linear.k = module.spec.k;
    linear.n += shard.n;
    linear.shards.push_back(std::move(shard));
  }
  return linear;
}

Result<PreparedExperts> Loader::ReadExperts(const PlannedModule& module) {
  const checkpoint::ModuleSpec& spec = module.spec;
  scheme::ModuleScheme effective = module.declared;
  effective.scheme = module.effective;
  NIBBLE_TRY(scheme::CanonicalExperts read,
             scheme::ReadExperts(checkpoint_, spec.name, effective, spec.experts, spec.k,
                                 spec.moe_intermediate, true, &report_));
  PreparedExperts out;
  out.name = spec.name;
  out.layer = spec.layer;
  out.backend = module.kernel->backend;
  out.kernel = module.kernel->id;
  out.n_experts = spec.experts;
  out.hidden = spec.k;
  out.intermediate = spec.moe_intermediate;
  out.gate.assign(read.gate.begin(), read.gate.end());
  out.up.assign(read.up.begin(), read.up.end());
  out.down.assign(read.down.begin(), read.down.end());
  auto quant = MakeExpertQuant(out.backend, module.effective, module.declared.source_format,
                               read.gate, read.up, read.down);
  if (!quant) return std::move(quant).error().At(spec.name);
  out.quant = std::move(quant->config);
  NIBBLE_CHECK_OK(kernels::CheckExperts(out));
  Log(LogLevel::kDebug,
      "experts layer={} backend={} kernel={} activation_precision={} source_format={}", out.layer,
      NameOf(out.backend), out.kernel, NameOf(out.quant.activation_precision()),
      NameOf(module.declared.source_format));
  return out;
}

Result<void> Loader::ReadLayer(int layer, LayerWeights& out) {
  const checkpoint::ModelConfig& c = plan_.model;
  const std::string p = fmt::format("model.layers.{}.", layer);
  NIBBLE_TRY(out.input_norm, ReadVector(p + "input_layernorm.weight", c.hidden));
  NIBBLE_TRY(out.qkv,
             ReadLinear({p + "self_attn.q_proj", p + "self_attn.k_proj", p + "self_attn.v_proj"}));
  NIBBLE_TRY(out.q_norm, ReadVector(p + "self_attn.q_norm.weight", c.head_dim));
  NIBBLE_TRY(out.k_norm, ReadVector(p + "self_attn.k_norm.weight", c.head_dim));
  NIBBLE_TRY(out.o, ReadLinear({p + "self_attn.o_proj"}));
  NIBBLE_TRY(out.post_attention_norm, ReadVector(p + "post_attention_layernorm.weight", c.hidden));
  out.is_moe = c.layer_is_moe[layer];
  if (out.is_moe) {
    NIBBLE_TRY(out.router, ReadBf16(p + "mlp.gate.weight", c.n_experts, c.hidden));
    NIBBLE_TRY(out.experts, ReadExperts(plan_.Find(p + "mlp.experts")));
  } else {
    NIBBLE_TRY(out.gate_up, ReadLinear({p + "mlp.gate_proj", p + "mlp.up_proj"}));
    NIBBLE_TRY(out.down, ReadLinear({p + "mlp.down_proj"}));
  }
  return {};
}

Result<ModelWeights> Loader::Read() {
  const checkpoint::ModelConfig& c = plan_.model;
  ModelWeights out;
  NIBBLE_TRY(out.embedding, ReadBf16("model.embed_tokens.weight", c.vocab, c.hidden));
  out.layers.resize(c.n_layers);
  for (int i = 0; i < c.n_layers; ++i) NIBBLE_CHECK_OK(ReadLayer(i, out.layers[i]));
  NIBBLE_TRY(out.final_norm, ReadVector("model.norm.weight", c.hidden));
  const PlannedModule& head = plan_.Find("lm_head");
  NIBBLE_TRY(PreparedLinearShard shard,
             ReadShard(head, c.tie_embeddings ? "model.embed_tokens" : "lm_head"));
  out.head = {c.vocab, c.hidden, {std::move(shard)}};
  NIBBLE_TRY(out.unused_tensors, scheme::CheckAllTensorsUsed(checkpoint_, report_));
  out.ignored_tensors = std::move(report_.ignored_tensors);
  return out;
}

void Loader::Collect(Backend backend, PreparedWeight& weight) {
  if (backend == Backend::kCpu) jobs_.push_back({std::get<CanonicalWeight>(weight), &weight});
}

void Loader::Collect(PreparedLinear& linear) {
  for (PreparedLinearShard& shard : linear.shards) Collect(shard.backend, shard.weight);
}

Result<void> Loader::Pack(ModelWeights& out, ThreadPool& pool, const Progress& progress) {
  for (LayerWeights& layer : out.layers) {
    Collect(layer.qkv);
    Collect(layer.o);
    Collect(layer.gate_up);
    Collect(layer.down);
    // Expert by expert, as a token reads them.
    for (size_t e = 0; e < layer.experts.down.size(); ++e) {
      Collect(layer.experts.backend, layer.experts.gate[e]);
      Collect(layer.experts.backend, layer.experts.up[e]);
      Collect(layer.experts.backend, layer.experts.down[e]);
    }
  }
  Collect(out.head);

  uint64_t total = 0;
  for (const Job& job : jobs_) total += PackedBytesOf(job.from);
  NIBBLE_CHECK(total == plan_.memory.weights,
               "the plan's budget for weights is not what they take");
  NIBBLE_TRY(out.arena, HugeBuffer::Allocate(total));
  std::byte* at = out.arena.data();
  uint64_t done = 0;
  for (Job& job : jobs_) {
    const PackedMatrix packed = DescribePacked(job.from, at);
    pool.Run(StripCount(packed.n),
             [&](int64_t first, int64_t last, int) { PackStrips(job.from, first, last, at); });
    *job.to = packed;
    at += PackedBytesOf(job.from);
    done += PackedBytesOf(job.from);
    if (progress) progress(done, total);
  }
  return {};
}

}  // namespace

Result<ModelWeights> CheckWeights(const Checkpoint& checkpoint, const Plan& plan) {
  return Loader(checkpoint, plan).Read();
}

Result<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const Plan& plan, ThreadPool& pool,
                                 const Progress& progress) {
  Loader loader(checkpoint, plan);
  NIBBLE_TRY(ModelWeights out, loader.Read());
  NIBBLE_CHECK_OK(loader.Pack(out, pool, progress));
  return out;
}

}  // namespace nibble::weights
