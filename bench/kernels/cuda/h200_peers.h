#pragma once

#include <optional>
#include <string_view>

namespace nibble::bench {

/// What other engines' kernels took on an H200 (h200_peers.json, compiled in), microseconds.
struct PeerPoint {
  double marlin = 0, humming = 0, triton_bf16 = 0, grouped_mm_bf16 = 0;
  double best() const;
};

/// Nothing for a point that was not measured.
std::optional<PeerPoint> PeersAt(std::string_view shape, int tokens);

}  // namespace nibble::bench
