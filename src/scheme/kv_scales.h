#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "scheme/canonical.h"

namespace nibble::scheme {

/// What an FP8 KV cache of one attention layer multiplies by when it is read: amax / 448 of what
/// calibration saw.
struct KvScales {
  float k = 1, v = 1;  // finite, > 0
  bool operator==(const KvScales&) const = default;
};

/// The scales of `attention` ("model.layers.3.self_attn"), marked as used, by either name:
/// `self_attn.k_scale` and `self_attn.v_scale`, or `self_attn.k_proj.k_scale` and
/// `self_attn.v_proj.v_scale`. Nothing where the checkpoint has none: a cache without calibration,
/// whose scales are 1.
/// errors kCorruptFile naming the tensor: type (F32 or BF16), shape ([] or [1]) or value; both
///        names with different values; one of k and v without the other
Result<std::optional<KvScales>> ReadKvScales(const checkpoint::Checkpoint& checkpoint,
                                             const std::string& attention, CanonicalReport* report);

/// Whether a tensor of that name is a KV cache's scale.
inline bool IsKvScaleName(std::string_view name) {
  return name.ends_with(".k_scale") || name.ends_with(".v_scale");
}

}  // namespace nibble::scheme
