#include "kernels/cuda/delta_args.h"

#include "base/error.h"

namespace nibble::cuda::delta {
namespace {

bool Aligned(const void* p, uintptr_t unit) {
  return p != nullptr && reinterpret_cast<uintptr_t>(p) % unit == 0;
}

bool IsHeadDim(int64_t n) { return n == 64 || n == 128; }

Result<void> CheckShape(const kernels::DeltaShape& s) {
  const bool heads = s.k_heads >= 1 && s.v_heads >= 4 && s.v_heads % 4 == 0 && s.v_heads <= 1024 &&
                     s.v_heads % s.k_heads == 0 && s.v_heads / s.k_heads <= kMaxGroup;
  if (!heads || !IsHeadDim(s.k_dim) || !IsHeadDim(s.v_dim) || s.taps < 2 || s.taps > kMaxTaps ||
      !(s.norm_eps >= 0)) {
    return Err(ErrorCode::kInvalidArgument,
               "gated DeltaNet on CUDA: {} key heads of {}, {} value heads of {}, {} taps, eps {}; "
               "expected head sizes 64 or 128, value heads a multiple of 4 and 1..{} times the key "
               "heads, 2..{} taps",
               s.k_heads, s.k_dim, s.v_heads, s.v_dim, s.taps, s.norm_eps, kMaxGroup, kMaxTaps);
  }
  return {};
}

Result<void> CheckParameters(const kernels::DeltaShape& s, const kernels::DeltaParameters& p) {
  if (p.conv.n != s.taps * s.channels() || p.a_log.n != s.v_heads || p.dt_bias.n != s.v_heads ||
      p.norm.n != s.v_dim || !Aligned(p.conv.data, 16) || !Aligned(p.a_log.data, 4) ||
      !Aligned(p.dt_bias.data, 4) || !Aligned(p.norm.data, 4)) {
    return Err(
        ErrorCode::kInvalidArgument,
        "gated DeltaNet on CUDA: parameters conv {}, a_log {}, dt_bias {}, norm {}; expected "
        "{}, {}, {} and {} numbers on the device, conv 16-byte aligned",
        p.conv.n, p.a_log.n, p.dt_bias.n, p.norm.n, s.taps * s.channels(), s.v_heads, s.v_heads,
        s.v_dim);
  }
  return {};
}

}  // namespace

Result<Args> CheckedArgs(const DeltaParams& p) {
  const kernels::DeltaShape& s = p.shape;
  NIBBLE_CHECK_OK(CheckShape(s));
  NIBBLE_CHECK_OK(CheckParameters(s, p.parameters));
  if (p.memory.slots < 1 || p.memory.decode_rows < 1 || p.memory.decode_rows > kDeltaDecodeRows ||
      p.n_sequences < 1 || p.n_sequences > 65535 || p.rows < 1 || p.rows > 1 << 24) {
    return Err(
        ErrorCode::kInvalidArgument,
        "gated DeltaNet on CUDA: {} slots, {} decode rows, {} sequences, {} rows; expected at "
        "least one of each, decode rows up to {}, sequences up to 65535, rows up to 2^24",
        p.memory.slots, p.memory.decode_rows, p.n_sequences, p.rows, kDeltaDecodeRows);
  }
  if (!Aligned(p.memory.state, 16) || !Aligned(p.memory.ring, 16) || !Aligned(p.in, 16) ||
      !Aligned(p.out, 16) || !Aligned(p.sequences, 4)) {
    return Err(ErrorCode::kInvalidArgument,
               "gated DeltaNet on CUDA: a device pointer is null or not aligned (state, ring, in, "
               "out 16 bytes; sequences 4)");
  }
  Args a{};
  a.sequences = p.sequences;
  a.in = p.in;
  a.out = p.out;
  a.state = p.memory.state;
  a.ring = p.memory.ring;
  a.conv = p.parameters.conv.data, a.a_log = p.parameters.a_log.data;
  a.dt_bias = p.parameters.dt_bias.data, a.norm = p.parameters.norm.data;
  a.n_sequences = p.n_sequences, a.slots = p.memory.slots;
  a.k_heads = static_cast<int>(s.k_heads), a.v_heads = static_cast<int>(s.v_heads);
  a.k_dim = static_cast<int>(s.k_dim), a.v_dim = static_cast<int>(s.v_dim);
  a.taps = static_cast<int>(s.taps), a.decode_rows = p.memory.decode_rows;
  a.channels = static_cast<int>(s.channels()), a.in_width = static_cast<int>(s.in_width());
  a.ring_rows = static_cast<int>(DeltaRingRows(s, p.memory.decode_rows));
  a.ring_width = static_cast<int>(DeltaRingWidth(s));
  a.norm_eps = s.norm_eps;
  return a;
}

Error RefuseWorkspace(const DeltaParams& p, int64_t chunks) {
  return Err(
      ErrorCode::kInvalidArgument,
      "gated DeltaNet on CUDA: a workspace of {} bytes at {} for {} chunks of {} rows in {} "
      "sequences; expected 256-byte aligned device memory of DeltaPrefillWorkspace() bytes, and "
      "at most 65535 chunks in a launch (fewer sequences)",
      p.workspace_bytes, static_cast<const void*>(p.workspace), chunks, p.rows, p.n_sequences);
}

}  // namespace nibble::cuda::delta
