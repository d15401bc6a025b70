#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "kernels/delta_shape.h"
#include "kernels/operator_times.h"
#include "layout/prepared.h"

namespace nibble::kernels {

enum class Element : uint8_t {
  kActivation,  // what goes from operator to operator: fp32 on a host, bf16 with CUDA
  kFloat,       // fp32 everywhere: the residual stream, logits, RoPE tables
};

/// A block [rows, cols], contiguous, in the memory of the operators that made it. The model hands
/// these about and never looks inside.
struct Matrix {
  void* data = nullptr;
  int64_t rows = 0, cols = 0;
  Element element = Element::kActivation;

  /// The first n rows.
  Matrix Top(int64_t n) const { return {data, n, cols, element}; }
};

/// Consecutive rows of a batch that belong to one sequence: rows first_row … first_row+n_rows-1 are
/// its tokens at positions start … start+n_rows-1, and what it holds of all earlier positions (keys
/// and values, recurrent state) lies in slot `slot`. Tentative rows may turn out wrong: Keep() says
/// how many of them stay before the slot's next rows come.
struct SequenceRows {
  int slot = 0;
  int64_t first_row = 0, n_rows = 0, start = 0;
  bool tentative = false;
};

struct AttentionShape {
  int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float norm_eps = 1e-6f;
  bool gated = false;  // each query head is followed by its gate

  int64_t q_stride() const { return gated ? 2 * head_dim : head_dim; }  // from head to head
  int64_t q_width() const { return n_heads * q_stride(); }
  int64_t kv_width() const { return n_kv_heads * head_dim; }
  int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
  int64_t out_width() const { return n_heads * head_dim; }
};

struct KvShape {
  int64_t layers = 0, slots = 0, capacity = 0;  // capacity: positions a slot holds
  int64_t kv_width = 0;                         // n_kv_heads * head_dim
  int64_t head_dim = 0;
  KvDtype dtype = KvDtype::kF32;
  /// kFp8 alone, [layers]: a cached number is its code times its layer's scale.
  std::vector<float> k_scales, v_scales;

  /// Bytes of keys and values together.
  uint64_t Bytes() const {
    return static_cast<uint64_t>(KvBytes(dtype) * layers * slots * capacity * kv_width);
  }
};

struct RecurrentShape {
  int64_t layers = 0, slots = 0;
  int64_t tentative_rows = 0;  // that a sequence may have at most in one batch
  DeltaShape delta;
};

/// Which experts each token goes to, in the operators' memory.
struct Routing {
  int32_t* experts = nullptr;  // [rows, top_k], by falling weight; equal weights by lower index
  float* weights = nullptr;    // [rows, top_k]
  int top_k = 0;
  bool shared = false;  // the last of top_k is the shared expert, see Route
};

/// What a layer's shared expert adds: sigmoid(gate . in[t]) * out[t]. No gate: there is none.
struct SharedExpert {
  CanonicalBf16 gate = {};  // [1, H]
  Matrix in, out;           // [T, H]
};

/// What lies between two mixers (attention, DeltaNet), see Operators::BetweenMixers.
struct Between {
  const PreparedLinear* out = nullptr;
  Matrix attended;
  Vector mid_norm;
  CanonicalBf16 router;
  bool renormalize = false;
  Routing routing;
  const PreparedExperts* experts = nullptr;
  Vector next_norm;
  float eps = 0;
  const PreparedLinear* in = nullptr;  // null: the norm is the last
  Matrix mixer_in;
  Matrix residual, mixed, normed;
};

/// What a step runs: steps of one kind make the same calls.
enum class StepKind : uint8_t { kForward, kDraft };

/// Everything a model's forward pass is made of. An architecture is written once against this list;
/// the host and CUDA each implement it. Calls run in order (CUDA: on one stream). Shapes are the
/// caller's promise. What can fail on the way (scratch memory, a launch) is kept and told by
/// Finish(); calls after a failure do nothing. Nothing allocates except Allocate… and the first use
/// of a larger batch. Not safe for use from two threads.
class Operators {
 public:
  virtual ~Operators() = default;

  /// Uninitialised activations that live as long as the operators. errors kOutOfMemory, naming the
  /// bytes.
  virtual Result<Matrix> Allocate(int64_t rows, int64_t cols,
                                  Element element = Element::kActivation) = 0;
  /// A copy of `values` that lives as long.
  virtual Result<Vector> AllocateVector(std::span<const float> values) = 0;
  virtual Result<Routing> AllocateRouting(int64_t rows, int top_k) = 0;
  /// The KV cache, once. Slots are written before they are read: what a recycled one held is never
  /// seen.
  virtual Result<void> AllocateKv(const KvShape& shape) = 0;
  /// The recurrent states, once. Rows that start at position 0 start from zero, whatever their slot
  /// held.
  virtual Result<void> AllocateRecurrent(const RecurrentShape& shape) = 0;

  /// Begins a step over these tokens; False where the operators have recorded the calls of a step of
  /// this kind and shape and repeat them: then none is to be made. `ids` and `sequences` must live
  /// until End(), which ends the step and does not wait for it.
  virtual bool Begin(StepKind kind, std::span<const int32_t> ids,
                     std::span<const SequenceRows> sequences) = 0;
  virtual void End() = 0;

  /// out[t, :] = table[ids[t], :] of the step's ids, which are in [0, table rows).
  virtual void Embed(const CanonicalBf16& table, Matrix out) = 0;
  /// out = x / sqrt(mean(x^2) + eps) * w, by rows.
  virtual void RmsNorm(Matrix x, Vector w, float eps, Matrix out) = 0;
  /// y[:, c] for every shard's columns, side by side.
  virtual void Linear(const PreparedLinear& linear, Matrix x, Matrix y) = 0;
  /// x += y, and what a shared expert adds; then out = x / sqrt(mean(x^2) + eps) * w, by rows. out may
  /// be shared.in.
  virtual void AddRmsNorm(Matrix x, Matrix y, const SharedExpert& shared, Vector w, float eps,
                          Matrix out) = 0;
  /// out = silu(gate_up[:, :I]) * gate_up[:, I:]
  virtual void SiluMul(Matrix gate_up, Matrix out) = 0;

  /// table[t, :] = cos(p_t f_0 …), sin(p_t f_0 …) of the step's positions: [rows, 2 *
  /// frequencies].
  virtual void RopeTable(Vector frequencies, Matrix table) = 0;
  /// Over qkv [rows, q|k|v]: q and k normalised per head (RMS, times q_norm / k_norm), then rotated
  /// in halves by the table (its first dimensions alone, where the table is narrower); k and v
  /// stored in the cache; o = softmax(q k^T / sqrt(head_dim)) v over each row's own and earlier
  /// positions; gated: times sigmoid(gate). Query head j reads kv head j / (n_heads / n_kv_heads).
  /// What qkv holds afterwards is not said.
  /// `layer` counts the layers that have a cache.
  virtual void Attention(const AttentionShape& shape, int64_t layer, Vector q_norm, Vector k_norm,
                         Matrix rope_table, Matrix qkv, Matrix out) = 0;

  /// Over in [rows, q|k|v|z|b|a], per sequence in order: c = silu(causal convolution of q|k|v); q
  /// and k scaled to unit length per head, q also by k_dim^-0.5; beta = sigmoid(b), g = -exp(a_log)
  /// softplus(a + dt_bias); S <- e^g S; S <- S + beta (v - S k) k^T; o = S q; out = RMS(o) * norm *
  /// silu(z) per value head. Value head h reads key head h / (v_heads / k_heads). `layer` counts
  /// the layers that have a state.
  virtual void DeltaNet(const DeltaShape& shape, int64_t layer, const DeltaParameters& parameters,
                        Matrix in, Matrix out) = 0;
  /// Of the tentative rows that slot's last batch ran, the first `rows` stay and the others never
  /// were. (A cache needs no telling: what lies behind a sequence's end is overwritten.)
  virtual void Keep(int slot, int64_t rows) = 0;
  /// Slot `to` becomes what slot `from` is, which holds `positions` positions; of its tentative rows it
  /// is said how many stay. Ends when the next step begins.
  virtual void CopySlot(int from, int to, int64_t positions) = 0;

  /// p = softmax over all experts of x W^T in fp32 (x unrounded: near ties decide whole experts),
  /// the top_k largest; divided by their sum if renormalize. Where a shared expert is routed to, W has
  /// a row more, and every token's last route is to the expert behind the others, of weight sigmoid of
  /// that row's product.
  virtual void Route(const CanonicalBf16& router, Matrix x, bool renormalize, Routing routing) = 0;
  /// y[t] = sum_k weights[t,k] * expert[experts[t,k]](x[t]), overwritten, summed in an order that
  /// does not depend on the other rows.
  virtual void Experts(const PreparedExperts& experts, Matrix x, const Routing& routing,
                       Matrix y) = 0;

  /// Where the operators have it in one go: mixed = Linear(out, attended); AddRmsNorm(residual, mixed,
  /// mid_norm, normed); Route and Experts of normed, to mixed; AddRmsNorm(residual, mixed, next_norm,
  /// normed); mixer_in = Linear(in, normed). False: they have not, and nothing was done. What mixed and
  /// routing hold afterwards is not said.
  virtual bool BetweenMixers(const Between&) { return false; }

  /// out[t] = a[t] | b[t]
  virtual void Concat(Matrix a, Matrix b, Matrix out) = 0;
  /// Host floats [rows, cols] into a block; host ids and weights [rows, top_k] into a routing.
  virtual void WriteMatrix(std::span<const float> from, Matrix to) = 0;
  virtual void WriteRouting(std::span<const int32_t> experts, std::span<const float> weights,
                            const Routing& to) = 0;
  /// Copies one row to host floats.
  virtual void ReadRow(Matrix x, int64_t row, std::span<float> out) = 0;
  /// ids[r] = the index of the largest of x[r, 0 … drawable-1], the lowest of equal ones; kNotNumbers
  /// where a NaN is among them. x is of kFloat. Waits for it.
  virtual void ArgMax(Matrix x, int64_t drawable, std::span<int32_t> ids) = 0;
  static constexpr int32_t kNotNumbers = -1;
  /// Row `from` of x becomes row `to` of y.
  virtual void CopyRow(Matrix x, int64_t from, Matrix y, int64_t to) = 0;

  /// Waits for everything issued so far; the first error since the last Finish().
  virtual Result<void> Finish() = 0;

  OperatorTimes& times() { return times_; }

 protected:
  OperatorTimes times_;
};

}  // namespace nibble::kernels
