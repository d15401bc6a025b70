#include "weights/cpu_pack.h"

#include <cstring>
#include <variant>

namespace nibble::weights {
namespace {

/// Without a place.
PackedMatrix Describe(const CanonicalWeight& from) {
  PackedMatrix m;
  m.n = RowsOf(from);
  m.k = ColumnsOf(from);
  if (const auto* fp4 = std::get_if<CanonicalNvfp4>(&from)) {
    m.format = TileFormat::kNvfp4;
    m.rows = {fp4->codes, fp4->scales};
  } else if (const auto* fp8 = std::get_if<CanonicalFp8>(&from)) {
    m.format = TileFormat::kFp8;
    m.group = fp8->group;
    m.rows = {fp8->codes, nullptr};
  } else {
    m.format = TileFormat::kBf16;
    m.rows = {std::get<CanonicalBf16>(from).data, nullptr};
  }
  return m;
}

int64_t TileBytesOf(const PackedMatrix& m) { return StripCount(m.n) * StripBytes(m.format, m.k); }

}  // namespace

uint64_t HeldBytesOf(const CanonicalWeight& from, bool mapped) {
  const PackedMatrix m = Describe(from);
  return static_cast<uint64_t>((mapped ? 0 : TileBytesOf(m)) + ScaleBytes(m.group, m.n, m.k));
}

PackedMatrix PlaceMatrix(const CanonicalWeight& from, bool mapped, std::byte* at) {
  PackedMatrix m = Describe(from);
  if (!mapped) {
    m.data = at;
    at += TileBytesOf(m);
  }
  if (ScaleCount(m.group, m.n, m.k) == 0) return m;
  const std::vector<float>& scales = std::get<CanonicalFp8>(from).scales;
  std::memset(at, 0, static_cast<size_t>(ScaleBytes(m.group, m.n, m.k)));
  std::memcpy(at, scales.data(), scales.size() * sizeof(float));
  m.scales = reinterpret_cast<const float*>(at);
  return m;
}

}  // namespace nibble::weights
