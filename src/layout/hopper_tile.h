#pragma once

#include <cstdint>

namespace nibble {

// How the Hopper kernels (sm_90a) want the weights of a layer's experts. One form serves
// decode (mma.sync m16n8k16) and prefill (wgmma m64nNk16): the register fragments of a weight
// operand are the same in both, so a tile is stored as the registers of one warp.
//
// Tile: 16 rows x 64 k, 576 bytes, exactly 4.5 bits a weight. Lane l of the warp, g = l / 4 and
// t = l % 4, holds rows g and g + 8 at k = 16t .. 16t+15, which is one scale group of either row.
//
//   byte  16l + 4j + 2q, 0 <= j < 4, 0 <= q < 2: a little-endian 16-bit word with four codes,
//         with k = 16t + 4j + q:   c0 = row g, k        c1 = row g+8, k
//                                  c2 = row g, k + 2    c3 = row g+8, k + 2
//         bits 15 sign c0 | 14 bit 0 of c3 | 13 sign c3 | 12 sign c1 | 11..10 bits 2..1 of c3 |
//              9 sign c2 | 8..6 magnitude c0 | 5..3 magnitude c1 | 2..0 magnitude c2
//         Masked with 0x81C0 after a left shift by 0, 3 or 6 this is c0, c1 or c2 as a bf16 of
//         value * 2^-126 (a subnormal encoding is exact, too); c3 takes one multiplication.
//         So the k's of a tile's four mma steps are permuted: step j multiplies, in the k slots
//         2t, 2t+1, 2t+8, 2t+9 of a fragment, the k's 16t + 4j + 0 .. 3. The activations are
//         brought into the same order.
//   byte  512 + 2l: the scales of rows g and g + 8, each (exponent + 17) << 3 | mantissa, exponent
//         -9 .. 8. (byte << 4) + 0x7200 is the bf16 of scale * 2^118: every e4m3 value, subnormal
//         ones as well, is a normal number here. The product of both is exactly
//         code * scale * 2^-8, and the kernels multiply 2^8 back on the accumulator. A scale of
//         zero is stored as zero codes.
//
// Matrix: [rows / (16 S)][k / 64][S] tiles, S = tiles_per_block: the unit that the decode kernel
// streams is a run of k blocks of one row block; the prefill kernel fetches 256 rows of one k block
// with a tensor map. Rows and k are padded with zero codes.
//
// Row order. Within 8 rows a tile has features 0, 1, 4, 5, 2, 3, 6, 7 (HopperInEight), so that the
// kernels' epilogues, which exchange pieces between lanes, store long runs.
//   w13: gate and up of one feature are rows g and g + 8 of a tile, so the activation function
//        needs no exchange. Two tiles hold 16 consecutive features, one block of an NVFP4 h; 8
//        tiles hold 64.
//   w1:  up alone, for activation functions without a gate: a tile holds 16 consecutive features.
//   w2:  2 tiles hold 32 rows.

inline constexpr int kHopperTileRows = 16;
inline constexpr int kHopperTileK = 64;
inline constexpr int kHopperTileBytes = 576;
inline constexpr int kHopperTileCodeBytes = 512;
/// What the kernels multiply back onto the accumulator: a packed weight is 2^-8 of its value.
inline constexpr float kHopperWeightScale = 256.0f;

/// Of a tile. NVFP4's is described above, the others below; all have 16 rows x 64 k, so layouts differ by
/// the bytes alone.
enum class HopperFormat : uint8_t { kNvfp4, kFp8, kBf16 };
constexpr int HopperTileBytes(HopperFormat format) {
  if (format == HopperFormat::kNvfp4) return kHopperTileBytes;
  return format == HopperFormat::kFp8 ? 1024 : 2048;
}

/// Where the tiles of one expert's matrix lie.
struct HopperLayout {
  int64_t tiles = 0;        // of 16 rows
  int64_t k_blocks = 0;     // of 64 k
  int tiles_per_block = 1;  // S

  constexpr int64_t bytes(HopperFormat format = HopperFormat::kNvfp4) const {
    return tiles * k_blocks * HopperTileBytes(format);
  }
  constexpr int64_t OffsetOf(int64_t tile, int64_t k_block,
                             HopperFormat format = HopperFormat::kNvfp4) const {
    const int64_t s = tiles_per_block;
    return ((tile / s * k_blocks + k_block) * s + tile % s) * HopperTileBytes(format);
  }
};

/// Gate and up of one expert: [2 I, H], features padded to 64 and k to 64.
constexpr HopperLayout HopperW13Layout(int64_t hidden, int64_t intermediate) {
  return {(intermediate + 63) / 64 * 8, (hidden + 63) / 64, 2};
}

/// Up of one expert without a gate: [I, H], features padded to 64 and k to 64.
constexpr HopperLayout HopperW1Layout(int64_t hidden, int64_t intermediate) {
  return {(intermediate + 63) / 64 * 4, (hidden + 63) / 64, 2};
}

/// Down of one expert: [H, I], rows padded to 32 and k to 64. A decode CTA owns one row block, so
/// the block is as large as brings the number of blocks to about that of multiprocessors.
constexpr HopperLayout HopperW2Layout(int64_t hidden, int64_t intermediate) {
  return {(hidden + 31) / 32 * 2, (intermediate + 63) / 64, hidden <= 2048 ? 1 : 2};
}

// Dense linears have one matrix a shard, in the row order of w2 and one tile a row block, in three
// formats; experts may be FP8 and BF16, too. Every format's tile is 16 rows x 64 k with the k's of NVFP4's, so
// the activations' order is the same and one launch may mix them.
//   FP8:  1024 bytes; 512 * (j / 2) + 16l + 8 * (j % 2) are lane l's codes for mma step j, k = 16t + 4j:
//         a word with row g's four k's, then one with row g + 8's, see HopperFp8Word.
//   BF16: 2048 bytes; 512 * j + 16l are lane l's: row g's k and k+1, row g + 8's, row g's k+2 and k+3,
//         row g + 8's: the registers of the mma.

/// Four e4m3 codes k .. k+3, k in the low byte, as a tile has them: a 16-bit half with codes k and k+2,
/// one with k+1 and k+3. Of the first of a half the sign is bit 15 and the magnitude bits 10..4, where
/// bf16 has them; the second's bits are where they fall there after a swap of the half's bytes, but two,
/// which then move by 4: sign 3, magnitude 2..0, 11, 14..12.
constexpr uint32_t HopperFp8Word(uint32_t codes) {
  const uint32_t a = (codes & 0xFFu) | (codes & 0xFF00u) << 8;
  const uint32_t b = (codes >> 16 & 0xFFu) | (codes >> 8 & 0xFF0000u);
  return (a & 0x00800080u) << 8 | (a & 0x007F007Fu) << 4 | (b >> 4 & 0x000F000Fu) |
         (b & 0x00080008u) << 8 | (b & 0x00070007u) << 12;
}

/// A linear's [n, k], rows padded to 32 and k to 64, in tiles of its format.
constexpr HopperLayout HopperLinearLayout(int64_t n, int64_t k) {
  return {(n + 31) / 32 * 2, (k + 63) / 64, 1};
}
constexpr int64_t HopperLinearBytes(HopperFormat format, int64_t n, int64_t k) {
  const HopperLayout layout = HopperLinearLayout(n, k);
  return layout.bytes(format);
}

/// Which of 8 features row g of a tile has.
constexpr int HopperInEight(int g) { return g / 2 % 2 * 4 + g / 4 * 2 + g % 2; }

/// The feature whose gate is row g, and whose up is row g + 8, of a w13 tile.
constexpr int64_t HopperFeature(int64_t tile, int g) { return 8 * tile + HopperInEight(g); }

/// The feature of row g + 8 * half of a w1 tile.
constexpr int64_t HopperUngatedFeature(int64_t tile, int half, int g) {
  return 16 * tile + 8 * half + HopperInEight(g);
}

/// The output row that row g + 8 * half of a w2 tile computes.
constexpr int64_t HopperOutputRow(int64_t tile, int half, int g) {
  return tile / 2 * 32 + g / 2 * 8 + tile % 2 * 4 + half * 2 + g % 2;
}

/// The scale byte of a tile for an e4m3 block scale (not NaN, sign clear). Zero gives the smallest
/// one; its codes are stored as zeros.
constexpr uint8_t HopperScale(uint8_t e4m3) {
  const unsigned exponent = e4m3 >> 3 & 15, mantissa = e4m3 & 7;
  if (exponent != 0) return static_cast<uint8_t>((exponent + 10) << 3 | mantissa);
  if (mantissa >= 4) return static_cast<uint8_t>(10 << 3 | (mantissa - 4) << 1);
  if (mantissa >= 2) return static_cast<uint8_t>(9 << 3 | (mantissa - 2) << 2);
  return 8 << 3;
}

/// Two 16-bit words of a tile, k = 4j and k = 4j + 1 (in the high half), from the codes k 4j ..
/// 4j+3 of rows g and g + 8, low nibble first.
constexpr uint32_t HopperWords(uint32_t low, uint32_t high) {
  // Every half now holds c0 (or c1) in bits 3..0 and c2 (or c3) in bits 11..8.
  const uint32_t a = (low & 0x0F0Fu) | (low & 0xF0F0u) << 12;
  const uint32_t b = (high & 0x0F0Fu) | (high & 0xF0F0u) << 12;
  return (a & 0x00080008u) << 12 | (a & 0x00070007u) << 6 |  // c0
         (b & 0x00080008u) << 9 | (b & 0x00070007u) << 3 |   // c1
         (a & 0x08000800u) >> 2 | (a & 0x07000700u) >> 8 |   // c2
         (b & 0x08000800u) << 2 | (b & 0x06000600u) << 1 | (b & 0x01000100u) << 6;
}

/// One lane's share of a tile.
struct HopperLane {
  uint32_t words[4];
  uint16_t scales;
};

/// `low` and `high` are 16 codes of rows g and g + 8, low nibble first; the scales are e4m3.
constexpr HopperLane PackHopperLane(uint64_t low, uint64_t high, uint8_t low_scale,
                                    uint8_t high_scale) {
  if ((low_scale & 0x7F) == 0) low = 0;
  if ((high_scale & 0x7F) == 0) high = 0;
  HopperLane lane{};
  for (int j = 0; j < 4; ++j) {
    lane.words[j] = HopperWords(static_cast<uint32_t>(low >> (16 * j)) & 0xFFFFu,
                                static_cast<uint32_t>(high >> (16 * j)) & 0xFFFFu);
  }
  lane.scales = static_cast<uint16_t>(HopperScale(low_scale) | HopperScale(high_scale) << 8);
  return lane;
}

}  // namespace nibble
