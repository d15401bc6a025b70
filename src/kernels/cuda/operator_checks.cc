#include "kernels/cuda/operator_checks.h"

#include <cmath>

#include "base/error.h"
#include "kernels/cuda/launch.h"

namespace nibble::cuda {
namespace {

constexpr int kMaxRows = 1 << 20, kMaxCols = 1 << 17, kUnit = 8;  // columns come in units

Result<void> CheckRows(const char* what, int rows, int64_t cols, int max_cols) {
  if (rows >= 1 && rows <= kMaxRows && cols >= kUnit && cols <= max_cols && cols % kUnit == 0) {
    return {};
  }
  return Err(ErrorCode::kInvalidArgument,
             "{}: {} rows of {} columns, expected 1 .. 2^20 rows and a multiple of 8 columns, 8 .. "
             "{}",
             what, rows, cols, max_cols);
}

/// Every pointer is given and at a multiple of 16 bytes.
template <class... Pointers>
Result<void> CheckPointers(const char* what, Pointers... pointers) {
  if ((IsAligned(pointers, 16) && ...)) return {};
  return Err(ErrorCode::kInvalidArgument,
             "{}: a device pointer is null or not at a multiple of 16 bytes", what);
}

Result<void> CheckEps(const char* what, float eps) {
  if (eps >= 0 && eps < 1) return {};
  return Err(ErrorCode::kInvalidArgument, "{}: eps {}, expected 0 or more, below 1", what, eps);
}

Result<void> CheckWorkspace(const char* what, const std::byte* p, size_t bytes, size_t needed) {
  if (IsAligned(p, 256) && bytes >= needed) return {};
  return Err(ErrorCode::kInvalidArgument,
             "{}: workspace at {} of {} bytes, expected a multiple of 256 and {} bytes", what,
             static_cast<const void*>(p), bytes, needed);
}

}  // namespace

// --- norm.h ---

Result<void> CheckEmbed(const EmbedParams& p) {
  NIBBLE_CHECK_OK(CheckRows("embed", p.rows, p.cols, kMaxCols));
  NIBBLE_CHECK_OK(CheckPointers("embed", p.table, p.out));
  if (IsAligned(p.ids, 4) && p.table_rows >= 1) return {};
  return Err(ErrorCode::kInvalidArgument, "embed: ids {}, a table of {} rows",
             p.ids ? "given" : "null", p.table_rows);
}

Result<void> CheckRmsNorm(const RmsNormParams& p) {
  NIBBLE_CHECK_OK(CheckRows("RMS norm", p.rows, p.cols, kNormMaxCols));
  NIBBLE_CHECK_OK(CheckPointers("RMS norm", p.x, p.weight, p.out));
  NIBBLE_CHECK_OK(CheckEps("RMS norm", p.eps));
  if (p.out_stride >= p.cols && p.out_stride % kUnit == 0) return {};
  return Err(ErrorCode::kInvalidArgument,
             "RMS norm: rows {} apart, expected a multiple of 8, at least the {} columns",
             p.out_stride, p.cols);
}

Result<void> CheckAddRmsNorm(const AddRmsNormParams& p) {
  NIBBLE_CHECK_OK(CheckRows("add and norm", p.rows, p.cols, kNormMaxCols));
  NIBBLE_CHECK_OK(CheckPointers("add and norm", p.residual, p.y));
  if (p.gate || p.x || p.shared) {
    NIBBLE_CHECK_OK(CheckPointers("add and norm: shared expert", p.gate, p.x, p.shared));
  }
  if (!p.weight && !p.out) return {};
  NIBBLE_CHECK_OK(CheckPointers("add and norm: norm", p.weight, p.out));
  return CheckEps("add and norm", p.eps);
}

Result<void> CheckAddSharedExpert(const AddSharedExpertParams& p) {
  NIBBLE_CHECK_OK(CheckRows("shared expert", p.rows, p.cols, kNormMaxCols));
  return CheckPointers("shared expert", p.gate, p.x, p.shared, p.y);
}

Result<void> CheckSiluMul(const SiluMulParams& p) {
  NIBBLE_CHECK_OK(CheckRows("SiLU", p.rows, p.cols, kMaxCols));
  return CheckPointers("SiLU", p.gate_up, p.out);
}

Result<void> CheckConcat(const ConcatParams& p) {
  NIBBLE_CHECK_OK(CheckRows("concat", p.rows, p.a_cols, kMaxCols));
  NIBBLE_CHECK_OK(CheckRows("concat", p.rows, p.b_cols, kMaxCols));
  return CheckPointers("concat", p.a, p.b, p.out);
}

Result<void> CheckGatherRows(const GatherRowsParams& p) {
  NIBBLE_CHECK_OK(CheckPointers("gather", p.x, p.out));
  if (p.rows >= 1 && p.rows <= kMaxRows && p.row_bytes >= 16 && p.row_bytes % 16 == 0 &&
      p.row_bytes <= 1 << 24 && IsAligned(p.index, 4)) {
    return {};
  }
  return Err(ErrorCode::kInvalidArgument,
             "gather: {} rows of {} bytes, indices {}; expected 1 .. 2^20 rows of a multiple of 16 "
             "bytes up to 2^24",
             p.rows, p.row_bytes, p.index ? "given" : "null");
}

// --- route.h, sample.h ---

Result<void> CheckRoute(const RouteParams& p) {
  if (p.tokens < 1 || p.tokens > kMaxRows || p.experts < 1 || p.experts > kRouteExperts ||
      p.top_k < 1 || p.routes() > 32 || p.top_k > p.experts || p.hidden < 8 ||
      p.hidden > kRouteHidden || p.hidden % 8 != 0) {
    return Err(ErrorCode::kInvalidArgument,
               "route: T={} E={} top_k={} H={}, expected T 1 .. 2^20, E 1 .. {}, top_k 1 .. "
               "min(32, E), H a multiple of 8 up to {}",
               p.tokens, p.experts, p.top_k, p.hidden, kRouteExperts, kRouteHidden);
  }
  NIBBLE_CHECK_OK(CheckPointers("route", p.x, p.weight));
  if (!IsAligned(p.ids, 4) || !IsAligned(p.weights, 4)) {
    return Err(ErrorCode::kInvalidArgument, "route: ids {}, weights {}", p.ids ? "given" : "null",
               p.weights ? "given" : "null");
  }
  return CheckWorkspace("route", p.workspace, p.workspace_bytes,
                        RouteWorkspace(p.tokens, p.rows()));
}

Result<void> CheckArgmax(const ArgmaxParams& p) {
  if (p.rows < 1 || p.rows > 1024 || p.drawable < 1 || p.drawable > INT32_MAX ||
      p.stride < p.drawable || p.stride % 4 != 0) {
    return Err(ErrorCode::kInvalidArgument,
               "argmax: {} rows {} apart, {} drawable; expected 1 .. 1024 rows, a multiple of 4 "
               "apart, 1 .. 2^31-1 drawable",
               p.rows, p.stride, p.drawable);
  }
  NIBBLE_CHECK_OK(CheckPointers("argmax", p.logits));
  if (!IsAligned(p.ids, 4) || !IsAligned(p.flags, 4)) {
    return Err(ErrorCode::kInvalidArgument, "argmax: ids {}, flags {}", p.ids ? "given" : "null",
               p.flags ? "given" : "null");
  }
  return CheckWorkspace("argmax", p.workspace, p.workspace_bytes, ArgmaxWorkspace(p.rows));
}

// --- attention.h ---

namespace {

Result<void> CheckStep(const char* what, const Step& step, bool needs_sequences) {
  if (step.rows < 1 || step.rows > kMaxRows || !IsAligned(step.row, 4)) {
    return Err(ErrorCode::kInvalidArgument, "{}: {} rows, described {}; expected 1 .. 2^20", what,
               step.rows, step.row ? "there" : "nowhere");
  }
  if (!needs_sequences) return {};
  if (step.sequences >= 1 && step.sequences <= 4096 && IsAligned(step.sequence, 4)) return {};
  return Err(ErrorCode::kInvalidArgument, "{}: {} sequences, described {}; expected 1 .. 4096",
             what, step.sequences, step.sequence ? "there" : "nowhere");
}

Result<void> CheckShape(const AttentionShape& s) {
  const bool known_dim = s.head_dim == 64 || s.head_dim == 128 || s.head_dim == 256;
  if (known_dim && s.n_kv_heads >= 1 && s.n_kv_heads <= 256 && s.n_heads % s.n_kv_heads == 0 &&
      s.n_heads >= s.n_kv_heads && s.n_heads <= 16 * s.n_kv_heads && s.rotary_dim >= 0 &&
      s.rotary_dim <= s.head_dim && s.rotary_dim % (s.head_dim / 16) == 0) {
    return {};
  }
  return Err(ErrorCode::kInvalidArgument,
             "attention: {} heads over {} kv heads of {}, rotary {}; expected 1 .. 16 heads a kv "
             "head of 64, 128 or 256, and rotary a multiple of a 16th of that, up to it",
             s.n_heads, s.n_kv_heads, s.head_dim, s.rotary_dim);
}

Result<void> CheckCache(const PagedKv& c) {
  NIBBLE_CHECK_OK(CheckPointers("attention: cache", c.k, c.v));
  const auto usable = [](float scale) { return scale > 0x1p-100f && scale < 0x1p100f; };
  const bool fp8 = c.dtype == KvDtype::kFp8;
  if ((fp8 || c.dtype == KvDtype::kBf16) && IsAligned(c.page_table, 4) && c.max_pages >= 1 &&
      usable(c.k_scale) && usable(c.v_scale) && (fp8 || (c.k_scale == 1 && c.v_scale == 1))) {
    return {};
  }
  return Err(ErrorCode::kInvalidArgument,
             "attention: a cache of {}, scales {} and {}, page table {} of {} pages a slot; "
             "expected bf16 (scales 1) or fp8",
             NameOf(c.dtype), c.k_scale, c.v_scale, c.page_table ? "given" : "null", c.max_pages);
}

}  // namespace

Result<void> CheckRopeTable(const RopeTableParams& p) {
  NIBBLE_CHECK_OK(CheckStep("rope table", p.step, false));
  if (p.frequencies >= 1 && p.frequencies <= 128 && IsAligned(p.frequency, 4) &&
      IsAligned(p.table, 16)) {
    return {};
  }
  return Err(ErrorCode::kInvalidArgument,
             "rope table: {} frequencies ({}), table {}; expected 1 .. 128", p.frequencies,
             p.frequency ? "given" : "null", p.table ? "given, or not at 16 bytes" : "null");
}

Result<void> CheckAttention(const AttentionParams& p) {
  NIBBLE_CHECK_OK(CheckStep("attention", p.step, true));
  NIBBLE_CHECK_OK(CheckShape(p.shape));
  NIBBLE_CHECK_OK(CheckEps("attention", p.shape.norm_eps));
  NIBBLE_CHECK_OK(CheckPointers("attention", p.q_norm, p.k_norm, p.qkv, p.out));
  if (p.shape.rotary_dim > 0) NIBBLE_CHECK_OK(CheckPointers("attention: rope", p.rope));
  return CheckCache(p.cache);
}

Result<void> CheckAttentionDecode(const AttentionParams& p, int max_rows) {
  NIBBLE_CHECK_OK(CheckAttention(p));
  if (max_rows < 1 || max_rows > kAttentionDecodeRows || p.capacity < 1 ||
      p.capacity > static_cast<int64_t>(p.cache.max_pages) * kKvPage) {
    return Err(ErrorCode::kInvalidArgument,
               "attention: {} rows a sequence, {} positions; expected 1 .. {} rows and at most the "
               "{} pages of the table",
               max_rows, p.capacity, kAttentionDecodeRows, p.cache.max_pages);
  }
  return CheckWorkspace("attention", p.workspace, p.workspace_bytes,
                        AttentionDecodeWorkspace(p.shape, p.step.sequences, max_rows, p.capacity));
}

}  // namespace nibble::cuda
