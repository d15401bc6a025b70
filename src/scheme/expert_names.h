#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"

namespace nibble::scheme {

/// How a layer's experts are named that lie in tensors of their own: `gate_proj`, `up_proj`,
/// `down_proj` or `w1`, `w3`, `w2`, gate and up maybe one behind the other in `gate_up_proj` or
/// `w13`. Told by the names of the checkpoint, expert by expert.
class ExpertNames {
 public:
  enum Projection : uint8_t { kGate, kUp, kDown, kGateUp };

  /// errors kCorruptFile: an expert of index >= `experts`, which would be left out of the model in
  ///        silence; one with both families of names, or with gate and up both alone and together
  static Result<ExpertNames> Find(const checkpoint::Checkpoint& checkpoint,
                                  const std::string& module, int experts);

  /// What the projection is called; where the expert has no tensor at all, as the others call it.
  std::string_view NameOf(int expert, Projection projection) const;
  /// Whether gate and up are one tensor.
  bool gate_up_together(int expert) const;

 private:
  std::vector<uint8_t> found_;  // an expert's names, one bit each
  uint8_t found_anywhere_ = 0;
};

}  // namespace nibble::scheme
