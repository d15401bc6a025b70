#include "linear_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <span>

#include "numerics/fp8.h"
#include "numerics/nvfp4.h"
#include "refusals.h"

namespace nibble::bench {
namespace {

// Of a model's shards usually all have one scale, as they see one x; the checks' have not.
float InputScale(const ShardSpec& spec, bool tiny, int index) {
  const float x = tiny ? 1e-3f : 1.0f;
  if (spec.input == Sm90Input::kNvfp4) return x * (49.0f + 3 * index) / 2688;
  if (spec.input == Sm90Input::kFp8) return x * (18.0f + index) / 448;
  return 0;
}

/// What a shard's input is worth, in double.
std::vector<double> InputOf(const std::vector<Bf16>& x, int k, const Sm90LinearShard& shard) {
  std::vector<double> out(x.size());
  std::vector<float> v(x.size());
  for (size_t i = 0; i < x.size(); ++i) v[i] = ToFloat(x[i]);
  const auto fp8 = [&](size_t first, size_t n, float scale) {
    for (size_t i = first; i < first + n; ++i) {
      out[i] = double(DecodeE4m3(QuantizeFp8<float>(v[i], scale))) * scale;
    }
  };
  const auto dynamic = [&](size_t first, size_t n) {
    fp8(first, n, DynamicFp8Scale(LargestMagnitude<float>(std::span(v).subspan(first, n))));
  };
  for (size_t row = 0; row < x.size(); row += k) {
    switch (shard.input) {
      case Sm90Input::kBf16:
        for (int i = 0; i < k; ++i) out[row + i] = v[row + i];
        break;
      case Sm90Input::kNvfp4: {
        const float gscale = 1.0f / shard.input_scale;
        for (int b = 0; b < k; b += kNvfp4Group) {
          const auto q = QuantizeNvfp4Block<float>(
              std::span<const float, kNvfp4Group>(v.data() + row + b, kNvfp4Group), gscale);
          for (int i = 0; i < kNvfp4Group; ++i) {
            out[row + b + i] = double(Nvfp4Product(q.codes[i], q.scale)) / gscale;
          }
        }
        break;
      }
      case Sm90Input::kFp8:
        fp8(row, k, shard.input_scale);
        break;
      case Sm90Input::kFp8Token:
        dynamic(row, k);
        break;
      case Sm90Input::kFp8Group:
        for (int i = 0; i < k; i += 128) dynamic(row + i, std::min(128, k - i));
        break;
    }
  }
  return out;
}

std::vector<Bf16> RandomX(size_t n, float factor, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Bf16> x(n);
  for (Bf16& v : x) {
    const uint32_t r = random();
    const float value = (float(r & 0xFFFF) + float(r >> 16) - 65535.0f) / 27000;
    v = ToBf16(value * factor * (r % 509 == 0 ? 15 : 1));
  }
  return x;
}

/// y of a launch into poisoned memory, [tokens, ldy].
std::vector<double> Run(const LinearKernel& kernel, Sm90LinearParams p, bool f32, size_t& untouched,
                        cudaStream_t stream) {
  const size_t n = size_t(p.tokens) * p.ldy;
  Buffer<Bf16> y(f32 ? 1 : n);
  Buffer<float> y32(f32 ? n : 1);
  y.Fill(0xFF), y32.Fill(0xFF);
  if (f32)
    p.y_f32 = y32.get();
  else
    p.y = y.get();
  Buffer<std::byte> workspace(kernel.workspace(p));
  if (workspace.size()) workspace.Fill(0);
  p.workspace = workspace.get();
  p.workspace_bytes = workspace.size();
  Must(kernel.launch(p, stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  std::vector<double> out(n);
  untouched = 0;
  const std::vector<Bf16> a = y.Read();
  const std::vector<float> b = y32.Read();
  for (size_t i = 0; i < n; ++i) {
    out[i] = f32 ? b[i] : ToFloat(a[i]);
    untouched += std::isnan(out[i]);
  }
  return out;
}

}  // namespace

LinearWeights::LinearWeights(const std::vector<ShardSpec>& specs, int k, uint64_t seed,
                             bool identity, bool tiny_scales, cudaStream_t stream)
    : specs_(specs), k_(k), tiny_(tiny_scales) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  for (const ShardSpec& s : specs) {
    const size_t n = size_t(s.n) * k;
    const HopperFormat format = cuda::FormatOf(s.weight);
    codes_.emplace_back(format == HopperFormat::kNvfp4 ? n / 2
                        : format == HopperFormat::kFp8 ? n
                                                       : 2 * n);
    block_scales_.emplace_back(format == HopperFormat::kNvfp4 ? n / 16 : 0);
    packed_.emplace_back(HopperLinearBytes(format, s.n, k));
    std::vector<float> scales(s.weight == Sm90Weight::kFp8Channel ? s.n
                              : s.weight == Sm90Weight::kFp8Block128
                                  ? size_t((s.n + 127) / 128) * ((k + 127) / 128)
                                  : 0);
    for (float& v : scales) {
      v = identity ? 1.0f : (tiny_scales ? 2e-5f : 1e-2f) * (0.5f + float(random() % 1000) / 1000);
    }
    scales_.emplace_back(scales);
    if (scales.empty()) scales_.back() = Buffer<float>();
    canonical_.push_back(
        {s.weight, s.n, k, codes_.back().get(), block_scales_.back().get(), scales_.back().get()});
    if (identity) {
      FillIdentity(canonical_.back(), stream);
    } else {
      FillRandom(canonical_.back(), seed + canonical_.size(), stream);
    }
    packed_.back().Fill(0xEE);
    Must(cuda::LaunchTilePackLinear(format, codes_.back().get(), block_scales_.back().get(), s.n, k,
                                    packed_.back().get(), stream));
  }
  BENCH_CUDA(cudaStreamSynchronize(stream));
}

void LinearWeights::KeepPacked() { codes_.clear(), block_scales_.clear(); }

Sm90LinearParams LinearWeights::Params() const {
  Sm90LinearParams p;
  p.k = k_;
  p.shards = static_cast<int>(specs_.size());
  for (int i = 0; i < p.shards; ++i) {
    Sm90LinearShard& s = p.shard[i];
    s.weight = specs_[i].weight, s.input = specs_[i].input, s.n = specs_[i].n;
    s.weights = packed_[i].get();
    s.scales = scales_[i].get();
    if (s.weight == Sm90Weight::kNvfp4 || s.weight == Sm90Weight::kFp8) {
      s.scale = tiny_ ? 2e-5f : 0.01f * float(1 + i);
    }
    s.input_scale = InputScale(specs_[i], tiny_, codes_.empty() ? 0 : i);
  }
  return p;
}

double LinearWeights::bytes() const {
  double sum = 0;
  for (const auto& b : packed_) sum += double(b.size());
  return sum;
}
int LinearWeights::columns() const {
  int sum = 0;
  for (const ShardSpec& s : specs_) sum += s.n;
  return sum;
}

LinearVerdict CheckLinear(const LinearKernel& kernel, const LinearWeights& weights, int tokens,
                          bool f32, float x_factor, int repeats, cudaStream_t stream) {
  LinearVerdict v;
  const auto fail = [&](std::string why) {
    if (v.ok) v.why = std::move(why);
    v.ok = false;
  };
  Sm90LinearParams p = weights.Params();
  p.tokens = tokens;
  // Columns that are nobody's: an odd number, or as many as let rows begin at 16 bytes.
  p.ldy = tokens % 2 ? weights.columns() + 3 : (weights.columns() + 15) / 8 * 8;
  const std::vector<Bf16> x = RandomX(size_t(tokens) * p.k, x_factor, 31 + tokens);
  Buffer<Bf16> device_x(x);
  p.x = device_x.get();
  std::vector<double> first;
  for (int run = 0; run < repeats; ++run) {
    size_t untouched = 0;
    const std::vector<double> got = Run(kernel, p, f32, untouched, stream);
    if (untouched != size_t(tokens) * (p.ldy - weights.columns()))
      fail("columns are not exactly the shards'");
    if (run == 0) first = got;
    if (std::memcmp(got.data(), first.data(), got.size() * 8) != 0) fail("other bits");
  }
  double difference = 0, norm = 0;
  int column = 0;
  const int count = std::min(tokens, 40);
  for (int i = 0; i < p.shards; ++i) {
    const Sm90LinearShard& s = p.shard[i];
    const std::vector<double> all = InputOf(x, p.k, s);
    std::vector<double> input(size_t(count) * p.k);
    std::vector<int> token(count);
    for (int t = 0; t < count; ++t) {
      token[t] = count == 1 ? 0 : static_cast<int>(int64_t(t) * (tokens - 1) / (count - 1));
      std::copy_n(all.begin() + size_t(token[t]) * p.k, p.k, input.begin() + size_t(t) * p.k);
    }
    Buffer<double> in(input), want(size_t(count) * s.n), size(size_t(count) * s.n);
    ReferenceLinear(weights.canonical(i), in.get(), count, want.get(), size.get(), stream);
    BENCH_CUDA(cudaStreamSynchronize(stream));
    const std::vector<double> w = want.Read(), m = size.Read();
    for (size_t at = 0; at < w.size(); ++at) {
      const int t = token[at / s.n], row = static_cast<int>(at % s.n);
      const double got = first[size_t(t) * p.ldy + column + row], exact = w[at] * s.scale;
      const double bound = m[at] * s.scale * 0x1p-22 * (p.k / 128.0 + 12) +
                           std::fabs(exact) * (f32 ? 0x1p-21 : 0x1.02p-8) + 1e-37;
      const double share = std::fabs(got - exact) / bound;
      if (!(share <= v.worst)) v.worst = share;
      if (!(share <= 1)) {
        fail("shard " + std::to_string(i) + " token " + std::to_string(t) + " row " +
             std::to_string(row) + ": " + std::to_string(got) + " for " + std::to_string(exact) +
             " +- " + std::to_string(bound));
      }
      difference += (got - exact) * (got - exact), norm += exact * exact;
    }
    column += s.n;
  }
  v.rel_l2 = norm > 0 ? std::sqrt(difference / norm) : 0;
  return v;
}

int CheckInputCodes(const LinearKernel& kernel, int tokens, cudaStream_t stream) {
  int wrong = 0;
  constexpr int kWidth = 1024;
  const struct {
    ShardSpec spec;
    const char* name;
  } cases[] = {{{Sm90Weight::kNvfp4, Sm90Input::kNvfp4, kWidth}, "NVFP4"},
               {{Sm90Weight::kFp8, Sm90Input::kFp8, kWidth}, "FP8"},
               {{Sm90Weight::kFp8Channel, Sm90Input::kFp8Token, kWidth}, "FP8 by token"},
               {{Sm90Weight::kFp8Block128, Sm90Input::kFp8Group, kWidth}, "FP8 by 128"}};
  for (const auto& c : cases) {
    LinearWeights weights({c.spec}, kWidth, 5, true, false, stream);
    Sm90LinearParams p = weights.Params();
    p.tokens = tokens;
    p.ldy = kWidth;
    p.shard[0].scale = 1;
    std::vector<Bf16> x = RandomX(size_t(tokens) * kWidth, 1.0f, 77);
    std::mt19937 random(tokens);
    for (size_t i = 0; i < x.size(); ++i) {
      const uint32_t r = random();
      // Ties, everything between the smallest code and saturation, and rows of zeros.
      if (r % 7 == 0) x[i] = ToBf16(float(int(r >> 8) % 64 - 32) / 4);
      if (r % 11 == 0) x[i] = ToBf16(ToFloat(x[i]) * std::exp2(float(int(r >> 8) % 40 - 30)));
      if (i / kWidth == 2) x[i] = ToBf16(0.0f);
    }
    Buffer<Bf16> device_x(x);
    p.x = device_x.get();
    size_t untouched = 0;
    const std::vector<double> got = Run(kernel, p, true, untouched, stream);
    const std::vector<double> want = InputOf(x, kWidth, p.shard[0]);
    int here = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      // One fp32 multiplication with the scale; another code would be 2^-4 away at least.
      if (std::fabs(got[i] - want[i]) <= std::fabs(want[i]) * 0x1p-20) continue;
      if (++here <= 3) {
        std::printf("  %s x %g gives %g for %g\n", c.name, ToFloat(x[i]), got[i], want[i]);
      }
    }
    if (here) std::printf("FAIL codes of %s, %s: %d differ\n", c.name, kernel.name, here);
    wrong += here;
  }
  return wrong;
}

int CheckLinearRefusals(const LinearKernel& kernel) {
  alignas(256) static std::byte memory[256];
  Sm90LinearParams good;
  good.tokens = 1, good.k = 2048, good.shards = 2, good.ldy = 96;
  good.x = reinterpret_cast<const Bf16*>(memory), good.y = reinterpret_cast<Bf16*>(memory);
  good.workspace = memory, good.workspace_bytes = size_t(1) << 40;
  for (int i = 0; i < 2; ++i) {
    good.shard[i].n = 48, good.shard[i].weights = reinterpret_cast<const uint8_t*>(memory);
  }
  const struct {
    const char* what;
    void (*spoil)(Sm90LinearParams&);
  } cases[] = {
      {"k no multiple of 16", [](Sm90LinearParams& p) { p.k = 2056; }},
      {"no tokens", [](Sm90LinearParams& p) { p.tokens = 0; }},
      {"too many tokens", [](Sm90LinearParams& p) { p.tokens = 1 << 24; }},
      {"no shards", [](Sm90LinearParams& p) { p.shards = 0; }},
      {"nine shards", [](Sm90LinearParams& p) { p.shards = 9; }},
      {"x not aligned", [](Sm90LinearParams& p) { ++p.x; }},
      {"no y", [](Sm90LinearParams& p) { p.y = nullptr; }},
      {"two y", [](Sm90LinearParams& p) { p.y_f32 = reinterpret_cast<float*>(p.y); }},
      {"ldy too small", [](Sm90LinearParams& p) { p.ldy = 95; }},
      {"a shard without rows", [](Sm90LinearParams& p) { p.shard[1].n = 0; }},
      {"weights not aligned", [](Sm90LinearParams& p) { p.shard[1].weights += 16; }},
      {"FP8 by channel without scales",
       [](Sm90LinearParams& p) { p.shard[0].weight = Sm90Weight::kFp8Channel; }},
      {"a scale that is none", [](Sm90LinearParams& p) { p.shard[0].scale = NAN; }},
      {"bf16 input with a scale", [](Sm90LinearParams& p) { p.shard[0].input_scale = 1; }},
      {"NVFP4 input without a scale",
       [](Sm90LinearParams& p) { p.shard[0].input = Sm90Input::kNvfp4; }},
      {"FP8 by 128 on another weight",
       [](Sm90LinearParams& p) { p.shard[0].input = Sm90Input::kFp8Group; }},
  };
  return CountAccepted(kernel, good, cases);
}

}  // namespace nibble::bench
