#include "weights/w13.h"

#include <algorithm>

#include "base/error.h"
#include "numerics/nvfp4.h"

namespace nibble::weights {
namespace {

// Row `row` of `from` becomes the head of row `to` of `out`, which may be wider.
void CopyRow(const CanonicalNvfp4& from, int64_t row, Nvfp4Matrix& out, int64_t to) {
  std::copy_n(from.codes + row * (from.k / 2), from.k / 2, out.codes.begin() + to * (out.k / 2));
  std::copy_n(from.scales + row * (from.k / kNvfp4Group), from.k / kNvfp4Group,
              out.scales.begin() + to * (out.k / kNvfp4Group));
}

void CheckPadding(int64_t pad_to) {
  NIBBLE_CHECK(pad_to > 0 && pad_to % kNvfp4Group == 0, "I is padded in whole scale groups");
}

}  // namespace

Nvfp4Matrix PrepareW13(const CanonicalNvfp4& gate, const CanonicalNvfp4& up, W13Order order,
                       int64_t pad_to) {
  NIBBLE_CHECK(gate.n == up.n && gate.k == up.k, "gate and up of one expert have one shape");
  CheckPadding(pad_to);
  const int64_t padded = PaddedIntermediate(gate.n, pad_to);
  Nvfp4Matrix out(2 * padded, gate.k);
  for (int64_t i = 0; i < gate.n; ++i) {
    CopyRow(gate, i, out, W13Row(order, 0, i, padded));
    CopyRow(up, i, out, W13Row(order, 1, i, padded));
  }
  return out;
}

Nvfp4Matrix PrepareUngatedW13(const CanonicalNvfp4& up, int64_t pad_to) {
  CheckPadding(pad_to);
  Nvfp4Matrix out(PaddedIntermediate(up.n, pad_to), up.k);
  for (int64_t i = 0; i < up.n; ++i) CopyRow(up, i, out, i);
  return out;
}

Nvfp4Matrix PrepareW2(const CanonicalNvfp4& down, int64_t pad_to) {
  CheckPadding(pad_to);
  Nvfp4Matrix out(down.n, PaddedIntermediate(down.k, pad_to));
  for (int64_t i = 0; i < down.n; ++i) CopyRow(down, i, out, i);
  return out;
}

GateAndUp SplitW13(const CanonicalNvfp4& w13, W13Order order) {
  NIBBLE_CHECK(w13.n % 2 == 0, "a fused w13 has as many gate rows as up rows");
  const int64_t half = w13.n / 2;
  GateAndUp out{{half, w13.k}, {half, w13.k}};
  for (int64_t i = 0; i < half; ++i) {
    CopyRow(w13, W13Row(order, 0, i, half), out.gate, i);
    CopyRow(w13, W13Row(order, 1, i, half), out.up, i);
  }
  return out;
}

}  // namespace nibble::weights
