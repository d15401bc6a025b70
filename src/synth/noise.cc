#include "synth/noise.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"

namespace nibble::synth {
namespace {

// A pool is a prime number of units, so that codes and their scales, in pools of different sizes,
// do not repeat together. A unit is a page of any machine that this runs on.
constexpr uint64_t kUnit = 65536;
constexpr uint64_t kMostUnits = 257, kMostScaleUnits = 251;

constexpr uint8_t kFirstScale = 0x68, kLastScale = 0x7E;  // e4m3 64 and 448

// The difference of two random bytes' sum from its mean: bell enough for weights, and exact
// integer arithmetic, so that every machine draws the same. Variance: twice that of a byte.
const double kBellSigma = std::sqrt(2 * (256.0 * 256.0 - 1) / 12);
constexpr int kBellMost = 255;

/// SplitMix64 (Steele, Lea, Flood 2014): the number at a place of a sequence, without those before.
constexpr uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

constexpr int Bell(uint64_t word, int i) {
  return static_cast<int>((word >> (16 * i)) & 255) +
         static_cast<int>((word >> (16 * i + 8)) & 255) - kBellMost;
}

/// What a bell-shaped draw becomes as an FP8 code: the largest is 448.
uint8_t Fp8Code(int bell) {
  static const std::vector<uint8_t> table = [] {
    std::vector<uint8_t> codes(2 * kBellMost + 1);
    for (int b = -kBellMost; b <= kBellMost; ++b)
      codes[static_cast<size_t>(b + kBellMost)] =
          EncodeE4m3(static_cast<double>(kE4m3Max) * b / kBellMost);
    return codes;
  }();
  return table[static_cast<size_t>(bell + kBellMost)];
}

void Fill(const Noise& noise, uint64_t seed, std::span<std::byte> out) {
  std::byte* at = out.data();
  const auto put = [&](const auto& value) {
    std::memcpy(at, &value, sizeof value);
    at += sizeof value;
  };
  const auto bell = [&](uint64_t word, int i) {
    return static_cast<float>(noise.centre + noise.spread * (Bell(word, i) / kBellSigma));
  };
  for (uint64_t n = 0; at != out.data() + out.size(); ++n) {
    const uint64_t word = Mix(seed + n);
    switch (noise.kind) {
      case Noise::Kind::kE2m1Pairs:
        put(word);
        break;
      case Noise::Kind::kBlockScales:
        for (int i = 0; i < 4; ++i)
          put(static_cast<uint8_t>(kFirstScale +
                                   ((word >> (16 * i)) & 0xFFFF) % (kLastScale - kFirstScale + 1)));
        break;
      case Noise::Kind::kFp8Codes:
        for (int i = 0; i < 4; ++i) put(Fp8Code(Bell(word, i)));
        break;
      case Noise::Kind::kBf16:
        for (int i = 0; i < 4; ++i) put(ToBf16(bell(word, i)).bits);
        break;
      case Noise::Kind::kF32:
        for (int i = 0; i < 4; ++i) put(bell(word, i));
        break;
    }
  }
}

Error MemoryError(std::string_view what, uint64_t bytes) {
  return Err(ErrorCode::kOutOfMemory, "cannot {} {} bytes of random numbers: {}", what, bytes,
             std::strerror(errno));
}

}  // namespace

uint64_t Hash(uint64_t seed, std::string_view text) {
  uint64_t hash = Mix(seed);
  for (const char c : text) hash = Mix(hash ^ static_cast<uint8_t>(c));
  return hash;
}

double E2m1Rms() {
  double sum = 0;
  for (const float m : kE2m1Magnitudes) sum += static_cast<double>(m) * m;
  return std::sqrt(sum / kE2m1Magnitudes.size());
}

double BlockScaleRms() {
  double sum = 0;
  for (unsigned code = kFirstScale; code <= kLastScale; ++code)
    sum += static_cast<double>(kE4m3[code]) * kE4m3[code];
  return std::sqrt(sum / (kLastScale - kFirstScale + 1));
}

double Fp8CodeRms() { return kE4m3Max * kBellSigma / kBellMost; }

/// One kind's numbers, over and over.
class NoisePools::Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    if (data_ != nullptr) ::munmap(data_, mapped_);
  }

  static Result<std::shared_ptr<const Pool>> Make(const Noise& noise, uint64_t seed,
                                                  uint64_t largest) {
    const uint64_t most = noise.kind == Noise::Kind::kBlockScales ? kMostScaleUnits : kMostUnits;
    auto pool = std::make_shared<Pool>();
    pool->size_ = kUnit * std::clamp<uint64_t>(DivUp(2 * largest, kUnit), 1, most);
    const uint64_t mapped = pool->size_ * (1 + DivUp(largest, pool->size_));
    const int fd = ::memfd_create("nibble-noise", MFD_CLOEXEC);
    if (fd < 0) return MemoryError("make a file of", pool->size_);
    const auto made = pool->Map(fd, mapped);
    ::close(fd);  // the mappings keep the memory
    NIBBLE_CHECK_OK(made);
    Fill(noise, seed, {pool->data_, pool->size_});
    return std::shared_ptr<const Pool>(std::move(pool));
  }

  std::span<const std::byte> At(uint64_t hash, uint64_t bytes) const {
    constexpr uint64_t kAlign = 64;
    const uint64_t at = hash % (size_ / kAlign) * kAlign;
    NIBBLE_CHECK(at + bytes <= mapped_, "a random tensor larger than was expected");
    return {data_ + at, bytes};
  }

 private:
  Result<void> Map(int fd, uint64_t mapped) {
    if (::ftruncate(fd, static_cast<off_t>(size_)) != 0) return MemoryError("reserve", size_);
    void* base =
        ::mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return MemoryError("reserve room for", mapped);
    data_ = static_cast<std::byte*>(base);
    mapped_ = mapped;
    for (uint64_t at = 0; at < mapped; at += size_) {
      const int access = at == 0 ? PROT_READ | PROT_WRITE : PROT_READ;
      if (::mmap(data_ + at, size_, access, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return MemoryError("map", mapped);
    }
    return {};
  }

  std::byte* data_ = nullptr;
  uint64_t size_ = 0, mapped_ = 0;
};

void NoisePools::Expect(const Noise& noise, uint64_t bytes) {
  Entry& entry = pools_[noise];
  entry.largest = std::max(entry.largest, bytes);
}

Result<std::span<const std::byte>> NoisePools::View(const Noise& noise, std::string_view name,
                                                    uint64_t bytes) {
  const auto found = pools_.find(noise);
  NIBBLE_CHECK(found != pools_.end(), "a random tensor of a kind that was not expected");
  Entry& entry = found->second;
  if (entry.pool == nullptr) {
    // Pools of one seed must not draw the same sequence, at whatever place of it.
    const std::string kind =
        fmt::format("{} {} {}", static_cast<int>(noise.kind), noise.centre, noise.spread);
    NIBBLE_TRY(entry.pool, Pool::Make(noise, Hash(seed_, kind), entry.largest));
  }
  return entry.pool->At(Hash(seed_, name), bytes);
}

std::span<const std::byte> NoisePools::Scalar(float value, checkpoint::DType dtype) {
  std::array<std::byte, 4>& bytes = scalars_.emplace_back();
  if (dtype == checkpoint::DType::kF32) {
    std::memcpy(bytes.data(), &value, 4);
    return bytes;
  }
  NIBBLE_CHECK(dtype == checkpoint::DType::kBf16, "a number that is neither F32 nor BF16");
  const uint16_t bits = ToBf16(value).bits;
  std::memcpy(bytes.data(), &bits, 2);
  return std::span(bytes).first(2);
}

}  // namespace nibble::synth
