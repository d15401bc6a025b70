#include "weights/negative_zero.h"

#include <cstring>

namespace nibble::weights {
namespace {

// A nibble's magnitude plus seven reaches bit 3 exactly when it is not zero, and never the next
// nibble: that bit is the sign that may stay.
constexpr uint64_t ClearInWord(uint64_t word) {
  constexpr uint64_t kMagnitudes = 0x7777777777777777;
  return word & (kMagnitudes | ((word & kMagnitudes) + kMagnitudes));
}

}  // namespace

void ClearNegativeZeros(std::span<uint8_t> codes) {
  size_t i = 0;
  for (; i + 8 <= codes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, &codes[i], 8);
    word = ClearInWord(word);
    std::memcpy(&codes[i], &word, 8);
  }
  for (; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(ClearInWord(codes[i]));
}

}  // namespace nibble::weights
