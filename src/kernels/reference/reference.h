#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "kernels/attend_args.h"
#include "layout/prepared.h"

namespace nibble::kernels::reference {

// Backend REFERENCE: the truth, in double, straight from the canonical weights, as plain as it can
// be written. It shares no arithmetic with any other backend but the definitions of the formats in
// numerics/, which are tested exhaustively. Activations of W4A16 are not rounded at all: the label
// forbids less than 16 bits, not more.

/// One activation block that is about to be quantized to NVFP4.
struct BlockEvent {
  std::string_view module;  // of the linear or the layer's experts
  int expert = -1;          // -1: a linear
  int projection = 0;       // 0 gate (or the linear itself), 1 up, 2 down
  int64_t row = 0, block = 0;
  std::span<double> x;  // the 16 inputs; a test may move them
  double gscale = 0;
};

/// What a computation may use: a way to run units in parallel (results never depend on how), and,
/// for tests and traces, an observer of every quantized block, called from any thread in no fixed
/// order.
struct Context {
  std::function<void(int64_t n, const std::function<void(int64_t)>& unit)> parallel;
  std::function<void(const BlockEvent&)> on_block;
  /// Sees, and may replace, each row that an expert multiplies (projection as above), after any
  /// quantization: how other precisions' answers are made, to tell which one a kernel gave.
  std::function<void(int expert, int projection, int64_t token, std::span<double> row)>
      on_expert_input;
};

/// y[t, n] = sum_k x[t, k] W[n, k] for one shard. x is first quantized as `shard.activation` says:
/// to NVFP4 block by block, or to FP8; a static scale is `shard.input_scale`.
/// shapes  x [tokens, k]; y [tokens, ldy] of which the shard's n columns are written
void Linear(const Context& context, std::string_view module, const PreparedLinearShard& shard,
            const float* x, int64_t tokens, float* y, int64_t ldy);

/// y[t] = sum_j weights[t,j] * down_e(act(gate_e x_t, up_e x_t)), e = ids[t,j], summed in the order
/// of j.
/// shapes  x, y [tokens, hidden]; ids, weights [tokens, top_k]
void Experts(const Context& context, const PreparedExperts& experts, const float* x, int64_t tokens,
             const int32_t* ids, const float* weights, int top_k, float* y);

/// Sources for the operators below: kernels/operators.h states their meaning.
void RmsNorm(const float* x, int64_t rows, int64_t cols, const float* w, double eps, float* out);
void SiluMul(const float* gate_up, int64_t rows, int64_t intermediate, float* out);
void RotateHalves(float* head, int64_t dim, const float* cosines, const float* sines,
                  int64_t frequencies);

/// Attention of a kv head's query heads over its cached positions.
void Attend(const AttendArgs& args);
/// x *= sigmoid(gate)
void MulSigmoid(float* x, const float* gate, int64_t n);
/// y += sigmoid(gate . x) * shared; shared and y have n numbers.
void AddSharedExpert(const CanonicalBf16& gate, const float* x, const float* shared, int64_t n,
                     float* y);

/// Router of one token: the softmax of x W^T over all experts, then the top_k by probability, equal
/// ones by lower index.
void RouteOne(const CanonicalBf16& router, const float* x, bool renormalize, int top_k,
              float* probabilities, int32_t* ids, float* weights);

}  // namespace nibble::kernels::reference
