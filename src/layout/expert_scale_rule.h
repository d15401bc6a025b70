#pragma once

#include <cstdint>

#include "layout/words.h"

namespace nibble {

/// How many numbers a kernel multiplies w13's accumulator by.
enum class AlphaRule : uint8_t {
  kPerShard,   // gate and up each by its own: exact whatever they are
  kPerExpert,  // one: exact only where weights/common_alpha.h finds one
};

/// Under which scale a W4A4 kernel quantizes activations. Only kPerShard is the label's own number
/// where scales differ; the larger ones clip nothing but round blocks otherwise.
enum class ActivationRule : uint8_t {
  kPerShard,        // x under gate's for gate, under up's for up
  kPerExpert,       // x once an expert: the larger of gate's and up's
  kMaxOverExperts,  // x once a token: the largest of all
};

/// Where a kernel finds the e4m3 block scales of NVFP4 weights.
enum class BlockScaleLayout : uint8_t {
  kRowMajor,         // [rows, k/16], as in the file
  kInTiles,          // beside their codes, in the backend's own tiles
  kInterleaved128x4  // what block-scaled tensor cores read (weights/scale_swizzle.h), of weights
                     // and of W4A4's activations
};
std::string_view NameOf(BlockScaleLayout layout);  // "row_major", "in_tiles", "interleaved_128x4"

/// What a backend's NVFP4 expert kernels want of scales.
struct ExpertScaleRule {
  AlphaRule alpha = AlphaRule::kPerShard;
  ActivationRule activation = ActivationRule::kPerShard;
  BlockScaleLayout block_scales = BlockScaleLayout::kInTiles;
  bool fold_activation = false;  // W4A4: alphas hold weight scale * activation scale
  bool fc2_input_scale = false;  // has a slot for a scale of w2's input, in W4A16 as well

  /// Columns of the alphas and of a13's scales, of experts with that many w13 shards.
  int alpha_columns(int shards) const { return alpha == AlphaRule::kPerShard ? shards : 1; }
  int activation_columns(int shards) const {
    return activation == ActivationRule::kPerShard ? shards : 1;
  }
};

/// REFERENCE, CPU, MARLIN and HOPPER keep every number of the label apart. B12X quantizes x in the
/// kernel, once an expert, and has the fc2 slot. CUTLASS quantizes x once a token, before a grouped
/// GEMM that knows one alpha a group.
ExpertScaleRule ExpertScaleRuleOf(Backend backend);

}  // namespace nibble
