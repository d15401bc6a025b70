#include "base/topology.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace nibble {
namespace {

namespace fs = std::filesystem;

/// A folder with files of /sys and /proc, removed with the test.
class Tree {
 public:
  Tree() {
    static int count = 0;
    root_ = fs::temp_directory_path() /
            ("nibble_topology_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
    fs::create_directories(root_);
  }
  ~Tree() { fs::remove_all(root_); }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  Tree& Put(const std::string& path, const std::string& text) {
    const fs::path file = root_ / path;
    fs::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << text;
    return *this;
  }
  Tree& Siblings(int cpu, const std::string& list) {
    return Put(
        "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list",
        list + "\n");
  }
  Tree& Node(int node, const std::string& list) {
    return Put("sys/devices/system/node/node" + std::to_string(node) + "/cpulist", list + "\n");
  }
  Tree& Nodes(const std::string& list) {
    return Put("sys/devices/system/node/online", list + "\n");
  }

  /// What a process sees that may run on `allowed`.
  Topology Read(const std::string& allowed) const {
    const std::vector<int> cpus = ParseCpuList(allowed).value();
    return ReadTopology(root_.string(), cpus);
  }

 private:
  fs::path root_;
};

/// "0:0,8 0:1,9 1:4": the cores as node:processors.
std::string Text(const Topology& topology) {
  std::string out;
  for (const Core& core : topology.cores) {
    out += (out.empty() ? "" : " ") + std::to_string(core.node);
    for (size_t i = 0; i < core.cpus.size(); ++i) {
      out += (i == 0 ? ":" : ",") + std::to_string(core.cpus[i]);
    }
  }
  return out;
}

/// Two sockets of two cores with two threads each, numbered as servers do: odd ones on the second.
void TwoSockets(Tree& tree) {
  for (int cpu = 0; cpu < 8; ++cpu) {
    const int first = cpu % 4;
    tree.Siblings(cpu, std::to_string(first) + "," + std::to_string(first + 4));
  }
  tree.Nodes("0-1").Node(0, "0,2,4,6").Node(1, "1,3,5,7");
}

TEST(ParseCpuList, TakesWhatTheKernelWritesAndNothingElse) {
  using Ids = std::vector<int>;
  EXPECT_EQ(ParseCpuList("0\n"), Ids({0}));
  EXPECT_EQ(ParseCpuList("0-3,8,10-11\n"), Ids({0, 1, 2, 3, 8, 10, 11}));
  EXPECT_EQ(ParseCpuList("\n"), Ids());  // a node without processors
  EXPECT_EQ(ParseCpuList(""), Ids());
  EXPECT_EQ(ParseCpuList("65535"), Ids({65535}));
  for (const char* bad :
       {"-1", "1-", "-", "3-1", "0,", ",0", "0,,1", "a", "0-x", "0 1", "1,0", "0-3,2", "65536",
        "0-99999999", "0-99999999999999999999", "0x1", "+1", "1.5", "0-1-2"}) {
    EXPECT_EQ(ParseCpuList(bad), std::nullopt) << bad;
  }
  EXPECT_EQ(ParseCpuList(std::string_view("0\0", 2)), std::nullopt);
}

TEST(Topology, HyperthreadsAreOneCore) {
  Tree tree;
  tree.Nodes("0").Node(0, "0-3");
  for (int cpu = 0; cpu < 4; ++cpu) tree.Siblings(cpu, cpu < 2 ? "0-1" : "2-3");
  EXPECT_EQ(Text(tree.Read("0-3")), "0:0,1 0:2,3");
  EXPECT_EQ(tree.Read("0-3").threads(), 2);
  EXPECT_EQ(Text(tree.Read("1,3")), "0:1 0:3");  // the mask left one of each
  EXPECT_EQ(Text(tree.Read("2-3")), "0:2,3");
}

TEST(Topology, CoresComeNodeByNodeHoweverTheyAreNumbered) {
  Tree tree;
  TwoSockets(tree);
  EXPECT_EQ(Text(tree.Read("0-7")), "0:0,4 0:2,6 1:1,5 1:3,7");
  EXPECT_EQ(tree.Read("0-7").nodes(), 2);
  EXPECT_EQ(Text(tree.Read("2-3,7")), "0:2 1:3,7");
  EXPECT_EQ(tree.Read("0,2").nodes(), 1);
  EXPECT_EQ(tree.Read("1,3").nodes(), 1);
}

TEST(Topology, AProcessorThatWentOfflineLeavesItsSiblingACore) {
  Tree tree;  // processor 3 has no topology any more, and no list names it
  tree.Nodes("0").Node(0, "0-2").Siblings(0, "0-1").Siblings(1, "0-1").Siblings(2, "2");
  EXPECT_EQ(Text(tree.Read("0-2")), "0:0,1 0:2");
  EXPECT_EQ(Text(tree.Read("0-3")), "0:0,1 0:2 0:3");  // it went just now
}

TEST(Topology, WhereNothingIsToldAProcessorIsACoreOfOneNode) {
  const Tree tree;
  EXPECT_EQ(Text(tree.Read("0-2")), "0:0 0:1 0:2");
  EXPECT_EQ(tree.Read("0-2").cpu_limit, std::nullopt);
  EXPECT_EQ(ReadTopology("/nowhere", {}).threads(), 1);
}

TEST(Topology, NonsenseIsAsIfNothingWereTold) {
  Tree tree;
  tree.Nodes("0-99999999999").Node(0, "0-1");
  tree.Siblings(0, "1-2").Siblings(1, "garbage").Siblings(2, std::string(100000, '9'));
  tree.Siblings(3, std::string("3\0-4", 4));
  EXPECT_EQ(Text(tree.Read("0-3")), "0:0 0:1 0:2 0:3");

  Tree twice;  // in two nodes: the first counts
  twice.Nodes("0-2").Node(0, "0").Node(1, "0-1").Node(2, "1-0");
  EXPECT_EQ(Text(twice.Read("0-1")), "0:0 1:1");
}

struct QuotaCase {
  const char* what;
  std::vector<std::pair<std::string, std::string>> files;
  double limit;  // 0: none
  int threads;   // of 64 processors
};

TEST(Topology, AContainersQuotaLimitsTheThreads) {
  const std::string v2 = "sys/fs/cgroup", v1 = "sys/fs/cgroup/cpu";
  const QuotaCase cases[] = {
      {"no limit", {{"proc/self/cgroup", "0::/\n"}, {v2 + "/cpu.max", "max 100000\n"}}, 0, 64},
      {"no file", {{"proc/self/cgroup", "0::/\n"}}, 0, 64},
      {"no groups", {{v2 + "/cpu.max", "200000 100000\n"}}, 0, 64},
      {"a container's own root",
       {{"proc/self/cgroup", "0::/\n"}, {v2 + "/cpu.max", "200000 100000\n"}},
       2,
       2},
      {"a half is not a processor",
       {{"proc/self/cgroup", "0::/\n"}, {v2 + "/cpu.max", "350000 100000\n"}},
       3.5,
       3},
      {"less than one",
       {{"proc/self/cgroup", "0::/\n"}, {v2 + "/cpu.max", "50000 100000\n"}},
       0.5,
       1},
      {"more than there are",
       {{"proc/self/cgroup", "0::/\n"}, {v2 + "/cpu.max", "99900000 100000\n"}},
       999,
       64},
      {"the least of a group and those above",
       {{"proc/self/cgroup", "0::/a/b\n"},
        {v2 + "/cpu.max", "900000 100000\n"},
        {v2 + "/a/cpu.max", "300000 100000\n"},
        {v2 + "/a/b/cpu.max", "max 100000\n"}},
       3,
       3},
      {"not a neighbour's",
       {{"proc/self/cgroup", "0::/a\n"}, {v2 + "/b/cpu.max", "300000 100000\n"}},
       0,
       64},
      {"version 1, by the host's name for the group",
       {{"proc/self/cgroup", "9:name=systemd:/\n4:cpu,cpuacct:/docker/c0ffee\n0::/\n"},
        {v1 + "/cpu.cfs_quota_us", "400000\n"},
        {v1 + "/cpu.cfs_period_us", "100000\n"}},
       4,
       4},
      {"version 1 without a limit",
       {{"proc/self/cgroup", "1:cpu:/\n"},
        {v1 + "/cpu.cfs_quota_us", "-1\n"},
        {v1 + "/cpu.cfs_period_us", "100000\n"}},
       0,
       64},
      {"cpuset is not cpu",
       {{"proc/self/cgroup", "1:cpuset,cpuacct:/\n"},
        {v1 + "/cpu.cfs_quota_us", "400000\n"},
        {v1 + "/cpu.cfs_period_us", "100000\n"}},
       0,
       64},
      {"nonsense",
       {{"proc/self/cgroup", "::\n:\n0::/../../x\n0::relative\n0:"},
        {"sys/x/cpu.max", "200000 100000\n"},
        {v2 + "/cpu.max", "99999999999999999999 100000\n"}},
       0,
       64},
      {"a period of nothing",
       {{"proc/self/cgroup", "0::/\n"}, {v2 + "/cpu.max", "200000 0\n"}},
       0,
       64},
      {"no period", {{"proc/self/cgroup", "0::/\n"}, {v2 + "/cpu.max", "200000"}}, 0, 64},
  };
  for (const QuotaCase& c : cases) {
    Tree tree;
    for (const auto& [path, text] : c.files) tree.Put(path, text);
    const Topology topology = tree.Read("0-63");
    EXPECT_EQ(topology.cpu_limit.value_or(0), c.limit) << c.what;
    EXPECT_EQ(topology.threads(), c.threads) << c.what;
  }
}

TEST(Topology, OfThisMachineHasEveryAllowedProcessorOnce) {
  const Topology here = ReadTopology();
  int cpus = 0;
  for (const Core& core : here.cores) cpus += static_cast<int>(core.cpus.size());
  EXPECT_EQ(cpus, static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_GE(AvailableCores(), 1);
  EXPECT_LE(AvailableCores(), static_cast<int>(here.cores.size()));
}

/// "0,4 2,6": the threads' processors.
std::string Text(const std::vector<std::vector<int>>& places) {
  std::string out;
  for (const std::vector<int>& place : places) {
    out += out.empty() ? "" : " ";
    for (size_t i = 0; i < place.size(); ++i) out += (i ? "," : "") + std::to_string(place[i]);
  }
  return out;
}

TEST(PlaceThreads, SpreadsThemOverTheCoresNodeByNode) {
  Tree tree;
  TwoSockets(tree);
  const Topology t = tree.Read("0-7");
  EXPECT_EQ(Text(PlaceThreads(t, 4, Pinning::kCores)), "0,4 2,6 1,5 3,7");
  EXPECT_EQ(Text(PlaceThreads(t, 3, Pinning::kCores)), "0,4 2,6 1,5");
  EXPECT_EQ(Text(PlaceThreads(t, 2, Pinning::kCores)), "0,4 1,5");
  EXPECT_EQ(Text(PlaceThreads(t, 1, Pinning::kCores)), "0,4");
}

TEST(PlaceThreads, AutoKeepsAThreadToItsNodeAndNotToACore) {
  Tree tree;
  TwoSockets(tree);
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0-7"), 4, Pinning::kAuto)),
            "0,4,2,6 0,4,2,6 1,5,3,7 1,5,3,7");
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0-7"), 2, Pinning::kAuto)), "0,4,2,6 1,5,3,7");
  EXPECT_EQ(Text(PlaceThreads(tree.Read("1-3"), 3, Pinning::kAuto)), "2 1,3 1,3");
}

TEST(PlaceThreads, PinsNobodyOnOneNodeOrWhenThreadsOutnumberCores) {
  Tree tree;
  TwoSockets(tree);
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0-7"), 4, Pinning::kNone)), "");
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0,2,4"), 2, Pinning::kAuto)), "");
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0-7"), 5, Pinning::kAuto)), "");
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0-7"), 5, Pinning::kCores)), "");
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0"), 2, Pinning::kCores)), "");
  EXPECT_EQ(Text(PlaceThreads(tree.Read("0-7"), 0, Pinning::kCores)), "");
}

TEST(ParsePinning, KnowsItsThreeNames) {
  EXPECT_EQ(ParsePinning("auto"), Pinning::kAuto);
  EXPECT_EQ(ParsePinning("none"), Pinning::kNone);
  EXPECT_EQ(ParsePinning("cores"), Pinning::kCores);
  for (const char* bad : {"", "Auto", "core", "1"}) EXPECT_EQ(ParsePinning(bad), std::nullopt);
}

}  // namespace
}  // namespace nibble
