#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/rows.h"
#include "layout/cpu_tile.h"

namespace nibble::kernels::cpu {

// What Linear and Experts share: a few strips of one matrix against some tokens.

/// Tokens that a block of results is made for, where it does not go straight to its place.
inline constexpr int kBlockTokens = 48;
/// Floats from one token to the next in such a block.
inline constexpr int64_t kBlockStride = kPanelStrips * kStripRows;

/// A panel. One cache line more than it holds: panels a power of two apart would compete for the
/// same few lines of L1.
inline int64_t PanelBytes(int64_t k) { return StripBytes(TileFormat::kBf16, k) + 64; }

/// What a group of strips may need of its own: a panel each, and the tiles of a mapped strip while it
/// is expanded.
inline int64_t GroupBytes(int64_t k) { return (kPanelStrips + 1) * PanelBytes(k); }

/// Whether so many tokens are worth a panel (NVFP4 and FP8: expanding the strips first).
inline bool UsesPanels(const CpuKernels& kernels, TileFormat format, int64_t tokens) {
  switch (format) {
    case TileFormat::kNvfp4:
      return tokens >= kernels.nvfp4_panel_tokens;
    case TileFormat::kFp8:
      return tokens >= kernels.fp8_panel_tokens;
    case TileFormat::kBf16:
      break;
  }
  return tokens >= kernels.bf16_panel_tokens;
}
inline bool Expands(TileFormat format) { return format != TileFormat::kBf16; }

/// What mapped weights of `module` that hold an FP8 NaN end a call with.
inline Error NanCodeError(std::string_view module) {
  Error error = Err(ErrorCode::kCorruptFile,
                    "the weights of {} hold an FP8 code that is a NaN, expected numbers", module);
  error.hint = "without --no-repack loading says which";
  return error;
}

/// Up to kPanelStrips neighbouring strips, ready to be multiplied as often as there are blocks of
/// tokens.
class StripGroup {
 public:
  /// `panels` has room for GroupBytes(k); it is written only for strips that are expanded or mapped.
  /// `next`: what this thread will read after the group.
  StripGroup(const CpuKernels& kernels, const PackedMatrix& w, int64_t first_strip, int strips,
             bool as_panels, std::byte* panels, const std::byte* next)
      : kernels_(kernels),
        w_(w),
        tiles_(TilesOf(w.k)),
        first_row_(first_strip * kStripRows),
        strips_(strips),
        as_panels_(as_panels),
        next_(next) {
    for (int s = 0; s < strips; ++s) {
      strip_[s] = w.strip(first_strip + s);
      const bool expands = as_panels && Expands(w.format);
      if (w.mapped()) {
        std::byte* tiles = panels + (expands ? kPanelStrips : s) * PanelBytes(w.k);
        PackStrip(kernels, w, first_strip + s, tiles);
        strip_[s] = tiles;
        has_nan_ |= w.format == TileFormat::kFp8 &&
                    HasNanCode({tiles, static_cast<size_t>(StripBytes(w.format, w.k))});
      }
      if (expands) {
        std::byte* panel = panels + s * PanelBytes(w.k);
        const auto expand =
            w.format == TileFormat::kNvfp4 ? kernels.expand_nvfp4 : kernels.expand_fp8;
        expand(strip_[s], Next(s), tiles_, panel);
        strip_[s] = panel;
      }
    }
  }

  /// Whether a mapped strip held an FP8 code that is a NaN, which the kernels take for a number.
  bool has_nan() const { return has_nan_; }

  /// y[t * ldy + 16 * s + r], all 16 rows of every strip written. x: rows as PackRow leaves them
  /// under `form`; the scales that they bring, and those of the weight's channels or blocks, are
  /// multiplied on beside `global`.
  void Multiply(const std::byte* const* x, const RowForm& form, int64_t tokens, float global,
                float* y, int64_t ldy) const {
    if (w_.group == GroupShape{kFp8Block, kFp8Block}) {
      return MultiplyBlocks(x, form, tokens, global, y, ldy);
    }
    const bool by_token = form.kind == RowForm::Kind::kFp8Token;
    if (w_.scales == nullptr && !by_token) {
      return MultiplyTiles(0, strips_, 0, tiles_, x, tokens, global, y, ldy);
    }
    constexpr int64_t kTokens = 64;  // whose sums are still in L1 when they are scaled
    for (int64_t t = 0; t < tokens; t += kTokens, y += kTokens * ldy) {
      const int64_t n = std::min(kTokens, tokens - t);
      MultiplyTiles(0, strips_, 0, tiles_, x + t, n, global, y, ldy);
      ScaleSums(x + t, by_token, n, y, ldy);
    }
  }

 private:
  /// `count` tiles of `strips` strips from strip `s0` and tile `first` on, against as many elements
  /// at x.
  void MultiplyTiles(int s0, int strips, int64_t first, int64_t count, const std::byte* const* x,
                     int64_t tokens, float global, float* y, int64_t ldy) const {
    const TileFormat format = as_panels_ ? TileFormat::kBf16 : w_.format;
    const std::byte* at[kPanelStrips];
    for (int s = 0; s < strips; ++s) at[s] = strip_[s0 + s] + first * TileBytes(format);
    if (as_panels_) {
      const bool from_memory = !Expands(w_.format) && !w_.mapped();
      return kernels_.panel_gemm(at, strips, from_memory, count, x, tokens, global, y, ldy);
    }
    const auto decode = format == TileFormat::kNvfp4 ? kernels_.decode_nvfp4
                        : format == TileFormat::kFp8 ? kernels_.decode_fp8
                                                     : kernels_.decode_bf16;
    const int most = format == TileFormat::kNvfp4 ? kernels_.nvfp4_decode_tokens : kDecodeTokens;
    for (int s = 0; s < strips; ++s) {
      const bool last = first + count == tiles_;
      const std::byte* next = last ? Next(s0 + s) : at[s] + count * TileBytes(format);
      int64_t t = 0;
      for (int64_t blocks = (tokens + most - 1) / most; blocks > 0; --blocks) {
        const int64_t n = (tokens - t + blocks - 1) / blocks;  // near-equal: 5 as 3 + 2
        decode(at[s], blocks > 1 ? at[s] : next, count, x + t, static_cast<int>(n), global,
               y + t * ldy + s * kStripRows, ldy);
        t += n;
      }
    }
  }

  /// Finished sums times the weight's scales by channel and the rows' own.
  void ScaleSums(const std::byte* const* x, bool by_token, int64_t tokens, float* y,
                 int64_t ldy) const {
    float of_row[kBlockStride];
    std::fill_n(of_row, kBlockStride, 1.0f);
    if (w_.scales != nullptr) {  // the last strip has rows beyond n, which have none
      const int64_t rows = std::min(strips_ * kStripRows, w_.n - first_row_);
      std::copy_n(w_.scales + first_row_, rows, of_row);
    }
    for (int64_t t = 0; t < tokens; ++t, y += ldy) {
      const float of_token = by_token ? *RowScales(kernels_, x[t], w_.k) : 1.0f;
      for (int s = 0; s < strips_; ++s) {
        float* __restrict sums = y + s * kStripRows;
        const float* __restrict scales = of_row + s * kStripRows;
        for (int r = 0; r < kStripRows; ++r) sums[r] *= scales[r] * of_token;
      }
    }
  }

  /// Blocks of 128 x 128: the sum over each 128 k meets the weight's scale and the row's, and these
  /// are summed in the order of k. Panels are multiplied strips together, others one after the
  /// other, as memory is read.
  void MultiplyBlocks(const std::byte* const* x, const RowForm& form, int64_t tokens, float global,
                      float* y, int64_t ldy) const {
    const int together = as_panels_ ? strips_ : 1;
    for (int64_t t = 0; t < tokens; t += kBlockTokens) {
      const int64_t n = std::min<int64_t>(kBlockTokens, tokens - t);
      for (int s = 0; s < strips_; s += together) {
        float* to = y + t * ldy + s * kStripRows;
        for (int64_t i = 0; i < n; ++i) std::fill_n(to + i * ldy, together * kStripRows, 0.0f);
        for (int64_t b = 0; b * kFp8Block < w_.k; ++b) {
          AddBlock(s, together, b, x + t, form, n, global, to, ldy);
        }
      }
    }
  }

  /// y += the 128 k of block b, for up to kBlockTokens tokens.
  void AddBlock(int s0, int strips, int64_t b, const std::byte* const* x, const RowForm& form,
                int64_t tokens, float global, float* y, int64_t ldy) const {
    constexpr int64_t kBlockTiles = kFp8Block / kTileK;
    const std::byte* at[kBlockTokens];
    for (int64_t i = 0; i < tokens; ++i) {
      at[i] = x[i] + b * kFp8Block * kernels_.activation_bytes;
    }
    float part[kBlockTokens * kBlockStride];
    MultiplyTiles(s0, strips, b * kBlockTiles, std::min(kBlockTiles, tiles_ - b * kBlockTiles), at,
                  tokens, global, part, kBlockStride);
    const int64_t blocks = (w_.k + kFp8Block - 1) / kFp8Block;
    for (int64_t i = 0; i < tokens; ++i) {
      const float of_row = RowScale(form, x[i], b);
      for (int s = 0; s < strips; ++s) {
        const int64_t row = first_row_ + (s0 + s) * kStripRows;  // a strip lies in one block
        const float scale = w_.scales[row / kFp8Block * blocks + b] * of_row;
        const float* __restrict from = part + i * kBlockStride + s * kStripRows;
        float* __restrict to = y + i * ldy + s * kStripRows;
        for (int r = 0; r < kStripRows; ++r) to[r] += from[r] * scale;
      }
    }
  }

  float RowScale(const RowForm& form, const std::byte* row, int64_t block) const {
    switch (form.kind) {
      case RowForm::Kind::kFp8Blocks:
        return RowScales(kernels_, row, w_.k)[block];
      case RowForm::Kind::kFp8Token:
        return *RowScales(kernels_, row, w_.k);
      default:
        return 1;
    }
  }

  /// What is read after strip s.
  const std::byte* Next(int s) const {
    return s + 1 < strips_ ? strip_[s] + tiles_ * TileBytes(w_.format) : next_;
  }

  const CpuKernels& kernels_;
  const PackedMatrix& w_;
  int64_t tiles_, first_row_;
  int strips_;
  bool as_panels_, has_nan_ = false;
  const std::byte* next_;
  const std::byte* strip_[kPanelStrips] = {};
};

}  // namespace nibble::kernels::cpu
