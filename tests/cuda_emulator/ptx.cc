// Inline PTX, statement by statement. Tensor core instructions multiply exactly and round each sum of a
// k step once (a GPU's order of additions is not documented).

#include <array>
#include <cctype>
#include <string_view>
#include <unordered_map>

#include "machine.h"

namespace emulator {

uint32_t CopyBox(char* to, uint32_t to_address, const CUtensorMap& map, const int* at);

/// An operand of a statement: %3, a register declared in the template, a number, {…} or […].
struct Ref {
  enum class Kind : uint8_t { kOperand, kLocal, kNumber, kList, kNothing } kind = Kind::kNothing;
  int index = 0;
  int64_t number = 0;
  std::vector<Ref> parts;
};

struct Context {
  Operand* operands;
  uint64_t locals[8] = {};

  uint64_t Get(const Ref& r) const {
    switch (r.kind) {
      case Ref::Kind::kLocal:
        return locals[r.index];
      case Ref::Kind::kNumber:
        return static_cast<uint64_t>(r.number);
      case Ref::Kind::kList:
        return Get(r.parts.at(0));
      case Ref::Kind::kOperand: {
        const Operand& o = operands[r.index];
        if (o.to == nullptr) return o.value;
        uint64_t v = 0;
        std::memcpy(&v, o.to, o.bytes);
        return v;
      }
      default:
        Fail("an operand that is none");
    }
  }
  uint32_t Get32(const Ref& r) const { return static_cast<uint32_t>(Get(r)); }
  float GetFloat(const Ref& r) const { return std::bit_cast<float>(Get32(r)); }
  void Set(const Ref& r, uint64_t v) {
    if (r.kind == Ref::Kind::kLocal) {
      locals[r.index] = v;
    } else {
      if (r.kind != Ref::Kind::kOperand || operands[r.index].to == nullptr)
        Fail("a result without a place");
      std::memcpy(operands[r.index].to, &v, operands[r.index].bytes);
    }
  }
  void SetFloat(const Ref& r, float v) { Set(r, std::bit_cast<uint32_t>(v)); }
};

struct Instruction {
  using Run = void (*)(const Instruction&, Context&);
  std::string opcode;
  std::vector<Ref> args;
  Run run = nullptr;
  int n = 0;  // wgmma's columns
};

namespace {

float FromBf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }
uint32_t ToBf16(float v) {
  const __nv_bfloat16 b = __float2bfloat16_rn(v);
  uint16_t bits;
  std::memcpy(&bits, &b, 2);
  return bits;
}

uint32_t EachBf16(uint32_t a, uint32_t b, float (*f)(float, float)) {
  return ToBf16(f(FromBf16(a & 0xFFFF), FromBf16(b & 0xFFFF))) |
         ToBf16(f(FromBf16(a >> 16), FromBf16(b >> 16))) << 16;
}
float LargerOrNaN(float a, float b) { return a != a || b != b ? NAN : std::max(a, b); }
float SmallerOrNaN(float a, float b) { return a != a || b != b ? NAN : std::min(a, b); }

void Nothing(const Instruction&, Context&) {}

// --- mbarrier: phase, arrivals expected and pending, bytes pending ---

struct Barrier {
  int64_t bytes : 23;
  uint64_t pending : 20, expected : 20, phase : 1;
};
static_assert(sizeof(Barrier) == 8);

Barrier& BarrierAt(uint32_t address) {
  if (address % 8 != 0) Fail("an mbarrier at %u", address);
  return *reinterpret_cast<Barrier*>(SharedPointer(address));
}
/// Who waits for a barrier's phase to end.
Group& WaitersOf(const Barrier& b) {
  static std::unordered_map<const Barrier*, Group> waiters;
  return waiters[&b];
}
void CompleteIfDone(Barrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.phase ^= 1;
  b.pending = b.expected;
  Release(WaitersOf(b));
}
void Arrive(Barrier& b) {
  if (b.pending == 0) Fail("one arrival too many at an mbarrier");
  --b.pending;
  CompleteIfDone(b);
}
void CompleteBytes(Barrier* b, uint32_t bytes) {
  b->bytes -= bytes;
  CompleteIfDone(*b);
}

void MbarrierInit(const Instruction& i, Context& c) {
  Barrier& b = BarrierAt(c.Get32(i.args[0]));
  b = {};
  b.pending = b.expected = c.Get32(i.args[1]);
}
void MbarrierArrive(const Instruction& i, Context& c) { Arrive(BarrierAt(c.Get32(i.args[1]))); }
void MbarrierExpect(const Instruction& i, Context& c) {
  Barrier& b = BarrierAt(c.Get32(i.args[1]));
  b.bytes += c.Get32(i.args[2]);
  Arrive(b);
}
void MbarrierTryWait(const Instruction& i, Context& c) {
  const Barrier& b = BarrierAt(c.Get32(i.args[1]));
  const uint64_t parity = c.Get(i.args[2]);
  if (b.phase == parity) Wait(WaitersOf(b));
  c.Set(i.args[0], b.phase != parity);
}

// --- copies ---

void CpAsync(const Instruction& i, Context& c) {
  const uint32_t address = c.Get32(i.args[0]), bytes = c.Get32(i.args[2]);
  const uint32_t real = i.args.size() > 3 ? c.Get32(i.args[3]) : bytes;
  char* const to = SharedPointer(address);
  const auto* const from = reinterpret_cast<const char*>(c.Get(i.args[1]));
  if (address % bytes != 0 || (real != 0 && reinterpret_cast<uintptr_t>(from) % bytes != 0)) {
    Fail("cp.async of %u bytes from %p to %u: not aligned", bytes, static_cast<const void*>(from),
         address);
  }
  current->open_copies.push_back([=] {
    std::memcpy(to, from, real);
    std::memset(to + real, 0, bytes - real);
  });
}
void CommitGroup(const Instruction&, Context&) {
  current->copy_groups.push_back(std::move(current->open_copies));
  current->open_copies.clear();
}
void WaitGroups(size_t most) {
  auto& groups = current->copy_groups;
  while (groups.size() > most) {
    for (const auto& copy : groups.front()) copy();
    groups.erase(groups.begin());
  }
}
void WaitGroup(const Instruction& i, Context& c) { WaitGroups(c.Get(i.args[0])); }
void WaitAll(const Instruction& i, Context& c) {
  CommitGroup(i, c);
  WaitGroups(0);
}

void BulkCopy(const Instruction& i, Context& c) {
  const uint32_t address = c.Get32(i.args[0]), bytes = c.Get32(i.args[2]);
  const auto* const from = reinterpret_cast<const char*>(c.Get(i.args[1]));
  if (address % 16 != 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    Fail("a bulk copy of %u bytes from %p to %u: not aligned", bytes,
         static_cast<const void*>(from), address);
  }
  char* const to = SharedPointer(address);
  if (bytes > 0) SharedPointer(address + bytes - 1);
  Barrier* const barrier = &BarrierAt(c.Get32(i.args[3]));
  CopyLate([=] {
    std::memcpy(to, from, bytes);
    CompleteBytes(barrier, bytes);
  });
}
void TensorCopy(const Instruction& i, Context& c) {
  const uint32_t address = c.Get32(i.args[0]);
  CUtensorMap map;
  std::memcpy(static_cast<void*>(&map), reinterpret_cast<const void*>(c.Get(i.args[1].parts[0])),
              sizeof map);
  std::array<int, 3> at{};
  for (int k = 0; k < 3; ++k) at[k] = static_cast<int>(c.Get32(i.args[1].parts[1].parts.at(k)));
  char* const to = SharedPointer(address);
  Barrier* const barrier = &BarrierAt(c.Get32(i.args[2]));
  CopyLate([=] { CompleteBytes(barrier, CopyBox(to, address, map, at.data())); });
}
void StoreAsync(const Instruction& i, Context& c) {
  char* const to = SharedPointer(c.Get32(i.args[0]));
  const uint32_t v = c.Get32(i.args[1]);
  Barrier* const barrier = &BarrierAt(c.Get32(i.args[2]));
  CopyLate([=] {
    std::memcpy(to, &v, 4);
    CompleteBytes(barrier, 4);
  });
}
void Mapa(const Instruction& i, Context& c) {
  c.Set(i.args[0], c.Get32(i.args[1]) | (c.Get32(i.args[2]) + 1) << 24);
}

// --- loads and stores ---

int BytesOf(std::string_view opcode) {
  return opcode.ends_with("64") ? 8 : opcode.ends_with("16") ? 2 : opcode.ends_with("8") ? 1 : 4;
}
std::vector<Ref> Elements(const Ref& r) {
  return r.kind == Ref::Kind::kList ? r.parts : std::vector<Ref>{r};
}

void Load(const Instruction& i, Context& c, const char* from) {
  const int bytes = BytesOf(i.opcode);
  for (const Ref& r : Elements(i.args[0])) {
    uint64_t v = 0;
    std::memcpy(&v, from, bytes);
    c.Set(r, v);
    from += bytes;
  }
}
void Store(const Instruction& i, Context& c, char* to) {
  const int bytes = BytesOf(i.opcode);
  for (const Ref& r : Elements(i.args[1])) {
    const uint64_t v = c.Get(r);
    std::memcpy(to, &v, bytes);
    to += bytes;
  }
}
void LoadShared(const Instruction& i, Context& c) {
  const uint32_t at = c.Get32(i.args[1]), bytes = BytesOf(i.opcode) * Elements(i.args[0]).size();
  if (at % bytes != 0) Fail("%s at %u", i.opcode.c_str(), at);
  Load(i, c, SharedPointer(at));
}
void StoreShared(const Instruction& i, Context& c) {
  const uint32_t at = c.Get32(i.args[0]), bytes = BytesOf(i.opcode) * Elements(i.args[1]).size();
  if (at % bytes != 0) Fail("%s at %u", i.opcode.c_str(), at);
  Store(i, c, SharedPointer(at));
}
void LoadGlobal(const Instruction& i, Context& c) {
  Poll();  // what another block stores may be waited for
  Load(i, c, reinterpret_cast<const char*>(c.Get(i.args[1])));
}
void StoreGlobal(const Instruction& i, Context& c) {
  Store(i, c, reinterpret_cast<char*>(c.Get(i.args[0])));
}

// --- arithmetic ---

void Ex2(const Instruction& i, Context& c) {
  const float v = std::exp2(c.GetFloat(i.args[1]));
  c.SetFloat(i.args[0], v < 0x1p-126f ? 0 : v);
}
void Rcp(const Instruction& i, Context& c) { c.SetFloat(i.args[0], 1 / c.GetFloat(i.args[1])); }
void ToTf32(const Instruction& i, Context& c) {
  c.Set(i.args[0], (c.Get32(i.args[1]) + 0x1000) & ~0x1FFFu);  // ties away from zero
}
void MulBf16x2(const Instruction& i, Context& c) {
  c.Set(i.args[0],
        EachBf16(c.Get32(i.args[1]), c.Get32(i.args[2]), [](float a, float b) { return a * b; }));
}
void FmaBf16x2(const Instruction& i, Context& c) {
  const auto half = [&](const Ref& r, int k) { return FromBf16(c.Get32(r) >> 16 * k & 0xFFFF); };
  uint32_t out = 0;
  for (int k = 0; k < 2; ++k)
    out |= ToBf16(std::fma(half(i.args[1], k), half(i.args[2], k), half(i.args[3], k))) << 16 * k;
  c.Set(i.args[0], out);
}
void MaxBf16x2(const Instruction& i, Context& c) {
  c.Set(i.args[0], EachBf16(c.Get32(i.args[1]), c.Get32(i.args[2]),
                            [](float a, float b) { return std::fmax(a, b); }));
}
void MaxNanBf16x2(const Instruction& i, Context& c) {
  c.Set(i.args[0], EachBf16(c.Get32(i.args[1]), c.Get32(i.args[2]), LargerOrNaN));
}
void MinNanBf16x2(const Instruction& i, Context& c) {
  c.Set(i.args[0], EachBf16(c.Get32(i.args[1]), c.Get32(i.args[2]), SmallerOrNaN));
}
void ToE4m3x2(const Instruction& i, Context& c) {
  c.Set(i.args[0],
        __nv_cvt_float2_to_fp8x2(make_float2(c.GetFloat(i.args[2]), c.GetFloat(i.args[1])),
                                 __NV_SATFINITE, __NV_E4M3));
}
void FromE4m3x2(const Instruction& i, Context& c) {
  const __half2_raw h =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(c.Get32(i.args[1])), __NV_E4M3);
  c.Set(i.args[0], h.x | static_cast<uint32_t>(h.y) << 16);
}
void MoveHalves(const Instruction& i, Context& c) {
  const uint32_t v = c.Get32(i.args[1]);
  c.Set(i.args[0].parts.at(0), v & 0xFFFF);
  c.Set(i.args[0].parts.at(1), v >> 16);
}
void FromHalf(const Instruction& i, Context& c) {
  __half_raw h;
  h.x = static_cast<unsigned short>(c.Get32(i.args[1]));
  c.SetFloat(i.args[0], __half2float(__half(h)));
}
void SetpNe(const Instruction& i, Context& c) {
  c.Set(i.args[0], c.Get32(i.args[1]) != c.Get32(i.args[2]));
}
void Selp(const Instruction& i, Context& c) {
  c.Set(i.args[0], c.Get(i.args[3]) ? c.Get(i.args[1]) : c.Get(i.args[2]));
}

// --- where threads meet ---

void BarSync(const Instruction& i, Context& c) {
  const uint32_t id = c.Get32(i.args[0]), threads = c.Get32(i.args[1]);
  if (id > 15 || threads % 32 != 0) Fail("bar.sync %u, %u", id, threads);
  Meet(NamedBarrier(static_cast<int>(id)), static_cast<int>(threads), 0, nullptr);
}
void ClusterWait(const Instruction&, Context&) {
  Cluster& cluster = *current->block->cluster;
  Meet(cluster.group, cluster.threads, 0, nullptr);
}

void MeetInWarp(void* operands, Act act) {
  int count;
  Group& warp = Lanes(~0u, count);
  if (count != 32) Fail("a warp instruction with %d lanes left", count);
  Meet(warp, 32, current->lane, operands, act);
}

struct MatrixLoad {
  const char* row;
  uint32_t to[4];
};
uint32_t Half(const char* row, int i) {
  uint16_t v;
  std::memcpy(&v, row + 2 * i, 2);
  return v;
}
template <bool kTransposed>
void LdMatrix(const Instruction& i, Context& c) {
  const uint32_t at = c.Get32(i.args[1]);
  if (at % 16 != 0) Fail("ldmatrix at %u", at);
  MatrixLoad mine{SharedPointer(at), {}};
  MeetInWarp(&mine, [](Group& g) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& l = *static_cast<MatrixLoad*>(g.operands[lane]);
      for (int m = 0; m < 4; ++m) {
        const auto row = [&](int r) {
          return static_cast<const MatrixLoad*>(g.operands[8 * m + r])->row;
        };
        const int a = lane / 4, b = 2 * (lane % 4);
        l.to[m] = kTransposed ? Half(row(b), a) | Half(row(b + 1), a) << 16
                              : Half(row(a), b) | Half(row(a), b + 1) << 16;
      }
    }
  });
  for (int m = 0; m < 4; ++m) c.Set(i.args[0].parts.at(m), mine.to[m]);
}

struct Move {
  uint32_t from, to;
};
void MovMatrix(const Instruction& i, Context& c) {
  Move mine{c.Get32(i.args[1]), 0};
  MeetInWarp(&mine, [](Group& g) {
    const auto element = [&](int row, int col) {
      const uint32_t v = static_cast<const Move*>(g.operands[4 * row + col / 2])->from;
      return col % 2 ? v >> 16 : v & 0xFFFF;
    };
    for (int lane = 0; lane < 32; ++lane) {
      const int a = lane / 4, b = 2 * (lane % 4);
      static_cast<Move*>(g.operands[lane])->to = element(b, a) | element(b + 1, a) << 16;
    }
  });
  c.Set(i.args[0], mine.to);
}

struct Mma {
  float d[4];
  uint32_t a[4], b[2];
};
template <bool kTf32>
void MmaSync(const Instruction& i, Context& c) {
  Mma mine;
  for (int k = 0; k < 4; ++k) {
    mine.a[k] = c.Get32(i.args[1].parts.at(k));
    mine.d[k] = c.GetFloat(i.args[3].parts.at(k));
  }
  for (int k = 0; k < 2; ++k) mine.b[k] = c.Get32(i.args[2].parts.at(k));
  MeetInWarp(&mine, [](Group& g) {
    constexpr int kDepth = kTf32 ? 8 : 16;
    float a[16][kDepth], b[kDepth][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& m = *static_cast<const Mma*>(g.operands[lane]);
      const int row = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; ++r) {
        if constexpr (kTf32) {
          a[row + 8 * (r % 2)][t + 4 * (r / 2)] = std::bit_cast<float>(m.a[r] & ~0x1FFFu);
          if (r < 2) b[t + 4 * r][row] = std::bit_cast<float>(m.b[r] & ~0x1FFFu);
        } else {
          for (int h = 0; h < 2; ++h) {
            a[row + 8 * (r % 2)][2 * t + h + 8 * (r / 2)] = FromBf16(m.a[r] >> 16 * h & 0xFFFF);
            if (r < 2) b[2 * t + h + 8 * r][row] = FromBf16(m.b[r] >> 16 * h & 0xFFFF);
          }
        }
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto& m = *static_cast<Mma*>(g.operands[lane]);
      for (int r = 0; r < 4; ++r) {
        double sum = m.d[r];
        for (int k = 0; k < kDepth; ++k) {
          sum += static_cast<double>(a[lane / 4 + 8 * (r / 2)][k]) * b[k][2 * (lane % 4) + r % 2];
        }
        m.d[r] = static_cast<float>(sum);
      }
    }
  });
  for (int k = 0; k < 4; ++k) c.SetFloat(i.args[0].parts.at(k), mine.d[k]);
}

/// Element (outer, k) of a tile behind a matrix descriptor with the 128-byte swizzle, as an address.
uint32_t ElementAddress(uint64_t descriptor, bool across, int outer, int k) {
  if (descriptor >> 62 != 1) Fail("a matrix descriptor without the 128-byte swizzle");
  const uint32_t start = (descriptor & 0x3FFF) << 4;
  const uint32_t leading = (descriptor >> 16 & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF)
                                                                      << 4;
  const uint32_t at =
      across ? start + outer / 64 * leading + k / 8 * stride + k % 8 * 128 + outer % 64 * 2
             : start + outer / 8 * stride + outer % 8 * 128 + k * 2;
  return at ^ (at >> 3 & 0x70);
}

struct WgmmaOperands {
  float* d[128];
  uint32_t a[4];
  uint64_t a_tile, b_tile;
  int n;
  bool a_in_registers, add, across;
};
void ReadTile(uint64_t descriptor, bool across, int outer, std::vector<float>& to) {  // [k][outer]
  to.resize(16 * outer);
  for (int k = 0; k < 16; ++k) {
    for (int o = 0; o < outer; ++o) {
      to[k * outer + o] =
          FromBf16(Half(SharedPointer(ElementAddress(descriptor, across, o, k)), 0));
    }
  }
}
void Multiply(Group& g) {
  static std::vector<float> a, b;
  const auto& first = *static_cast<const WgmmaOperands*>(g.operands[0]);
  const int n = first.n;
  ReadTile(first.b_tile, first.across, n, b);
  if (first.a_in_registers) {
    a.resize(16 * 64);
    for (int t = 0; t < 128; ++t) {
      const auto& o = *static_cast<const WgmmaOperands*>(g.operands[t]);
      const int row = t / 32 * 16 + t % 32 / 4, col = 2 * (t % 4);
      for (int r = 0; r < 4; ++r) {
        for (int h = 0; h < 2; ++h) {
          a[(col + h + 8 * (r / 2)) * 64 + row + 8 * (r % 2)] = FromBf16(o.a[r] >> 16 * h & 0xFFFF);
        }
      }
    }
  } else {
    ReadTile(first.a_tile, false, 64, a);
  }
  double sum[256];
  for (int row = 0; row < 64; ++row) {
    std::fill_n(sum, n, 0.0);
    for (int k = 0; k < 16; ++k) {
      const double left = a[k * 64 + row];
      for (int col = 0; col < n; ++col) sum[col] += left * b[k * n + col];
    }
    const void* const* const threads = g.operands + row / 16 * 32 + row % 8 * 4;
    for (int col = 0; col < n; ++col) {
      float& d = *static_cast<const WgmmaOperands*>(threads[col % 8 / 2])
                      ->d[col / 8 * 4 + row % 16 / 8 * 2 + col % 2];
      d = static_cast<float>((first.add ? d : 0) + sum[col]);
    }
  }
}
void Wgmma(const Instruction& i, Context& c) {
  WgmmaOperands mine;
  mine.n = i.n;
  for (int k = 0; k < i.n / 2; ++k) {
    mine.d[k] = static_cast<float*>(c.operands[i.args[0].parts[k].index].to);
  }
  mine.a_in_registers = i.args[1].kind == Ref::Kind::kList;
  if (mine.a_in_registers) {
    for (int k = 0; k < 4; ++k) mine.a[k] = c.Get32(i.args[1].parts.at(k));
  } else {
    mine.a_tile = c.Get(i.args[1]);
  }
  mine.b_tile = c.Get(i.args[2]);
  mine.add = c.Get(i.args[3]) != 0;
  mine.across = c.Get(i.args.back()) != 0;
  Meet(Warpgroup(), 128, current->linear % 128, &mine, Multiply);
}

struct Known {
  std::string_view opcode;
  Instruction::Run run;
};
constexpr Known kKnown[] = {
    {"griddepcontrol.", Nothing},
    {"fence.", Nothing},
    {"setmaxnreg.", Nothing},
    {"prefetch.", Nothing},
    {"wgmma.fence.", Nothing},
    {"wgmma.commit_group.", Nothing},
    {"wgmma.wait_group.", Nothing},
    {"barrier.cluster.arrive.", Nothing},
    {"barrier.cluster.wait.", ClusterWait},
    {"bar.sync", BarSync},
    {"mbarrier.init.", MbarrierInit},
    {"mbarrier.arrive.expect_tx.", MbarrierExpect},
    {"mbarrier.arrive.release.", MbarrierArrive},
    {"mbarrier.try_wait.parity.", MbarrierTryWait},
    {"cp.async.bulk.tensor.3d.", TensorCopy},
    {"cp.async.bulk.shared", BulkCopy},
    {"cp.async.commit_group", CommitGroup},
    {"cp.async.wait_group", WaitGroup},
    {"cp.async.wait_all", WaitAll},
    {"cp.async.cg.", CpAsync},
    {"cp.async.ca.", CpAsync},
    {"st.async.", StoreAsync},
    {"mapa.", Mapa},
    {"ld.shared.", LoadShared},
    {"st.shared.", StoreShared},
    {"ld.relaxed.gpu.global.", LoadGlobal},
    {"st.relaxed.gpu.global.", StoreGlobal},
    {"ex2.approx.ftz.f32", Ex2},
    {"rcp.approx.ftz.f32", Rcp},
    {"cvt.rna.tf32.f32", ToTf32},
    {"mul.rn.bf16x2", MulBf16x2},
    {"fma.rn.bf16x2", FmaBf16x2},
    {"max.bf16x2", MaxBf16x2},
    {"max.NaN.bf16x2", MaxNanBf16x2},
    {"min.NaN.bf16x2", MinNanBf16x2},
    {"cvt.rn.satfinite.e4m3x2.f32", ToE4m3x2},
    {"cvt.rn.f16x2.e4m3x2", FromE4m3x2},
    {"mov.b32", MoveHalves},
    {"cvt.f32.f16", FromHalf},
    {"setp.ne.b32", SetpNe},
    {"selp.u32", Selp},
    {"ldmatrix.sync.aligned.m8n8.x4.trans.", LdMatrix<true>},
    {"ldmatrix.sync.aligned.m8n8.x4.shared.", LdMatrix<false>},
    {"movmatrix.sync.aligned.m8n8.trans.b16", MovMatrix},
    {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", MmaSync<false>},
    {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", MmaSync<true>},
    {"wgmma.mma_async.", Wgmma},
};

/// Reads the template of an asm statement.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::vector<Instruction> Read() {
    std::vector<Instruction> made;
    if (Peek() == '{') ++at_;  // the block that declares registers
    while (Peek() != '\0' && Peek() != '}') {
      const std::string word = Word();
      if (word == ".reg") {
        Word();
        do locals_.push_back(Word());
        while (Take(','));
      } else {
        Instruction i;
        i.opcode = word;
        for (const Known& k : kKnown) {
          if (word.starts_with(k.opcode)) {
            i.run = k.run;
            break;
          }
        }
        if (i.run == nullptr) Fail("PTX that the emulator does not know: %s", word.c_str());
        if (const size_t n = word.find(".m64n"); n != word.npos)
          i.n = std::stoi(word.substr(n + 5));
        if (Peek() != ';') i.args = List();
        made.push_back(std::move(i));
      }
      if (!Take(';')) Fail("PTX: no ';' in %s", std::string(text_).c_str());
    }
    return made;
  }

 private:
  char Peek() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool Take(char c) {
    if (Peek() != c) return false;
    ++at_;
    return true;
  }
  std::string Word() {
    Peek();
    const size_t from = at_;
    while (at_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '_' ||
            text_[at_] == '.' || text_[at_] == ':' || text_[at_] == '%')) {
      ++at_;
    }
    return std::string(text_.substr(from, at_ - from));
  }
  std::vector<Ref> List() {
    std::vector<Ref> list;
    do list.push_back(Value());
    while (Take(','));
    return list;
  }
  Ref Value() {
    Ref r;
    for (const char* brackets : {"{}", "[]"}) {
      if (!Take(brackets[0])) continue;
      r.kind = Ref::Kind::kList;
      r.parts = List();
      if (!Take(brackets[1])) Fail("PTX: a bracket is open in %s", std::string(text_).c_str());
      return r;
    }
    const std::string word = Word();
    if (word[0] == '%') {
      r.kind = Ref::Kind::kOperand;
      r.index = std::stoi(word.substr(1));
    } else if (word == "_") {
      r.kind = Ref::Kind::kNothing;
    } else if (std::isdigit(static_cast<unsigned char>(word[0]))) {
      r.kind = Ref::Kind::kNumber;
      r.number = std::stoll(word, nullptr, 0);
    } else {
      r.kind = Ref::Kind::kLocal;
      const auto found = std::find(locals_.begin(), locals_.end(), word);
      if (found == locals_.end()) Fail("PTX: %s is not declared", word.c_str());
      r.index = static_cast<int>(found - locals_.begin());
    }
    return r;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::vector<std::string> locals_;
};

}  // namespace

Ptx::Ptx(const char* text) : instructions_(Reader(text).Read()), text_(text) {}
Ptx::~Ptx() = default;

void Ptx::Run(Operand* operands) const {
  Context context{operands};
  current->doing = text_.c_str();
  for (const Instruction& i : instructions_) i.run(i, context);
}

}  // namespace emulator
