// What device code calls by name and threads do together: shuffles, votes, reductions; and __byte_perm.

#include "machine.h"

namespace emulator {

void ShuffleLanes(uint32_t mask, Shuffle& s) {
  int count;
  Group& lanes = Lanes(mask, count);
  current->doing = "a shuffle";
  Meet(lanes, count, current->lane, &s, [](Group& g) {
    for (uint32_t m = g.mask; m != 0; m &= m - 1) {
      auto& mine = *static_cast<Shuffle*>(g.operands[std::countr_zero(m)]);
      // From a lane that is not there comes what nobody promised.
      const bool real = mine.from >= 0 && mine.from < 32 && g.mask >> mine.from & 1;
      mine.result = real ? static_cast<const Shuffle*>(g.operands[mine.from])->value : ~0ull;
    }
  });
}

struct Brought {
  uint64_t value, result;
  uint64_t (*join)(const uint64_t* of_lane, uint32_t mask);
};
uint64_t Together(uint32_t mask, uint64_t v,
                  uint64_t (*join)(const uint64_t* of_lane, uint32_t mask)) {
  int count;
  Group& lanes = Lanes(mask, count);
  Brought mine{v, 0, join};
  current->doing = "a vote or a reduction";
  Meet(lanes, count, current->lane, &mine, [](Group& g) {
    uint64_t values[32] = {};
    const auto at = [&](int lane) { return static_cast<Brought*>(g.operands[lane]); };
    for (uint32_t m = g.mask; m != 0; m &= m - 1)
      values[std::countr_zero(m)] = at(std::countr_zero(m))->value;
    const uint64_t result = at(std::countr_zero(g.mask))->join(values, g.mask);
    for (uint32_t m = g.mask; m != 0; m &= m - 1) at(std::countr_zero(m))->result = result;
  });
  return mine.result;
}

}  // namespace emulator

using emulator::Together;

namespace {

template <class T, T (*kJoin)(T, T)>
uint64_t Reduce(const uint64_t* v, uint32_t mask) {
  bool any = false;
  T result{};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    result = any ? kJoin(result, static_cast<T>(v[lane])) : static_cast<T>(v[lane]);
    any = true;
  }
  return static_cast<uint64_t>(result);
}
template <class T>
T Smaller(T a, T b) {
  return std::min(a, b);
}
template <class T>
T Larger(T a, T b) {
  return std::max(a, b);
}
template <class T>
T Sum(T a, T b) {
  return static_cast<T>(a + b);
}
template <class T>
T Or(T a, T b) {
  return a | b;
}

template <class T, T (*kJoin)(T, T)>
T ReduceLanes(uint32_t mask, T v) {
  return static_cast<T>(Together(mask, static_cast<uint64_t>(v), Reduce<T, kJoin>));
}

}  // namespace

uint32_t __ballot_sync(uint32_t mask, int v) {
  return static_cast<uint32_t>(Together(mask, v != 0, [](const uint64_t* lanes, uint32_t here) {
    uint64_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= (here >> lane & lanes[lane] & 1) << lane;
    return votes;
  }));
}
uint32_t __match_any_sync(uint32_t mask, uint32_t v) {
  uint32_t same = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (emulator::ShuffleFrom(mask, v, lane) == v) same |= 1u << lane;
  }
  return same;
}
int __reduce_min_sync(uint32_t mask, int v) { return ReduceLanes<int, Smaller>(mask, v); }
int __reduce_max_sync(uint32_t mask, int v) { return ReduceLanes<int, Larger>(mask, v); }
int __reduce_add_sync(uint32_t mask, int v) { return ReduceLanes<int, Sum>(mask, v); }
uint32_t __reduce_min_sync(uint32_t mask, uint32_t v) {
  return ReduceLanes<uint32_t, Smaller>(mask, v);
}
uint32_t __reduce_max_sync(uint32_t mask, uint32_t v) {
  return ReduceLanes<uint32_t, Larger>(mask, v);
}
uint32_t __reduce_add_sync(uint32_t mask, uint32_t v) {
  return ReduceLanes<uint32_t, Sum>(mask, v);
}
uint32_t __reduce_or_sync(uint32_t mask, uint32_t v) { return ReduceLanes<uint32_t, Or>(mask, v); }

int __syncthreads_or(int v) {
  // Two barriers: one to gather, one so that nobody gathers the next before all have read.
  emulator::Group& barrier = emulator::NamedBarrier(0);
  int mine = v;
  std::vector<int>& all = emulator::current->block->votes;
  all.push_back(mine);
  __syncthreads();
  mine = 0;
  for (const int vote : all) mine |= vote;
  emulator::Meet(barrier, emulator::LiveThreads(), 0, nullptr,
                 [](emulator::Group&) { emulator::current->block->votes.clear(); });
  return mine != 0;
}

uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> 4 * i & 15;
    uint32_t byte = both >> 8 * (s & 7) & 0xFF;
    if (s & 8) byte = byte & 0x80 ? 0xFF : 0;
    result |= byte << 8 * i;
  }
  return result;
}
