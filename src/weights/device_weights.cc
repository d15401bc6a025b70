#include "weights/device_weights.h"

#include <utility>

#include "kernels/cuda/cuda.h"

namespace nibble::weights {
namespace {

std::span<const std::byte> BytesOf(const CanonicalBf16& w) {
  return {reinterpret_cast<const std::byte*>(w.data), static_cast<size_t>(2 * w.n * w.k)};
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
      NIBBLE_CHECK(shard.backend == Backend::kHopper, "a linear on a GPU that is not HOPPER's");
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
