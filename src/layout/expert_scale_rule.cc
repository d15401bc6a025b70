#include "layout/expert_scale_rule.h"

namespace nibble {

std::string_view NameOf(BlockScaleLayout layout) {
  switch (layout) {
    case BlockScaleLayout::kRowMajor:
      return "row_major";
    case BlockScaleLayout::kInTiles:
      return "in_tiles";
    case BlockScaleLayout::kInterleaved128x4:
      return "interleaved_128x4";
  }
  return "?";
}

ExpertScaleRule ExpertScaleRuleOf(Backend backend) {
  ExpertScaleRule rule;
  switch (backend) {
    case Backend::kReference:
      rule.block_scales = BlockScaleLayout::kRowMajor;
      break;
    case Backend::kCpu:
    case Backend::kMarlin:
    case Backend::kHopper:
      break;
    case Backend::kB12x:
      rule.activation = ActivationRule::kPerExpert;
      rule.block_scales = BlockScaleLayout::kInterleaved128x4;
      rule.fc2_input_scale = true;
      break;
    case Backend::kCutlass:
      rule.alpha = AlphaRule::kPerExpert;
      rule.activation = ActivationRule::kMaxOverExperts;
      rule.block_scales = BlockScaleLayout::kInterleaved128x4;
      rule.fold_activation = true;
      break;
  }
  return rule;
}

}  // namespace nibble
