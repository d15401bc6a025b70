// Plain C++: what the vector files must agree with, and what runs where there is none of them. Not
// made to be fast.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>

#include "kernels/cpu/cpu_kernels.h"
#include "layout/cpu_tile.h"
#include "numerics/bf16.h"
#include "numerics/fp8.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels::cpu {
namespace {

constexpr int64_t kGroup = kNvfp4Group;
constexpr int kRows = kStripRows;

float LoadFloat(const std::byte* p) {
  float value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

void PackBf16(const float* x, int64_t groups, std::byte* out) {
  for (int64_t i = 0; i < groups * kGroup; ++i) {
    const float value = RoundToBf16(x[i]);
    std::memcpy(out + i * sizeof value, &value, sizeof value);
  }
}

void PackNvfp4(const float* x, int64_t groups, float gscale, std::byte* out) {
  for (int64_t g = 0; g < groups; ++g, x += kGroup) {
    const Nvfp4Block block =
        QuantizeNvfp4Block<float>(std::span<const float, kNvfp4Group>(x, kGroup), gscale);
    for (int64_t i = 0; i < kGroup; ++i) {
      const float value = Nvfp4Product(block.codes[i], block.scale);
      std::memcpy(out + (g * kGroup + i) * sizeof value, &value, sizeof value);
    }
  }
}

void PackFp8(const float* x, int64_t groups, float scale, std::byte* out) {
  for (int64_t i = 0; i < groups * kGroup; ++i) {
    const float value = DecodeE4m3(QuantizeFp8(x[i], scale));
    std::memcpy(out + i * sizeof value, &value, sizeof value);
  }
}

float Largest(const float* x, int64_t groups) {
  return LargestMagnitude(std::span<const float>(x, groups * kGroup));
}

/// The code of row r and element i of group g of an NVFP4 tile.
unsigned TileCode(const std::byte* tile, int g, int r, int i) {
  const int half = i / 8, word = i % 2, nibble = i % 8 / 2;
  uint16_t bits;
  std::memcpy(&bits, tile + g * 128 + half * 64 + r * 4 + word * 2, sizeof bits);
  return (bits >> (4 * nibble)) & 15u;
}

float TileScale(const std::byte* tile, int g, int r) {
  return DecodeE4m3(static_cast<uint8_t>(tile[512 + g * 16 + r]));
}

void DecodeNvfp4(const std::byte* strip, const std::byte*, int64_t tiles, const std::byte* const* x,
                 int tokens, float global, float* y, int64_t ldy) {
  std::array<std::array<float, kRows>, kDecodeTokens> sum{};
  for (int64_t tile = 0; tile < tiles; ++tile, strip += kNvfp4TileBytes) {
    for (int g = 0; g < kTileK / kGroup; ++g) {
      for (int r = 0; r < kRows; ++r) {
        float w[kGroup];
        for (int i = 0; i < kGroup; ++i) w[i] = DecodeE2m1(TileCode(strip, g, r, i));
        const float scale = TileScale(strip, g, r);
        for (int t = 0; t < tokens; ++t) {
          const std::byte* p = x[t] + (tile * kTileK + g * kGroup) * sizeof(float);
          float block = 0;
          for (int i = 0; i < kGroup; ++i) block += w[i] * LoadFloat(p + i * sizeof(float));
          sum[t][r] += block * scale;
        }
      }
    }
  }
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < kRows; ++r) y[t * ldy + r] = sum[t][r] * global;
  }
}

/// The 16 rows of one strip of bf16 or FP8 tiles against up to kDecodeTokens tokens.
template <TileFormat kFormat>
void DecodePairs(const std::byte* strip, const std::byte*, int64_t tiles, const std::byte* const* x,
                 int tokens, float global, float* y, int64_t ldy) {
  constexpr int64_t kWeightBytes = TileBytes(kFormat) / (kTileK * kRows);
  const auto weight = [](const std::byte* p) {
    return kFormat == TileFormat::kFp8 ? DecodeE4m3(static_cast<uint8_t>(*p)) : LoadBf16(p);
  };
  std::array<std::array<float, kRows>, kDecodeTokens> sum{};
  for (int64_t pair = 0; pair < tiles * (kTileK / 2); ++pair, strip += kRows * 2 * kWeightBytes) {
    for (int t = 0; t < tokens; ++t) {
      const float even = LoadFloat(x[t] + pair * 8), odd = LoadFloat(x[t] + pair * 8 + 4);
      for (int r = 0; r < kRows; ++r) {
        sum[t][r] += weight(strip + r * 2 * kWeightBytes) * even;
        sum[t][r] += weight(strip + (r * 2 + 1) * kWeightBytes) * odd;
      }
    }
  }
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < kRows; ++r) y[t * ldy + r] = sum[t][r] * global;
  }
}

void ExpandNvfp4(const std::byte* strip, const std::byte*, int64_t tiles, std::byte* panel) {
  for (int64_t tile = 0; tile < tiles; ++tile, strip += kNvfp4TileBytes, panel += kBf16TileBytes) {
    for (int g = 0; g < kTileK / kGroup; ++g) {
      for (int r = 0; r < kRows; ++r) {
        const float scale = TileScale(strip, g, r);
        for (int i = 0; i < kGroup; ++i) {
          const Bf16 value = ToBf16(DecodeE2m1(TileCode(strip, g, r, i)) * scale);
          const int64_t pair = (g * kGroup + i) / 2;
          std::memcpy(panel + pair * 64 + r * 4 + i % 2 * 2, &value.bits, sizeof value.bits);
        }
      }
    }
  }
}

void ExpandFp8(const std::byte* strip, const std::byte*, int64_t tiles, std::byte* panel) {
  for (int64_t i = 0; i < tiles * kFp8TileBytes; ++i) {
    const Bf16 value = ToBf16(DecodeE4m3(static_cast<uint8_t>(strip[i])));
    std::memcpy(panel + i * sizeof value.bits, &value.bits, sizeof value.bits);
  }
}

void PanelGemm(const std::byte* const* panels, int strips, bool, int64_t tiles,
               const std::byte* const* x, int64_t tokens, float global, float* y, int64_t ldy) {
  for (int s = 0; s < strips; ++s) {
    for (int64_t t = 0; t < tokens; t += kDecodeTokens) {
      const int n = static_cast<int>(std::min<int64_t>(kDecodeTokens, tokens - t));
      DecodePairs<TileFormat::kBf16>(panels[s], nullptr, tiles, x + t, n, global,
                                     y + t * ldy + s * kRows, ldy);
    }
  }
}

// Four groups of 16 codes of one row. Tile by tile, because what is written then stays in L1 until
// it is whole. A vector of the compiler's own: with SSE2 alone two registers, which is enough.
typedef uint64_t Groups __attribute__((vector_size(32)));

constexpr Groups Repeat(uint64_t mask) { return Groups{mask, mask, mask, mask}; }

/// The even nibbles of each 32-bit half, moved together into its low 16 bits.
inline Groups EvenNibbles(Groups v) {
  v &= Repeat(0x0F0F0F0F0F0F0F0F);
  v = (v | v >> 4) & Repeat(0x00FF00FF00FF00FF);
  return (v | v >> 8) & Repeat(0x0000FFFF0000FFFF);
}

/// A row's group of 16 codes is 64 bits, its two halves of 8 k the two lanes of 32, and a lane
/// holds its even codes below its odd ones.
void TileNvfp4(const uint8_t* rows, int64_t stride, const uint8_t* scales, int64_t scale_stride,
               int64_t tiles, std::byte* out) {
  constexpr int64_t kGroups = kTileK / kGroup;
  for (int64_t tile = 0; tile < tiles; ++tile, out += kNvfp4TileBytes) {
    for (int64_t r = 0; r < kRows; ++r) {
      Groups groups;
      std::memcpy(&groups, rows + r * stride + tile * (kTileK / 2), sizeof groups);
      groups = EvenNibbles(groups) | EvenNibbles(groups >> 4) << 16;
      uint32_t lanes[2 * kGroups];
      std::memcpy(lanes, &groups, sizeof lanes);
      for (int64_t i = 0; i < 2 * kGroups; ++i) std::memcpy(out + i * 64 + r * 4, &lanes[i], 4);
      for (int64_t g = 0; g < kGroups; ++g) {
        out[512 + g * 16 + r] =
            static_cast<std::byte>(scales[r * scale_stride + tile * kGroups + g]);
      }
    }
  }
}

/// Pairs of FP8 or bf16 weights.
template <int64_t kPairBytes>
void TilePairs(const uint8_t* rows, int64_t stride, const uint8_t*, int64_t, int64_t tiles,
               std::byte* out) {
  constexpr int64_t kPairs = kTileK / 2;
  for (int64_t tile = 0; tile < tiles; ++tile, out += kPairs * kRows * kPairBytes) {
    for (int64_t r = 0; r < kRows; ++r) {
      const uint8_t* from = rows + r * stride + tile * kPairs * kPairBytes;
      for (int64_t p = 0; p < kPairs; ++p) {
        std::memcpy(out + (p * kRows + r) * kPairBytes, from + p * kPairBytes, kPairBytes);
      }
    }
  }
}

void Gated(const GatedActivation& how, const float* gate, const float* up, int64_t groups,
           float* h) {
  for (int64_t i = 0; i < groups * kRows; ++i) {
    const float g = how.limit < gate[i] ? how.limit : gate[i];
    float u = how.limit < up[i] ? how.limit : up[i];
    u = u < -how.limit ? -how.limit : u;
    h[i] = (u + how.beta) * (g / (1.0f + std::exp(-how.alpha * g)));
  }
}

void AddScaled(const float* x, float factor, int64_t groups, float* y) {
  for (int64_t i = 0; i < groups * kRows; ++i) y[i] += factor * x[i];
}

}  // namespace

const CpuKernels kScalarKernels = {
    .isa = CpuIsa::kScalar,
    .nvfp4_panel_tokens = 5,
    .fp8_panel_tokens = 5,
    .bf16_panel_tokens = 5,
    .nvfp4_decode_tokens = kDecodeTokens,
    .activation_bytes = sizeof(float),
    .pack_bf16 = PackBf16,
    .pack_nvfp4 = PackNvfp4,
    .pack_fp8 = PackFp8,
    .largest_magnitude = Largest,
    .decode_nvfp4 = DecodeNvfp4,
    .decode_fp8 = DecodePairs<TileFormat::kFp8>,
    .decode_bf16 = DecodePairs<TileFormat::kBf16>,
    .expand_nvfp4 = ExpandNvfp4,
    .expand_fp8 = ExpandFp8,
    .panel_gemm = PanelGemm,
    .tile_nvfp4 = TileNvfp4,
    .tile_fp8 = TilePairs<2>,
    .tile_bf16 = TilePairs<4>,
    .gated_activation = Gated,
    .add_scaled = AddScaled,
};

}  // namespace nibble::kernels::cpu
