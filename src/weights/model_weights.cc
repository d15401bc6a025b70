#include "weights/model_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <span>

#include "base/checked.h"
#include "base/log.h"
#include "base/stopwatch.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/pack.h"
#include "kernels/experts_check.h"
#include "scheme/canonical.h"
#include "scheme/kv_scales.h"
#include "weights/cpu_pack.h"
#include "weights/device_weights.h"
#include "weights/expert_scales.h"

namespace nibble::weights {
namespace {

using checkpoint::Checkpoint;
using checkpoint::DType;
using checkpoint::ShapeText;
using checkpoint::TensorInfo;
using plan::Plan;
using plan::PlannedModule;

/// Reads what a model has besides its multiplications, and collects the packing that the rest
/// needs.
class Loader {
 public:
  /// pool: of the threads that scan tensors; null: the reading thread does.
  Loader(const Checkpoint& checkpoint, const Plan& plan, ThreadPool* pool = nullptr)
      : checkpoint_(checkpoint), plan_(plan), pool_(pool) {
    report_.defers_scans = pool != nullptr;
  }

  Result<ModelWeights> Read();
  Result<void> Prepare(ModelWeights& out, const Progress& progress);

 private:
  /// A matrix to place in the arena, and the variant that will hold it: stable, because nothing
  /// moves after Read().
  struct Job {
    CanonicalWeight from;
    PreparedWeight* to;
    uint64_t at = 0;
  };

  Result<const TensorInfo*> Find(const std::string& name);
  Result<std::vector<float>> ReadVector(const std::string& name, std::vector<uint64_t> shape);
  Result<std::vector<float>> ReadNorm(const std::string& name, int64_t n);
  Result<CanonicalBf16> ReadBf16(const std::string& name, int64_t n, int64_t k);
  Result<PreparedLinearShard> ReadShard(const PlannedModule& module,
                                        const std::string& tensor_name);
  Result<PreparedLinear> ReadLinear(std::string_view prefix,
                                    std::initializer_list<std::string_view> names);
  Result<PreparedExperts> ReadExperts(const PlannedModule& module);
  Result<void> ReadAttention(const std::string& prefix, AttentionWeights& out);
  Result<void> ReadDelta(const std::string& prefix, DeltaWeights& out);
  Result<void> ReadFeedForward(const std::string& prefix, LayerWeights& out);
  Result<void> ReadLayer(const std::string& prefix, checkpoint::Mixer mixer, bool is_moe,
                         LayerWeights& out);
  Result<void> ReadMtp(MtpWeights& out);
  Result<void> Scan();
  void CollectLayer(LayerWeights& layer);
  void Collect(Backend backend, PreparedWeight& weight);
  void Collect(PreparedLinear& linear);
  void Pack(std::span<std::byte> arena, const Progress& progress);
  void PackStrips(const Job& job, uint64_t begin, uint64_t end, std::byte* arena) const;

  const Checkpoint& checkpoint_;
  const Plan& plan_;
  ThreadPool* pool_;
  scheme::CanonicalReport report_;
  std::vector<Job> jobs_;
  int caches_without_scales_ = 0;  // attention layers whose FP8 cache has no calibration
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

Result<std::vector<float>> Loader::ReadVector(const std::string& name,
                                              std::vector<uint64_t> shape) {
  NIBBLE_TRY(const TensorInfo* tensor, Find(name));
  const bool bf16 = tensor->dtype == DType::kBf16, f32 = tensor->dtype == DType::kF32;
  if ((!bf16 && !f32) || tensor->shape != shape) {
    return Error{ErrorCode::kCorruptFile,
                 fmt::format("tensor \"{}\" is {} {}, expected BF16 or F32 {}", name,
                             NameOf(tensor->dtype), ShapeText(tensor->shape), ShapeText(shape)),
                 checkpoint_.FileOf(*tensor),
                 {}};
  }
  std::vector<float> out(tensor->data.size() / (bf16 ? 2 : 4));
  const auto* bytes = reinterpret_cast<const uint8_t*>(tensor->data.data());
  for (size_t i = 0; i < out.size(); ++i) {
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

Result<std::vector<float>> Loader::ReadNorm(const std::string& name, int64_t n) {
  NIBBLE_TRY(std::vector<float> w, ReadVector(name + ".weight", {static_cast<uint64_t>(n)}));
  if (plan_.model.zero_centred_norms) {
    for (float& v : w) v += 1;
  }
  return w;
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
  } else if (const auto* fp8 = std::get_if<CanonicalFp8>(&weight)) {
    if (fp8->group == GroupShape::PerTensor()) shard.global = fp8->scales[0];
    shard.input_scale = fp8->input_scale;
  }
  shard.weight = weight;
  return shard;
}

Result<PreparedLinear> Loader::ReadLinear(std::string_view prefix,
                                          std::initializer_list<std::string_view> names) {
  PreparedLinear linear;
  for (const std::string_view end : names) {
    const std::string name = fmt::format("{}{}", prefix, end);
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

Result<void> Loader::ReadAttention(const std::string& p, AttentionWeights& out) {
  NIBBLE_TRY(out.qkv, ReadLinear(p, {"q_proj", "k_proj", "v_proj"}));
  NIBBLE_TRY(out.q_norm, ReadNorm(p + "q_norm", plan_.model.head_dim));
  NIBBLE_TRY(out.k_norm, ReadNorm(p + "k_norm", plan_.model.head_dim));
  NIBBLE_TRY(out.o, ReadLinear(p, {"o_proj"}));
  if (plan_.kv_dtype != KvDtype::kFp8) return {};
  NIBBLE_TRY(const auto scales,
             scheme::ReadKvScales(checkpoint_, p.substr(0, p.size() - 1), &report_));
  caches_without_scales_ += !scales.has_value();
  out.k_scale = scales.value_or(scheme::KvScales{}).k;
  out.v_scale = scales.value_or(scheme::KvScales{}).v;
  return {};
}

Result<void> Loader::ReadDelta(const std::string& p, DeltaWeights& out) {
  const checkpoint::ModelConfig& c = plan_.model;
  const auto heads = static_cast<uint64_t>(c.delta_v_heads);
  const auto channels = static_cast<uint64_t>(c.DeltaChannels());
  const auto taps = static_cast<uint64_t>(c.delta_conv);
  NIBBLE_TRY(out.in, ReadLinear(p, {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"}));
  NIBBLE_TRY(const std::vector<float> conv, ReadVector(p + "conv1d.weight", {channels, 1, taps}));
  std::vector<float> by_tap(conv.size());
  for (uint64_t i = 0; i < channels; ++i) {
    for (uint64_t j = 0; j < taps; ++j) by_tap[j * channels + i] = conv[i * taps + j];
  }
  out.conv = std::move(by_tap);
  NIBBLE_TRY(out.a_log, ReadVector(p + "A_log", {heads}));
  NIBBLE_TRY(out.dt_bias, ReadVector(p + "dt_bias", {heads}));
  // The one norm of the family that is not zero-centred.
  NIBBLE_TRY(out.norm, ReadVector(p + "norm.weight", {static_cast<uint64_t>(c.delta_v_dim)}));
  NIBBLE_TRY(out.out, ReadLinear(p, {"out_proj"}));
  return {};
}

Result<void> Loader::ReadFeedForward(const std::string& p, LayerWeights& out) {
  const checkpoint::ModelConfig& c = plan_.model;
  std::string dense = p;
  if (out.is_moe) {
    NIBBLE_TRY(out.router, ReadBf16(p + "gate.weight", c.n_experts, c.hidden));
    NIBBLE_TRY(out.experts, ReadExperts(plan_.Find(p + "experts")));
    if (c.shared_intermediate == 0) return {};
    NIBBLE_TRY(out.shared_gate, ReadBf16(p + "shared_expert_gate.weight", 1, c.hidden));
    dense += "shared_expert.";
  }
  NIBBLE_TRY(out.gate_up, ReadLinear(dense, {"gate_proj", "up_proj"}));
  NIBBLE_TRY(out.down, ReadLinear(dense, {"down_proj"}));
  return {};
}

Result<void> Loader::ReadLayer(const std::string& p, checkpoint::Mixer mixer, bool is_moe,
                               LayerWeights& out) {
  const int64_t hidden = plan_.model.hidden;
  out.mixer = mixer;
  out.is_moe = is_moe;
  NIBBLE_TRY(out.input_norm, ReadNorm(p + "input_layernorm", hidden));
  if (mixer == checkpoint::Mixer::kAttention) {
    NIBBLE_CHECK_OK(ReadAttention(p + "self_attn.", out.attention));
  } else {
    NIBBLE_CHECK_OK(ReadDelta(p + "linear_attn.", out.delta));
  }
  NIBBLE_TRY(out.post_attention_norm, ReadNorm(p + "post_attention_layernorm", hidden));
  return ReadFeedForward(p + "mlp.", out);
}

Result<void> Loader::ReadMtp(MtpWeights& out) {
  const int64_t hidden = plan_.model.hidden;
  NIBBLE_TRY(out.embedding_norm, ReadNorm("mtp.pre_fc_norm_embedding", hidden));
  NIBBLE_TRY(out.hidden_norm, ReadNorm("mtp.pre_fc_norm_hidden", hidden));
  NIBBLE_TRY(out.fc, ReadLinear("mtp.", {"fc"}));
  NIBBLE_CHECK_OK(ReadLayer("mtp.layers.0.", checkpoint::Mixer::kAttention, true, out.layer));
  NIBBLE_TRY(out.norm, ReadNorm("mtp.norm", hidden));
  return {};
}

/// What reading left to be scanned. Of several errors the first tensor's is told, as without threads.
Result<void> Loader::Scan() {
  auto& scans = report_.scans;
  // FP8 codes that stay in the file are not all read now: the kernels look at those they use.
  if (plan_.map_weights) std::erase_if(scans, [](const auto& scan) { return scan.of_codes; });
  const auto count = static_cast<int64_t>(scans.size());
  std::atomic<int64_t> first_bad = count;
  std::mutex mutex;
  Result<void> status;
  if (count > 0) {
    pool_->RunEach(count, [&](int64_t i, int) {
      if (i > first_bad) return;
      auto checked = scans[static_cast<size_t>(i)].check();
      if (checked) return;
      const std::lock_guard lock(mutex);
      if (i > first_bad) return;
      first_bad = i;
      status = std::move(checked);
    });
  }
  scans.clear();
  return status;
}

Result<ModelWeights> Loader::Read() {
  const checkpoint::ModelConfig& c = plan_.model;
  ModelWeights out;
  NIBBLE_TRY(out.embedding, ReadBf16(c.prefix + "embed_tokens.weight", c.vocab, c.hidden));
  out.layers.resize(c.n_layers);
  for (int i = 0; i < c.n_layers; ++i) {
    NIBBLE_CHECK_OK(ReadLayer(fmt::format("{}layers.{}.", c.prefix, i), c.mixers[i],
                              c.layer_is_moe[i], out.layers[i]));
  }
  NIBBLE_TRY(out.final_norm, ReadNorm(c.prefix + "norm", c.hidden));
  const PlannedModule& head = plan_.Find("lm_head");
  NIBBLE_TRY(PreparedLinearShard shard,
             ReadShard(head, c.tie_embeddings ? c.prefix + "embed_tokens" : "lm_head"));
  out.head = {c.vocab, c.hidden, {std::move(shard)}};
  if (plan_.draft_tokens > 0) NIBBLE_CHECK_OK(ReadMtp(out.mtp.emplace()));
  NIBBLE_CHECK_OK(Scan());
  scheme::PartsRun parts;
  parts.mtp = plan_.draft_tokens > 0;
  if (plan_.kv_dtype == KvDtype::kFp8) parts.kv_cache = scheme::KvCacheScheme::kFp8;
  NIBBLE_TRY(out.unused_tensors, scheme::CheckAllTensorsUsed(checkpoint_, report_, parts));
  if (caches_without_scales_ > 0) {
    Log(LogLevel::kWarning, "kv_cache dtype=fp8 layers_without_scales={} scale_used=1.0",
        caches_without_scales_);
  }
  out.ignored_tensors = std::move(report_.ignored_tensors);
  return out;
}

void Loader::Collect(Backend backend, PreparedWeight& weight) {
  if (backend == Backend::kCpu) jobs_.push_back({std::get<CanonicalWeight>(weight), &weight, 0});
}

void Loader::Collect(PreparedLinear& linear) {
  for (PreparedLinearShard& shard : linear.shards) Collect(shard.backend, shard.weight);
}

void Loader::CollectLayer(LayerWeights& layer) {
  Collect(layer.attention.qkv);
  Collect(layer.attention.o);
  Collect(layer.delta.in);
  Collect(layer.delta.out);
  Collect(layer.gate_up);
  Collect(layer.down);
  // Expert by expert, as a token reads them.
  for (size_t e = 0; e < layer.experts.down.size(); ++e) {
    Collect(layer.experts.backend, layer.experts.gate[e]);
    Collect(layer.experts.backend, layer.experts.up[e]);
    Collect(layer.experts.backend, layer.experts.down[e]);
  }
}

Result<void> Loader::Prepare(ModelWeights& out, const Progress& progress) {
  if (plan_.device.kind == DeviceKind::kCuda) return PlaceOnDevice(out, progress);
  for (LayerWeights& layer : out.layers) CollectLayer(layer);
  if (out.mtp) {
    Collect(out.mtp->fc);
    CollectLayer(out.mtp->layer);
  }
  Collect(out.head);

  uint64_t total = 0;
  for (Job& job : jobs_) {
    job.at = total;
    total += HeldBytesOf(job.from, plan_.map_weights);
  }
  NIBBLE_CHECK(total == plan_.memory.weights,
               "the plan's budget for weights is not what they take");
  NIBBLE_TRY(out.arena, HugeBuffer::Allocate(total));
  for (const Job& job : jobs_) {
    *job.to = PlaceMatrix(job.from, plan_.map_weights, out.arena.data() + job.at);
  }
  if (!plan_.map_weights) Pack(out.arena.bytes(), progress);
  return {};
}

/// A piece of the arena is a huge page: the thread that packs it is the first to touch it, and alone
/// there, so that the system clears pages on all threads at once and spreads them over memories.
void Loader::Pack(std::span<std::byte> arena, const Progress& progress) {
  constexpr uint64_t kPiece = uint64_t{2} << 20;
  std::atomic<uint64_t> done = 0;
  pool_->RunEach(static_cast<int64_t>(DivUp(arena.size(), kPiece)), [&](int64_t piece, int thread) {
    const uint64_t begin = static_cast<uint64_t>(piece) * kPiece;
    const uint64_t end = std::min<uint64_t>(begin + kPiece, arena.size());
    auto job = std::upper_bound(jobs_.begin(), jobs_.end(), begin,
                                [](uint64_t at, const Job& j) { return at < j.at; });
    for (--job; job != jobs_.end() && job->at < end; ++job) {
      PackStrips(*job, begin, end, arena.data());
    }
    const uint64_t so_far = done.fetch_add(end - begin, std::memory_order_relaxed) + end - begin;
    if (progress && thread == 0) progress(so_far, arena.size());
  });
  if (progress) progress(arena.size(), arena.size());
}

/// Those strips of the job that begin in [begin, end) of the arena. Their rows are not needed any
/// more: the process never holds the weights twice.
void Loader::PackStrips(const Job& job, uint64_t begin, uint64_t end, std::byte* arena) const {
  const auto& matrix = std::get<PackedMatrix>(*job.to);
  const auto bytes = static_cast<uint64_t>(StripBytes(matrix.format, matrix.k));
  const auto strip_at = [&](uint64_t at) {  // the first that begins there or later
    const auto s = static_cast<int64_t>(at > job.at ? DivUp(at - job.at, bytes) : 0);
    return std::min(s, StripCount(matrix.n));
  };
  const int64_t first = strip_at(begin), last = strip_at(end);
  const kernels::cpu::CpuKernels& kernels = kernels::cpu::KernelsFor(plan_.device.isa);
  for (int64_t s = first; s < last; ++s) {
    kernels::cpu::PackStrip(kernels, matrix, s, arena + job.at + static_cast<uint64_t>(s) * bytes);
  }
  const int64_t row = first * kStripRows, rows = std::min(last * kStripRows, matrix.n) - row;
  const auto forget = [&](const uint8_t* data, int64_t row_bytes) {
    if (data == nullptr || rows <= 0) return;
    checkpoint_.Forget({reinterpret_cast<const std::byte*>(data + row * row_bytes),
                        static_cast<size_t>(rows * row_bytes)});
  };
  forget(matrix.rows.values, RowBytes(matrix.format, matrix.k));
  forget(matrix.rows.block_scales, matrix.k / 16);
}

}  // namespace

Result<ModelWeights> CheckWeights(const Checkpoint& checkpoint, const Plan& plan) {
  return Loader(checkpoint, plan).Read();
}

Result<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const Plan& plan, ThreadPool& pool,
                                 const Progress& progress) {
  const Stopwatch watch;
  Loader loader(checkpoint, plan, &pool);
  NIBBLE_TRY(ModelWeights out, loader.Read());
  const double checked = watch.Seconds();
  NIBBLE_CHECK_OK(loader.Prepare(out, progress));
  Log(LogLevel::kInfo, "weights packed_bytes={} mapped_bytes={} check_s={:.3f} prepare_s={:.3f}",
      plan.memory.weights, plan.memory.mapped, checked, watch.Seconds() - checked);
  return out;
}

}  // namespace nibble::weights
