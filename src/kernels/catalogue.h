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

/// Compute capabilities as 10 * major + minor, both ends included.
struct CcRange {
  static constexpr int kNoEnd = 1 << 20;  // `high` of a kernel that every later device runs too
  int low = 0, high = 0;
};

/// Where the router's weight may multiply an expert's input instead of its output.
enum class RouterWeightOnInput : uint8_t {
  kNever,
  kTop1,  // with one expert a token
};

/// One kernel as data: what it can do, not how. The oracle (plan/) reads these rows and nothing
/// else; a backend is added by adding rows.
struct CatalogueRow {
  std::string_view id;  // arch_weight_act_op: the name in logs, benchmarks and tests
  Backend backend = Backend::kReference;
  Operation operation = Operation::kLinear;
  std::span<const QuantScheme> schemes;  // exactly these pairs of keys

  DeviceKind device = DeviceKind::kCpu;
  CpuIsa isa = CpuIsa::kScalar;  // CPU: the instruction set it is compiled for
  std::span<const CcRange> cc;   // CUDA: the devices it runs on

  std::span<const Activation> activations;  // kExperts
  bool bias = false;                        // adds a bias to its outputs
  int64_t hidden_multiple = 16;             // of H (kExperts) or of k (kLinear)
  int64_t pad_intermediate =
      16;  // I is padded to a multiple of this with zeros that change no result
  bool tensor_parallel = false;  // may hold a slice of I
  bool expert_parallel = false;  // may hold a subset of the experts
  RouterWeightOnInput router_weight_on_input = RouterWeightOnInput::kNever;

  bool built = true;  // this build holds its code
};

/// All rows, of each backend best first, backends in the order that automatic choice prefers.
std::span<const CatalogueRow> Catalogue();

}  // namespace nibble::kernels
