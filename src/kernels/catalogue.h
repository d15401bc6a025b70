#pragma once

#include <span>
#include <string_view>

#include "layout/quant_key.h"
#include "layout/words.h"

namespace nibble::kernels {

/// What a kernel computes.
enum class Operation : uint8_t {
  kExperts,  // routed experts: two multiplications around an activation function
  kLinear,   // one matrix multiplication
  kGlue,     // everything else of a forward pass: embedding, norms, RoPE, attention, router
};

/// One kernel as data: what it can do, not how. The oracle (plan/) reads these rows and nothing else; a backend is added by adding
/// rows.
struct CatalogueRow {
  std::string_view id;  // arch_weight_act_op, the name in logs, benchmarks and tests
  Backend backend = Backend::kReference;
  Operation operation = Operation::kLinear;
  QuantScheme scheme;  // exactly this pair of keys
  DeviceKind device = DeviceKind::kCpu;
  CpuIsa isa = CpuIsa::kScalar;             // CPU: the instruction set it is compiled for
  std::span<const Activation> activations;  // kExperts
  bool bias = false;                        // adds a bias to its outputs
  bool built = true;                        // this build holds its code
};

/// All rows, of each backend best first, backends in the order that automatic choice prefers.
std::span<const CatalogueRow> Catalogue();

}  // namespace nibble::kernels
