#include "h200_peers.h"

#include <algorithm>
#include <string>

#include "base/json.h"

namespace nibble::bench {
namespace {

constexpr std::string_view kText =
#include "h200_peers.inc"
    ;

}  // namespace

double PeerPoint::best() const { return std::min({marlin, humming, triton_bf16, grouped_mm_bf16}); }

std::optional<PeerPoint> PeersAt(std::string_view shape, int tokens) {
  static const Result<Json> parsed = Json::Parse(kText);
  NIBBLE_CHECK(parsed.ok(), "h200_peers.json is JSON");
  for (const Json& point : parsed->Find("points")->array()) {
    if (point.Find("shape")->string() != shape || point.Find("tokens")->integer() != tokens)
      continue;
    return PeerPoint{point.Find("marlin")->number(), point.Find("humming")->number(),
                     point.Find("triton_bf16")->number(), point.Find("grouped_mm_bf16")->number()};
  }
  return {};
}

}  // namespace nibble::bench
