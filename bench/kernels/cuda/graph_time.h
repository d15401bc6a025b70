#pragma once

#include <algorithm>
#include <vector>

#include "device_buffer.h"

namespace nibble::bench {

/// The median time of a graph's replays by device events, in microseconds; three before are not
/// counted.
inline double MedianUs(cudaGraphExec_t graph, int replays, cudaStream_t stream) {
  cudaEvent_t begin, end;
  BENCH_CUDA(cudaEventCreate(&begin));
  BENCH_CUDA(cudaEventCreate(&end));
  std::vector<double> us;
  for (int i = 0; i < replays + 3; ++i) {
    BENCH_CUDA(cudaEventRecord(begin, stream));
    BENCH_CUDA(cudaGraphLaunch(graph, stream));
    BENCH_CUDA(cudaEventRecord(end, stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    float ms = 0;
    BENCH_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) us.push_back(ms * 1000.0);
  }
  BENCH_CUDA(cudaEventDestroy(begin));
  BENCH_CUDA(cudaEventDestroy(end));
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

}  // namespace nibble::bench
