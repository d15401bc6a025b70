#include "base/topology.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <thread>

namespace nibble {
namespace {

// Eight times what the kernel can be built for (8192 processors, 1024 nodes).
constexpr int kMaxId = 1 << 16;

/// A file of /sys or /proc, whose size the system does not tell beforehand; empty where it cannot
/// be read.
std::string ReadSmall(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return {};
  std::string text(size_t{1} << 16, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  return text;
}

/// A number that is all of `text`.
template <class T>
std::optional<T> ParseWhole(std::string_view text) {
  T value{};
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) return {};
  return value;
}

std::vector<int> ReadCpuList(const std::string& path) {
  return ParseCpuList(ReadSmall(path)).value_or(std::vector<int>());
}

/// The node of every processor that the system assigns to one.
std::map<int, int> ReadNodes(const std::string& root) {
  const std::string folder = root + "/sys/devices/system/node";
  std::map<int, int> node_of;
  for (int node : ReadCpuList(folder + "/online")) {
    for (int cpu : ReadCpuList(fmt::format("{}/node{}/cpulist", folder, node))) {
      node_of.emplace(cpu, node);
    }
  }
  return node_of;
}

/// The lowest processor of `cpu`'s core, whether or not this process may run on it.
int CoreOf(const std::string& root, int cpu) {
  const std::vector<int> siblings = ReadCpuList(
      fmt::format("{}/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", root, cpu));
  const bool plausible = std::find(siblings.begin(), siblings.end(), cpu) != siblings.end();
  return plausible ? siblings.front() : cpu;
}

/// The limit that one group sets, not those above it: cpu.max is "QUOTA PERIOD" or "max PERIOD",
/// version 1 has a file for each and -1 for none.
std::optional<double> LimitOf(const std::string& group, bool v2) {
  std::string both = v2 ? ReadSmall(group + "/cpu.max")
                        : fmt::format("{} {}", Trimmed(ReadSmall(group + "/cpu.cfs_quota_us")),
                                      Trimmed(ReadSmall(group + "/cpu.cfs_period_us")));
  const std::string_view text = Trimmed(both);
  const size_t space = text.find(' ');
  if (space == text.npos) return {};
  const auto quota = ParseWhole<int64_t>(text.substr(0, space));
  const auto period = ParseWhole<int64_t>(text.substr(space + 1));
  if (!quota || !period || *quota <= 0 || *period <= 0) return {};
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

/// The least limit of the group `path` and all above it, in the hierarchy mounted at `mount`. Inside
/// a container `path` may be the host's name for the group, which is not there: its own root is.
std::optional<double> LeastLimit(const std::string& mount, std::string_view path, bool v2) {
  std::optional<double> least;
  if (path.find("..") != path.npos) path = {};  // outside of what is mounted
  while (true) {
    const auto limit = LimitOf(fmt::format("{}{}", mount, path), v2);
    if (limit) least = std::min(*limit, least.value_or(*limit));
    if (path.empty()) return least;
    path = path.substr(0, path.rfind('/') == path.npos ? 0 : path.rfind('/'));
  }
}

/// /proc/self/cgroup has a line HIERARCHY:CONTROLLERS:PATH for each hierarchy; version 2's has no
/// controllers.
std::optional<double> ReadCpuLimit(const std::string& root) {
  const std::string groups = ReadSmall(root + "/proc/self/cgroup");
  const std::string mount = root + "/sys/fs/cgroup";
  std::optional<double> least;
  for (std::string_view rest = groups; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string_view path = line.substr(second + 1);
    std::optional<double> limit;
    if (controllers.empty()) {
      limit = LeastLimit(mount, path, true);
    } else if (fmt::format(",{},", controllers).find(",cpu,") != std::string::npos) {
      limit = LeastLimit(mount + "/cpu", path, false);  // a link where it is mounted with cpuacct
    }
    if (limit) least = std::min(*limit, least.value_or(*limit));
  }
  return least;
}

/// The processors that the calling thread may run on.
std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  for (int size = 1024; size <= kMaxId && cpus.empty(); size *= 2) {  // too small a set is an error
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(size),
                                                               [](cpu_set_t* s) { CPU_FREE(s); });
    const size_t bytes = CPU_ALLOC_SIZE(size);
    if (set == nullptr || sched_getaffinity(0, bytes, set.get()) != 0) continue;
    for (int cpu = 0; cpu < size; ++cpu) {
      if (CPU_ISSET_S(cpu, bytes, set.get())) cpus.push_back(cpu);
    }
  }
  const int online = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (int cpu = 0; cpus.empty() && cpu < online; ++cpu) cpus.push_back(cpu);
  return cpus;
}

}  // namespace

int Topology::nodes() const {
  int count = 0;
  for (size_t i = 0; i < cores.size(); ++i) count += i == 0 || cores[i].node != cores[i - 1].node;
  return count;
}

int Topology::threads() const {
  const double n = static_cast<double>(cores.size());
  return static_cast<int>(std::max(1.0, std::floor(std::min(n, cpu_limit.value_or(n)))));
}

std::optional<std::vector<int>> ParseCpuList(std::string_view text) {
  text = Trimmed(text);
  std::vector<int> out;
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(','));
    if (item.size() + 1 == text.size()) return {};  // nothing after the last comma
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    const size_t dash = item.find('-');
    const auto first = ParseWhole<int>(item.substr(0, dash));
    const auto last = dash == item.npos ? first : ParseWhole<int>(item.substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first || *last >= kMaxId) return {};
    if (!out.empty() && *first <= out.back()) return {};
    for (int id = *first; id <= *last; ++id) out.push_back(id);
  }
  return out;
}

Topology ReadTopology(const std::string& root, std::span<const int> allowed) {
  const std::map<int, int> node_of = ReadNodes(root);
  std::map<std::pair<int, int>, Core> cores;  // by node, lowest processor
  for (int cpu : allowed) {
    const int lowest = CoreOf(root, cpu);
    const auto found = node_of.find(cpu);
    const int node = found == node_of.end() ? 0 : found->second;
    Core& core = cores[{node, lowest}];
    core.node = node;
    core.cpus.push_back(cpu);
  }
  Topology out;
  for (auto& [key, core] : cores) {
    std::sort(core.cpus.begin(), core.cpus.end());
    out.cores.push_back(std::move(core));
  }
  if (out.cores.empty()) out.cores.push_back({{0}, 0});
  out.cpu_limit = ReadCpuLimit(root);
  return out;
}

Topology ReadTopology() { return ReadTopology("", AllowedCpus()); }

int AvailableCores() { return ReadTopology().threads(); }

std::optional<Pinning> ParsePinning(std::string_view name) {
  if (name == "auto") return Pinning::kAuto;
  if (name == "none") return Pinning::kNone;
  if (name == "cores") return Pinning::kCores;
  return {};
}

std::vector<std::vector<int>> PlaceThreads(const Topology& topology, int threads, Pinning pinning) {
  const std::vector<Core>& cores = topology.cores;
  const auto n_cores = static_cast<int64_t>(cores.size());
  if (pinning == Pinning::kNone || threads < 1 || threads > n_cores) return {};
  if (pinning == Pinning::kAuto && topology.nodes() == 1) return {};
  std::vector<std::vector<int>> places(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    const Core& own = cores[static_cast<size_t>(t * n_cores / threads)];
    std::vector<int>& place = places[static_cast<size_t>(t)];
    for (const Core& core : cores) {
      const bool keeps = pinning == Pinning::kAuto ? core.node == own.node : &core == &own;
      if (keeps) place.insert(place.end(), core.cpus.begin(), core.cpus.end());
    }
  }
  return places;
}

}  // namespace nibble
