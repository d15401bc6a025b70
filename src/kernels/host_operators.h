#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/glue.h"
#include "kernels/cpu/scratch.h"
#include "kernels/host_attention.h"
#include "kernels/host_delta.h"
#include "kernels/operators.h"
#include "kernels/reference/reference.h"

namespace nibble::kernels {

/// What tests and traces may see of a forward pass. Every member may be empty.
struct HostObserver {
  /// Each token's router, in the order of the layers: its probabilities over all experts, the
  /// chosen.
  std::function<void(int64_t row, std::span<const float> probabilities,
                     std::span<const int32_t> chosen)>
      on_route;
  /// Each block that a REFERENCE kernel quantizes to NVFP4.
  std::function<void(const reference::BlockEvent&)> on_block;
};

/// The operators on a CPU. Multiplications go to the backend that each weight was prepared for; the
/// rest to `glue`: CPU in fp32, or REFERENCE in double.
class HostOperators : public Operators {
 public:
  /// `batch_invariant`: a row's numbers do not depend on how many rows are computed with it; large
  /// batches then run by the kernels of small ones, some times slower. (REFERENCE is so anyway.)
  HostOperators(Backend glue, CpuIsa isa, ThreadPool& pool, bool batch_invariant = false);

  void Observe(HostObserver observer);

  Result<Matrix> Allocate(int64_t rows, int64_t cols,
                          Element element = Element::kActivation) override;
  Result<Vector> AllocateVector(std::span<const float> values) override;
  Result<Routing> AllocateRouting(int64_t rows, int top_k) override;
  Result<void> AllocateKv(const KvShape& shape) override;
  Result<void> AllocateRecurrent(const RecurrentShape& shape) override;
  bool Begin(StepKind kind, std::span<const int32_t> ids,
             std::span<const SequenceRows> sequences) override;
  void End() override {}
  void Embed(const CanonicalBf16& table, Matrix out) override;
  void RmsNorm(Matrix x, Vector w, float eps, Matrix out) override;
  void Linear(const PreparedLinear& linear, Matrix x, Matrix y) override;
  void AddRmsNorm(Matrix x, Matrix y, const SharedExpert& shared, Vector w, float eps,
                  Matrix out) override;
  void SiluMul(Matrix gate_up, Matrix out) override;
  void RopeTable(Vector frequencies, Matrix table) override;
  void Attention(const AttentionShape& shape, int64_t layer, Vector q_norm, Vector k_norm,
                 Matrix rope_table, Matrix qkv, Matrix out) override;
  void DeltaNet(const DeltaShape& shape, int64_t layer, const DeltaParameters& parameters,
                Matrix in, Matrix out) override;
  void Keep(int slot, int64_t rows) override;
  void CopySlot(int from, int to, int64_t positions) override;
  void Route(const CanonicalBf16& router, Matrix x, bool renormalize, Routing routing) override;
  void Experts(const PreparedExperts& experts, Matrix x, const Routing& routing, Matrix y) override;
  void Concat(Matrix a, Matrix b, Matrix out) override;
  void WriteMatrix(std::span<const float> from, Matrix to) override;
  void WriteRouting(std::span<const int32_t> experts, std::span<const float> weights,
                    const Routing& to) override;
  void ReadRow(Matrix x, int64_t row, std::span<float> out) override;
  void ArgMax(Matrix x, int64_t drawable, std::span<int32_t> ids) override;
  void CopyRow(Matrix x, int64_t from, Matrix y, int64_t to) override;
  Result<void> Finish() override;

  /// y[t] += sigmoid(gate . x[t]) * shared[t]
  void AddSharedExpert(const CanonicalBf16& gate, Matrix x, Matrix shared, Matrix y);

 private:
  void Add(Matrix x, Matrix y);
  void Note(Result<void> status);
  void ForRows(int64_t rows, int64_t work_a_row,
               FunctionRef<void(int64_t first, int64_t last, int thread)> body);
  void ChooseExperts(int64_t first, int64_t last, int64_t n, bool renormalize, float* p,
                     Routing routing);
  void RouteCpu(const CanonicalBf16& router, Matrix x, bool renormalize, float* p, Routing routing);

  const Backend glue_;
  const cpu::CpuKernels kernels_;
  const cpu::GlueKernels& ops_;
  ThreadPool& pool_;
  cpu::Scratch scratch_;
  reference::Context reference_;
  HostObserver observer_;
  std::vector<HugeBuffer> buffers_;
  std::vector<std::vector<float>> vectors_;
  std::span<const int32_t> ids_;  // the step's
  std::span<const SequenceRows> sequences_;
  HostAttention attention_;
  HostDelta delta_;
  std::vector<float> probabilities_;  // router scratch [rows * experts]
  Result<void> status_;
};

}  // namespace nibble::kernels
