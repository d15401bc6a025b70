#include "kernels/cuda/sm90_linear_check.h"

#include <cmath>

#include "base/error.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/linear_shard.h"

namespace nibble::cuda {
namespace {

bool Aligned(const void* p, uintptr_t unit) {
  return p != nullptr && reinterpret_cast<uintptr_t>(p) % unit == 0;
}

bool HasInputScale(Sm90Input input) {
  return input == Sm90Input::kNvfp4 || input == Sm90Input::kFp8;
}

Result<void> CheckShard(const Sm90LinearShard& s, int index) {
  if (s.n < 1 || !Aligned(s.weights, 128)) {
    return Err(ErrorCode::kInvalidArgument,
               "linear on sm_90: shard {} has {} rows and weights at {}; expected at least one row "
               "and a 128-byte aligned pointer",
               index, s.n, static_cast<const void*>(s.weights));
  }
  const bool wants_scales =
      s.weight == Sm90Weight::kFp8Channel || s.weight == Sm90Weight::kFp8Block128;
  if (!(s.scale > 0) || !std::isfinite(s.scale) || wants_scales != (s.scales != nullptr)) {
    return Err(
        ErrorCode::kInvalidArgument,
        "linear on sm_90: shard {} has scale {} and scales {}; expected a finite scale above "
        "0, and scales for FP8 by channel or block alone",
        index, s.scale, s.scales ? "given" : "null");
  }
  const bool fp8_input = s.input != Sm90Input::kBf16 && s.input != Sm90Input::kNvfp4;
  if (fp8_input && FormatOf(s.weight) != HopperFormat::kFp8) {
    return Err(ErrorCode::kInvalidArgument,
               "linear on sm_90: shard {} quantizes x to FP8, which takes FP8 weights", index);
  }
  if (s.input == Sm90Input::kFp8Group && s.weight != Sm90Weight::kFp8Block128) {
    return Err(
        ErrorCode::kInvalidArgument,
        "linear on sm_90: shard {} quantizes x by 128 k, which takes FP8 weights in blocks of "
        "128",
        index);
  }
  const bool in_range = s.input_scale >= 0x1p-100f && s.input_scale <= 0x1p100f;
  if (HasInputScale(s.input) ? !in_range : s.input_scale != 0) {
    return Err(ErrorCode::kInvalidArgument,
               "linear on sm_90: shard {} has input_scale {}; expected 2^-100 .. 2^100 where x is "
               "quantized under a scale of the tensor, else 0",
               index, s.input_scale);
  }
  return {};
}

}  // namespace

Result<void> CheckSm90Linear(const Sm90LinearParams& p, int max_tokens) {
  if (p.k < 16 || p.k % 16 != 0 || p.k > 1 << 20 || p.tokens < 1 || p.tokens > max_tokens ||
      p.shards < 1 || p.shards > kSm90LinearShards) {
    return Err(
        ErrorCode::kInvalidArgument,
        "linear on sm_90: k={}, {} tokens, {} shards; expected k a multiple of 16 up to 2^20, "
        "1..{} tokens and 1..{} shards",
        p.k, p.tokens, p.shards, max_tokens, kSm90LinearShards);
  }
  int64_t columns = 0;
  for (int i = 0; i < p.shards; ++i) {
    NIBBLE_CHECK_OK(CheckShard(p.shard[i], i));
    columns += p.shard[i].n;
  }
  const void* y = p.y != nullptr ? static_cast<const void*>(p.y) : p.y_f32;
  if (!Aligned(p.x, 16) || !Aligned(y, 16) || (p.y != nullptr) == (p.y_f32 != nullptr) ||
      p.ldy < columns || columns > INT32_MAX / 2) {
    return Err(ErrorCode::kInvalidArgument,
               "linear on sm_90: x and one of y and y_f32 are 16-byte aligned device pointers, the "
               "other is null, and ldy={} holds the shards' {} columns",
               p.ldy, columns);
  }
  return {};
}

namespace linear {

int MakeShards(const Sm90LinearParams& params, int tile_rows, Shard* shards) {
  int tiles = 0, column = 0;
  for (int i = 0; i < params.shards; ++i) {
    const Sm90LinearShard& from = params.shard[i];
    Shard& s = shards[i];
    s = {};
    s.weights = from.weights;
    s.scales = from.scales;
    s.weight = from.weight;
    s.format = from.input;
    s.first_tile = tiles;
    const int64_t rows = HopperLinearLayout(from.n, params.k).tiles * kHopperTileRows;
    tiles += static_cast<int>((rows + tile_rows - 1) / tile_rows);
    s.end_tile = tiles;
    s.rows = from.n;
    s.column = column;
    column += from.n;
    double scale = from.scale;
    if (from.weight == Sm90Weight::kNvfp4) scale *= kHopperWeightScale;
    const bool fp8_input = from.input != Sm90Input::kBf16 && from.input != Sm90Input::kNvfp4;
    if (fp8_input) {
      // See fp8.cuh: x is 2^112 of its value, FP8 weights are 2^-120 of theirs.
      scale *= 0x1p8;
    }
    if (from.input == Sm90Input::kNvfp4) {
      s.input = 1.0f / from.input_scale;
      s.input_inverse = 1.0f / s.input;
      scale *= 1.0 / s.input;
    } else if (from.input == Sm90Input::kFp8) {
      s.input = from.input_scale;
      s.input_inverse = 1.0f / s.input;
      scale *= s.input;
    }
    s.scale = static_cast<float>(scale);
    s.variant = i;
    for (int j = i - 1; j >= 0; --j) {
      if (shards[j].format == s.format && shards[j].input == s.input) s.variant = shards[j].variant;
    }
  }
  return tiles;
}

}  // namespace linear
}  // namespace nibble::cuda
