#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// A physical core, as far as this process may run on it.
struct Core {
  std::vector<int> cpus;  // its processors (hyperthreads), ascending; at least one
  int node = 0;           // of memory (NUMA)
};

/// Where this process may run.
struct Topology {
  std::vector<Core> cores;  // node by node, within one by their first processor; at least one
  std::optional<double> cpu_limit;  // a container's quota, in processors' worth of time

  int nodes() const;
  /// How many threads can compute at once: one a core, and no more than whole processors in the
  /// limit, for one thread more would have all of them stopped for a part of every period.
  int threads() const;
};

/// Reads `root`/sys and `root`/proc for a process that may run on the processors `allowed`. What
/// is not told, or is nonsense, is taken for the simplest: a processor is a core, memory is one
/// node, there is no limit.
/// source   Documentation/ABI/stable/sysfs-devices-node, Documentation/admin-guide/cputopology.rst
///          and cgroup-v1, cgroup-v2 of the Linux kernel
Topology ReadTopology(const std::string& root, std::span<const int> allowed);

/// This machine's, for the calling thread's affinity mask.
Topology ReadTopology();

/// ReadTopology().threads()
int AvailableCores();

/// "0-3,8" as the kernel writes lists of processors and nodes, ascending; nothing for anything
/// else.
std::optional<std::vector<int>> ParseCpuList(std::string_view text);

enum class Pinning {
  kAuto,   // with several nodes of memory each thread keeps to one of them; else kNone
  kNone,   // threads run where the system puts them
  kCores,  // each thread keeps to a core of its own
};
std::optional<Pinning> ParsePinning(std::string_view name);  // "auto", "none", "cores"

/// The processors that each of `threads` threads keeps to: spread evenly over the cores, neighbours
/// next to each other, so that ThreadPool::Run's contiguous parts lie node by node. Empty where
/// nobody is to be pinned: as kAuto says, and where there are more threads than cores.
std::vector<std::vector<int>> PlaceThreads(const Topology& topology, int threads, Pinning pinning);

}  // namespace nibble
