#include "kernels/catalogue.h"

#include <array>

namespace nibble::kernels {
namespace {

constexpr Activation kGated[] = {Activation::kSilu, Activation::kSwigluOaiUninterleave,
                                 Activation::kRelu2NoMul};

using enum Operation;

#define NIBBLE_CPU_ROWS(prefix, level)                                                 \
  CatalogueRow{prefix "_nvfp4_bf16_experts",                                           \
               Backend::kCpu,                                                          \
               kExperts,                                                               \
               kW4A16,                                                                 \
               DeviceKind::kCpu,                                                       \
               CpuIsa::level,                                                          \
               kGated},                                                                \
      CatalogueRow{prefix "_nvfp4_nvfp4_experts",                                      \
                   Backend::kCpu,                                                      \
                   kExperts,                                                           \
                   kW4A4,                                                              \
                   DeviceKind::kCpu,                                                   \
                   CpuIsa::level,                                                      \
                   kGated},                                                            \
      CatalogueRow{prefix "_nvfp4_bf16_linear",                                        \
                   Backend::kCpu,                                                      \
                   kLinear,                                                            \
                   kW4A16,                                                             \
                   DeviceKind::kCpu,                                                   \
                   CpuIsa::level,                                                      \
                   {}},                                                                \
      CatalogueRow{prefix "_nvfp4_nvfp4_linear",                                       \
                   Backend::kCpu,                                                      \
                   kLinear,                                                            \
                   kW4A4,                                                              \
                   DeviceKind::kCpu,                                                   \
                   CpuIsa::level,                                                      \
                   {}},                                                                \
      CatalogueRow{prefix "_bf16_bf16_experts",                                        \
                   Backend::kCpu,                                                      \
                   kExperts,                                                           \
                   kBf16Scheme,                                                        \
                   DeviceKind::kCpu,                                                   \
                   CpuIsa::level,                                                      \
                   kGated},                                                            \
      CatalogueRow {                                                                   \
    prefix "_bf16_bf16_linear", Backend::kCpu, kLinear, kBf16Scheme, DeviceKind::kCpu, \
        CpuIsa::level, {}                                                              \
  }

constexpr std::array kRows = {
    NIBBLE_CPU_ROWS("avx512bf16", kAvx512Bf16),
    NIBBLE_CPU_ROWS("avx512", kAvx512),
    NIBBLE_CPU_ROWS("avx2", kAvx2),
    NIBBLE_CPU_ROWS("scalar", kScalar),
    CatalogueRow{
        "cpu_f32_glue", Backend::kCpu, kGlue, kBf16Scheme, DeviceKind::kCpu, CpuIsa::kScalar, {}},
    CatalogueRow{"reference_nvfp4_f64_experts", Backend::kReference, kExperts, kW4A16,
                 DeviceKind::kCpu, CpuIsa::kScalar, kGated},
    CatalogueRow{"reference_nvfp4_nvfp4_experts", Backend::kReference, kExperts, kW4A4,
                 DeviceKind::kCpu, CpuIsa::kScalar, kGated},
    CatalogueRow{"reference_bf16_f64_experts", Backend::kReference, kExperts, kBf16Scheme,
                 DeviceKind::kCpu, CpuIsa::kScalar, kGated},
    CatalogueRow{"reference_nvfp4_f64_linear",
                 Backend::kReference,
                 kLinear,
                 kW4A16,
                 DeviceKind::kCpu,
                 CpuIsa::kScalar,
                 {}},
    CatalogueRow{"reference_nvfp4_nvfp4_linear",
                 Backend::kReference,
                 kLinear,
                 kW4A4,
                 DeviceKind::kCpu,
                 CpuIsa::kScalar,
                 {}},
    CatalogueRow{"reference_bf16_f64_linear",
                 Backend::kReference,
                 kLinear,
                 kBf16Scheme,
                 DeviceKind::kCpu,
                 CpuIsa::kScalar,
                 {}},
    CatalogueRow{"reference_f64_glue",
                 Backend::kReference,
                 kGlue,
                 kBf16Scheme,
                 DeviceKind::kCpu,
                 CpuIsa::kScalar,
                 {}},
};

#undef NIBBLE_CPU_ROWS

}  // namespace

std::span<const CatalogueRow> Catalogue() { return kRows; }

}  // namespace nibble::kernels
