#include "kernels/catalogue.h"

#include <array>

namespace nibble::kernels {
namespace {

using enum Operation;

constexpr QuantScheme kOnlyW4A16[] = {kW4A16};
constexpr QuantScheme kOnlyW4A4[] = {kW4A4};
constexpr QuantScheme kOnlyBf16[] = {kBf16Scheme};

// swigluoai comes with gate and up rows interleaved; reading them apart is the loader's, so a
// kernel that knows the one knows the other.
constexpr Activation kActivations[] = {Activation::kSilu, Activation::kSwigluOai,
                                       Activation::kSwigluOaiUninterleave, Activation::kRelu2NoMul};

constexpr CcRange kCc80[] = {{80, CcRange::kNoEnd}};
constexpr CcRange kCc90[] = {{90, 90}};
constexpr CcRange kCc100[] = {{100, 100}, {103, 103}};
constexpr CcRange kCc120[] = {{120, 121}};

// ---- CPU and REFERENCE: one process, whole experts.

constexpr CatalogueRow Host(std::string_view id, Backend backend, Operation operation,
                            std::span<const QuantScheme> schemes, CpuIsa isa = CpuIsa::kScalar) {
  CatalogueRow row;
  row.id = id;
  row.backend = backend;
  row.operation = operation;
  row.schemes = schemes;
  row.isa = isa;
  if (operation == kExperts) row.activations = kActivations;
  return row;
}

// Eight rows an instruction set: what differs is the name.
#define NIBBLE_CPU_ROWS(prefix, level)                                                        \
  Host(prefix "_nvfp4_bf16_experts", Backend::kCpu, kExperts, kOnlyW4A16, CpuIsa::level),     \
      Host(prefix "_nvfp4_nvfp4_experts", Backend::kCpu, kExperts, kOnlyW4A4, CpuIsa::level), \
      Host(prefix "_fp8_experts", Backend::kCpu, kExperts, kFp8Schemes, CpuIsa::level),       \
      Host(prefix "_bf16_bf16_experts", Backend::kCpu, kExperts, kOnlyBf16, CpuIsa::level),   \
      Host(prefix "_nvfp4_bf16_linear", Backend::kCpu, kLinear, kOnlyW4A16, CpuIsa::level),   \
      Host(prefix "_nvfp4_nvfp4_linear", Backend::kCpu, kLinear, kOnlyW4A4, CpuIsa::level),   \
      Host(prefix "_fp8_linear", Backend::kCpu, kLinear, kFp8Schemes, CpuIsa::level),         \
      Host(prefix "_bf16_bf16_linear", Backend::kCpu, kLinear, kOnlyBf16, CpuIsa::level)

constexpr std::array kHostRows = {
    NIBBLE_CPU_ROWS("avx512bf16", kAvx512Bf16),
    NIBBLE_CPU_ROWS("avx512", kAvx512),
    NIBBLE_CPU_ROWS("avx2", kAvx2),
    NIBBLE_CPU_ROWS("scalar", kScalar),
    Host("cpu_f32_glue", Backend::kCpu, kGlue, kOnlyBf16),
};

#undef NIBBLE_CPU_ROWS

constexpr std::array kReferenceRows = {
    Host("reference_nvfp4_f64_experts", Backend::kReference, kExperts, kOnlyW4A16),
    Host("reference_nvfp4_nvfp4_experts", Backend::kReference, kExperts, kOnlyW4A4),
    Host("reference_fp8_experts", Backend::kReference, kExperts, kFp8Schemes),
    Host("reference_bf16_f64_experts", Backend::kReference, kExperts, kOnlyBf16),
    Host("reference_nvfp4_f64_linear", Backend::kReference, kLinear, kOnlyW4A16),
    Host("reference_nvfp4_nvfp4_linear", Backend::kReference, kLinear, kOnlyW4A4),
    Host("reference_fp8_linear", Backend::kReference, kLinear, kFp8Schemes),
    Host("reference_bf16_f64_linear", Backend::kReference, kLinear, kOnlyBf16),
    Host("reference_f64_glue", Backend::kReference, kGlue, kOnlyBf16),
};

// ---- CUDA. H and k in multiples of 64 (a tile's k); I is padded to 64.

constexpr CatalogueRow Cuda(std::string_view id, Backend backend, Operation operation,
                            std::span<const QuantScheme> schemes, std::span<const CcRange> cc) {
  CatalogueRow row;
  row.id = id;
  row.backend = backend;
  row.operation = operation;
  row.schemes = schemes;
  row.device = DeviceKind::kCuda;
  row.cc = cc;
  row.hidden_multiple = operation == kGlue ? 1 : 64;
  row.pad_intermediate = 64;
  row.tensor_parallel = true;
  row.expert_parallel = true;
  row.router_weight_on_input = RouterWeightOnInput::kTop1;
  if (operation == kExperts) {
    row.activations = kActivations;
    row.bias = true;
  }
  row.built = false;
  return row;
}

#ifdef NIBBLE_CUDA
constexpr bool kCudaBuilt = true;
#else
constexpr bool kCudaBuilt = false;
#endif

/// A row whose code is in every build with CUDA.
constexpr CatalogueRow Built(CatalogueRow row) {
  row.built = kCudaBuilt;
  return row;
}

/// B12X holds all experts on one device, takes no bias, and multiplies the router's weight on the
/// input in W4A16 alone.
constexpr CatalogueRow B12x(std::string_view id, Operation operation,
                            std::span<const QuantScheme> schemes, bool a16) {
  CatalogueRow row = Cuda(id, Backend::kB12x, operation, schemes, kCc120);
  row.expert_parallel = false;
  row.bias = false;
  if (!a16) row.router_weight_on_input = RouterWeightOnInput::kNever;
  return row;
}

/// The block-scaled tensor core path of Blackwell data-centre parts: scale tiles of 128 rows, so I
/// is padded to 128.
constexpr CatalogueRow Cutlass(std::string_view id, Operation operation) {
  CatalogueRow row = Cuda(id, Backend::kCutlass, operation, kOnlyW4A4, kCc100);
  row.pad_intermediate = 128;
  return row;
}

constexpr std::array kCudaRows = {
    Cutlass("sm100_nvfp4_nvfp4_experts", kExperts),
    Cutlass("sm100_nvfp4_nvfp4_linear", kLinear),
    B12x("sm120_nvfp4_bf16_experts", kExperts, kOnlyW4A16, true),
    B12x("sm120_nvfp4_nvfp4_experts", kExperts, kOnlyW4A4, false),
    B12x("sm120_nvfp4_bf16_linear", kLinear, kOnlyW4A16, true),
    B12x("sm120_nvfp4_nvfp4_linear", kLinear, kOnlyW4A4, false),
    Built(Cuda("sm90_nvfp4_bf16_experts", Backend::kHopper, kExperts, kOnlyW4A16, kCc90)),
    Built(Cuda("sm90_nvfp4_nvfp4_experts", Backend::kHopper, kExperts, kOnlyW4A4, kCc90)),
    Built(Cuda("sm90_fp8_experts", Backend::kHopper, kExperts, kFp8Schemes, kCc90)),
    Built(Cuda("sm90_bf16_bf16_experts", Backend::kHopper, kExperts, kOnlyBf16, kCc90)),
    Built(Cuda("sm90_nvfp4_bf16_linear", Backend::kHopper, kLinear, kOnlyW4A16, kCc90)),
    Built(Cuda("sm90_nvfp4_nvfp4_linear", Backend::kHopper, kLinear, kOnlyW4A4, kCc90)),
    Built(Cuda("sm90_fp8_linear", Backend::kHopper, kLinear, kFp8Schemes, kCc90)),
    Built(Cuda("sm90_bf16_bf16_linear", Backend::kHopper, kLinear, kOnlyBf16, kCc90)),
    Built(Cuda("sm80_nvfp4_bf16_experts", Backend::kMarlin, kExperts, kOnlyW4A16, kCc80)),
    Built(Cuda("sm80_nvfp4_nvfp4_experts", Backend::kMarlin, kExperts, kOnlyW4A4, kCc80)),
    Built(Cuda("sm80_fp8_experts", Backend::kMarlin, kExperts, kFp8Schemes, kCc80)),
    Built(Cuda("sm80_bf16_bf16_experts", Backend::kMarlin, kExperts, kOnlyBf16, kCc80)),
    Built(Cuda("sm80_nvfp4_bf16_linear", Backend::kMarlin, kLinear, kOnlyW4A16, kCc80)),
    Built(Cuda("sm80_nvfp4_nvfp4_linear", Backend::kMarlin, kLinear, kOnlyW4A4, kCc80)),
    Built(Cuda("sm80_fp8_linear", Backend::kMarlin, kLinear, kFp8Schemes, kCc80)),
    Built(Cuda("sm80_bf16_bf16_linear", Backend::kMarlin, kLinear, kOnlyBf16, kCc80)),
    Built(Cuda("cuda_bf16_glue", Backend::kMarlin, kGlue, kOnlyBf16, kCc80)),
};

template <size_t... N>
constexpr auto Concatenate(const std::array<CatalogueRow, N>&... parts) {
  std::array<CatalogueRow, (N + ...)> all{};
  size_t at = 0;
  const auto append = [&](const auto& part) {
    for (const CatalogueRow& row : part) all[at++] = row;
  };
  (append(parts), ...);
  return all;
}

// REFERENCE comes last: it is chosen by name, or where nothing else runs.
constexpr auto kRows = Concatenate(kCudaRows, kHostRows, kReferenceRows);

}  // namespace

std::span<const CatalogueRow> Catalogue() { return kRows; }

}  // namespace nibble::kernels
