#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/sample.h"

// What the launch functions refuse, kInvalidArgument: in plain C++, as nvcc does not compile the
// messages' formats.

namespace nibble::cuda {

Result<void> CheckEmbed(const EmbedParams& params);
Result<void> CheckRmsNorm(const RmsNormParams& params);
Result<void> CheckAddRmsNorm(const AddRmsNormParams& params);
Result<void> CheckAddSharedExpert(const AddSharedExpertParams& params);
Result<void> CheckSiluMul(const SiluMulParams& params);
Result<void> CheckConcat(const ConcatParams& params);
Result<void> CheckGatherRows(const GatherRowsParams& params);

Result<void> CheckRoute(const RouteParams& params);
Result<void> CheckArgmax(const ArgmaxParams& params);

Result<void> CheckRopeTable(const RopeTableParams& params);
/// Of both kinds of launches.
Result<void> CheckAttention(const AttentionParams& params);
Result<void> CheckAttentionDecode(const AttentionParams& params, int max_rows);

}  // namespace nibble::cuda
