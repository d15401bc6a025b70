#pragma once

#include <algorithm>
#include <cstdint>

#include "base/error.h"
#include "kernels/cpu/cpu_kernels.h"
#include "layout/cpu_tile.h"

namespace nibble::kernels::cpu {

// What Linear and Experts share: a few strips of one matrix against some tokens.

/// Tokens that a block of results is made for, where it does not go straight to its place.
inline constexpr int kBlockTokens = 8;
/// Floats from one token to the next in such a block.
inline constexpr int64_t kBlockStride = kPanelStrips * kStripRows;

inline int64_t TilesOf(int64_t k) { return (k + kTileK - 1) / kTileK; }
/// A panel, and the distance of one packed row of activations from the next. One cache line more
/// than they hold: rows a power of two apart would compete for the same few lines of L1.
inline int64_t PanelBytes(int64_t k) { return StripBytes(TileFormat::kBf16, k) + 64; }
inline int64_t PackedRowBytes(const CpuKernels& kernels, int64_t k) {
  return TilesOf(k) * kTileK * kernels.activation_bytes + 64;
}

/// Whether so many tokens are worth a panel (NVFP4: expanding the strips first).
inline bool UsesPanels(const CpuKernels& kernels, TileFormat format, int64_t tokens) {
  return tokens >=
         (format == TileFormat::kNvfp4 ? kernels.nvfp4_panel_tokens : kernels.bf16_panel_tokens);
}

/// Up to kPanelStrips neighbouring strips, ready to be multiplied as often as there are blocks of
/// tokens.
class StripGroup {
 public:
  /// `panels` has room for kPanelStrips panels; it is written only for NVFP4 strips as panels.
  /// `next`: what this thread will read after the group.
  StripGroup(const CpuKernels& kernels, const PackedMatrix& w, int64_t first_strip, int strips,
             bool as_panels, std::byte* panels, const std::byte* next)
      : kernels_(kernels),
        format_(w.format),
        tiles_(TilesOf(w.k)),
        strips_(strips),
        as_panels_(as_panels),
        next_(next) {
    for (int s = 0; s < strips; ++s) {
      strip_[s] = w.strip(first_strip + s);
      if (as_panels && format_ == TileFormat::kNvfp4) {
        std::byte* panel = panels + s * PanelBytes(w.k);
        kernels.expand_nvfp4(strip_[s], Next(s), tiles_, panel);
        strip_[s] = panel;
      }
    }
  }

  /// y[t * ldy + 16 * s + r], all 16 rows of every strip written.
  void Multiply(const std::byte* const* x, int64_t tokens, float global, float* y,
                int64_t ldy) const {
    if (as_panels_) {
      return kernels_.panel_gemm(strip_, strips_, format_ == TileFormat::kBf16, tiles_, x, tokens,
                                 global, y, ldy);
    }
    const auto decode =
        format_ == TileFormat::kNvfp4 ? kernels_.decode_nvfp4 : kernels_.decode_bf16;
    for (int s = 0; s < strips_; ++s) {
      for (int64_t t = 0; t < tokens; t += kDecodeTokens) {
        const int n = static_cast<int>(std::min<int64_t>(kDecodeTokens, tokens - t));
        decode(strip_[s], t + n < tokens ? strip_[s] : Next(s), tiles_, x + t, n, global,
               y + t * ldy + s * kStripRows, ldy);
      }
    }
  }

 private:
  const std::byte* Next(int s) const {
    return s + 1 < strips_ ? strip_[s] + tiles_ * TileBytes(format_) : next_;
  }

  const CpuKernels& kernels_;
  TileFormat format_;
  int64_t tiles_;
  int strips_;
  bool as_panels_;
  const std::byte* next_;
  const std::byte* strip_[kPanelStrips] = {};
};

/// Packs 16 * groups activations: rounded to bf16, or quantized to NVFP4 when gscale is given.
inline void PackGroups(const CpuKernels& kernels, const float* x, int64_t groups,
                       const float* gscale, std::byte* out) {
  if (gscale != nullptr) {
    kernels.pack_nvfp4(x, groups, *gscale, out);
  } else {
    kernels.pack_bf16(x, groups, out);
  }
}

/// One row of x as the kernels want it, filled up with zeros to whole tiles.
inline void PackRow(const CpuKernels& kernels, const float* x, int64_t k, const float* gscale,
                    std::byte* out) {
  PackGroups(kernels, x, k / kStripRows, gscale, out);
  std::fill(out + k * kernels.activation_bytes,
            out + TilesOf(k) * kTileK * kernels.activation_bytes, std::byte{0});
}

/// Below so many activations the caller packs them itself: a region costs more.
inline constexpr int64_t kInlinePackElements = 16384;

}  // namespace nibble::kernels::cpu
