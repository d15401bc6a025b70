// Blocks, threads and where they meet. Threads are fibers: a thread runs until it meets others, polls or ends.
// The order is the same in every run. Copies that a GPU makes behind the threads' back are made late, so that a
// read before the wait sees the old bytes.

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <deque>

#include "machine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 gridDim, blockDim;

namespace emulator {

Thread* current = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr uint64_t kLateTicks = 16;  // a copy is under way for as many switches
constexpr uint64_t kMostPolls = 100'000'000;

struct Fiber {
  jmp_buf at;
  ucontext_t first;
  bool started = false;
  void* stack = nullptr;
  void* fake_stack = nullptr;
};

struct Machine {
  Fiber host{{}, {}, true, nullptr, nullptr};  // not started by us
  std::deque<Thread*> ready;
  std::vector<Thread*> all, idle;
  const std::function<void()>* body = nullptr;
  Config config{1, 1};
  unsigned next_block = 0, blocks = 0;
  int resident = 0, live = 0;
  uint64_t tick = 0, polls = 0;
  std::deque<std::pair<uint64_t, std::function<void()>>> late;  // copies under way, by tick
} machine;

[[noreturn]] void Stuck() {
  fprintf(stderr, "emulator: no thread can go on; %d wait, for instance\n", machine.live);
  int shown = 0;
  for (const Thread* t : machine.all) {
    if (t->block == nullptr || t->linear % 32 != 0 || ++shown > 64) continue;
    const uint3 b = t->block->index;
    fprintf(stderr, "  block %u,%u,%u thread %d at %s\n", b.x, b.y, b.z, t->linear, t->doing);
  }
  exit(3);
}

void RunLate(bool all) {
  while (!machine.late.empty() && (all || machine.late.front().first <= machine.tick)) {
    const auto copy = std::move(machine.late.front().second);
    machine.late.pop_front();
    copy();
  }
}

__attribute__((noinline)) void Switch(Fiber* from, Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  const size_t bytes = to == &machine.host ? 0 : kStackBytes;
  __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, bytes);
#endif
  if (_setjmp(from->at) == 0) {
    if (to->started) _longjmp(to->at, 1);
    to->started = true;
    setcontext(&to->first);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

/// Goes on with the next thread that can; who calls comes back when it is its turn.
void Next() {
  ++machine.tick;
  RunLate(machine.ready.empty());
  Thread* const self = current;
  Fiber* const from = self ? static_cast<Fiber*>(self->context) : &machine.host;
  if (machine.ready.empty()) {
    if (machine.live != 0) Stuck();
    current = nullptr;
    return Switch(from, &machine.host);
  }
  current = machine.ready.front();
  machine.ready.pop_front();
  if (current != self) Switch(from, static_cast<Fiber*>(current->context));
}

void StartBlocks();

void EndThread() {
  Thread* const t = current;
  t->copy_groups.clear();
  t->open_copies.clear();
  Block* const b = t->block;
  b->warps[t->linear / 32].live &= ~(1u << t->lane);
  --b->live;
  // Who waits for the whole block waits for one less.
  if (Group& all = b->barriers[0]; all.arrived > 0 && all.arrived >= b->live) Release(all);
  t->block = nullptr;
  machine.idle.push_back(t);
  --machine.live;
  machine.polls = 0;
  if (b->live == 0 && --b->cluster->open == 0) {
    RunLate(true);
    machine.resident -= static_cast<int>(b->cluster->blocks.size());
    delete b->cluster;
    StartBlocks();
  }
  Next();
}

void FiberMain() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (;;) {
    (*machine.body)();
    EndThread();
  }
}

Thread* NewThread() {
  if (!machine.idle.empty()) {
    Thread* const t = machine.idle.back();
    machine.idle.pop_back();
    return t;
  }
  auto* const t = new Thread;
  auto* const f = new Fiber;
  f->stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (f->stack == MAP_FAILED) Fail("no memory for the stack of a thread");
  getcontext(&f->first);
  f->first.uc_stack.ss_sp = f->stack;
  f->first.uc_stack.ss_size = kStackBytes;
  makecontext(&f->first, FiberMain, 0);
  t->context = f;
  machine.all.push_back(t);
  return t;
}

Block* NewBlock(unsigned number, Cluster* cluster) {
  auto block = std::make_unique<Block>();
  const dim3 g = machine.config.grid, d = machine.config.block;
  const int threads = static_cast<int>(d.x * d.y * d.z);
  block->index = {number % g.x, number / g.x % g.y, number / g.x / g.y};
  block->cluster = cluster;
  block->shared_bytes = kStaticShared + machine.config.shared_bytes;
  block->shared =
      static_cast<char*>(aligned_alloc(1024, (block->shared_bytes + 1023) / 1024 * 1024));
  memset(block->shared, 0xFF, block->shared_bytes);  // NaN, so that what nobody wrote shows
  block->live = threads;
  block->warps.resize((threads + 31) / 32);
  block->warpgroups.resize((threads + 127) / 128);
  for (int i = 0; i < threads; ++i) {
    Thread* const t = NewThread();
    t->linear = i;
    t->lane = i % 32;
    t->index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
    t->block = block.get();
    block->warps[i / 32].live |= 1u << i % 32;
    machine.ready.push_back(t);
  }
  machine.live += threads;
  cluster->threads += threads;
  cluster->blocks.push_back(std::move(block));
  return cluster->blocks.back().get();
}

void StartBlocks() {
  const int together = machine.config.cluster;
  while (machine.next_block < machine.blocks &&
         (machine.resident == 0 || machine.resident + together <= kMultiprocessors)) {
    auto* const cluster = new Cluster;
    for (int i = 0; i < together; ++i) NewBlock(machine.next_block++, cluster);
    cluster->open = together;
    machine.resident += together;
  }
}

}  // namespace

void Fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  fprintf(stderr, "emulator: ");
  vfprintf(stderr, format, list);
  fprintf(stderr, "\n");
  if (current != nullptr && current->block != nullptr) {
    const uint3 b = current->block->index;
    fprintf(stderr, "  block %u,%u,%u thread %d, last at %s\n", b.x, b.y, b.z, current->linear,
            current->doing);
  }
  va_end(list);
  abort();
}

Cluster::~Cluster() {
  for (const auto& block : blocks) free(block->shared);
}

void Release(Group& group) {
  group.arrived = 0;
  machine.ready.insert(machine.ready.end(), group.waiting.begin(), group.waiting.end());
  group.waiting.clear();
  machine.polls = 0;
}

void Wait(Group& group) {
  group.waiting.push_back(current);
  Next();
}

void Meet(Group& group, int places, int place, void* operands, Act act) {
  group.operands[place] = operands;
  if (++group.arrived < places) {
    Wait(group);
    return;
  }
  if (act != nullptr) act(group);
  Release(group);
}

void Poll() {
  if (++machine.polls > kMostPolls) Stuck();
  machine.ready.push_back(current);
  Next();
}

void CopyLate(std::function<void()> copy) {
  machine.late.emplace_back(machine.tick + kLateTicks, std::move(copy));
}

uint3 BlockIndex() { return current->block->index; }
int LiveThreads() { return current->block->live; }

Group& Lanes(uint32_t mask, int& count) {
  Warp& warp = current->block->warps[current->linear / 32];
  if (!(mask >> current->lane & 1))
    Fail("lane %d is not in its own mask %08x", current->lane, mask);
  Group& group = mask == ~0u ? warp.all : warp.some[mask];
  group.mask = mask & warp.live;
  count = std::popcount(group.mask);
  return group;
}
Group& Warpgroup() { return current->block->warpgroups[current->linear / 128]; }
Group& NamedBarrier(int id) { return current->block->barriers[id]; }

void* DynamicShared() { return current->block->shared + kStaticShared; }

int NewStaticShared() {
  static int count = 0;
  return count++;
}
void* StaticSharedAt(int place, size_t bytes, size_t align) {
  Block& b = *current->block;
  for (const auto& v : b.variables) {
    if (v.first == place) return v.second;
  }
  b.static_used = (b.static_used + align - 1) / align * align;
  if (b.static_used + bytes > kStaticShared)
    Fail("over %zu bytes of static shared memory", kStaticShared);
  char* const at = b.shared + b.static_used;
  b.static_used += bytes;
  b.variables.emplace_back(place, at);
  return at;
}

uint32_t SharedOffset(const void* p) {
  const Block& b = *current->block;
  const auto offset = static_cast<const char*>(p) - b.shared;
  if (offset < 0 || static_cast<size_t>(offset) > b.shared_bytes)
    Fail("%p is not in shared memory", p);
  return static_cast<uint32_t>(offset);
}
char* SharedPointer(uint32_t address) {
  const uint32_t rank = address >> 24, offset = address & 0xFFFFFF;
  const Cluster& c = *current->block->cluster;
  if (rank > c.blocks.size()) Fail("rank %u of a cluster of %zu", rank - 1, c.blocks.size());
  const Block& b = rank == 0 ? *current->block : *c.blocks[rank - 1];
  if (offset >= b.shared_bytes) Fail("shared address %u of %zu bytes", offset, b.shared_bytes);
  return b.shared + offset;
}

void RunKernel(const Config& config, const std::function<void()>& body) {
  gridDim = config.grid;
  blockDim = config.block;
  machine.body = &body;
  machine.config = config;
  machine.next_block = 0;
  machine.blocks = config.grid.x * config.grid.y * config.grid.z;
  StartBlocks();
  Next();
  machine.body = nullptr;
}

}  // namespace emulator
