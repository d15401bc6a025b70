#pragma once

// What the emulator's own files share.

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "emulator.h"

namespace emulator {

constexpr int kMultiprocessors = 8;
constexpr size_t kStaticShared = 48 << 10;  // dynamic shared memory begins behind it

struct Warp {
  uint32_t live = 0;
  Group all;
  std::map<uint32_t, Group> some;  // by mask
};

struct Block {
  uint3 index;
  struct Cluster* cluster = nullptr;
  char* shared = nullptr;
  size_t shared_bytes = 0, static_used = 0;
  std::vector<std::pair<int, void*>> variables;  // static shared ones
  int live = 0;
  std::vector<Warp> warps;
  std::vector<Group> warpgroups;
  Group barriers[16];
  std::vector<int> votes;  // of __syncthreads_or
};

/// Blocks that run at once and reach each other's shared memory.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int threads = 0, open = 0;  // open: blocks that have not ended
  Group group;
  ~Cluster();
};

/// Waits until somebody releases the group.
void Wait(Group& group);
/// Lets all who wait go on.
void Release(Group& group);
/// Does a copy when some time has passed.
void CopyLate(std::function<void()> copy);
/// Runs every block of a grid to its end.
void RunKernel(const Config& config, const std::function<void()>& body);
[[noreturn]] void Fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulator
