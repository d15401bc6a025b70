// The functions of the CUDA runtime that the engine calls. A stream does everything at once, unless it is being
// captured: then a graph remembers it.

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <string_view>

#include "machine.h"

using emulator::Fail;

struct CUgraph_st {
  std::vector<std::function<void()>> nodes;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> nodes;
};
struct CUstream_st {
  CUgraph_st* captured = nullptr;
};
struct CUevent_st {
  double seconds = 0;
};

namespace {

CUstream_st default_stream;
cudaError_t last_error = cudaSuccess;

CUstream_st& Stream(cudaStream_t s) { return s == nullptr ? default_stream : *s; }

cudaError_t Fails(cudaError_t e) { return last_error = e; }

cudaError_t Do(cudaStream_t s, std::function<void()> work) {
  if (CUgraph_st* g = Stream(s).captured) {
    g->nodes.push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

}  // namespace

namespace emulator {

cudaError_t Launch(const Config& c, std::function<void()> body) {
  const unsigned threads = c.block.x * c.block.y * c.block.z;
  if (threads == 0 || threads > 1024 || c.grid.x == 0 || c.grid.y == 0 || c.grid.z == 0 ||
      c.grid.y > 65535 || c.grid.z > 65535 || c.shared_bytes > (227u << 10) ||
      c.grid.x % c.cluster != 0) {
    return Fails(cudaErrorInvalidConfiguration);
  }
  return Do(c.stream, [c, body = std::move(body)] { RunKernel(c, body); });
}

}  // namespace emulator

/// What the driver's tensor map holds here.
struct EmulatedTensorMap {
  char* base;
  uint64_t sizes[5], strides[5];
  uint32_t box[5], element_bytes, rank, swizzle;
};
static_assert(sizeof(EmulatedTensorMap) <= sizeof(CUtensorMap));

namespace {

CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                     const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                     const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const uint32_t bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT64     ? 8
                         : type == CU_TENSOR_MAP_DATA_TYPE_UINT8    ? 1
                         : type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ? 2
                                                                    : 4;
  EmulatedTensorMap m{};
  m.base = static_cast<char*>(base);
  m.element_bytes = bytes;
  m.rank = rank;
  m.swizzle = swizzle;
  m.strides[0] = bytes;
  for (uint32_t i = 0; i < rank; ++i) {
    m.sizes[i] = sizes[i];
    m.box[i] = box[i];
    if (i > 0) m.strides[i] = strides[i - 1];
    if (box[i] == 0 || box[i] > 256 || (i > 0 && m.strides[i] % 16 != 0))
      return CUDA_ERROR_INVALID_VALUE;
  }
  if (box[0] * bytes % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  std::memset(static_cast<void*>(map), 0, sizeof *map);
  std::memcpy(static_cast<void*>(map), &m, sizeof m);
  return CUDA_SUCCESS;
}

}  // namespace

namespace emulator {
/// Copies a box into shared memory; returns its bytes.
uint32_t CopyBox(char* to, uint32_t to_address, const CUtensorMap& map, const int* at) {
  EmulatedTensorMap m;
  std::memcpy(&m, &map, sizeof m);
  if (m.swizzle != 0 || m.rank != 3) Fail("a tensor map with a swizzle, or not of rank 3");
  if (to_address % 128 != 0)
    Fail("a box goes to shared address %u, not a multiple of 128", to_address);
  for (uint32_t k = 0; k < m.box[2]; ++k) {
    for (uint32_t j = 0; j < m.box[1]; ++j) {
      for (uint32_t i = 0; i < m.box[0]; ++i, to += m.element_bytes) {
        const int64_t x = int64_t{at[0]} + i, y = int64_t{at[1]} + j, z = int64_t{at[2]} + k;
        const bool in = x >= 0 && y >= 0 && z >= 0 && x < int64_t(m.sizes[0]) &&
                        y < int64_t(m.sizes[1]) && z < int64_t(m.sizes[2]);
        if (in) {
          std::memcpy(to, m.base + x * m.strides[0] + y * m.strides[1] + z * m.strides[2],
                      m.element_bytes);
        } else {
          std::memset(to, 0, m.element_bytes);
        }
      }
    }
  }
  return m.box[0] * m.box[1] * m.box[2] * m.element_bytes;
}
}  // namespace emulator

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess ? "no error" : "error of the emulator";
}
const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaSuccess ? "cudaSuccess" : "cudaErrorEmulator";
}

cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* n) {
  *n = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {};
  std::snprintf(p->name, sizeof p->name, "emulated GPU");
  p->major = NIBBLE_EMULATED_CC / 10;
  p->minor = NIBBLE_EMULATED_CC % 10;
  p->multiProcessorCount = emulator::kMultiprocessors;
  p->totalGlobalMem = 16ull << 30;
  p->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  *v = a == cudaDevAttrMultiProcessorCount            ? emulator::kMultiprocessors
       : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 << 10
       : a == cudaDevAttrComputeCapabilityMajor       ? NIBBLE_EMULATED_CC / 10
       : a == cudaDevAttrComputeCapabilityMinor       ? NIBBLE_EMULATED_CC % 10
       : a == cudaDevAttrL2CacheSize                  ? 50 << 20
                                                      : 0;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = *total = 16ull << 30;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = aligned_alloc(256, (std::max<size_t>(bytes, 1) + 255) / 256 * 256);
  if (*p == nullptr) return Fails(cudaErrorMemoryAllocation);
  if (bytes <= (256u << 20)) memset(*p, 0xFF, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  free(p);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaMalloc(p, bytes); }
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t s) {
  return Do(s, [=] {
    if (n > 0) memmove(to, from, n);
  });
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, n, kind, nullptr);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t s) {
  return Do(s, [=] {
    for (size_t i = 0; i < height; ++i) {
      memmove(static_cast<char*>(to) + i * to_pitch,
              static_cast<const char*>(from) + i * from_pitch, width);
    }
  });
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t s) {
  return Do(s, [=] {
    if (n > 0) memset(p, v, n);
  });
}
cudaError_t cudaMemset(void* p, int v, size_t n) { return cudaMemsetAsync(p, v, n, nullptr); }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  *a = {};
  a->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int, size_t) {
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const bool known = std::string_view(name) == "cuTensorMapEncodeTiled";
  *f = known ? reinterpret_cast<void*>(EncodeTiled) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  *s = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  delete s;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  Stream(s).captured = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) {
  *g = std::exchange(Stream(s).captured, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) {
  *e = new CUgraphExec_st{g->nodes};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t) {
  for (const auto& node : e->nodes) node();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
  delete g;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) {
  delete e;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  *e = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
  delete e;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  return Do(s, [e] {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    e->seconds = static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  });
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = static_cast<float>(1e3 * (to->seconds - from->seconds));
  return cudaSuccess;
}

}  // extern "C"
