#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

/// "When `left` stands before `right`, they become `merged`": the index in the list is the rank,
/// lower ranks go first.
struct Merge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;
};

/// Byte-pair encoding by ranks. Immutable once made; safe for use from many threads.
class Bpe {
 public:
  Bpe() = default;

  /// `token_of_byte` [256]: the token that each single byte is. errors kCorruptFile (a pair listed
  /// twice; a table that was made to collide)
  static Result<Bpe> Make(const std::array<int32_t, 256>& token_of_byte,
                          std::span<const Merge> merges);

  /// What Encode needs besides its output; one a thread, reused from piece to piece.
  struct Scratch {
    struct Symbol {
      int32_t token;
      uint32_t previous;
      uint32_t next;
    };
    struct Candidate {
      uint32_t rank;
      uint32_t position;
      int32_t merged;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// Appends the tokens of one piece: always the lowest rank first, the leftmost of equals, until
  /// no pair can merge.
  /// needs    piece.size() < 2^32 - 1
  /// cost     O(n log n) for n bytes: a linked list of symbols and a heap of candidates
  void Encode(std::string_view piece, std::vector<int32_t>& out, Scratch& scratch) const;

 private:
  struct Slot {
    uint64_t pair = 0;
    uint32_t rank = 0;
    int32_t merged = -1;  // -1: empty
  };

  const Slot* Find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> token_of_byte_{};
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

}  // namespace nibble::text
