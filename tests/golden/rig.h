#pragma once

#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "kernels/host_operators.h"
#include "model/qwen_moe.h"
#include "plan/plan.h"
#include "weights/model_weights.h"

namespace nibble::golden {

// What the golden tests stand on: a loaded model taken apart, and the references that PyTorch
// computed.

/// A checkpoint loaded without an engine around it, so that a test can reach every part.
struct Rig {
  using MakeOperators = std::function<std::unique_ptr<kernels::HostOperators>(
      Backend glue, CpuIsa isa, ThreadPool& pool)>;

  checkpoint::Checkpoint checkpoint;
  plan::Plan plan;
  ThreadPool pool{2};
  weights::ModelWeights weights;
  std::unique_ptr<kernels::HostOperators> operators;  // null on a GPU
  std::unique_ptr<kernels::Operators> device;         // on a GPU
  std::optional<model::QwenMoe> model;

  /// A batch that holds every prompt.
  static constexpr int64_t kBatch = 1024;

  /// `make` may put a subclass in the operators' place.
  static Result<std::unique_ptr<Rig>> Open(const std::string& dir, const plan::Wishes& wishes,
                                           CpuIsa isa, const MakeOperators& make = {});

  /// The same on this machine's GPU.
  static Result<std::unique_ptr<Rig>> OpenOnCuda(const std::string& dir, const plan::Wishes& wishes,
                                                 bool graphs = true);
  static Result<std::unique_ptr<Rig>> OpenOnCuda(checkpoint::Checkpoint checkpoint,
                                                 const plan::Wishes& wishes, bool graphs = true);

  /// Runs ids from position 0 in batches of at most `batch` and gives the logits of every position
  /// from `first` on.
  std::vector<std::vector<float>> Logits(std::span<const int32_t> ids, int64_t first,
                                         int64_t batch = kBatch);
};

/// Tensors of a reference file by name, as float or int32.
class Reference {
 public:
  explicit Reference(const std::string& path);
  bool Has(const std::string& name) const { return file_ && Find(name) != nullptr; }
  std::vector<float> Floats(const std::string& name) const;
  std::vector<int32_t> Ints(const std::string& name) const;
  /// Prompts in the file: p0, p1, …
  int prompts() const;

 private:
  const checkpoint::TensorInfo* Find(const std::string& name) const;
  std::optional<checkpoint::SafetensorsFile> file_;
};

/// One checkpoint under test.
struct Subject {
  std::string name;  // "qwen3-moe-mini-modelopt-NVFP4"
  std::string dir;
  std::string reference;  // .safetensors
  bool w4a4 = false;
  double
      ppl = 0,
      ppl_a16 =
          0;  // held-out perplexity of native and of a16, as the references' makers measured; 0: not known
};

/// The bundled sample and, where NIBBLE_TEST_DATA leads to them, the other three of its kind.
std::vector<Subject> MiniCheckpoints();
/// The two-layer checkpoints in tests/golden/tiny.
std::vector<Subject> TinyCheckpoints();
/// NIBBLE_TEST_DATA, or empty.
std::string TestData();

/// The three of the hybrid family, where NIBBLE_TEST_DATA leads to them: none without.
std::vector<Subject> HybridCheckpoints();

/// Every step's argmax under the reference's own tokens, where the reference was sure of it.
/// Prefill in one batch or token by token.
void ExpectSureTokens(Rig& rig, const Reference& want, int p, int64_t batch,
                      const std::string& what);

/// Steps p whose argmax under the reference's own tokens is another though the reference was sure of it.
std::vector<size_t> SureStepsThatDiffer(Rig& rig, const Reference& want, int p, int64_t batch);

/// The smallest relative gap between the k-th and the (k+1)-th probability of any layer's router at the
/// last of ids, on which `truth` (a host's) may decide otherwise than one that rounds.
double NarrowestRoute(Rig& truth, std::span<const int32_t> ids);

/// Names the first token whose experts differ from REFERENCE's, and by how little the router
/// decided there: the relative gap of the k-th and the (k+1)-th probability. Infinite when no token
/// differs.
double FirstRouterNearTie(Rig& rig, Rig& truth, std::span<const int32_t> ids);

/// Backend CPU on every instruction set: each prompt's logits within `limit` (relative L2) of the
/// reference's, or the router's near tie named that turns its experts, on all but `exceptions`; and
/// every sure token in one batch, in parts of each of `parts`, and for short prompts one by one.
void ExpectCpuIsNear(const Subject& s, double limit, int exceptions,
                     std::initializer_list<int64_t> parts);
/// Backend CPU gives the same bits on 1, 2, 3 and 7 threads.
void ExpectSameOnAnyNumberOfThreads(const Subject& s);

/// The operators with every embedded number moved by up to `size` of itself: with 1e-6, by what
/// float32 rounds away in a forward pass.
class NoisyOperators : public kernels::HostOperators {
 public:
  NoisyOperators(Backend glue, CpuIsa isa, ThreadPool& pool, double size)
      : HostOperators(glue, isa, pool), size_(size) {}
  void Embed(const CanonicalBf16& table, kernels::Matrix out) override;
  uint64_t seed = 0;

 private:
  const double size_;
};

/// Layer 0's experts, the shared one among them, alone.
struct Layer0 {
  std::vector<float> out;
  std::vector<int32_t> experts;
};
Layer0 RunLayer0(Rig& rig, const std::vector<float>& in);

/// ||a - b|| / ||b||
double RelativeL2(std::span<const float> a, std::span<const float> b);
/// The instruction sets that this machine can run.
std::vector<CpuIsa> IsasHere();
/// --moe-backend reference
plan::Wishes Reference64();

}  // namespace nibble::golden
