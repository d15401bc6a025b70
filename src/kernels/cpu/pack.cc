#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cstring>

namespace nibble::kernels::cpu {
namespace {

CpuKernels::Tile TilerOf(const CpuKernels& kernels, TileFormat format) {
  switch (format) {
    case TileFormat::kNvfp4:
      return kernels.tile_nvfp4;
    case TileFormat::kFp8:
      return kernels.tile_fp8;
    case TileFormat::kBf16:
      break;
  }
  return kernels.tile_bf16;
}

}  // namespace

void PackStrip(const CpuKernels& kernels, const PackedMatrix& w, int64_t s, std::byte* out) {
  const CpuKernels::Tile tile = TilerOf(kernels, w.format);
  const int64_t stride = RowBytes(w.format, w.k), first = s * kStripRows;
  const int64_t rows = std::min(kStripRows, w.n - first);
  const int64_t scale_stride = w.rows.block_scales ? w.k / 16 : 0;
  const uint8_t* values = w.rows.values + first * stride;
  const uint8_t* scales = w.rows.block_scales + first * scale_stride;
  const int64_t whole = rows == kStripRows ? w.k / kTileK : 0;
  tile(values, stride, scales, scale_stride, whole, out);

  // A tile that n or k does not fill is laid out among zeros first.
  const int64_t width = RowBytes(w.format, kTileK), scale_width = scale_stride ? kTileK / 16 : 0;
  for (int64_t t = whole; t * kTileK < w.k; ++t) {
    uint8_t some[kStripRows * kTileK * 2] = {}, some_scales[kStripRows * kTileK / 16] = {};
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(some + r * width, values + r * stride + t * width,
                  std::min(width, stride - t * width));
      if (scale_width == 0) continue;
      std::memcpy(some_scales + r * scale_width, scales + r * scale_stride + t * scale_width,
                  std::min(scale_width, scale_stride - t * scale_width));
    }
    tile(some, width, some_scales, scale_width, 1, out + t * TileBytes(w.format));
  }
}

bool HasNanCode(std::span<const std::byte> tiles) {
  typedef uint64_t Codes __attribute__((vector_size(16)));
  constexpr uint64_t kOnes = 0x0101010101010101u;
  constexpr Codes kLow7 = {0x7F * kOnes, 0x7F * kOnes}, kOne = {kOnes, kOnes};
  Codes seen = {};
  for (size_t i = 0; i < tiles.size(); i += sizeof seen) {
    Codes codes;
    std::memcpy(&codes, tiles.data() + i, sizeof codes);
    seen |= (codes & kLow7) + kOne;  // 0x7F alone reaches the high bit, and carries no further
  }
  return ((seen[0] | seen[1]) & (0x80 * kOnes)) != 0;
}

}  // namespace nibble::kernels::cpu
