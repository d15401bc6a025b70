#include "operators_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "device_buffer.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/sample.h"

namespace nibble::bench {
namespace {

using cuda::Element;

std::vector<Bf16> RandomBf16s(size_t n, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::vector<Bf16> v(n);
  for (Bf16& x : v) x = ToBf16(size * (float(random() % 4001) / 1000 - 2));
  return v;
}
std::vector<float> RandomFloats(size_t n, uint32_t seed, float size = 1) {
  std::mt19937 random(seed);
  std::vector<float> v(n);
  for (float& x : v) x = size * (float(random() % 400001) / 100000 - 2);
  return v;
}
std::vector<double> Wide(const std::vector<Bf16>& v) {
  std::vector<double> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) out[i] = ToFloat(v[i]);
  return out;
}
std::vector<double> Wide(const std::vector<float>& v) { return {v.begin(), v.end()}; }

double SigmoidOf(double x) { return 1 / (1 + std::exp(-x)); }

/// Collects the comparisons of one kind of operator.
class Comparison {
 public:
  explicit Comparison(const char* kind) : kind_(kind) {}
  /// `relative`: of the result's rounding; `size[i]`: of what fp32 sums were made of.
  template <class T>
  void Compare(const std::string& what, const std::vector<T>& got, const std::vector<double>& want,
               double relative, const std::vector<double>& size) {
    bool ok = got.size() == want.size();
    std::string why = "another size";
    const std::vector<double> g = Wide(got);
    for (size_t i = 0; ok && i < g.size(); ++i) {
      const double bound = std::fabs(want[i]) * relative + size[i] * 0x1p-20 + 1e-38;
      const double share = std::fabs(g[i] - want[i]) / bound;
      if (!(share <= tally.worst)) tally.worst = share;
      if (share <= 1) continue;
      ok = false;
      why = "at " + std::to_string(i) + ": " + std::to_string(g[i]) + " for " +
            std::to_string(want[i]) + " +- " + std::to_string(bound);
    }
    Note(what, ok, why);
  }
  void Note(const std::string& what, bool ok, const std::string& why) {
    ++tally.done, tally.failed += !ok;
    if (!ok && tally.failed <= 6) std::printf("FAIL %s %s: %s\n", kind_, what.c_str(), why.c_str());
  }
  Tally tally;

 private:
  const char* kind_;
};

constexpr double kBf16 = 0x1.02p-8, kF32 = 0x1p-21;
double RoundingOf(Element e) { return e == Element::kBf16 ? kBf16 : kF32; }

/// A block of either element on the device.
struct Block {
  Block(const std::vector<Bf16>& v) : bf16(v), element(Element::kBf16), host(Wide(v)) {}
  Block(const std::vector<float>& v) : f32(v), element(Element::kF32), host(Wide(v)) {}
  Block(Element e, size_t n)
      : bf16(e == Element::kBf16 ? n : 0), f32(e == Element::kF32 ? n : 0), element(e) {
    element == Element::kBf16 ? bf16.Fill(0xFF) : f32.Fill(0xFF);
  }
  void* get() const {
    return element == Element::kBf16 ? static_cast<void*>(bf16.get())
                                     : static_cast<void*>(f32.get());
  }
  std::vector<float> Read() const {
    if (element == Element::kF32) return f32.Read();
    std::vector<float> out;
    for (Bf16 x : bf16.Read()) out.push_back(ToFloat(x));
    return out;
  }
  Buffer<Bf16> bf16;
  Buffer<float> f32;
  Element element;
  std::vector<double> host;
};

std::vector<double> NormOf(const std::vector<double>& x, const std::vector<float>& w, int cols,
                           float eps) {
  std::vector<double> out(x.size());
  for (size_t row = 0; row < x.size(); row += cols) {
    double squares = 0;
    for (int c = 0; c < cols; ++c) squares += x[row + c] * x[row + c];
    const double scale = 1 / std::sqrt(squares / cols + eps);
    for (int c = 0; c < cols; ++c) out[row + c] = x[row + c] * scale * w[c];
  }
  return out;
}

void CheckRmsNorm(Comparison& all, int rows, int cols, cudaStream_t stream) {
  const std::string shape = std::to_string(rows) + " x " + std::to_string(cols);
  const std::vector<float> weight = RandomFloats(cols, 3);
  const Buffer<float> w(weight);
  for (Element in : {Element::kF32, Element::kBf16}) {
    for (Element out : {Element::kF32, Element::kBf16}) {
      const size_t n = size_t(rows) * cols;
      const Block x =
          in == Element::kF32 ? Block(RandomFloats(n, 5 + cols)) : Block(RandomBf16s(n, 5 + cols));
      Block y(out, n);
      Must(cuda::LaunchRmsNorm({rows, cols, x.get(), in, w.get(), 1e-6f, y.get(), out, 0}, stream));
      BENCH_CUDA(cudaStreamSynchronize(stream));
      const std::vector<double> want = NormOf(x.host, weight, cols, 1e-6f);
      all.Compare("norm " + shape, y.Read(), want, RoundingOf(out), want);
    }
  }
}

void CheckAddNorm(Comparison& all, int rows, int cols, cudaStream_t stream) {
  const size_t n = size_t(rows) * cols;
  const std::string shape = std::to_string(rows) + " x " + std::to_string(cols);
  const std::vector<float> residual = RandomFloats(n, 7), weight = RandomFloats(cols, 3);
  const std::vector<Bf16> y = RandomBf16s(n, 8), x = RandomBf16s(n, 9), shared = RandomBf16s(n, 10);
  const std::vector<Bf16> gate = RandomBf16s(cols, 11, 0.05f);
  const Buffer<float> device_w(weight);
  const Buffer<Bf16> device_y(y), device_shared(shared), device_gate(gate);
  for (bool with_shared : {false, true}) {
    for (bool with_norm : {false, true}) {
      std::vector<double> sum(n), size(n), alone(n);
      for (size_t i = 0; i < n; ++i) {
        double dot = 0;
        if (with_shared && i % cols == 0) {
          for (int c = 0; c < cols; ++c) dot += double(ToFloat(gate[c])) * ToFloat(x[i + c]);
          const double s = SigmoidOf(dot);
          for (int c = 0; c < cols; ++c) alone[i + c] = s * ToFloat(shared[i + c]);
        }
        sum[i] = double(residual[i]) + ToFloat(y[i]) + alone[i];
        // The sigmoid's argument is a sum of cols products.
        size[i] = std::fabs(residual[i]) + std::fabs(ToFloat(y[i])) + 4 * std::fabs(alone[i]);
      }
      Buffer<float> device_residual(residual);
      Buffer<Bf16> device_x(x);  // and the result, in place
      cuda::AddRmsNormParams p;
      p.rows = rows, p.cols = cols, p.residual = device_residual.get(), p.y = device_y.get();
      if (with_shared) {
        p.gate = device_gate.get(), p.x = device_x.get(), p.shared = device_shared.get();
      }
      if (with_norm) p.weight = device_w.get(), p.out = device_x.get();
      Must(cuda::LaunchAddRmsNorm(p, stream));
      BENCH_CUDA(cudaStreamSynchronize(stream));
      const std::string what = shape + (with_shared ? " shared" : "") + (with_norm ? " norm" : "");
      all.Compare("add " + what, device_residual.Read(), sum, kF32, size);
      if (!with_norm) continue;
      const std::vector<double> want = NormOf(sum, weight, cols, 1e-6f);
      for (size_t i = 0; i < n; ++i) size[i] *= std::fabs(weight[i % cols]);
      all.Compare("add and norm " + what, device_x.Read(), want, kBf16, size);
    }
  }
  std::vector<double> want(n), size(n);
  for (size_t i = 0; i < n; i += cols) {
    double dot = 0;
    for (int c = 0; c < cols; ++c) dot += double(ToFloat(gate[c])) * ToFloat(x[i + c]);
    for (int c = 0; c < cols; ++c) {
      const double add = SigmoidOf(dot) * ToFloat(shared[i + c]);
      want[i + c] = ToFloat(y[i + c]) + add, size[i + c] = 4 * std::fabs(add);
    }
  }
  const Buffer<Bf16> device_x(x);
  Buffer<Bf16> into(y);
  Must(cuda::LaunchAddSharedExpert(
      {rows, cols, device_gate.get(), device_x.get(), device_shared.get(), into.get()}, stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  all.Compare("shared expert " + shape, into.Read(), want, kBf16, size);
}

void CheckMoves(Comparison& all, int rows, int cols, cudaStream_t stream) {
  const std::string shape = std::to_string(rows) + " x " + std::to_string(cols);
  const int table_rows = 97;
  const std::vector<Bf16> table = RandomBf16s(size_t(table_rows) * cols, 21);
  std::mt19937 random(rows);
  std::vector<int32_t> ids(rows), index(rows);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % (table_rows + 2)) - 1;
  for (int32_t& i : index) i = static_cast<int32_t>(random() % table_rows);
  const Buffer<Bf16> device_table(table);
  const Buffer<int32_t> device_ids(ids), device_index(index);
  const size_t n = size_t(rows) * cols;
  std::vector<double> embedded(n), gathered(n);
  const std::vector<double> zero(2 * n);
  for (size_t i = 0; i < n; ++i) {
    const int id = ids[i / cols];
    if (id >= 0 && id < table_rows) embedded[i] = ToFloat(table[size_t(id) * cols + i % cols]);
    gathered[i] = ToFloat(table[size_t(index[i / cols]) * cols + i % cols]);
  }
  for (Element out : {Element::kF32, Element::kBf16}) {
    Block y(out, n);
    Must(cuda::LaunchEmbed(
        {rows, cols, table_rows, device_table.get(), device_ids.get(), y.get(), out}, stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    all.Compare("embed " + shape, y.Read(), embedded, 0, zero);
  }
  Buffer<Bf16> y(n);
  y.Fill(0xFF);
  Must(cuda::LaunchGatherRows({rows, 2 * cols, device_table.get(), device_index.get(), y.get()},
                              stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  all.Compare("gather " + shape, y.Read(), gathered, 0, zero);

  const std::vector<Bf16> a = RandomBf16s(n, 31), b = RandomBf16s(2 * n, 32, 4);
  const Buffer<Bf16> device_a(a), device_b(b);
  Buffer<Bf16> joined(3 * n);
  joined.Fill(0xFF);
  Must(cuda::LaunchConcat({rows, cols, 2 * cols, device_a.get(), device_b.get(), joined.get()},
                          stream));
  std::vector<double> want;
  for (int t = 0; t < rows; ++t) {
    for (int c = 0; c < cols; ++c) want.push_back(ToFloat(a[size_t(t) * cols + c]));
    for (int c = 0; c < 2 * cols; ++c) want.push_back(ToFloat(b[size_t(t) * 2 * cols + c]));
  }
  BENCH_CUDA(cudaStreamSynchronize(stream));
  all.Compare("concat " + shape, joined.Read(), want, 0, std::vector<double>(want.size()));

  y.Fill(0xFF);
  Must(cuda::LaunchSiluMul({rows, cols, device_b.get(), y.get()}, stream));
  want.assign(n, 0);
  for (int t = 0; t < rows; ++t) {
    for (int c = 0; c < cols; ++c) {
      const double g = ToFloat(b[size_t(t) * 2 * cols + c]);
      want[size_t(t) * cols + c] = g * SigmoidOf(g) * ToFloat(b[size_t(t) * 2 * cols + cols + c]);
    }
  }
  BENCH_CUDA(cudaStreamSynchronize(stream));
  all.Compare("SiLU " + shape, y.Read(), want, kBf16, want);
}

// --- router ---

struct RouteCase {
  int tokens, experts, hidden, top_k;
  bool renormalize;
  int ties = 0;  // experts that repeat the first one's weights
  bool shared = false;
};

void CheckRoute(Comparison& all, const RouteCase& c, Buffer<std::byte>& workspace,
                cudaStream_t stream) {
  const std::string what = "T=" + std::to_string(c.tokens) + " E=" + std::to_string(c.experts) +
                           " H=" + std::to_string(c.hidden) + " k=" + std::to_string(c.top_k) +
                           (c.shared ? " shared" : "");
  const std::vector<Bf16> x = RandomBf16s(size_t(c.tokens) * c.hidden, 41);
  const int rows = c.experts + c.shared, routes = c.top_k + c.shared;
  std::vector<Bf16> w = RandomBf16s(size_t(rows) * c.hidden, 42, 1.5f / std::sqrt(c.hidden));
  for (int e = 1; e <= c.ties; ++e) {
    std::copy_n(w.begin(), c.hidden, w.begin() + size_t(c.experts - e) * c.hidden);
  }
  const Buffer<Bf16> device_x(x), device_w(w);
  const size_t n = size_t(c.tokens) * routes;
  std::vector<int32_t> first_ids;
  std::vector<float> first_weights;
  for (int run = 0; run < 3; ++run) {
    Buffer<int32_t> ids(n);
    Buffer<float> weights(n);
    ids.Fill(0xFF), weights.Fill(0xFF);
    Must(cuda::LaunchRoute(
        {c.tokens, c.experts, c.hidden, c.top_k, c.renormalize, c.shared, device_x.get(),
         device_w.get(), ids.get(), weights.get(), workspace.get(), workspace.size()},
        stream));
    BENCH_CUDA(cudaStreamSynchronize(stream));
    const std::vector<int32_t> i = ids.Read();
    const std::vector<float> v = weights.Read();
    if (run == 0) first_ids = i, first_weights = v;
    if (i != first_ids || std::memcmp(v.data(), first_weights.data(), 4 * n) != 0) {
      return all.Note(what, false, "other bits");
    }
  }
  const std::vector<double> xd = Wide(x), wd = Wide(w);
  const int step = std::max(1, c.tokens / 40);
  for (int t = 0; t < c.tokens; t += step) {
    std::vector<double> logit(c.experts), p(c.experts);
    double size = 0, largest = -1e300, sum = 0;
    for (int e = 0; e < c.experts; ++e) {
      double magnitude = 0;
      for (int k = 0; k < c.hidden; ++k) {
        const double product = xd[size_t(t) * c.hidden + k] * wd[size_t(e) * c.hidden + k];
        logit[e] += product, magnitude += std::fabs(product);
      }
      size = std::max(size, magnitude), largest = std::max(largest, logit[e]);
    }
    for (int e = 0; e < c.experts; ++e) sum += p[e] = std::exp(logit[e] - largest);
    for (double& v : p) v /= sum;
    const double slack = 2 * size * 0x1p-21 + 0x1p-20;  // relative, of any p
    // Whoever was chosen must belong there within that slack; equal ones by lower index.
    std::vector<bool> taken(c.experts);
    double total = 0;
    for (int k = 0; k < c.top_k; ++k) {
      const int32_t id = first_ids[size_t(t) * routes + k];
      if (id < 0 || id >= c.experts || taken[id]) return all.Note(what, false, "not an expert");
      double best = 0;
      for (int e = 0; e < c.experts; ++e) {
        if (!taken[e]) best = std::max(best, p[e]);
        // The same weights give the same p: of two, the lower index is first.
        if (!taken[e] && e < id && c.ties && (e == 0 && id >= c.experts - c.ties)) {
          return all.Note(what, false, "of equal ones, not the lowest index");
        }
      }
      if (p[id] < best * (1 - slack)) {
        return all.Note(what, false, "token " + std::to_string(t) + " takes " + std::to_string(id));
      }
      taken[id] = true, total += p[id];
    }
    std::vector<double> want(c.top_k);
    std::vector<float> got(c.top_k);
    for (int k = 0; k < c.top_k; ++k) {
      const size_t at = size_t(t) * routes + k;
      want[k] = p[first_ids[at]] / (c.renormalize ? total : 1), got[k] = first_weights[at];
    }
    all.Compare(what + " weights", got, want, slack, std::vector<double>(c.top_k));
    if (!c.shared) continue;
    double gate = 0;
    for (int k = 0; k < c.hidden; ++k) {
      gate += xd[size_t(t) * c.hidden + k] * wd[size_t(c.experts) * c.hidden + k];
    }
    const size_t at = size_t(t) * routes + c.top_k;
    if (first_ids[at] != c.experts) return all.Note(what, false, "not to the shared expert");
    all.Compare(what + " shared", std::vector<float>{first_weights[at]},
                std::vector<double>{1 / (1 + std::exp(-gate))}, slack, std::vector<double>(1));
  }
}

}  // namespace

Tally CheckNorms(int64_t most, cudaStream_t stream) {
  Comparison all("norms");
  for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64, 100, 1000}) {
    for (int cols : {2048, 2880, 8}) {
      if (int64_t{rows} * cols > most) continue;
      CheckRmsNorm(all, rows, cols, stream);
      CheckAddNorm(all, rows, cols, stream);
      CheckMoves(all, rows, cols, stream);
    }
  }
  for (int cols : {264, 4096, 5120, 8192}) {
    CheckRmsNorm(all, 3, cols, stream);
    CheckAddNorm(all, 3, cols, stream);
  }
  // A norm into half of wider rows.
  const std::vector<float> w = RandomFloats(64, 3);
  const Buffer<float> device_w(w);
  const Block x(RandomFloats(5 * 64, 9));
  Buffer<Bf16> y(5 * 128);
  y.Fill(0xFF);
  Must(cuda::LaunchRmsNorm(
      {5, 64, x.get(), Element::kF32, device_w.get(), 1e-6f, y.get() + 64, Element::kBf16, 128},
      stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  const std::vector<Bf16> got = y.Read();
  std::vector<Bf16> halves;
  bool untouched = true;
  for (int i = 0; i < 5 * 128; ++i) {
    if (i % 128 >= 64) {
      halves.push_back(got[i]);
    } else {
      untouched = untouched && got[i].bits == 0xFFFF;
    }
  }
  const std::vector<double> want = NormOf(x.host, w, 64, 1e-6f);
  all.Compare("norm into halves", halves, want, kBf16, want);
  all.Note("norm into halves", untouched, "the other half was written");
  return all.tally;
}

Tally CheckRoutes(int64_t most, cudaStream_t stream) {
  Comparison all("route");
  Buffer<std::byte> workspace(cuda::RouteWorkspace(3000, 513));
  workspace.Fill(0);
  std::vector<RouteCase> cases;
  for (int tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 64, 100, 1000}) {
    cases.push_back({tokens, 256, 2048, 8, true, tokens % 2 * 3});
    cases.push_back({tokens, 128, 2048, 8, true});
    cases.push_back({tokens, 512, 4096, 10, false, 5});
    cases.push_back({tokens, 61, 136, 32, true, 2});
  }
  for (int tokens : {1, 3, 8, 17, 100, 1000, 2000}) {
    cases.push_back({tokens, 256, 2048, 8, true, 0, true});
    cases.push_back({tokens, 512, 4096, 10, false, 5, true});
    cases.push_back({tokens, 61, 136, 31, true, 2, true});
  }
  cases.push_back({3, 512, 8192, 22, true});
  cases.push_back({5, 200, 7168, 8, false});
  cases.push_back({7, 1, 64, 1, true});
  cases.push_back({40, 1, 64, 1, true});
  cases.push_back({3000, 256, 2048, 8, true});
  cases.push_back({2100, 300, 264, 6, false, 1});
  for (const RouteCase& c : cases) {
    if (int64_t{c.tokens} * c.experts * c.hidden <= most) CheckRoute(all, c, workspace, stream);
  }
  return all.tally;
}

Tally CheckArgmaxes(int64_t most, cudaStream_t stream) {
  Comparison all("argmax");
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = NAN;
  Buffer<std::byte> workspace(cuda::ArgmaxWorkspace(64));
  workspace.Fill(0);
  std::mt19937 random(5);
  for (int rows : {1, 2, 3, 8, 17, 64}) {
    for (int64_t drawable : {1, 3, 513, 151643, 248320, 300001}) {
      if (rows * drawable > most) continue;
      const int64_t stride = (drawable + 131) / 4 * 4;
      std::vector<float> logits = RandomFloats(rows * stride, rows + drawable);
      std::vector<int32_t> want(rows), flags(rows);
      for (int r = 0; r < rows; ++r) {
        float* const row = logits.data() + r * stride;
        const auto any = [&] { return static_cast<int64_t>(random() % drawable); };
        if (r % 8 == 1) row[any()] = row[any()] = 7;  // often two of the largest
        if (r % 8 == 2) row[any()] = kNan;
        if (r % 8 == 3) std::fill_n(row, drawable, -kInfinity);
        if (r % 8 == 4) row[any()] = kInfinity, row[any()] = -kNan;
        if (r % 8 == 5) std::fill_n(row, drawable, kNan);
        if (r % 8 == 6) {  // -0 and 0 are equal
          for (int64_t i = 0; i < drawable; ++i) row[i] = i % 2 ? 0.0f : -0.0f;
        }
        if (r % 8 == 7) std::fill_n(row, drawable, -3.5f);
        for (int64_t i = drawable; i < stride; ++i) row[i] = i % 2 ? 1e30f : kNan;  // not drawable
        int64_t best = -1;
        for (int64_t i = 0; i < drawable; ++i) {
          if (row[i] != row[i]) {
            flags[r] = 1;
          } else if (best < 0 || row[i] > row[best]) {
            best = i;
          }
        }
        want[r] = static_cast<int32_t>(std::max<int64_t>(best, 0));
      }
      const Buffer<float> device(logits);
      for (int run = 0; run < 2; ++run) {
        Buffer<int32_t> ids(rows), nan(rows);
        ids.Fill(0xFF), nan.Fill(0xFF);
        Must(cuda::LaunchArgmax({rows, drawable, stride, device.get(), ids.get(), nan.get(),
                                 workspace.get(), workspace.size()},
                                stream));
        BENCH_CUDA(cudaStreamSynchronize(stream));
        all.Note(std::to_string(rows) + " x " + std::to_string(drawable),
                 ids.Read() == want && nan.Read() == flags, "another id or flag");
      }
    }
  }
  return all.tally;
}

Tally CheckRopeTables(cudaStream_t stream) {
  Comparison all("rope table");
  std::vector<float> frequency;
  for (int i = 0; i < 32; ++i) frequency.push_back(float(std::pow(1e7, -i / 32.0)));
  std::vector<cuda::StepRow> rows;
  for (int p : {0, 1, 2, 63, 64, 1000, 4097, 99999, 131071, 262143, 262144, 1048575}) {
    rows.push_back({p, 0});
  }
  const Buffer<float> device_frequency(frequency);
  const Buffer<cuda::StepRow> device_rows(rows);
  Buffer<float> table(rows.size() * 64);
  table.Fill(0xFF);
  cuda::RopeTableParams p;
  p.step.rows = static_cast<int>(rows.size()), p.step.row = device_rows.get();
  p.frequencies = 32, p.frequency = device_frequency.get(), p.table = table.get();
  Must(cuda::LaunchRopeTable(p, stream));
  BENCH_CUDA(cudaStreamSynchronize(stream));
  std::vector<double> want;
  for (const cuda::StepRow& row : rows) {
    for (bool sine : {false, true}) {
      for (float f : frequency) {
        const double angle = double(row.position) * f;
        want.push_back(sine ? std::sin(angle) : std::cos(angle));
      }
    }
  }
  all.Compare("positions to 2^20", table.Read(), want, 0x1.01p-24,
              std::vector<double>(want.size()));
  return all.tally;
}

Tally CheckOperatorRefusals() {
  Comparison all("refusals");
  alignas(256) static std::byte memory[256];
  const auto bf16 = reinterpret_cast<Bf16*>(memory);
  const auto f32 = reinterpret_cast<float*>(memory);
  const auto i32 = reinterpret_cast<int32_t*>(memory);
  const auto refused = [&](const char* what, const Result<void>& result) {
    all.Note(what, !result && result.error().code == ErrorCode::kInvalidArgument, "is not refused");
  };
  refused("columns no multiple of 8",
          cuda::LaunchRmsNorm({1, 12, memory, Element::kF32, f32, 1e-6f, memory}, nullptr));
  refused("no rows", cuda::LaunchSiluMul({0, 8, bf16, bf16}, nullptr));
  refused("rows wider than a block",
          cuda::LaunchRmsNorm({1, 8200, memory, Element::kF32, f32, 1e-6f, memory}, nullptr));
  refused("x not aligned",
          cuda::LaunchRmsNorm({1, 8, memory + 4, Element::kF32, f32, 1e-6f, memory}, nullptr));
  refused("a stride below the columns",
          cuda::LaunchRmsNorm(
              {1, 64, memory, Element::kF32, f32, 1e-6f, memory, Element::kBf16, 32}, nullptr));
  cuda::AddRmsNormParams add;
  add.rows = 1, add.cols = 64, add.residual = f32, add.y = bf16, add.gate = bf16;
  refused("a gate without a shared expert", cuda::LaunchAddRmsNorm(add, nullptr));
  add.gate = nullptr, add.out = bf16;
  refused("an output without a weight", cuda::LaunchAddRmsNorm(add, nullptr));
  cuda::RouteParams route{1, 64, 64, 8, true, false, bf16, bf16, i32, f32, memory, 1 << 20};
  for (auto spoil :
       {+[](cuda::RouteParams& p) { p.experts = 513; }, +[](cuda::RouteParams& p) { p.top_k = 33; },
        +[](cuda::RouteParams& p) { p.hidden = 68; },
        +[](cuda::RouteParams& p) { p.workspace_bytes = 100; },
        +[](cuda::RouteParams& p) { p.ids = nullptr; },
        +[](cuda::RouteParams& p) { p.tokens = 0; }}) {
    cuda::RouteParams p = route;
    spoil(p);
    refused("a route", cuda::LaunchRoute(p, nullptr));
  }
  refused("argmax: stride",
          cuda::LaunchArgmax({1, 10, 8, f32, i32, i32, memory, 1 << 20}, nullptr));
  refused("argmax: workspace", cuda::LaunchArgmax({1, 8, 8, f32, i32, i32, memory, 8}, nullptr));
  cuda::AttentionParams good;
  good.shape = {16, 2, 256, 64, 1e-6f, true};
  good.step = {1, 1, reinterpret_cast<cuda::StepRow*>(memory),
               reinterpret_cast<cuda::StepSequence*>(memory)};
  good.q_norm = good.k_norm = good.rope = f32, good.qkv = good.out = bf16;
  good.cache = {memory, memory, KvDtype::kBf16, 1, 1, i32, 4};
  good.capacity = 256, good.workspace = memory, good.workspace_bytes = size_t(1) << 40;
  for (auto spoil : {+[](cuda::AttentionParams& p) { p.shape.head_dim = 96; },
                     +[](cuda::AttentionParams& p) { p.shape.n_heads = 34; },
                     +[](cuda::AttentionParams& p) { p.shape.n_heads = 15; },
                     +[](cuda::AttentionParams& p) { p.shape.rotary_dim = 24; },
                     +[](cuda::AttentionParams& p) { p.cache.dtype = KvDtype::kF32; },
                     +[](cuda::AttentionParams& p) { p.cache.k_scale = 0.5f; },
                     +[](cuda::AttentionParams& p) { p.cache.k = nullptr; },
                     +[](cuda::AttentionParams& p) { p.capacity = 257; },
                     +[](cuda::AttentionParams& p) { p.step.sequences = 0; },
                     +[](cuda::AttentionParams& p) { p.rope = nullptr; },
                     +[](cuda::AttentionParams& p) { p.workspace_bytes = 64; }}) {
    cuda::AttentionParams p = good;
    spoil(p);
    refused("attention", cuda::LaunchAttentionDecode(p, 1, nullptr));
  }
  refused("nine rows", cuda::LaunchAttentionDecode(good, 9, nullptr));
  return all.tally;
}

}  // namespace nibble::bench
