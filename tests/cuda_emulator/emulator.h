#pragma once

// What a translated CUDA source sees: the vocabulary of device code as plain C++. Included before anything else
// (-include), so that the toolkit's own headers are read as a host compiler reads them.

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

extern dim3 gridDim, blockDim;

namespace emulator {

// --- the machine: blocks of threads, each a fiber, all on one thread of the host ---

struct Block;

/// Threads that meet: a warp (or the lanes of a mask), a warpgroup, a named barrier, a cluster.
struct Group {
  int arrived = 0;
  uint32_t mask = 0;  // the lanes that meet, where they are of one warp
  std::vector<struct Thread*> waiting;
  void* operands[128] = {};  // of the instruction they meet in, by place
};

struct Thread {
  uint3 index;
  int linear = 0, lane = 0;
  Block* block = nullptr;
  std::vector<std::function<void()>> open_copies;               // cp.async not yet committed
  std::vector<std::vector<std::function<void()>>> copy_groups;  // committed, oldest first
  const char* doing = "";                                       // where it waits, for a report
  void* context = nullptr;
};

extern Thread* current;
uint3 BlockIndex();

/// Waits until `places` threads have come; the last runs `act` (all operands are there), then all go on.
using Act = void (*)(Group&);
void Meet(Group& group, int places, int place, void* operands, Act act = nullptr);
/// The lanes of a warp that a mask names.
Group& Lanes(uint32_t mask, int& count);
Group& Warpgroup();
Group& NamedBarrier(int id);
int LiveThreads();
/// Lets the others run: a loop that polls must call it.
void Poll();

void* DynamicShared();
int NewStaticShared();
void* StaticSharedAt(int place, size_t bytes, size_t align);
template <class T>
using Same = T;
template <class T>
T& StaticShared(int place) {
  return *static_cast<T*>(StaticSharedAt(place, sizeof(T), std::max<size_t>(alignof(T), 16)));
}
uint32_t SharedOffset(const void* p);
/// Of an address in shared::cta or shared::cluster.
char* SharedPointer(uint32_t address);

// --- launches ---

struct Config {
  Config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t s = nullptr)
      : grid(grid), block(block), shared_bytes(shared), stream(s) {}
  explicit Config(const cudaLaunchConfig_t& c)
      : Config(c.gridDim, c.blockDim, c.dynamicSmemBytes, c.stream) {
    for (unsigned i = 0; i < c.numAttrs; ++i) {
      if (c.attrs[i].id == cudaLaunchAttributeClusterDimension) {
        cluster = static_cast<int>(c.attrs[i].val.clusterDim.x);
      }
    }
  }
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
  int cluster = 1;
};
cudaError_t Launch(const Config& config, std::function<void()> body);

template <class... Parameters, class... Arguments>
cudaError_t LaunchWith(const Config& config, void (*kernel)(Parameters...),
                       const Arguments&... arguments) {
  return Launch(config, [kernel, ... a = std::remove_cv_t<std::remove_reference_t<Parameters>>(
                                     arguments)] { kernel(a...); });
}
template <class... Parameters, class... Arguments>
cudaError_t LaunchEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                     const Arguments&... arguments) {
  return LaunchWith(Config(*config), kernel, arguments...);
}
template <class Parameter>
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, void (*kernel)(Parameter),
                                void** arguments) {
  return LaunchWith(Config(*config), kernel,
                    *static_cast<std::remove_cv_t<Parameter>*>(arguments[0]));
}

// --- inline PTX ---

/// An operand of an asm statement: an input's value, or where an output goes.
struct Operand {
  uint64_t value = 0;
  void* to = nullptr;
  int bytes = 0;
};
template <class T>
Operand In(T v) {
  Operand o;
  if constexpr (std::is_pointer_v<T>) {
    o.value = reinterpret_cast<uintptr_t>(v);
  } else if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) {
    o.value = static_cast<uint64_t>(v);
  } else {
    std::memcpy(&o.value, &v, sizeof v);
  }
  o.bytes = sizeof v;
  return o;
}
template <class T>
Operand Out(T& v) {
  return {0, &v, sizeof v};
}

struct Instruction;
/// The statements of one asm template, read once.
class Ptx {
 public:
  explicit Ptx(const char* text);
  ~Ptx();
  void Run(Operand* operands) const;

 private:
  std::vector<Instruction> instructions_;
  std::string text_;
};
template <class... Operands>
void RunPtx(const Ptx& ptx, Operands... operands) {
  Operand list[sizeof...(operands) + 1] = {operands...};
  ptx.Run(list);
}

// --- intrinsics ---

struct Shuffle {
  uint64_t value;
  int from;
  uint64_t result;
};
void ShuffleLanes(uint32_t mask, Shuffle& s);
template <class T>
T ShuffleFrom(uint32_t mask, T v, int from) {
  static_assert(sizeof(T) <= 8);
  Shuffle s{0, from, 0};
  std::memcpy(&s.value, &v, sizeof v);
  ShuffleLanes(mask, s);
  std::memcpy(&v, &s.result, sizeof v);
  return v;
}
/// f of what every lane of the mask brings, the same for all.
uint64_t Together(uint32_t mask, uint64_t v, uint64_t (*f)(const uint64_t* of_lane, uint32_t mask));

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::BlockIndex())
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline
#undef __align__
#define __align__(n) alignas(n)
#define __CUDA_ARCH__ (10 * NIBBLE_EMULATED_CC)

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, void (*kernel)(P...)) {
  return cudaFuncGetAttributes(a, reinterpret_cast<const void*>(kernel));
}

using std::max;
using std::min;
inline int min(int a, unsigned b) { return std::min<int64_t>(a, b); }
inline unsigned min(unsigned a, int b) { return static_cast<unsigned>(std::min<int64_t>(a, b)); }
inline int64_t min(int64_t a, int b) { return std::min<int64_t>(a, b); }
inline int64_t min(int a, int64_t b) { return std::min<int64_t>(a, b); }
inline int64_t max(int64_t a, int b) { return std::max<int64_t>(a, b); }
inline int64_t max(int a, int64_t b) { return std::max<int64_t>(a, b); }

inline void __syncthreads() {
  emulator::Meet(emulator::NamedBarrier(0), emulator::LiveThreads(),
                 emulator::current->linear % 128, nullptr);
}
int __syncthreads_or(int v);
inline void __syncwarp(uint32_t mask = ~0u) {
  int count;
  emulator::Group& g = emulator::Lanes(mask, count);
  emulator::Meet(g, count, emulator::current->lane, nullptr);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { emulator::Poll(); }

template <class T>
T __shfl_sync(uint32_t mask, T v, int from, int width = 32) {
  const int lane = emulator::current->lane;
  return emulator::ShuffleFrom(mask, v, (lane & -width) + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int by, int width = 32) {
  const int lane = emulator::current->lane, from = lane ^ by;
  return emulator::ShuffleFrom(mask, v, from < (lane & -width) + width ? from : lane);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, unsigned by, int width = 32) {
  const int lane = emulator::current->lane, from = lane - static_cast<int>(by);
  return emulator::ShuffleFrom(mask, v, from >= (lane & -width) ? from : lane);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned by, int width = 32) {
  const int lane = emulator::current->lane, from = lane + static_cast<int>(by);
  return emulator::ShuffleFrom(mask, v, from < (lane & -width) + width ? from : lane);
}
uint32_t __ballot_sync(uint32_t mask, int v);
uint32_t __match_any_sync(uint32_t mask, uint32_t v);
inline uint32_t __match_any_sync(uint32_t mask, int v) {
  return __match_any_sync(mask, static_cast<uint32_t>(v));
}
inline int __any_sync(uint32_t mask, int v) { return __ballot_sync(mask, v) != 0; }
inline int __all_sync(uint32_t mask, int v) { return __ballot_sync(mask, !v) == 0; }
int __reduce_min_sync(uint32_t mask, int v);
int __reduce_max_sync(uint32_t mask, int v);
int __reduce_add_sync(uint32_t mask, int v);
uint32_t __reduce_min_sync(uint32_t mask, uint32_t v);
uint32_t __reduce_max_sync(uint32_t mask, uint32_t v);
uint32_t __reduce_add_sync(uint32_t mask, uint32_t v);
uint32_t __reduce_or_sync(uint32_t mask, uint32_t v);

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31));
}

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = static_cast<T>(old + v);
  return old;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = std::max(old, v);
  return old;
}
inline unsigned atomicInc(unsigned* p, unsigned most) {
  const unsigned old = *p;
  *p = old >= most ? 0 : old + 1;
  return old;
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return std::exchange(*p, v);
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcv(const T* p) {
  emulator::Poll();
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}

inline size_t __cvta_generic_to_shared(const void* p) { return emulator::SharedOffset(p); }
inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline int __popc(uint32_t v) { return std::popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<uint32_t>(v)); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline int __viaddmax_s32(int a, int b, int c) { return std::max(a + b, c); }
uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector);
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline float __logf(float a) { return std::log(a); }
inline float rsqrtf(float a) { return static_cast<float>(1 / std::sqrt(static_cast<double>(a))); }
using std::isfinite;
using std::isinf;
using std::isnan;
