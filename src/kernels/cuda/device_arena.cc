#include <cuda_runtime_api.h>

#include <algorithm>
#include <initializer_list>
#include <variant>
#include <vector>

#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/tile_pack.h"

namespace nibble::cuda {
namespace {

constexpr uint64_t kAlignment = 256;
/// What goes over before it is packed: one matrix, and the largest is an lm_head in 16 bits.
constexpr uint64_t kStagingBytes = uint64_t{2} << 30;

uint64_t Aligned(uint64_t bytes) { return RoundUp(bytes, kAlignment); }

HopperFormat FormatOf(const CanonicalWeight& w) {
  if (std::holds_alternative<CanonicalNvfp4>(w)) return HopperFormat::kNvfp4;
  return std::holds_alternative<CanonicalFp8>(w) ? HopperFormat::kFp8 : HopperFormat::kBf16;
}

/// Scales that the kernels read beside the codes; one scale for all is a launch's argument.
std::span<const float> ScalesOf(const CanonicalWeight& w) {
  const auto* fp8 = std::get_if<CanonicalFp8>(&w);
  if (fp8 == nullptr || fp8->group == GroupShape::PerTensor()) return {};
  return fp8->scales;
}

HopperFormat FormatOf(const PreparedExperts& e) {
  return FormatOf(std::get<CanonicalWeight>(e.up.front()));
}

std::span<const uint8_t> Codes(const CanonicalNvfp4& w) {
  return {w.codes, static_cast<size_t>(w.n * w.k / 2)};
}
std::span<const uint8_t> BlockScales(const CanonicalNvfp4& w) {
  return {w.scales, static_cast<size_t>(w.n * w.k / 16)};
}

HopperLayout W13LayoutOf(const PreparedExperts& e) {
  return e.gate.empty() ? HopperW1Layout(e.hidden, e.intermediate)
                        : HopperW13Layout(e.hidden, e.intermediate);
}

GscaleSharing SharingOf(const std::vector<float>& a1, size_t shards) {
  if (std::all_of(a1.begin(), a1.end(), [&](float s) { return s == a1[0]; }))
    return GscaleSharing::kLayer;
  for (size_t i = 0; i + shards <= a1.size(); i += shards) {
    if (a1[i] != a1[i + shards - 1]) return GscaleSharing::kNone;
  }
  return GscaleSharing::kExpert;
}

/// Scales that lie beside an expert layer's codes, and where the kernels find them.
struct PlacedScales {
  std::vector<float> values;
  const float* HopperExperts::*to;
};

/// FP8's by channel or block, expert by expert, gate before up.
std::vector<float> PartScales(std::initializer_list<const std::vector<PreparedWeight>*> matrices,
                              int64_t experts) {
  std::vector<float> out;
  for (size_t i = 0; i < static_cast<size_t>(experts); ++i) {
    for (const std::vector<PreparedWeight>* of : matrices) {
      if (of->empty()) continue;
      const std::span<const float> own = ScalesOf(std::get<CanonicalWeight>((*of)[i]));
      out.insert(out.end(), own.begin(), own.end());
    }
  }
  return out;
}

std::vector<PlacedScales> ScalesOf(const PreparedExperts& e) {
  const HopperFormat format = FormatOf(e);
  const MoeQuantConfig& q = e.quant;
  std::vector<PlacedScales> out;
  if (format == HopperFormat::kBf16) return out;
  if (q.scheme.weight != kFp8StaticChannel && q.scheme.weight != kFp8StaticBlock128) {
    out.push_back({q.g1_alphas, &HopperExperts::g1});
    out.push_back({q.g2_alphas, &HopperExperts::g2});
  } else {
    out.push_back({PartScales({&e.gate, &e.up}, e.n_experts), &HopperExperts::w13_scales});
    out.push_back({PartScales({&e.down}, e.n_experts), &HopperExperts::w2_scales});
  }
  if (q.a1_gscale) {
    out.push_back({*q.a1_gscale, &HopperExperts::a1_gscale});
    out.push_back({*q.a2_gscale, &HopperExperts::a2_gscale});
  }
  if (q.a1_scale) {
    out.push_back({*q.a1_scale, &HopperExperts::a1_scale});
    out.push_back({*q.a2_scale, &HopperExperts::a2_scale});
  }
  return out;
}

}  // namespace

uint64_t DeviceArena::BytesOfRaw(uint64_t bytes) { return Aligned(bytes); }

uint64_t DeviceArena::BytesOfLinear(const CanonicalWeight& w) {
  return Aligned(static_cast<uint64_t>(HopperLinearBytes(FormatOf(w), RowsOf(w), ColumnsOf(w)))) +
         Aligned(ScalesOf(w).size_bytes());
}

uint64_t DeviceArena::BytesOfExperts(const PreparedExperts& e) {
  const auto experts = static_cast<uint64_t>(e.n_experts);
  const HopperFormat format = FormatOf(e);
  const auto w13 = static_cast<uint64_t>(W13LayoutOf(e).bytes(format));
  const auto w2 = static_cast<uint64_t>(HopperW2Layout(e.hidden, e.intermediate).bytes(format));
  uint64_t bytes = Aligned(experts * w13) + Aligned(experts * w2);
  for (const PlacedScales& scales : ScalesOf(e)) bytes += Aligned(scales.values.size() * 4);
  return bytes;
}

Result<std::unique_ptr<DeviceArena>> DeviceArena::Make(uint64_t bytes) {
  std::unique_ptr<DeviceArena> arena(new DeviceArena());
  size_t free = 0, total = 0;
  NIBBLE_CUDA_TRY(cudaMemGetInfo(&free, &total));
  const auto gigabytes = [](uint64_t n) { return 1e-9 * static_cast<double>(n); };
  void *memory = nullptr, *staging = nullptr;
  if (cudaMalloc(&memory, std::max<uint64_t>(bytes, 1)) != cudaSuccess ||
      cudaMalloc(&staging, kStagingBytes) != cudaSuccess) {
    cudaGetLastError();
    cudaFree(memory);
    Error error =
        Err(ErrorCode::kOutOfMemory,
            "the weights take {:.1f} GB of the device's memory, and {:.1f} GB while they "
            "are loaded; {:.1f} of {:.1f} GB are free",
            gigabytes(bytes), gigabytes(bytes + kStagingBytes), gigabytes(free), gigabytes(total));
    error.hint = "nibble inspect shows the budget; a smaller model, or --device cpu";
    return error;
  }
  arena->memory_ = static_cast<std::byte*>(memory);
  arena->staging_ = static_cast<std::byte*>(staging);
  arena->bytes_ = bytes;
  return arena;
}

DeviceArena::~DeviceArena() {
  cudaFree(memory_);
  cudaFree(staging_);
}

std::byte* DeviceArena::Take(uint64_t bytes) {
  NIBBLE_CHECK(used_ + Aligned(bytes) <= bytes_, "more weights than their arena was made for");
  std::byte* at = memory_ + used_;
  used_ += Aligned(bytes);
  return at;
}

/// Copies behind what was staged since staged_ was last 0. One stream: what is packed out of the
/// staging buffer is packed before it is written anew.
Result<const uint8_t*> DeviceArena::Stage(std::span<const uint8_t> bytes) {
  if (staged_ + bytes.size() > kStagingBytes) {
    return Err(ErrorCode::kUnsupported,
               "one matrix of {} bytes, expected at most {}: loading stages a matrix at a time",
               staged_ + bytes.size(), kStagingBytes);
  }
  std::byte* at = staging_ + staged_;
  NIBBLE_CUDA_TRY(cudaMemcpyAsync(at, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, nullptr));
  staged_ += Aligned(bytes.size());
  return reinterpret_cast<const uint8_t*>(at);
}

Result<const std::byte*> DeviceArena::Place(std::span<const std::byte> bytes) {
  std::byte* at = Take(bytes.size());
  NIBBLE_CUDA_TRY(cudaMemcpyAsync(at, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, nullptr));
  return at;
}

Result<HopperMatrix> DeviceArena::PlaceLinear(const CanonicalWeight& w) {
  HopperMatrix m;
  m.format = FormatOf(w);
  m.n = RowsOf(w);
  m.k = ColumnsOf(w);
  staged_ = 0;
  const uint8_t *codes = nullptr, *block_scales = nullptr;
  if (const auto* fp4 = std::get_if<CanonicalNvfp4>(&w)) {
    NIBBLE_TRY(codes, Stage(Codes(*fp4)));
    NIBBLE_TRY(block_scales, Stage(BlockScales(*fp4)));
  } else if (const auto* fp8 = std::get_if<CanonicalFp8>(&w)) {
    NIBBLE_TRY(codes, Stage({fp8->codes, static_cast<size_t>(m.n * m.k)}));
    m.group = fp8->group;
  } else {
    const auto& bf16 = std::get<CanonicalBf16>(w);
    NIBBLE_TRY(codes, Stage({bf16.data, static_cast<size_t>(2 * m.n * m.k)}));
  }
  auto* out = reinterpret_cast<uint8_t*>(
      Take(static_cast<uint64_t>(HopperLinearBytes(m.format, m.n, m.k))));
  NIBBLE_CHECK_OK(LaunchTilePackLinear(m.format, codes, block_scales, m.n, m.k, out, nullptr));
  m.data = out;
  if (const auto scales = ScalesOf(w); !scales.empty()) {
    NIBBLE_TRY(const std::byte* at, Place(std::as_bytes(scales)));
    m.scales = reinterpret_cast<const float*>(at);
  }
  return m;
}

Result<HopperExperts> DeviceArena::PlaceExperts(const PreparedExperts& e) {
  const int hidden = static_cast<int>(e.hidden), intermediate = static_cast<int>(e.intermediate);
  const auto experts = static_cast<uint64_t>(e.n_experts);
  const HopperFormat format = FormatOf(e);
  const auto w13_bytes = static_cast<uint64_t>(W13LayoutOf(e).bytes(format));
  const auto w2_bytes = static_cast<uint64_t>(HopperW2Layout(hidden, intermediate).bytes(format));
  auto* w13 = reinterpret_cast<uint8_t*>(Take(experts * w13_bytes));
  auto* w2 = reinterpret_cast<uint8_t*>(Take(experts * w2_bytes));
  const auto stage = [&](const PreparedWeight& w) -> Result<TilePackSource> {
    const auto& canonical = std::get<CanonicalWeight>(w);
    TilePackSource source;
    source.format = format;
    if (const auto* bf16 = std::get_if<CanonicalBf16>(&canonical)) {
      NIBBLE_TRY(source.codes, Stage({bf16->data, static_cast<size_t>(2 * bf16->n * bf16->k)}));
      return source;
    }
    if (const auto* fp8 = std::get_if<CanonicalFp8>(&canonical)) {
      NIBBLE_TRY(source.codes, Stage({fp8->codes, static_cast<size_t>(fp8->n * fp8->k)}));
      return source;
    }
    const auto& from = std::get<CanonicalNvfp4>(canonical);
    NIBBLE_TRY(source.codes, Stage(Codes(from)));
    NIBBLE_TRY(source.scales, Stage(BlockScales(from)));
    source.codes_stride = Codes(from).size();
    source.scales_stride = BlockScales(from).size();
    return source;
  };
  for (uint64_t i = 0; i < experts; ++i) {
    staged_ = 0;
    NIBBLE_TRY(const TilePackSource up, stage(e.up[i]));
    NIBBLE_TRY(const TilePackSource down, stage(e.down[i]));
    if (e.gate.empty()) {
      NIBBLE_CHECK_OK(LaunchTilePackW1(up, 1, hidden, intermediate, w13 + i * w13_bytes, nullptr));
    } else {
      NIBBLE_TRY(const TilePackSource gate, stage(e.gate[i]));
      NIBBLE_CHECK_OK(
          LaunchTilePackW13(gate, up, 1, hidden, intermediate, w13 + i * w13_bytes, nullptr));
    }
    NIBBLE_CHECK_OK(LaunchTilePackW2(down, 1, hidden, intermediate, w2 + i * w2_bytes, nullptr));
  }
  HopperExperts out{format, w13, w2};
  for (const PlacedScales& scales : ScalesOf(e)) {
    NIBBLE_TRY(const std::byte* at, Place(std::as_bytes(std::span(scales.values))));
    out.*scales.to = reinterpret_cast<const float*>(at);
  }
  const auto& a1 = e.quant.a1_gscale ? e.quant.a1_gscale : e.quant.a1_scale;
  if (a1) out.sharing = SharingOf(*a1, e.gate.empty() ? 1 : 2);
  return out;
}

Result<void> DeviceArena::Finish() {
  NIBBLE_CUDA_TRY(cudaDeviceSynchronize());
  cudaFree(staging_);
  staging_ = nullptr;
  return {};
}

}  // namespace nibble::cuda
