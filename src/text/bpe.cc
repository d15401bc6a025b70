#include "text/bpe.h"

#include <algorithm>
#include <bit>

namespace nibble::text {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

// At half load and with a good mix the longest probe of a million pairs is below 50. A file made to
// collide would make loading quadratic: it is refused instead.
constexpr size_t kMaxProbe = 256;

uint64_t PairKey(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

// The finalizer of splitmix64: neighbouring ids must not land in neighbouring slots.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// std::push_heap keeps the greatest on top; the merge to do next is the one with the least rank,
// then the leftmost.
bool Later(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

Result<Bpe> Bpe::Make(const std::array<int32_t, 256>& token_of_byte,
                      std::span<const Merge> merges) {
  Bpe bpe;
  bpe.token_of_byte_ = token_of_byte;
  bpe.slots_.resize(std::bit_ceil(std::max<size_t>(16, merges.size() * 2)));
  const size_t mask = bpe.slots_.size() - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& m = merges[rank];
    const uint64_t key = PairKey(m.left, m.right);
    size_t at = Mix(key) & mask;
    size_t probes = 0;
    for (; bpe.slots_[at].merged >= 0; at = (at + 1) & mask) {
      if (bpe.slots_[at].pair == key) {
        return Err(ErrorCode::kCorruptFile, "merge {} repeats the pair of merge {}", rank,
                   bpe.slots_[at].rank);
      }
      if (++probes > kMaxProbe) {
        return Err(ErrorCode::kCorruptFile, "merge {}: more than {} merges share a hash slot", rank,
                   kMaxProbe);
      }
    }
    bpe.slots_[at] = {key, static_cast<uint32_t>(rank), m.merged};
  }
  return bpe;
}

const Bpe::Slot* Bpe::Find(int32_t left, int32_t right) const {
  const uint64_t key = PairKey(left, right);
  const size_t mask = slots_.size() - 1;
  for (size_t at = Mix(key) & mask; slots_[at].merged >= 0; at = (at + 1) & mask) {
    if (slots_[at].pair == key) return &slots_[at];
  }
  return nullptr;
}

void Bpe::Encode(std::string_view piece, std::vector<int32_t>& out, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  const auto n = static_cast<uint32_t>(piece.size());
  symbols.resize(n);
  heap.clear();
  for (uint32_t i = 0; i < n; ++i) {
    symbols[i] = {token_of_byte_[static_cast<uint8_t>(piece[i])], i == 0 ? kNone : i - 1,
                  i + 1 == n ? kNone : i + 1};
  }
  const auto consider = [&](uint32_t left) {
    if (left == kNone || symbols[left].next == kNone) return false;
    const Slot* slot = Find(symbols[left].token, symbols[symbols[left].next].token);
    if (slot) heap.push_back({slot->rank, left, slot->merged});
    return slot != nullptr;
  };
  for (uint32_t i = 0; i < n; ++i) consider(i);
  std::make_heap(heap.begin(), heap.end(), Later);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), Later);
    const Scratch::Candidate best = heap.back();
    heap.pop_back();
    // A candidate is stale when its symbol was swallowed, or when either side has grown since. A
    // grown pair never merges to the same token, so comparing what the pair would become now finds
    // both.
    Scratch::Symbol& symbol = symbols[best.position];
    if (symbol.token < 0 || symbol.next == kNone) continue;
    const Slot* slot = Find(symbol.token, symbols[symbol.next].token);
    if (!slot || slot->merged != best.merged) continue;

    const uint32_t swallowed = symbol.next;
    symbol.token = best.merged;
    symbol.next = symbols[swallowed].next;
    symbols[swallowed].token = -1;
    if (symbol.next != kNone) symbols[symbol.next].previous = best.position;
    if (consider(symbol.previous)) std::push_heap(heap.begin(), heap.end(), Later);
    if (consider(best.position)) std::push_heap(heap.begin(), heap.end(), Later);
  }
  for (uint32_t i = n == 0 ? kNone : 0; i != kNone; i = symbols[i].next)
    out.push_back(symbols[i].token);
}

}  // namespace nibble::text
