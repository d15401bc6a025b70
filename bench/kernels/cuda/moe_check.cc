#include "moe_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/sm90_moe_inspect.h"
#include "numerics/fp8.h"
#include "numerics/nvfp4.h"
#include "refusals.h"

namespace nibble::bench {
namespace {

float Float(Bf16 v) { return ToFloat(v); }

void Fail(Verdict& v, std::string why) {
  if (v.ok) v.why = std::move(why);
  v.ok = false;
}

// Code * block scale of a row of x, under each of an expert's gscales.
void QuantizeRow(const Bf16* x, int hidden, float gscale, float* out) {
  for (int k = 0; k < hidden; k += kNvfp4Group) {
    float block[kNvfp4Group];
    for (int i = 0; i < kNvfp4Group; ++i) block[i] = Float(x[k + i]);
    const Nvfp4Block q =
        QuantizeNvfp4Block<float>(std::span<const float, kNvfp4Group>(block), gscale);
    for (int i = 0; i < kNvfp4Group; ++i) out[k + i] = Nvfp4Product(q.codes[i], q.scale);
  }
}

// The values that a row of x has as FP8, under one scale or, if that is 0, under scales of its own.
void QuantizeFp8Row(const Bf16* x, int hidden, Sm90Precision precision, float scale, double* out) {
  const int group = precision == Sm90Precision::kFp8Group ? kFp8Block : hidden;
  std::vector<float> values(group);
  for (int k = 0; k < hidden; k += group) {
    const int n = std::min(group, hidden - k);
    for (int i = 0; i < n; ++i) values[i] = Float(x[k + i]);
    const float own = DynamicFp8Scale(LargestMagnitude<float>(std::span(values).first(n)));
    const float by = scale > 0 ? scale : own;
    for (int i = 0; i < n; ++i) out[k + i] = double(DecodeE4m3(QuantizeFp8(values[i], by))) * by;
  }
}

// `count` numbers of the device, or `otherwise` where there are none.
std::vector<float> ReadOr(const float* from, size_t count, float otherwise) {
  std::vector<float> out(count, otherwise);
  if (from != nullptr) {
    BENCH_CUDA(cudaMemcpy(out.data(), from, count * sizeof(float), cudaMemcpyDeviceToHost));
  }
  return out;
}

// [count, K, shards, H]: what the first multiplication reads, in double.
std::vector<double> InputsOf(const Sm90MoeParams& p, const std::vector<int32_t>& tokens,
                             const std::vector<int32_t>& ids) {
  const Sm90MoeShape& s = p.shape;
  const int shards = s.shards();
  std::vector<Bf16> x(size_t(p.tokens) * s.hidden);
  BENCH_CUDA(cudaMemcpy(x.data(), p.x, x.size() * sizeof(Bf16), cudaMemcpyDeviceToHost));
  const bool fp4 = IsFp4(s.precision), fp8 = !fp4 && s.precision != Sm90Precision::kBf16;
  const std::vector<float> scales =
      ReadOr(fp4 ? p.a1_gscale : p.a1_scale, size_t(s.experts) * shards, 0.0f);
  std::vector<double> out(tokens.size() * s.top_k * shards * s.hidden);
  std::vector<float> row(s.hidden);
  size_t at = 0;
  for (int token : tokens) {
    float made_for = -1;
    for (int i = 0; i < s.top_k * shards; ++i, at += s.hidden) {
      const int id = ids[size_t(token) * s.top_k + i / shards];
      if (id < 0 || id >= s.experts) continue;
      const float scale = scales[size_t(id) * shards + i % shards];
      const Bf16* from = x.data() + size_t(token) * s.hidden;
      if (fp8) {
        QuantizeFp8Row(from, s.hidden, s.precision, scale, &out[at]);
        continue;
      }
      if (fp4 && scale != made_for) QuantizeRow(from, s.hidden, made_for = scale, row.data());
      for (int k = 0; k < s.hidden; ++k) {
        out[at + k] = fp4 ? double(row[k]) / scale : double(Float(from[k]));
      }
    }
  }
  return out;
}

constexpr double kNear = 1.0 / 128;

// One block of h: `got` are the kernel's code * scale, `h` the truth. The kernel's scale must be one
// that the truth, moved by kNear, could give, and with it every code likewise.
bool BlockAgrees(const double* h, const float* got, double gscale, Verdict& v) {
  double amax = 0;
  for (int i = 0; i < kNvfp4Group; ++i) amax = std::max(amax, std::fabs(h[i]));
  const double wanted = gscale * amax / 6;
  const uint8_t low = EncodeE4m3(wanted * (1 - kNear)), high = EncodeE4m3(wanted * (1 + kNear));
  const uint8_t exact = EncodeE4m3(wanted);
  int fewest = kNvfp4Group + 1;
  for (unsigned byte = low; byte <= high; ++byte) {
    const double scale = DecodeE4m3(static_cast<uint8_t>(byte));
    int excused = 0;
    bool fits = true;
    for (int i = 0; i < kNvfp4Group && fits; ++i) {
      const double value = scale > 0 ? h[i] * gscale / scale : 0;
      const auto product = [&](double x) {
        return static_cast<double>(DecodeE2m1(EncodeE2m1(x))) * scale;
      };
      if (product(value) == got[i]) continue;
      ++excused;
      fits = product(value * (1 - kNear)) == got[i] || product(value * (1 + kNear)) == got[i];
    }
    if (fits) fewest = std::min(fewest, byte == exact ? excused : kNvfp4Group);
  }
  if (fewest > kNvfp4Group) return false;
  v.codes += kNvfp4Group, v.excused += fewest;
  return true;
}

// A route's h, [n]{h, what it may be off by}, that shares a scale of which the kernel's is `scale`; `got`
// are values of codes * 2^112. The scale must be one that an h within its bounds gives, `fixed` itself
// where it is not 0, and every code one of such an h. Puts what follows from the kernel's codes into the
// truth's place.
bool CodesAgree(double* want, const Bf16* got, int n, float scale, float fixed, Verdict& v) {
  double least = 0, most = 0;
  for (int i = 0; i < n; ++i) {
    const double h = std::fabs(want[2 * i]), off = want[2 * i + 1];
    least = std::max(least, h - off), most = std::max(most, h + off);
  }
  bool agrees = fixed > 0 ? scale == fixed
                          : scale >= DynamicFp8Scale(least) * (1 - 0x1p-22) &&
                                scale <= DynamicFp8Scale(most) * (1 + 0x1p-22);
  for (int i = 0; i < n; ++i) {
    double& h = want[2 * i];
    double& off = want[2 * i + 1];
    const auto code = [&](double x) { return double(DecodeE4m3(EncodeE4m3(x / scale))); };
    const double mine = Float(got[i]) * 0x1p-112;
    agrees = agrees && mine >= code(h - off) && mine <= code(h + off);
    ++v.codes, v.excused += mine != code(h);
    h = mine * scale, off = 0;
  }
  return agrees;
}

// CompareHidden of W8A8.
void CompareFp8Hidden(const Kernel& kernel, const Sm90MoeParams& p, size_t slot, size_t route,
                      int id, const std::vector<Bf16>& got, std::vector<double>& want, Verdict& v) {
  const Sm90MoeShape& s = p.shape;
  const int part = s.precision == Sm90Precision::kFp8Group ? int(kFp8Block) : s.intermediate;
  const int groups = (s.intermediate + part - 1) / part;
  std::vector<float> scales;
  const float fixed = ReadOr(p.a2_scale, s.experts, 0.0f)[id];
  if (fixed > 0) {
    scales.assign(1, fixed);
  } else {
    Buffer<float> all(size_t(p.tokens) * s.top_k * groups);
    all.Fill(0xFF);
    Must(kernel.hidden_scales(p, all.get(), nullptr));
    BENCH_CUDA(cudaDeviceSynchronize());
    const std::vector<float> read = all.Read();
    scales.assign(read.begin() + ptrdiff_t(route * groups),
                  read.begin() + ptrdiff_t((route + 1) * groups));
  }
  for (int f = 0; f < s.intermediate; f += part) {
    const int n = std::min(part, s.intermediate - f);
    double* const h = &want[2 * (slot * s.intermediate + f)];
    if (CodesAgree(h, &got[route * s.intermediate + f], n, scales[f / part], fixed, v)) continue;
    Fail(v, "h of route " + std::to_string(route) + " from feature " + std::to_string(f) +
                " under the scale " + std::to_string(scales[f / part]));
  }
}

// Compares the kernel's h with the truth and, where it is quantized, puts it into the truth's place.
void CompareHidden(const Kernel& kernel, const Sm90MoeParams& p, const std::vector<int32_t>& tokens,
                   const std::vector<int32_t>& ids, Buffer<double>& hidden, Verdict& v,
                   cudaStream_t stream) {
  const Sm90MoeShape& s = p.shape;
  Buffer<Bf16> copy(size_t(p.tokens) * s.top_k * s.intermediate);
  copy.Fill(0);  // rows of routes without an expert stay so
  Must(kernel.hidden(p, copy.get(), stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  const std::vector<Bf16> got = copy.Read();
  std::vector<double> want = hidden.Read();  // [count, K, I]{h, what it may be off by}
  const std::vector<float> gscales = ReadOr(p.a2_gscale, s.experts, 1.0f);
  for (size_t slot = 0; slot < tokens.size() * s.top_k; ++slot) {
    const size_t route = size_t(tokens[slot / s.top_k]) * s.top_k + slot % s.top_k;
    const int id = ids[route];
    if (id < 0 || id >= s.experts) continue;
    if (IsStaticFp8(s.precision) || IsDynamicFp8(s.precision)) {
      CompareFp8Hidden(kernel, p, slot, route, id, got, want, v);
      continue;
    }
    for (int f = 0; f < s.intermediate; f += kNvfp4Group) {
      double h[kNvfp4Group];
      float mine[kNvfp4Group];
      bool agrees = true;
      for (int i = 0; i < kNvfp4Group; ++i) {
        double* at = &want[2 * (slot * s.intermediate + f + i)];
        h[i] = at[0], mine[i] = Float(got[route * s.intermediate + f + i]);
        agrees = agrees && std::fabs(mine[i] - at[0]) <= at[1] + 1e-37;
        if (p.a2_gscale) at[0] = double(mine[i]) / gscales[id], at[1] = 0;
      }
      if (p.a2_gscale) agrees = BlockAgrees(h, mine, gscales[id], v);
      if (!agrees) {
        Fail(v, "h of route " + std::to_string(route) + " from feature " + std::to_string(f) +
                    ": " + std::to_string(mine[0]) + ", … for " + std::to_string(h[0]) + ", …");
      }
    }
  }
  hidden.Write(want);
}

}  // namespace

Verdict Check(const Kernel& kernel, const Canonical& canonical, Sm90MoeParams p,
              const std::vector<int32_t>& ids, int repeats, cudaStream_t stream) {
  Verdict v;
  const Sm90MoeShape& s = p.shape;
  const int hidden = s.hidden;
  Buffer<Bf16> y(size_t(p.tokens) * hidden);
  p.y = y.get();
  std::vector<Bf16> first;
  for (int run = 0; run < repeats; ++run) {
    y.Fill(0xFF);
    Must(kernel.launch(p, stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    const std::vector<Bf16> got = y.Read();
    if (run == 0) first = got;
    if (std::memcmp(got.data(), first.data(), got.size() * 2) != 0) {
      Fail(v, "run " + std::to_string(run) + " gives other bits");
      return v;
    }
  }
  std::vector<int32_t> tokens;
  for (int i = 0, n = std::min(p.tokens, 48); i < n; ++i) {
    tokens.push_back(n == 1 ? 0 : static_cast<int>(int64_t(i) * (p.tokens - 1) / (n - 1)));
  }
  const int count = static_cast<int>(tokens.size());
  Buffer<int32_t> list(tokens);
  Buffer<double> inputs(InputsOf(p, tokens, ids));
  Buffer<double> scratch(size_t(count) * s.top_k * s.intermediate * 2);
  scratch.Fill(0);
  Buffer<double> want(size_t(count) * hidden), bound(size_t(count) * hidden);
  ReferenceHidden(canonical.view, p, list.get(), count, inputs.get(), scratch.get(), stream);
  BENCH_CUDA(cudaStreamSynchronize(stream));
  CompareHidden(kernel, p, tokens, ids, scratch, v, stream);
  ReferenceOutput(canonical.view, p, list.get(), count, scratch.get(), want.get(), bound.get(),
                  stream);
  BENCH_CUDA(cudaStreamSynchronize(stream));
  BENCH_CUDA(cudaGetLastError());
  const std::vector<double> w = want.Read(), b = bound.Read();
  double difference = 0, norm = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const size_t token = tokens[i / hidden], row = i % hidden;
    const double got = Float(first[token * hidden + row]), d = got - w[i];
    const double share = std::fabs(d) / b[i];
    if (!(share <= v.worst)) v.worst = share;
    if (!(share <= 1)) {
      Fail(v, "token " + std::to_string(token) + " row " + std::to_string(row) + ": " +
                  std::to_string(got) + " for " + std::to_string(w[i]) + " +- " +
                  std::to_string(b[i]));
    }
    difference += d * d, norm += w[i] * w[i];
  }
  for (const Bf16 value : first) {
    if (!std::isfinite(Float(value))) Fail(v, "an element is not finite");
  }
  v.rel_l2 = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  if (!(v.rel_l2 <= 6e-3)) Fail(v, "relative L2 too large");
  return v;
}

int CheckQuantization(cudaStream_t stream) {
  constexpr int kBlocks = 1 << 15;
  std::mt19937 random(11);
  int differ = 0;
  for (float gscale : {1.0f, 54.857f, 1.0f / 2e-5f, 1.0f / 3.0f, 7e-3f, 3e9f, 1e-20f}) {
    std::vector<Bf16> x(size_t(kBlocks) * kNvfp4Group);
    for (size_t i = 0; i < x.size(); ++i) {
      const int kind = static_cast<int>(i / kNvfp4Group % 4);
      const uint32_t r = random();
      float value;
      if (kind == 0) {  // any number, very large and very small ones
        value = Float(std::bit_cast<Bf16>(static_cast<uint16_t>(r)));
        if (!std::isfinite(value)) value = r % 3 ? HUGE_VALF : NAN;
      } else if (kind == 1) {  // exactly on boundaries: the largest is 6 times a scale
        const float quarters[] = {24, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 22, 0};
        value = quarters[i % kNvfp4Group ? r % 16 : 0] / 4 / gscale;
        if (r & 0x100000) value = -value;
      } else if (kind == 2) {  // about where a scale becomes zero
        value = float(r % 2001 - 1000.0) / 1000 * 6 * 0x1p-10f / gscale * 1.2f;
      } else {
        value = (float(r % 20001) - 10000) / 10000 * 2688 / gscale * 1.1f;
      }
      x[i] = ToBf16(value);
    }
    Buffer<Bf16> in(x), out(x.size());
    Buffer<float> g(std::vector<float>{gscale});
    out.Fill(0xFF);
    Must(cuda::LaunchSm90QuantizeBlocks(in.get(), kBlocks, g.get(), out.get(), stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    const std::vector<Bf16> got = out.Read();
    std::vector<float> want(kNvfp4Group);
    int here = 0;
    for (int b = 0; b < kBlocks; ++b) {
      QuantizeRow(x.data() + size_t(b) * kNvfp4Group, kNvfp4Group, gscale, want.data());
      bool same = true;
      for (int i = 0; i < kNvfp4Group; ++i) {
        same = same && Float(got[size_t(b) * kNvfp4Group + i]) == want[i];
      }
      here += !same;
      if (!same && here == 1) {
        for (int i = 0; i < kNvfp4Group; ++i) {
          const size_t at = size_t(b) * kNvfp4Group + i;
          std::printf("  x %g gives %g for %g\n", Float(x[at]), Float(got[at]), want[i]);
        }
      }
    }
    if (here) std::printf("FAIL quantization under gscale %g: %d blocks differ\n", gscale, here);
    differ += here;
  }
  return differ;
}

int CheckRefusals() {
  // Nothing of this is read: every launch is refused before.
  alignas(256) static std::byte memory[256];
  const auto at = [&]<class T>(T*& p) { p = reinterpret_cast<T*>(memory); };
  Sm90MoeParams good;
  good.shape = {8, 2, 2048, 512, Sm90Activation::kSilu, Sm90Precision::kFp4Layer};
  good.tokens = 1;
  good.y = reinterpret_cast<Bf16*>(memory), good.workspace = memory;
  at(good.x), at(good.ids), at(good.weights), at(good.w13), at(good.w2), at(good.g1), at(good.g2);
  at(good.a1_gscale), at(good.a2_gscale);
  const struct {
    const char* what;
    void (*spoil)(Sm90MoeParams&);
  } cases[] = {
      {"H no multiple of 16", [](Sm90MoeParams& p) { p.shape.hidden = 2056; }},
      {"I no multiple of 16", [](Sm90MoeParams& p) { p.shape.intermediate = 500; }},
      {"too many experts", [](Sm90MoeParams& p) { p.shape.experts = 1025; }},
      {"no tokens", [](Sm90MoeParams& p) { p.tokens = 0; }},
      {"more tokens than either kernel takes", [](Sm90MoeParams& p) { p.tokens = 1 << 21; }},
      {"W4A4 without the scale of h", [](Sm90MoeParams& p) { p.a2_gscale = nullptr; }},
      {"W4A4 without the scale of x", [](Sm90MoeParams& p) { p.a1_gscale = nullptr; }},
      {"W4A16 with scales", [](Sm90MoeParams& p) { p.shape.precision = Sm90Precision::kBf16; }},
      {"NVFP4 without its global scale", [](Sm90MoeParams& p) { p.g2 = nullptr; }},
      {"BF16 weights with FP4 activations",
       [](Sm90MoeParams& p) {
         p.shape.weights = HopperFormat::kBf16;
         p.g1 = p.g2 = nullptr;
       }},
      {"BF16 weights with global scales",
       [](Sm90MoeParams& p) {
         p.shape.weights = HopperFormat::kBf16;
         p.shape.precision = Sm90Precision::kBf16;
         p.a1_gscale = p.a2_gscale = nullptr;
       }},
      {"FP8 weights",
       [](Sm90MoeParams& p) {
         p.shape.weights = HopperFormat::kFp8;
         p.shape.precision = Sm90Precision::kBf16;
         p.a1_gscale = p.a2_gscale = p.g1 = p.g2 = nullptr;
       }},
      {"a limit of zero", [](Sm90MoeParams& p) { p.limit = 0; }},
      {"alpha not a number", [](Sm90MoeParams& p) { p.alpha = NAN; }},
      {"no x", [](Sm90MoeParams& p) { p.x = nullptr; }},
      {"x not aligned", [](Sm90MoeParams& p) { ++p.x; }},
      {"workspace not aligned", [](Sm90MoeParams& p) { p.workspace += 128; }},
  };
  int accepted = 0;
  for (const Kernel& kernel : kKernels) accepted += CountAccepted(kernel, good, cases);

  Sm90MoeParams good_fp8 = good;
  good_fp8.shape.weights = HopperFormat::kFp8;
  good_fp8.shape.precision = Sm90Precision::kFp8Layer;
  good_fp8.a1_gscale = good_fp8.a2_gscale = nullptr;
  at(good_fp8.a1_scale), at(good_fp8.a2_scale);
  const struct {
    const char* what;
    void (*spoil)(Sm90MoeParams&);
  } of_fp8[] = {
      {"FP8 without its scale of down", [](Sm90MoeParams& p) { p.g2 = nullptr; }},
      {"static W8A8 without the scale of h", [](Sm90MoeParams& p) { p.a2_scale = nullptr; }},
      {"dynamic W8A8 with static scales",
       [](Sm90MoeParams& p) { p.shape.precision = Sm90Precision::kFp8Token; }},
      {"W8A16 with scales", [](Sm90MoeParams& p) { p.shape.precision = Sm90Precision::kBf16; }},
      {"FP8 by channel without scales",
       [](Sm90MoeParams& p) {
         p.shape.weight_scales = Fp8Scales::kChannel;
         p.g1 = p.g2 = nullptr;
       }},
      {"FP8 by block under one scale of x",
       [](Sm90MoeParams& p) {
         p.shape.weight_scales = Fp8Scales::kBlock128;
         p.w13_scales = p.g1, p.w2_scales = p.g2;
         p.g1 = p.g2 = nullptr;
       }},
      {"one scale a tensor and groups of 128",
       [](Sm90MoeParams& p) {
         p.shape.precision = Sm90Precision::kFp8Group;
         p.a1_scale = p.a2_scale = nullptr;
       }},
      {"FP8 with a scale of NVFP4's", [](Sm90MoeParams& p) { p.a1_gscale = p.g1; }},
      {"FP8 with scales by channel, too", [](Sm90MoeParams& p) { p.w13_scales = p.g1; }},
  };
  for (const Kernel& kernel : kKernels) accepted += CountAccepted(kernel, good_fp8, of_fp8);
  return accepted;
}

namespace {

// One expert's matrices of codes that need no block scales: BF16 or FP8.
template <class View>
bool CheckPackingCodes(const Canonical& c, const Packed& packed, int expert) {
  const Sm90MoeShape& s = c.view.shape;
  const size_t bytes = c.code_bytes / s.experts;
  std::vector<uint8_t> from[3];
  View m[3];
  for (int i = 0; i < 3; ++i) {
    from[i].resize(bytes);
    BENCH_CUDA(cudaMemcpy(from[i].data(), c.codes[i].get() + expert * bytes, bytes,
                          cudaMemcpyDeviceToHost));
    m[i].n = i == 2 ? s.hidden : s.intermediate, m[i].k = i == 2 ? s.intermediate : s.hidden;
    if constexpr (std::is_same_v<View, CanonicalFp8>) {
      m[i].codes = from[i].data();
    } else {
      m[i].data = from[i].data();
    }
  }
  const auto same = [&](const Buffer<uint8_t>& gpu, const std::vector<std::byte>& host) {
    std::vector<std::byte> got(host.size());
    BENCH_CUDA(cudaMemcpy(got.data(), gpu.get() + expert * host.size(), host.size(),
                          cudaMemcpyDeviceToHost));
    return got == host;
  };
  std::vector<std::byte> w13(W13LayoutOf(s).bytes(s.weights));
  std::vector<std::byte> w2(HopperW2Layout(s.hidden, s.intermediate).bytes(s.weights));
  PackHopperW2(m[2], w2);
  if (s.gated()) {
    PackHopperW13(m[0], m[1], w13);
  } else {
    PackHopperW1(m[1], w13);
  }
  return same(packed.w13, w13) && same(packed.w2, w2);
}

}  // namespace

bool CheckPacking(const Canonical& c, const Packed& packed, int expert, cudaStream_t stream) {
  if (c.format == HopperFormat::kBf16) return CheckPackingCodes<CanonicalBf16>(c, packed, expert);
  if (c.format == HopperFormat::kFp8) return CheckPackingCodes<CanonicalFp8>(c, packed, expert);
  const Sm90MoeShape& s = c.view.shape;
  const size_t per = c.n / s.experts;
  std::vector<uint8_t> codes[3], scales[3];
  CanonicalNvfp4 m[3];
  for (int i = 0; i < 3; ++i) {
    codes[i].resize(per / 2), scales[i].resize(per / 16);
    BENCH_CUDA(cudaMemcpy(codes[i].data(), c.codes[i].get() + expert * per / 2, per / 2,
                          cudaMemcpyDeviceToHost));
    BENCH_CUDA(cudaMemcpy(scales[i].data(), c.scales[i].get() + expert * per / 16, per / 16,
                          cudaMemcpyDeviceToHost));
    const int64_t n = i == 2 ? s.hidden : s.intermediate, k = i == 2 ? s.intermediate : s.hidden;
    m[i] = {n, k, codes[i].data(), scales[i].data(), 1.0f, {}};
  }
  const auto same = [&](const Buffer<uint8_t>& gpu, int e, const std::vector<std::byte>& host) {
    std::vector<std::byte> got(host.size());
    BENCH_CUDA(
        cudaMemcpy(got.data(), gpu.get() + e * host.size(), host.size(), cudaMemcpyDeviceToHost));
    return got == host;
  };
  std::vector<std::byte> w13(W13LayoutOf(s).bytes());
  std::vector<std::byte> w2(HopperW2Layout(s.hidden, s.intermediate).bytes());
  PackHopperW2(m[2], w2);
  if (!s.gated()) {
    PackHopperW1(m[1], w13);
    return same(packed.w13, expert, w13) && same(packed.w2, expert, w2);
  }
  PackHopperW13(m[0], m[1], w13);
  // One expert with gate and up row by row in turn, as swigluoai checkpoints have them.
  const size_t row = s.hidden / 2, groups = s.hidden / 16;
  std::vector<uint8_t> both(2 * per / 2), both_scales(2 * per / 16);
  for (int i = 0; i < 2 * s.intermediate; ++i) {
    std::memcpy(&both[i * row], &codes[i % 2][i / 2 * row], row);
    std::memcpy(&both_scales[i * groups], &scales[i % 2][i / 2 * groups], groups);
  }
  Buffer<uint8_t> in(both), in_scales(both_scales), out(w13.size());
  const cuda::TilePackSource gate{in.get(), in_scales.get(), 0, 0, 2};
  const cuda::TilePackSource up{in.get() + row, in_scales.get() + groups, 0, 0, 2};
  Must(cuda::LaunchTilePackW13(gate, up, 1, s.hidden, s.intermediate, out.get(), stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  return same(packed.w13, expert, w13) && same(packed.w2, expert, w2) && same(out, 0, w13);
}

}  // namespace nibble::bench
