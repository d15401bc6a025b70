#include "weights/device_weights.h"

#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda.h"

namespace nibble::weights {
namespace {

std::span<const std::byte> BytesOf(const CanonicalBf16& w) {
  return {reinterpret_cast<const std::byte*>(w.data), static_cast<size_t>(2 * w.n * w.k)};
}

/// A layer's shared expert becomes one more of its routed ones, where the same kernel runs it: of
/// their format, precision and shape. Its gate becomes the router's last row, in `joined`.
void RouteToSharedExpert(LayerWeights& w, std::vector<std::vector<uint8_t>>* joined) {
  PreparedExperts& e = w.experts;
  MoeQuantConfig& q = e.quant;
  if (w.shared_gate.data == nullptr || e.n_experts == 0 || e.gate.empty() ||
      e.activation != Activation::kSilu || q.clamp_limit || w.gate_up.shards.size() != 2 ||
      w.down.shards.size() != 1) {
    return;
  }
  const PreparedLinearShard& gate = w.gate_up.shards[0];
  const PreparedLinearShard& up = w.gate_up.shards[1];
  const PreparedLinearShard& down = w.down.shards[0];
  const auto like = [&](const PreparedLinearShard& s, const PreparedWeight& expert) {
    const auto& mine = std::get<CanonicalWeight>(s.weight);
    const auto& theirs = std::get<CanonicalWeight>(expert);
    const auto* fp8 = std::get_if<CanonicalFp8>(&mine);
    return mine.index() == theirs.index() &&
           (fp8 == nullptr || fp8->group == std::get<CanonicalFp8>(theirs).group) &&
           RowsOf(mine) == RowsOf(theirs) && ColumnsOf(mine) == ColumnsOf(theirs) &&
           s.activation == q.scheme.activation &&
           s.input_scale.has_value() == (q.a1_gscale || q.a1_scale);
  };
  if (!like(gate, e.gate[0]) || !like(up, e.up[0]) || !like(down, e.down[0])) return;
  const bool scaled = !q.g2_alphas.empty();
  if (scaled && (q.g1_columns() != 2 || q.activation_folded)) return;
  if (q.use_w4a4()) {
    const bool one = q.a1_columns() == 1;
    if (one && *gate.input_scale != *up.input_scale) return;
    q.a1_gscale->push_back(1 / *gate.input_scale);
    if (!one) q.a1_gscale->push_back(1 / *up.input_scale);
    q.a2_gscale->push_back(1 / *down.input_scale);
  }
  if (q.a1_scale) {
    q.a1_scale->insert(q.a1_scale->end(), {*gate.input_scale, *up.input_scale});
    q.a2_scale->push_back(*down.input_scale);
  }
  if (scaled) {
    q.g1_alphas.insert(q.g1_alphas.end(), {gate.global, up.global});
    q.g2_alphas.push_back(down.global);
  }
  e.gate.push_back(gate.weight);
  e.up.push_back(up.weight);
  e.down.push_back(down.weight);
  ++e.n_experts;
  e.shared = true;
  const std::span<const std::byte> router = BytesOf(w.router), row = BytesOf(w.shared_gate);
  std::vector<uint8_t>& both = joined->emplace_back(router.size() + row.size());
  std::memcpy(both.data(), router.data(), router.size());
  std::memcpy(both.data() + router.size(), row.data(), row.size());
  w.router = {w.router.n + 1, w.router.k, both.data()};
  w.shared_gate = {};
  w.gate_up = {};
  w.down = {};
}

/// What the arena must hold.
struct Sizes {
  uint64_t bytes = 0;

  Result<void> operator()(Parameters& p) {
    bytes += cuda::DeviceArena::BytesOfRaw(p.values().size_bytes());
    return {};
  }
  Result<void> operator()(CanonicalBf16& w) {
    if (w.data != nullptr) bytes += cuda::DeviceArena::BytesOfRaw(BytesOf(w).size());
    return {};
  }
  Result<void> operator()(PreparedLinear& linear) {
    for (const PreparedLinearShard& shard : linear.shards) {
      NIBBLE_CHECK(shard.backend == Backend::kHopper || shard.backend == Backend::kMarlin,
                   "a linear on a GPU of a backend that does not read Hopper's tiles");
      bytes += cuda::DeviceArena::BytesOfLinear(std::get<CanonicalWeight>(shard.weight));
    }
    return {};
  }
  Result<void> operator()(PreparedExperts& experts) {
    if (experts.n_experts > 0) bytes += cuda::DeviceArena::BytesOfExperts(experts);
    return {};
  }
};

class Placer {
 public:
  Placer(cuda::DeviceArena& arena, uint64_t total, const Progress& progress)
      : arena_(arena), total_(total), progress_(progress) {}

  Result<void> operator()(Parameters& p) {
    NIBBLE_TRY(const std::byte* at, arena_.Place(std::as_bytes(p.values())));
    p.Place(reinterpret_cast<const float*>(at));
    return {};
  }
  Result<void> operator()(CanonicalBf16& w) {
    if (w.data == nullptr) return {};
    NIBBLE_TRY(const std::byte* at, arena_.Place(BytesOf(w)));
    w.data = reinterpret_cast<const uint8_t*>(at);
    return {};
  }
  Result<void> operator()(PreparedLinear& linear) {
    for (PreparedLinearShard& shard : linear.shards) {
      NIBBLE_TRY(shard.weight, arena_.PlaceLinear(std::get<CanonicalWeight>(shard.weight)));
    }
    Tell();
    return {};
  }
  Result<void> operator()(PreparedExperts& experts) {
    if (experts.n_experts == 0) return {};
    NIBBLE_TRY(experts.hopper, arena_.PlaceExperts(experts));
    Tell();
    return {};
  }

 private:
  void Tell() const {
    if (progress_) progress_(arena_.used(), total_);
  }

  cuda::DeviceArena& arena_;
  uint64_t total_;
  const Progress& progress_;
};

template <class Visitor, class... Parts>
Result<void> All(Visitor& visit, Parts&... parts) {
  Result<void> status;
  ((status = visit(parts), status.ok()) && ...);
  return status;
}

template <class Visitor>
Result<void> VisitLayer(LayerWeights& w, Visitor& visit) {
  return All(visit, w.input_norm, w.post_attention_norm, w.attention.q_norm, w.attention.k_norm,
             w.attention.qkv, w.attention.o, w.delta.in, w.delta.conv, w.delta.a_log,
             w.delta.dt_bias, w.delta.norm, w.delta.out, w.router, w.experts, w.shared_gate,
             w.gate_up, w.down);
}

template <class Visitor>
Result<void> VisitModel(ModelWeights& w, Visitor& visit) {
  NIBBLE_CHECK_OK(All(visit, w.embedding, w.final_norm, w.head));
  for (LayerWeights& layer : w.layers) NIBBLE_CHECK_OK(VisitLayer(layer, visit));
  if (!w.mtp) return {};
  NIBBLE_CHECK_OK(All(visit, w.mtp->embedding_norm, w.mtp->hidden_norm, w.mtp->norm, w.mtp->fc));
  return VisitLayer(w.mtp->layer, visit);
}

}  // namespace

Result<void> PlaceOnDevice(ModelWeights& out, const Progress& progress) {
  std::vector<std::vector<uint8_t>> joined;
  for (LayerWeights& layer : out.layers) RouteToSharedExpert(layer, &joined);
  if (out.mtp) RouteToSharedExpert(out.mtp->layer, &joined);
  Sizes sizes;
  NIBBLE_CHECK_OK(VisitModel(out, sizes));
  NIBBLE_TRY(out.device, cuda::DeviceArena::Make(sizes.bytes));
  Placer placer(*out.device, sizes.bytes, progress);
  NIBBLE_CHECK_OK(VisitModel(out, placer));
  NIBBLE_CHECK_OK(out.device->Finish());
  if (progress) progress(sizes.bytes, sizes.bytes);
  return {};
}

}  // namespace nibble::weights
