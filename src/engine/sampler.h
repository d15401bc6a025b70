#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"

namespace nibble::engine {

/// How the next token is drawn. The defaults change nothing: temperature 1 over the whole
/// vocabulary.
struct SamplingParameters {
  double temperature = 1;         // below 1e-5: greedy; else at least 0.01
  int64_t top_k = 0;              // 0: off
  double top_p = 1;               // (0, 1]
  double min_p = 0;               // [0, 1]
  double repetition_penalty = 1;  // > 0; over prompt and output
  double presence_penalty = 0;    // [-2, 2]; over output
  double frequency_penalty = 0;   // [-2, 2]; over output
  uint64_t seed = 0;

  bool greedy() const { return temperature < 1e-5; }
  /// errors  kInvalidArgument naming the field, its value and the range
  Result<void> Check() const;
};

/// Draws the tokens of one sequence. The order of steps is vLLM's: repetition, frequency and
/// presence penalties; greedy, or temperature, min_p, top_k, top_p, and a draw. The random number
/// of an output position depends on (seed, position) alone, so runs that reach the same logits by
/// other ways (other chunks, speculation) draw the same tokens.
class Sampler {
 public:
  /// `vocab` rows of logits, of which only the first `drawable` are tokens (the rest pads the
  /// matrix).
  Sampler(const SamplingParameters& parameters, int64_t vocab, int64_t drawable,
          std::span<const int32_t> prompt);

  /// The next token from its logits, which are overwritten. It then counts as output.
  /// shapes  logits [vocab]
  /// errors  kInternal: a logit is NaN (the model's weights or state are broken)
  Result<int32_t> Next(std::span<float> logits);
  int64_t drawable() const { return drawable_; }
  /// Whether Next() takes the largest logit, whatever came before.
  bool greedy() const { return parameters_.greedy() && !penalized_; }

 private:
  void Penalize(std::span<float> logits) const;
  int32_t Draw(std::span<const float> logits);
  void Collect(std::span<const float> logits, float least);
  float LeastOfTop(std::span<const float> logits, size_t k);

  SamplingParameters parameters_;
  int64_t drawable_ = 0;
  bool penalized_ = false;
  std::vector<uint8_t> in_prompt_;      // [vocab]
  std::vector<uint32_t> output_count_;  // [vocab]
  uint64_t position_ = 0;

  struct Candidate {
    float logit;
    int32_t id;
  };
  std::vector<Candidate> candidates_;
  std::vector<float> top_;
};

/// The lowest id among the largest logits.
int32_t ArgMax(std::span<const float> logits);

/// A uniform number in [0, 1) of 53 bits that depends on its arguments alone (splitmix64 rounds
/// over both).
double UniformAt(uint64_t seed, uint64_t position);

}  // namespace nibble::engine
