#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/delta.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/linear_mma.h"
#include "kernels/cuda/marks.h"
#include "kernels/cuda/moe_mma.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sm90_layer_decode.h"
#include "kernels/cuda/sm90_linear.h"
#include "kernels/cuda/sm90_moe.h"
#include "kernels/cuda/step_inputs.h"

namespace nibble::cuda {
namespace {

using kernels::KvShape;
using kernels::Matrix;
using kernels::RecurrentShape;
using kernels::Routing;
using kernels::SequenceRows;
using kernels::SharedExpert;
using kernels::StepKind;
using kernels::Vector;
using MatrixElement = kernels::Element;  // Element is a launch's

Bf16* Bf16s(Matrix m) { return static_cast<Bf16*>(m.data); }
float* Floats(Matrix m) { return static_cast<float*>(m.data); }
Element ElementOf(Matrix m) {
  return m.element == MatrixElement::kFloat ? Element::kF32 : Element::kBf16;
}
size_t BytesOf(Matrix m) {
  return static_cast<size_t>(m.rows * m.cols) * (m.element == MatrixElement::kFloat ? 4 : 2);
}
const Bf16* Bf16s(const CanonicalBf16& w) { return reinterpret_cast<const Bf16*>(w.data); }

Sm90Weight WeightOf(const HopperMatrix& m) {
  if (m.format == HopperFormat::kNvfp4) return Sm90Weight::kNvfp4;
  if (m.format == HopperFormat::kBf16) return Sm90Weight::kBf16;
  if (m.scales == nullptr) return Sm90Weight::kFp8;
  return m.group == GroupShape::PerChannel() ? Sm90Weight::kFp8Channel : Sm90Weight::kFp8Block128;
}

Sm90Input InputOf(const PreparedLinearShard& shard) {
  if (!shard.activation) return Sm90Input::kBf16;
  if (shard.activation->dtype == ScalarType::kU8) return Sm90Input::kNvfp4;
  if (shard.activation->scale.is_static) return Sm90Input::kFp8;
  return shard.activation->scale.group == GroupShape::PerToken() ? Sm90Input::kFp8Token
                                                                 : Sm90Input::kFp8Group;
}

/// Whether some shard is for mma.sync.
bool IsPortable(const PreparedLinear& linear) {
  return std::any_of(linear.shards.begin(), linear.shards.end(),
                     [](const PreparedLinearShard& s) { return s.backend == Backend::kMarlin; });
}

Sm90LinearParams LinearParams(const PreparedLinear& linear, Matrix x, Matrix y) {
  NIBBLE_CHECK(linear.shards.size() <= kSm90LinearShards,
               "more shards in a fused linear than foreseen");
  Sm90LinearParams p;
  p.tokens = static_cast<int>(x.rows);
  p.k = static_cast<int>(linear.k);
  p.x = Bf16s(x);
  for (const PreparedLinearShard& from : linear.shards) {
    const auto& matrix = std::get<HopperMatrix>(from.weight);
    Sm90LinearShard& to = p.shard[p.shards++];
    to.weight = WeightOf(matrix);
    to.input = InputOf(from);
    to.n = static_cast<int>(from.n);
    to.weights = matrix.data;
    to.scale = from.global;
    to.scales = matrix.scales;
    to.input_scale = from.input_scale.value_or(0);
  }
  if (y.element == MatrixElement::kFloat) {
    p.y_f32 = Floats(y);
  } else {
    p.y = Bf16s(y);
  }
  p.ldy = y.cols;
  return p;
}

Sm90MoeShape MoeShape(const PreparedExperts& e, int top_k) {
  Sm90MoeShape s;
  s.experts = static_cast<int>(e.n_experts);
  s.top_k = top_k;
  s.hidden = static_cast<int>(e.hidden);
  s.intermediate = static_cast<int>(e.intermediate);
  s.weights = e.hopper.format;
  if (e.activation == Activation::kRelu2NoMul) {
    s.activation = Sm90Activation::kRelu2;
  } else if (e.activation != Activation::kSilu) {
    s.activation = Sm90Activation::kSwiglu;
  }
  const QuantScheme& scheme = e.quant.scheme;
  if (scheme.weight == kFp8StaticChannel) s.weight_scales = Fp8Scales::kChannel;
  if (scheme.weight == kFp8StaticBlock128) s.weight_scales = Fp8Scales::kBlock128;
  constexpr Sm90Precision kBySharing[2][3] = {
      {Sm90Precision::kFp4Layer, Sm90Precision::kFp4Expert, Sm90Precision::kFp4Shard},
      {Sm90Precision::kFp8Layer, Sm90Precision::kFp8Expert, Sm90Precision::kFp8Shard}};
  if (e.hopper.a1_gscale != nullptr || e.hopper.a1_scale != nullptr) {
    const bool fp8 = e.hopper.a1_scale != nullptr;
    s.precision = kBySharing[fp8][static_cast<int>(e.hopper.sharing)];
  } else if (scheme.activation == kFp8DynamicToken) {
    s.precision = Sm90Precision::kFp8Token;
  } else if (scheme.activation == kFp8Dynamic128) {
    s.precision = Sm90Precision::kFp8Group;
  }
  return s;
}

Sm90MoeParams MoeParams(const PreparedExperts& e, Matrix x, const Routing& routing, Matrix y) {
  Sm90MoeParams p;
  p.shape = MoeShape(e, routing.top_k);
  p.tokens = static_cast<int>(x.rows);
  p.x = Bf16s(x);
  p.ids = routing.experts;
  p.weights = routing.weights;
  p.w13 = e.hopper.w13;
  p.w2 = e.hopper.w2;
  p.g1 = e.hopper.g1;
  p.g2 = e.hopper.g2;
  p.a1_gscale = e.hopper.a1_gscale;
  p.a2_gscale = e.hopper.a2_gscale;
  p.w13_scales = e.hopper.w13_scales;
  p.w2_scales = e.hopper.w2_scales;
  p.a1_scale = e.hopper.a1_scale;
  p.a2_scale = e.hopper.a2_scale;
  p.y = Bf16s(y);
  if (e.quant.clamp_limit) p.limit = *e.quant.clamp_limit;
  if (e.activation != Activation::kSilu) {
    p.alpha = e.quant.alpha.value_or(1.0f);
    p.beta = e.quant.beta.value_or(0.0f);
  }
  return p;
}

/// A kernel for the experts.
struct MoeKernel {
  size_t (*workspace)(const Sm90MoeShape& shape, int tokens);
  Result<void> (*launch)(const Sm90MoeParams& params, cudaStream_t stream);
};
constexpr MoeKernel kMoeMma = {MoeMmaWorkspace, LaunchMoeMma};
constexpr MoeKernel kMoeDecode = {Sm90MoeDecodeWorkspace, LaunchSm90MoeDecode};
constexpr MoeKernel kMoePrefill = {Sm90MoePrefillWorkspace, LaunchSm90MoePrefill};

const MoeKernel* MoeKernelOf(const PreparedExperts& e, const Sm90MoeParams& p) {
  if (e.backend == Backend::kMarlin || p.shape.weights == HopperFormat::kFp8) return &kMoeMma;
  return Sm90MoeDecodeIsFaster(p.shape, p.tokens) ? &kMoeDecode : &kMoePrefill;
}

/// A step's launches, once they are known to repeat.
struct Graph {
  StepShape shape;
  cudaGraphExec_t exec = nullptr;  // null: the shape was run once, and not recorded yet
};

class CudaOperators : public kernels::Operators {
 public:
  static Result<std::unique_ptr<Operators>> Make(const OperatorsOptions& options);
  ~CudaOperators() override;

  Result<Matrix> Allocate(int64_t rows, int64_t cols, MatrixElement element) override;
  Result<Vector> AllocateVector(std::span<const float> values) override;
  Result<Routing> AllocateRouting(int64_t rows, int top_k) override;
  Result<void> AllocateKv(const KvShape& shape) override;
  Result<void> AllocateRecurrent(const RecurrentShape& shape) override;
  bool Begin(StepKind kind, std::span<const int32_t> ids,
             std::span<const SequenceRows> sequences) override;
  void End() override;
  void Embed(const CanonicalBf16& table, Matrix out) override;
  void RmsNorm(Matrix x, Vector w, float eps, Matrix out) override;
  void Linear(const PreparedLinear& linear, Matrix x, Matrix y) override;
  void AddRmsNorm(Matrix x, Matrix y, const SharedExpert& shared, Vector w, float eps,
                  Matrix out) override;
  void SiluMul(Matrix gate_up, Matrix out) override;
  void RopeTable(Vector frequencies, Matrix table) override;
  void Attention(const kernels::AttentionShape& shape, int64_t layer, Vector q_norm, Vector k_norm,
                 Matrix rope_table, Matrix qkv, Matrix out) override;
  void DeltaNet(const kernels::DeltaShape& shape, int64_t layer,
                const kernels::DeltaParameters& parameters, Matrix in, Matrix out) override;
  void Keep(int slot, int64_t rows) override { inputs_.Keep(slot, rows); }
  void CopySlot(int from, int to, int64_t positions) override;
  void Route(const CanonicalBf16& router, Matrix x, bool renormalize, Routing routing) override;
  void Experts(const PreparedExperts& experts, Matrix x, const Routing& routing, Matrix y) override;
  bool BetweenMixers(const kernels::Between& b) override;
  void Concat(Matrix a, Matrix b, Matrix out) override;
  void WriteMatrix(std::span<const float> from, Matrix to) override;
  void WriteRouting(std::span<const int32_t> experts, std::span<const float> weights,
                    const Routing& to) override;
  void ReadRow(Matrix x, int64_t row, std::span<float> out) override;
  void ArgMax(Matrix x, int64_t drawable, std::span<int32_t> ids) override;
  void CopyRow(Matrix x, int64_t from, Matrix y, int64_t to) override;
  Result<void> Finish() override;

 private:
  CudaOperators() = default;
  Result<void> StartRecording();
  Result<void> StopRecording(Graph& graph);
  template <class F>
  void Issue(F&& launch);
  void IssueLayers();
  template <class F>
  void Timed(std::string_view name, F&& launch);
  template <class F>
  void Timed(std::string_view name, std::string_view detail, F&& launch);
  void Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
  Result<std::byte*> Zeroed(const Sm90MoeShape& shape, const MoeKernel* kernel, size_t bytes);

  bool graphs_wanted_ = true, recording_ = false;
  cudaStream_t stream_ = nullptr;
  StepInputs inputs_;
  Marks marks_;
  std::vector<Graph> graphs_;
  Graph* current_ = nullptr;  // that is being recorded
  std::vector<DeviceMemory> allocations_;
  GrowingMemory linear_work_, attention_work_, delta_work_;
  GrowingMemory route_work_, argmax_work_;  // zeroed, and left so by every launch
  GrowingMemory argmax_;                    // ids and flags
  struct MoeWork {
    Sm90MoeShape shape;
    const MoeKernel* kernel;
    GrowingMemory memory;
  };
  std::vector<MoeWork> moe_work_;        // zeroed, too, and of one shape each
  std::vector<Sm90LayerParams> layers_;  // put off, for the next may go along with them
  std::optional<DeltaParams> delta_;     // behind them

  KvShape kv_;
  int max_pages_ = 0;
  DeviceMemory keys_, values_, page_table_;
  RecurrentShape recurrent_;
  DeviceMemory states_, rings_;
  Result<void> status_;
};

Result<std::unique_ptr<kernels::Operators>> CudaOperators::Make(const OperatorsOptions& options) {
  std::unique_ptr<CudaOperators> ops(new CudaOperators());
  ops->graphs_wanted_ = options.graphs;
  NIBBLE_CUDA_TRY(cudaStreamCreateWithFlags(&ops->stream_, cudaStreamNonBlocking));
  return std::unique_ptr<kernels::Operators>(std::move(ops));
}

CudaOperators::~CudaOperators() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  for (const Graph& graph : graphs_) {
    if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
  }
  cudaStreamDestroy(stream_);
}

/// Runs a launch, behind all that was put off, unless something has failed before; what fails is told by
/// Finish().
template <class F>
void CudaOperators::Issue(F&& launch) {
  IssueLayers();
  if (status_) status_ = launch();
}

/// The launches that were put off.
void CudaOperators::IssueLayers() {
  if (layers_.empty()) return;
  const std::vector<Sm90LayerParams> layers = std::exchange(layers_, {});
  const std::optional<DeltaParams> delta = std::exchange(delta_, {});
  const Sm90MoeShape& shape = layers[0].experts.shape;
  Timed("between mixers", layers.size() > 1 ? "and delta_net" : "", [&]() -> Result<void> {
    NIBBLE_TRY(std::byte * workspace, Zeroed(shape, nullptr, Sm90LayerWorkspace(shape)));
    return LaunchSm90LayerDecode(layers, workspace, stream_);
  });
  if (delta) Timed("delta_net", [&] { return LaunchDeltaDecode(*delta, stream_); });
}

template <class F>
void CudaOperators::Timed(std::string_view name, F&& launch) {
  Timed(name, {}, launch);
}

/// The same, and where times are asked for, with an event behind it.
template <class F>
void CudaOperators::Timed(std::string_view name, std::string_view detail, F&& launch) {
  Issue(launch);
  if (times_.on()) Issue([&] { return marks_.Mark(name, detail, stream_); });
}

void CudaOperators::Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Issue([&]() -> Result<void> {
    NIBBLE_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, kind, stream_));
    if (kind != cudaMemcpyDeviceToDevice) NIBBLE_CUDA_TRY(cudaStreamSynchronize(stream_));
    return {};
  });
}

// ---- Memory

Result<Matrix> CudaOperators::Allocate(int64_t rows, int64_t cols, MatrixElement element) {
  Matrix m{nullptr, rows, cols, element};
  NIBBLE_TRY(DeviceMemory memory, DeviceMemory::Allocate(BytesOf(m), "activations"));
  m.data = memory.get();
  allocations_.push_back(std::move(memory));
  return m;
}

Result<Vector> CudaOperators::AllocateVector(std::span<const float> values) {
  NIBBLE_TRY(DeviceMemory memory, DeviceMemory::Allocate(values.size_bytes(), "parameters"));
  NIBBLE_CUDA_TRY(
      cudaMemcpy(memory.get(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
  const Vector v{static_cast<const float*>(static_cast<void*>(memory.get())),
                 static_cast<int64_t>(values.size())};
  allocations_.push_back(std::move(memory));
  return v;
}

Result<Routing> CudaOperators::AllocateRouting(int64_t rows, int top_k) {
  NIBBLE_TRY(const Matrix ids, Allocate(rows, top_k, MatrixElement::kFloat));
  NIBBLE_TRY(const Matrix weights, Allocate(rows, top_k, MatrixElement::kFloat));
  return Routing{static_cast<int32_t*>(ids.data), Floats(weights), top_k};
}

Result<void> CudaOperators::AllocateKv(const KvShape& shape) {
  if (KeysOf(shape.dtype) == KvDtype::kF32) {
    return Err(ErrorCode::kUnsupported, "a KV cache of fp32 on a GPU, expected bf16 or fp8");
  }
  kv_ = shape;
  max_pages_ = static_cast<int>(DivUp(static_cast<uint64_t>(shape.capacity), kKvPage));
  kv_.capacity = int64_t{max_pages_} * kKvPage;
  const uint64_t half = kv_.Bytes() / 2;
  NIBBLE_TRY(keys_, DeviceMemory::Allocate(half, "the KV cache"));
  NIBBLE_TRY(values_, DeviceMemory::Allocate(half, "the KV cache"));
  std::vector<int32_t> table(static_cast<size_t>(shape.slots) * max_pages_);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  NIBBLE_TRY(page_table_, DeviceMemory::Allocate(table.size() * sizeof(int32_t), "page tables"));
  NIBBLE_CUDA_TRY(cudaMemcpy(page_table_.get(), table.data(), table.size() * sizeof(int32_t),
                             cudaMemcpyHostToDevice));
  // What is read beyond a sequence's end is multiplied with zeros, and must be numbers.
  NIBBLE_CUDA_TRY(cudaMemset(keys_.get(), 0, half));
  NIBBLE_CUDA_TRY(cudaMemset(values_.get(), 0, half));
  return inputs_.Allocate(shape.slots);
}

Result<void> CudaOperators::AllocateRecurrent(const RecurrentShape& shape) {
  recurrent_ = shape;
  const auto slots = static_cast<uint64_t>(shape.layers * shape.slots);
  const auto ring = static_cast<uint64_t>(DeltaRingRows(shape.delta, kDeltaDecodeRows) *
                                          DeltaRingWidth(shape.delta));
  NIBBLE_TRY(states_,
             DeviceMemory::Allocate(slots * static_cast<uint64_t>(shape.delta.state_size()) * 4,
                                    "recurrent states"));
  NIBBLE_TRY(rings_, DeviceMemory::Allocate(slots * ring * 2, "recurrent states"));
  return {};
}

// ---- Steps

bool CudaOperators::Begin(StepKind kind, std::span<const int32_t> ids,
                          std::span<const SequenceRows> sequences) {
  if (!status_) return false;
  current_ = nullptr;
  Issue([&] { return inputs_.Send(kind, ids, sequences, stream_); });
  if (!status_) return false;
  const StepShape& shape = inputs_.shape();
  if (times_.on()) Issue([&] { return marks_.Mark("between steps", {}, stream_); });
  if (!graphs_wanted_ || times_.on() || !shape.IsSmall()) return true;
  const auto known = std::find_if(graphs_.begin(), graphs_.end(),
                                  [&](const Graph& g) { return g.shape == shape; });
  if (known == graphs_.end()) {  // its first run makes what is made but once
    graphs_.push_back({shape});
    return true;
  }
  if (known->exec != nullptr) {
    Issue([&]() -> Result<void> {
      NIBBLE_CUDA_TRY(cudaGraphLaunch(known->exec, stream_));
      return {};
    });
    return false;
  }
  Issue([&] { return StartRecording(); });
  if (!status_) return false;
  current_ = &*known;
  return true;
}

Result<void> CudaOperators::StartRecording() {
  NIBBLE_CUDA_TRY(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  recording_ = true;
  return {};
}

void CudaOperators::End() {
  IssueLayers();
  if (!recording_) return;
  const Result<void> stopped = StopRecording(*current_);
  if (status_ && !stopped) status_ = stopped;
}

Result<void> CudaOperators::StopRecording(Graph& graph) {
  recording_ = false;
  cudaGraph_t recorded = nullptr;
  NIBBLE_CUDA_TRY(cudaStreamEndCapture(stream_, &recorded));
  if (!status_) {  // some of the step is missing
    cudaGraphDestroy(recorded);
    return {};
  }
  const cudaError_t made = cudaGraphInstantiate(&graph.exec, recorded, 0);
  cudaGraphDestroy(recorded);
  NIBBLE_CUDA_TRY(made);
  NIBBLE_CUDA_TRY(cudaGraphLaunch(graph.exec, stream_));
  return {};
}

Result<void> CudaOperators::Finish() {
  IssueLayers();
  const cudaError_t done = cudaStreamSynchronize(stream_);
  if (status_ && done != cudaSuccess)
    status_ = DeviceError(done, "cudaStreamSynchronize", __FILE__, __LINE__);
  if (times_.on()) {
    Issue([&] { return marks_.Collect(times_); });
  } else {
    marks_.Forget();
  }
  Result<void> status = std::move(status_);
  status_ = {};
  return status;
}

// ---- Operators

void CudaOperators::Embed(const CanonicalBf16& table, Matrix out) {
  EmbedParams p;
  p.rows = static_cast<int>(out.rows);
  p.cols = static_cast<int>(table.k);
  p.table_rows = table.n;
  p.table = Bf16s(table);
  p.ids = inputs_.ids();
  p.out = out.data;
  p.out_element = ElementOf(out);
  Timed("embed", [&] { return LaunchEmbed(p, stream_); });
}

void CudaOperators::RmsNorm(Matrix x, Vector w, float eps, Matrix out) {
  RmsNormParams p;
  p.rows = static_cast<int>(x.rows);
  p.cols = static_cast<int>(x.cols);
  p.x = x.data;
  p.x_element = ElementOf(x);
  p.weight = w.data;
  p.eps = eps;
  p.out = out.data;
  p.out_element = ElementOf(out);
  Timed("rms_norm", [&] { return LaunchRmsNorm(p, stream_); });
}

void CudaOperators::AddRmsNorm(Matrix x, Matrix y, const SharedExpert& shared, Vector w, float eps,
                               Matrix out) {
  AddRmsNormParams p;
  p.rows = static_cast<int>(x.rows);
  p.cols = static_cast<int>(x.cols);
  p.residual = Floats(x);
  p.y = Bf16s(y);
  if (shared.gate.data != nullptr) {
    p.gate = Bf16s(shared.gate);
    p.x = Bf16s(shared.in);
    p.shared = Bf16s(shared.out);
  }
  p.weight = w.data;
  p.out = Bf16s(out);
  p.eps = eps;
  Timed("add_rms_norm", [&] { return LaunchAddRmsNorm(p, stream_); });
}

void CudaOperators::Linear(const PreparedLinear& linear, Matrix x, Matrix y) {
  Sm90LinearParams p = LinearParams(linear, x, y);
  if (IsPortable(linear)) {
    return Timed("linear", linear.shards[0].name, [&]() -> Result<void> {
      p.workspace_bytes = LinearMmaWorkspace(p);
      NIBBLE_TRY(p.workspace, linear_work_.Reserve(p.workspace_bytes, stream_));
      return LaunchLinearMma(p, stream_);
    });
  }
  if (p.tokens <= kSm90LinearDecodeTokens)
    return Timed("linear", linear.shards[0].name,
                 [&] { return LaunchSm90LinearDecode(p, stream_); });
  Timed("linear", linear.shards[0].name, [&]() -> Result<void> {
    p.workspace_bytes = Sm90LinearPrefillWorkspace(p);
    NIBBLE_TRY(p.workspace, linear_work_.Reserve(p.workspace_bytes, stream_));
    return LaunchSm90LinearPrefill(p, stream_);
  });
}

void CudaOperators::SiluMul(Matrix gate_up, Matrix out) {
  const SiluMulParams p{static_cast<int>(out.rows), static_cast<int>(out.cols), Bf16s(gate_up),
                        Bf16s(out)};
  Timed("silu_mul", [&] { return LaunchSiluMul(p, stream_); });
}

void CudaOperators::Concat(Matrix a, Matrix b, Matrix out) {
  const ConcatParams p{static_cast<int>(out.rows),
                       static_cast<int>(a.cols),
                       static_cast<int>(b.cols),
                       Bf16s(a),
                       Bf16s(b),
                       Bf16s(out)};
  Timed("concat", [&] { return LaunchConcat(p, stream_); });
}

void CudaOperators::RopeTable(Vector frequencies, Matrix table) {
  const RopeTableParams p{inputs_.step(), static_cast<int>(frequencies.n), frequencies.data,
                          Floats(table)};
  Timed("rope_table", [&] { return LaunchRopeTable(p, stream_); });
}

void CudaOperators::Attention(const kernels::AttentionShape& shape, int64_t layer, Vector q_norm,
                              Vector k_norm, Matrix rope_table, Matrix qkv, Matrix out) {
  AttentionParams p;
  p.shape.n_heads = static_cast<int>(shape.n_heads);
  p.shape.n_kv_heads = static_cast<int>(shape.n_kv_heads);
  p.shape.head_dim = static_cast<int>(shape.head_dim);
  p.shape.rotary_dim = static_cast<int>(rope_table.cols);
  p.shape.norm_eps = shape.norm_eps;
  p.shape.gated = shape.gated;
  p.step = inputs_.step();
  p.q_norm = q_norm.data;
  p.k_norm = k_norm.data;
  p.rope = Floats(rope_table);
  p.qkv = Bf16s(qkv);
  p.out = Bf16s(out);
  const uint64_t layer_bytes = kv_.Bytes() / 2 / static_cast<uint64_t>(kv_.layers);
  p.cache.k = keys_.get() + static_cast<uint64_t>(layer) * layer_bytes;
  p.cache.v = values_.get() + static_cast<uint64_t>(layer) * layer_bytes;
  p.cache.dtype = kv_.dtype;
  if (kv_.dtype == KvDtype::kFp8) {
    p.cache.k_scale = kv_.k_scales[static_cast<size_t>(layer)];
    p.cache.v_scale = kv_.v_scales[static_cast<size_t>(layer)];
  }
  p.cache.page_table = page_table_.As<int32_t>();
  p.cache.max_pages = max_pages_;
  const StepShape& step = inputs_.shape();
  p.capacity = static_cast<int>(std::min<int64_t>(step.capacity, kv_.capacity));
  if (step.max_rows > kAttentionDecodeRows)
    return Timed("attention", [&] { return LaunchAttentionPrefill(p, stream_); });
  Timed("attention", [&]() -> Result<void> {
    p.workspace_bytes =
        AttentionDecodeWorkspace(p.shape, step.sequences, step.max_rows, p.capacity);
    NIBBLE_TRY(p.workspace, attention_work_.Reserve(p.workspace_bytes, stream_));
    return LaunchAttentionDecode(p, step.max_rows, stream_);
  });
}

void CudaOperators::DeltaNet(const kernels::DeltaShape& shape, int64_t layer,
                             const kernels::DeltaParameters& parameters, Matrix in, Matrix out) {
  const StepShape& step = inputs_.shape();
  const int64_t slots = recurrent_.slots;
  DeltaParams p;
  p.shape = shape;
  p.parameters = parameters;
  p.memory.slots = static_cast<int>(slots);
  p.memory.decode_rows = kDeltaDecodeRows;
  p.memory.state = states_.As<float>() + layer * slots * shape.state_size();
  p.memory.ring = rings_.As<Bf16>() +
                  layer * slots * DeltaRingRows(shape, kDeltaDecodeRows) * DeltaRingWidth(shape);
  p.sequences = inputs_.delta();
  p.n_sequences = step.sequences;
  p.rows = step.rows;
  p.in = Bf16s(in);
  p.out = Bf16s(out);
  if (!layers_.empty() && !delta_ && layers_.back().in.y == p.in && p.rows == 1) {
    delta_ = p;
    return;
  }
  if (step.max_rows <= kDeltaDecodeRows)
    return Timed("delta_net", [&] { return LaunchDeltaDecode(p, stream_); });
  Timed("delta_net", [&]() -> Result<void> {
    p.workspace_bytes = DeltaPrefillWorkspace(shape, p.rows, p.n_sequences);
    NIBBLE_TRY(p.workspace, delta_work_.Reserve(p.workspace_bytes, stream_));
    return LaunchDeltaPrefill(p, stream_);
  });
}

void CudaOperators::CopySlot(int from, int to, int64_t positions) {
  inputs_.CopySlot(from, to);
  const auto copy = [&](const DeviceMemory& memory, int64_t layer, int64_t slots, size_t slot_bytes,
                        size_t used) {
    std::byte* const first = memory.get() + static_cast<size_t>(layer * slots) * slot_bytes;
    Copy(first + static_cast<size_t>(to) * slot_bytes,
         first + static_cast<size_t>(from) * slot_bytes, used, cudaMemcpyDeviceToDevice);
  };
  const size_t slot_bytes = kv_.Bytes() / 2 / static_cast<uint64_t>(kv_.layers * kv_.slots);
  const size_t used = slot_bytes / static_cast<size_t>(max_pages_) *
                      static_cast<size_t>(DivUp(static_cast<uint64_t>(positions), kKvPage));
  for (int64_t layer = 0; layer < kv_.layers; ++layer) {
    copy(keys_, layer, kv_.slots, slot_bytes, used);
    copy(values_, layer, kv_.slots, slot_bytes, used);
  }
  const size_t state = static_cast<size_t>(recurrent_.delta.state_size()) * sizeof(float);
  const auto ring = static_cast<size_t>(DeltaRingRows(recurrent_.delta, kDeltaDecodeRows) *
                                        DeltaRingWidth(recurrent_.delta)) *
                    sizeof(Bf16);
  for (int64_t layer = 0; layer < recurrent_.layers; ++layer) {
    copy(states_, layer, recurrent_.slots, state, state);
    copy(rings_, layer, recurrent_.slots, ring, ring);
  }
}

namespace {
RouteParams RouteOf(const CanonicalBf16& router, int64_t rows, bool renormalize,
                    const Routing& routing) {
  RouteParams p;
  p.tokens = static_cast<int>(rows);
  p.shared = routing.shared;
  p.experts = static_cast<int>(router.n) - (routing.shared ? 1 : 0);
  p.hidden = static_cast<int>(router.k);
  p.top_k = routing.top_k - (routing.shared ? 1 : 0);
  p.renormalize = renormalize;
  p.weight = Bf16s(router);
  p.ids = routing.experts;
  p.weights = routing.weights;
  return p;
}
}  // namespace

void CudaOperators::Route(const CanonicalBf16& router, Matrix x, bool renormalize,
                          Routing routing) {
  RouteParams p = RouteOf(router, x.rows, renormalize, routing);
  p.x = Bf16s(x);
  Timed("route", [&]() -> Result<void> {
    p.workspace_bytes = RouteWorkspace(p.tokens, p.rows());
    NIBBLE_TRY(p.workspace, route_work_.Reserve(p.workspace_bytes, stream_));
    return LaunchRoute(p, stream_);
  });
}

Result<std::byte*> CudaOperators::Zeroed(const Sm90MoeShape& shape, const MoeKernel* kernel,
                                         size_t bytes) {
  for (MoeWork& work : moe_work_) {
    if (work.shape == shape && work.kernel == kernel) return work.memory.Reserve(bytes, stream_);
  }
  moe_work_.push_back({shape, kernel, {}});
  return moe_work_.back().memory.Reserve(bytes, stream_);
}

void CudaOperators::Experts(const PreparedExperts& experts, Matrix x, const Routing& routing,
                            Matrix y) {
  Sm90MoeParams p = MoeParams(experts, x, routing, y);
  const MoeKernel* const kernel = MoeKernelOf(experts, p);
  Timed("experts", [&]() -> Result<void> {
    NIBBLE_TRY(p.workspace, Zeroed(p.shape, kernel, kernel->workspace(p.shape, p.tokens)));
    return kernel->launch(p, stream_);
  });
}

bool CudaOperators::BetweenMixers(const kernels::Between& b) {
  if (b.residual.rows > 1 || b.experts->backend != Backend::kHopper || IsPortable(*b.out) ||
      (b.in != nullptr && IsPortable(*b.in))) {
    return false;
  }
  Sm90LayerParams p;
  p.out = LinearParams(*b.out, b.attended, b.mixed);
  p.residual = Floats(b.residual);
  p.mid_weight = b.mid_norm.data;
  p.route = RouteOf(b.router, b.residual.rows, b.renormalize, b.routing);
  p.experts = MoeParams(*b.experts, b.normed, b.routing, b.mixed);
  p.next_weight = b.next_norm.data;
  p.normed = Bf16s(b.normed);
  p.eps = b.eps;
  p.has_in = b.in != nullptr;
  if (p.has_in) p.in = LinearParams(*b.in, b.normed, b.mixer_in);
  if (!Sm90LayerFits(p)) return false;
  if (!layers_.empty()) {
    p.delta = delta_;
    if (layers_.size() < kSm90LayersAtOnce && Sm90LayerFollows(p, layers_.back())) {
      delta_.reset();
    } else {
      IssueLayers();
      p.delta.reset();
    }
  }
  layers_.push_back(p);
  return true;
}

// ---- To and from the host

void CudaOperators::WriteMatrix(std::span<const float> from, Matrix to) {
  if (to.element == MatrixElement::kFloat)
    return Copy(to.data, from.data(), from.size_bytes(), cudaMemcpyHostToDevice);
  std::vector<Bf16> rounded(from.size());
  for (size_t i = 0; i < from.size(); ++i) rounded[i] = ToBf16(from[i]);
  Copy(to.data, rounded.data(), rounded.size() * sizeof(Bf16), cudaMemcpyHostToDevice);
}

void CudaOperators::WriteRouting(std::span<const int32_t> experts, std::span<const float> weights,
                                 const Routing& to) {
  Copy(to.experts, experts.data(), experts.size_bytes(), cudaMemcpyHostToDevice);
  Copy(to.weights, weights.data(), weights.size_bytes(), cudaMemcpyHostToDevice);
}

void CudaOperators::ReadRow(Matrix x, int64_t row, std::span<float> out) {
  if (x.element == MatrixElement::kFloat) {
    return Copy(out.data(), Floats(x) + row * x.cols, out.size_bytes(), cudaMemcpyDeviceToHost);
  }
  std::vector<Bf16> rounded(out.size());
  Copy(rounded.data(), Bf16s(x) + row * x.cols, rounded.size() * sizeof(Bf16),
       cudaMemcpyDeviceToHost);
  for (size_t i = 0; i < out.size(); ++i) out[i] = ToFloat(rounded[i]);
}

void CudaOperators::ArgMax(Matrix x, int64_t drawable, std::span<int32_t> ids) {
  constexpr size_t kMost = 1024;  // rows of a launch
  NIBBLE_CHECK(ids.size() <= kMost, "an argmax of more rows than a launch takes");
  int32_t found[2 * kMost];  // ids, then flags
  ArgmaxParams p;
  p.rows = static_cast<int>(ids.size());
  p.drawable = drawable;
  p.stride = x.cols;
  p.logits = Floats(x);
  Timed("argmax", [&]() -> Result<void> {
    NIBBLE_TRY(std::byte * out, argmax_.Reserve(sizeof found, stream_));
    p.ids = reinterpret_cast<int32_t*>(out);
    p.flags = p.ids + p.rows;
    p.workspace_bytes = ArgmaxWorkspace(p.rows);
    NIBBLE_TRY(p.workspace, argmax_work_.Reserve(p.workspace_bytes, stream_));
    return LaunchArgmax(p, stream_);
  });
  Copy(found, p.ids, 2 * ids.size_bytes(), cudaMemcpyDeviceToHost);
  if (!status_) return;
  for (size_t r = 0; r < ids.size(); ++r) {
    ids[r] = found[ids.size() + r] != 0 ? kNotNumbers : found[r];
  }
}

void CudaOperators::CopyRow(Matrix x, int64_t from, Matrix y, int64_t to) {
  const size_t bytes = BytesOf(x.Top(1));
  Copy(static_cast<std::byte*>(y.data) + static_cast<size_t>(to) * bytes,
       static_cast<const std::byte*>(x.data) + static_cast<size_t>(from) * bytes, bytes,
       cudaMemcpyDeviceToDevice);
}

}  // namespace

Result<std::unique_ptr<kernels::Operators>> MakeOperators(const OperatorsOptions& options) {
  return CudaOperators::Make(options);
}

}  // namespace nibble::cuda
