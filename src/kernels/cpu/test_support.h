#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/isa.h"
#include "layout/cpu_tile.h"
#include "layout/quant_key.h"
#include "numerics/bf16.h"
#include "numerics/fp8.h"
#include "numerics/nvfp4.h"

namespace nibble::kernels::cpu {

// What the tests of this folder share: random matrices, a packer written from the comment in
// layout/cpu_tile.h alone, and truths in double made from numerics/.

inline constexpr double kEpsilon = 0x1p-24;  // half an ulp of fp32, relative

inline std::vector<CpuIsa> IsasOfThisMachine() {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (HasIsa(isa)) isas.push_back(isa);
  }
  return isas;
}

inline std::string IsaTestName(const testing::TestParamInfo<CpuIsa>& info) {
  return std::string(NameOf(info.param));
}

/// Memory on a 64-byte boundary, exactly as long as asked for, so that AddressSanitizer sees a read
/// beyond it.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t bytes = 0) : storage_(new (std::align_val_t(64)) std::byte[bytes]) {
    std::memset(storage_.get(), 0xFF, bytes);
  }
  std::byte* data() { return storage_.get(); }
  const std::byte* data() const { return storage_.get(); }

 private:
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<std::byte[], Delete> storage_;
};

/// A matrix of any format, unpacked: element (r, c) is value * global.
struct TestMatrix {
  TileFormat format = TileFormat::kNvfp4;
  int64_t n = 0, k = 0;
  float global = 1;
  std::vector<uint8_t> codes, scales;  // one code a byte [n, k]; NVFP4: [n, k / 16]
  std::vector<uint16_t> bits;          // bf16 [n, k]
  GroupShape group = {};               // FP8
  std::vector<float> fp8_scales;       // by channel [n], by block [ceil(n / 128), ceil(k / 128)]
  AlignedBytes packed;
  std::vector<uint8_t> file;  // the rows as a file has them, from its second byte on

  double At(int64_t r, int64_t c) const {
    if (format == TileFormat::kBf16) return ToFloat(Bf16{bits[r * k + c]});
    if (format == TileFormat::kFp8) {
      double scale = 1;
      if (group == GroupShape::PerChannel()) scale = fp8_scales[r];
      if (group.row == 128) scale = fp8_scales[r / 128 * ((k + 127) / 128) + c / 128];
      return DecodeE4m3(codes[r * k + c]) * scale;
    }
    return static_cast<double>(DecodeE2m1(codes[r * k + c])) *
           DecodeE4m3(scales[r * (k / 16) + c / 16]);
  }
  PackedMatrix view() const {
    return {format, n, k, packed.data(), group, fp8_scales.empty() ? nullptr : fp8_scales.data(),
            {}};
  }
  /// The same matrix before it is packed.
  PackedMatrix mapped_view() const {
    PackedMatrix view = this->view();
    view.data = nullptr;
    view.rows = {file.data() + 1, scales.empty() ? nullptr : scales.data()};
    return view;
  }
};

/// Row by row, at an odd address, with nothing behind the last byte.
inline void WriteFileRows(TestMatrix& m) {
  m.file = {0xFF};
  for (int64_t i = 0; i < m.n * m.k; ++i) {
    if (m.format == TileFormat::kBf16) {
      m.file.push_back(static_cast<uint8_t>(m.bits[i]));
      m.file.push_back(static_cast<uint8_t>(m.bits[i] >> 8));
    } else if (m.format == TileFormat::kFp8) {
      m.file.push_back(m.codes[i]);
    } else if (i % 2 == 0) {  // the low nibble first
      m.file.push_back(static_cast<uint8_t>(m.codes[i] | m.codes[i + 1] << 4));
    }
  }
  m.file.shrink_to_fit();
}

inline void NaivePack(TestMatrix& m) {
  WriteFileRows(m);
  m.packed = AlignedBytes(PackedBytes(m.format, m.n, m.k));
  std::memset(m.packed.data(), 0, PackedBytes(m.format, m.n, m.k));
  for (int64_t row = 0; row < m.n; ++row) {
    std::byte* strip = m.packed.data() + row / 16 * StripBytes(m.format, m.k);
    const int64_t r = row % 16;
    for (int64_t c = 0; c < m.k; ++c) {
      std::byte* tile = strip + c / 64 * TileBytes(m.format);
      const int64_t in_tile = c % 64;
      if (m.format == TileFormat::kBf16) {
        std::memcpy(tile + in_tile / 2 * 64 + r * 4 + in_tile % 2 * 2, &m.bits[row * m.k + c], 2);
        continue;
      }
      if (m.format == TileFormat::kFp8) {
        tile[in_tile / 2 * 32 + r * 2 + in_tile % 2] =
            static_cast<std::byte>(m.codes[row * m.k + c]);
        continue;
      }
      const int64_t g = in_tile / 16, z = in_tile / 8 % 2, i = in_tile % 8 / 2, h = in_tile % 2;
      uint16_t word;
      std::memcpy(&word, tile + g * 128 + z * 64 + r * 4 + h * 2, 2);
      word = static_cast<uint16_t>(word | (m.codes[row * m.k + c] << (4 * i)));
      std::memcpy(tile + g * 128 + z * 64 + r * 4 + h * 2, &word, 2);
      tile[512 + g * 16 + r] = static_cast<std::byte>(m.scales[row * (m.k / 16) + c / 16]);
    }
  }
}

inline TestMatrix Copy(const TestMatrix& m) {
  TestMatrix copy{m.format, m.n,     m.k,          m.global,       m.codes, m.scales,
                  m.bits,   m.group, m.fp8_scales, AlignedBytes(), {}};
  NaivePack(copy);
  return copy;
}

using Random = std::mt19937;

inline std::vector<float> RandomFloats(Random& random, int64_t count, float deviation = 1) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> v(count);
  for (float& f : v) f = normal(random);
  return v;
}

/// Codes of all kinds; block scales mostly between 1/8 and 2, some zero, some of the subnormals
/// from 2^-9 on, some the largest.
inline TestMatrix RandomMatrix(Random& random, TileFormat format, int64_t n, int64_t k,
                               float global) {
  TestMatrix m;
  m.format = format;
  m.n = n;
  m.k = k;
  m.global = global;
  if (format == TileFormat::kBf16) {
    for (float f : RandomFloats(random, n * k)) m.bits.push_back(ToBf16(f).bits);
  } else {
    for (int64_t i = 0; i < n * k; ++i) m.codes.push_back(random() % 16);
    for (int64_t i = 0; i < n * k / 16; ++i) {
      const unsigned kind = random() % 16;
      const unsigned scale = kind == 0   ? 0
                             : kind == 1 ? 1 + random() % 7
                             : kind == 2 ? 0x7E
                                         : 0x20 + random() % 0x20;
      m.scales.push_back(static_cast<uint8_t>(scale));
    }
  }
  NaivePack(m);
  return m;
}

/// FP8 codes of all kinds, as `key` scales them.
inline TestMatrix RandomFp8(Random& random, const QuantKey& key, int64_t n, int64_t k,
                            float global) {
  TestMatrix m;
  m.format = TileFormat::kFp8;
  m.n = n;
  m.k = k;
  m.group = key.scale.group;
  m.global = m.group == GroupShape::PerTensor() ? global : 1;
  for (int64_t i = 0; i < n * k; ++i) {
    const auto code = static_cast<uint8_t>(random());
    m.codes.push_back(IsNanE4m3(code) ? 0 : code);
  }
  int64_t scales = m.group == GroupShape::PerChannel() ? n : 0;
  if (m.group.row == 128) scales = (n + 127) / 128 * ((k + 127) / 128);
  for (int64_t i = 0; i < scales; ++i) {
    m.fp8_scales.push_back(global * static_cast<float>(random() % 100) / 50);
  }
  NaivePack(m);
  return m;
}

/// How activations are held; `scale` is the gscale of NVFP4 or the scale of static FP8.
struct TestForm {
  std::optional<QuantKey> key;
  float scale = 0;
};

/// The scale under which element i of a row of k is held as FP8.
inline float Fp8ScaleOf(const TestForm& form, const float* x, int64_t k, int64_t i) {
  if (form.key->scale.is_static) return form.scale;
  const int64_t first = form.key->scale.group.col == 128 ? i / 128 * 128 : 0;
  const int64_t last = form.key->scale.group.col == 128 ? std::min(first + 128, k) : k;
  float largest = 0;
  for (int64_t j = first; j < last; ++j) largest = std::fmax(largest, std::abs(x[j]));
  return DynamicFp8Scale(largest);
}

/// What the kernels multiply instead of x: x in bf16, the NVFP4 code * block scale * input scale, or
/// the FP8 code * scale, in the fp32 of the contract.
inline std::vector<double> ActivationTruth(const float* x, int64_t k, const TestForm& form) {
  std::vector<double> out(k);
  if (!form.key) {
    for (int64_t i = 0; i < k; ++i) out[i] = RoundToBf16(x[i]);
    return out;
  }
  for (int64_t i = 0; form.key->dtype == ScalarType::kF8E4M3 && i < k; ++i) {
    const float scale = Fp8ScaleOf(form, x, k, i);
    out[i] = static_cast<double>(DecodeE4m3(QuantizeFp8(x[i], scale))) * scale;
  }
  for (int64_t b = 0; form.key->dtype == ScalarType::kU8 && b < k; b += 16) {
    const auto block = QuantizeNvfp4Block<float>(std::span<const float, 16>(x + b, 16), form.scale);
    for (int i = 0; i < 16; ++i) {
      out[b + i] = static_cast<double>(Nvfp4Product(block.codes[i], block.scale)) / form.scale;
    }
  }
  return out;
}

/// A number and how far an fp32 sum of the same terms may be from it.
struct Truth {
  double value = 0, bound = 0;
};

/// global * sum of w x, in which each of x's elements may be off by `slack` (none when empty). An
/// fp32 sum of k terms in any order stays within k half-ulps of the terms' magnitudes; a few more
/// are for the scales and the global.
inline Truth DotTruth(const TestMatrix& m, int64_t row, const std::vector<double>& x,
                      const std::vector<double>& slack = {}) {
  Truth truth;
  double magnitude = 0, off = 0;
  for (int64_t c = 0; c < m.k; ++c) {
    const double w = m.At(row, c);
    truth.value += w * x[c];
    magnitude += std::abs(w * x[c]);
    if (!slack.empty()) off += std::abs(w) * slack[c];
  }
  truth.value *= m.global;
  truth.bound = ((m.k + 8) * kEpsilon * magnitude + off) * m.global + 1e-37;
  return truth;
}

}  // namespace nibble::kernels::cpu
