#include "kernels/host_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/cpu/attention_truth.h"
#include "kernels/cpu/glue_test_support.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels {
namespace {

using cpu::kPoison;
constexpr KvDtype kDtypes[] = {KvDtype::kF32, KvDtype::kF32Bf16, KvDtype::kBf16, KvDtype::kFp8};
constexpr int64_t kSlots = 3, kLayers = 2, kLayer = 1;
constexpr float kKScale = 0.037f, kVScale = 0.019f;

struct Config {
  AttentionShape shape;
  int64_t frequencies;
  int64_t capacity = 420;
};

AttentionShape Shape(int64_t heads, int64_t kv_heads, int64_t dim, bool gated = false) {
  return {heads, kv_heads, dim, 1e-6f, gated};
}

CpuIsa BestIsa() {
  for (CpuIsa isa : {CpuIsa::kAvx512Bf16, CpuIsa::kAvx512, CpuIsa::kAvx2}) {
    if (cpu::HasIsa(isa)) return isa;
  }
  return CpuIsa::kScalar;
}

/// Rows of a slot that a batch runs; its rows of the matrices follow each other.
struct Part {
  int slot;
  int64_t start, n;
};

/// An attention layer whose slots hold sequences of random rows. Whatever a slot may not read holds
/// NaN.
class Layer {
 public:
  Layer(const Config& config, KvDtype dtype, CpuIsa isa, int threads, bool in_double = false)
      : config_(config),
        rounding_(cpu::RoundingOf(isa, dtype)),
        glue_(cpu::GlueFor(isa)),
        pool_(threads),
        attention_(in_double, glue_, pool_),
        q_norm_(cpu::RandomNormal(config.shape.head_dim, 1, 2)),
        k_norm_(cpu::RandomNormal(config.shape.head_dim, 2)),
        angles_(cpu::RandomNormal(config.frequencies, 3)) {
    kv_.layers = kLayers;
    kv_.slots = kSlots;
    kv_.capacity = config.capacity;
    kv_.kv_width = config.shape.kv_width();
    kv_.head_dim = config.shape.head_dim;
    kv_.dtype = dtype;
    kv_.k_scales = {1, kKScale};
    kv_.v_scales = {1, kVScale};
    EXPECT_TRUE(attention_.Allocate(kv_).ok());
    for (int slot = 0; slot < kSlots; ++slot) {
      rows_.push_back(cpu::RandomNormal(config.capacity * config.shape.qkv_width(), 10 + slot));
    }
    for (int slot = 0; slot < kSlots; ++slot) CacheOf(slot);
    poison_ = true;
    for (int slot = 0; slot < kSlots; ++slot) Run({{slot, 0, config.capacity}});
    poison_ = false;
  }

  /// The outputs of the parts' rows, part after part.
  std::vector<float> Run(const std::vector<Part>& parts) {
    constexpr int64_t kOthers = 2;  // rows of the matrices that are nobody's
    int64_t n = kOthers;
    for (const Part& p : parts) n += p.n;
    const AttentionShape& shape = config_.shape;
    std::vector<float> qkv(n * shape.qkv_width(), kPoison), out(n * shape.out_width(), kPoison),
        rope(n * 2 * config_.frequencies, kPoison);
    std::vector<SequenceRows> sequences;
    int64_t row = kOthers;
    for (const Part& p : parts) {
      sequences.push_back({p.slot, row, p.n, p.start, false});
      for (int64_t i = 0; i < p.n; ++i, ++row) {
        if (!poison_)
          std::copy_n(Row(p.slot, p.start + i), shape.qkv_width(),
                      qkv.data() + row * shape.qkv_width());
        const auto table = Rope(p.start + i);
        std::copy(table.begin(), table.end(), rope.data() + row * 2 * config_.frequencies);
      }
    }
    const auto status = attention_.Run({shape, kLayer, sequences, View(q_norm_), View(k_norm_),
                                        rope.data(), config_.frequencies, qkv.data(), out.data()});
    EXPECT_TRUE(status.ok());
    for (int64_t i = 0; i < kOthers * shape.out_width(); ++i) EXPECT_TRUE(std::isnan(out[i]));
    out.erase(out.begin(), out.begin() + kOthers * shape.out_width());
    return out;
  }

  /// What a slot's row at `position` must be, and how near.
  void ExpectRow(int slot, int64_t position, const float* got) const {
    const AttentionShape& shape = config_.shape;
    const int64_t dim = shape.head_dim, group = shape.n_heads / shape.n_kv_heads;
    for (int64_t kv_head = 0; kv_head < shape.n_kv_heads; ++kv_head) {
      const float* const keys = keys_[slot].data() + kv_head * config_.capacity * dim;
      const float* const values = values_[slot].data() + kv_head * config_.capacity * dim;
      const bool fp8 = kv_.dtype == KvDtype::kFp8;
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        const float* const in = Row(slot, position) + h * shape.q_stride();
        std::vector<float> q(dim);
        Prepare(in, q_norm_, position, q.data());
        const cpu::AttentionTruth truth(
            q.data(), dim, position + 1, [&](int64_t j) { return keys + j * dim; },
            [&](int64_t j) { return values + j * dim; }, rounding_, fp8 ? kKScale : 1,
            fp8 ? kVScale : 1);
        for (int64_t d = 0; d < dim; ++d) {
          const double gate = shape.gated ? 1 / (1 + std::exp(-double{in[dim + d]})) : 1;
          ASSERT_NEAR(got[h * dim + d], truth.values[d] * gate,
                      gate * (truth.bounds[d] + 1e-6 * std::abs(truth.values[d])) + 1e-37)
              << "slot " << slot << " position " << position << " head " << h << " at " << d;
        }
      }
    }
  }
  void ExpectRows(const std::vector<Part>& parts) {
    const auto out = Run(parts);
    const float* got = out.data();
    for (const Part& p : parts) {
      for (int64_t i = 0; i < p.n; ++i, got += config_.shape.out_width()) {
        if (p.n < 10 || i % 29 == 0 || i + 1 == p.n) ExpectRow(p.slot, p.start + i, got);
      }
    }
  }

 private:
  static Vector View(const std::vector<float>& v) {
    return {v.data(), static_cast<int64_t>(v.size())};
  }
  const float* Row(int slot, int64_t position) const {
    return rows_[slot].data() + position * config_.shape.qkv_width();
  }
  std::vector<float> Rope(int64_t position) const {
    std::vector<float> table;
    for (float a : angles_) table.push_back(std::cos(a * static_cast<float>(position)));
    for (float a : angles_) table.push_back(std::sin(a * static_cast<float>(position)));
    return table;
  }
  /// By kernels that other tests hold to the truth: attention is to be told from their rounding.
  void Prepare(const float* x, const std::vector<float>& norm, int64_t position, float* out) const {
    const auto rope = Rope(position);
    glue_.rms_norm(x, config_.shape.head_dim, norm.data(), config_.shape.norm_eps, out);
    glue_.rotate_halves(out, rope.data(), rope.data() + config_.frequencies, config_.frequencies);
  }
  void CacheOf(int slot) {
    const AttentionShape& shape = config_.shape;
    const int64_t dim = shape.head_dim;
    for (int64_t head = 0; head < shape.n_kv_heads; ++head) {
      for (int64_t j = 0; j < config_.capacity; ++j) {
        const float* const k = Row(slot, j) + shape.q_width() + head * dim;
        std::vector<float> prepared(dim);
        Prepare(k, k_norm_, j, prepared.data());
        for (int64_t d = 0; d < dim; ++d) {
          keys_[slot].push_back(Cached(KeysOf(kv_.dtype), prepared[d], kKScale));
          values_[slot].push_back(Cached(ValuesOf(kv_.dtype), k[shape.kv_width() + d], kVScale));
        }
      }
    }
  }
  static float Cached(KvDtype dtype, float x, float scale) {
    if (dtype == KvDtype::kBf16) return RoundToBf16(x);
    return dtype == KvDtype::kFp8 ? DecodeE4m3(EncodeE4m3(x / scale)) : x;
  }

  const Config config_;
  const cpu::AttentionRounding rounding_;
  const cpu::GlueKernels& glue_;
  ThreadPool pool_;
  HostAttention attention_;
  KvShape kv_;
  std::vector<float> q_norm_, k_norm_, angles_;
  std::vector<std::vector<float>> rows_;              // [slots][capacity, qkv width]
  std::vector<float> keys_[kSlots], values_[kSlots];  // [kv heads, capacity, dim], as cached
  bool poison_ = false;
};

const Config kConfigs[] = {
    {Shape(8, 2, 64), 32},      {Shape(4, 1, 50, true), 10}, {Shape(16, 1, 128), 64},
    {Shape(3, 3, 37), 18},      {Shape(12, 4, 16, true), 3}, {Shape(7, 1, 256, true), 32},
    {Shape(100, 1, 8), 4, 170}, {Shape(1, 1, 1), 0, 300},
};

TEST(HostAttention, BatchesOfSequencesFollowTheTruth) {
  for (const Config& config : kConfigs) {
    for (const KvDtype dtype : kDtypes) {
      for (CpuIsa isa : cpu::GlueIsas()) {
        SCOPED_TRACE(testing::Message()
                     << config.shape.n_heads << "/" << config.shape.n_kv_heads << "/"
                     << config.shape.head_dim << " " << NameOf(dtype) << " " << NameOf(isa));
        Layer layer(config, dtype, isa, 2);
        layer.ExpectRows({{2, 0, 3}, {0, 0, 70}});
        layer.ExpectRows({{0, 70, 1}, {1, 0, 1}, {2, 3, 40}});
        layer.ExpectRows({{2, 43, 2}, {1, 1, 130}, {0, 71, 1}});
        if (config.capacity < 420) continue;
        layer.ExpectRows({{0, 72, 200}});
        layer.ExpectRows({{0, 272, 1}, {1, 131, 289}, {2, 45, 1}});
        layer.ExpectRows({{0, 273, 5}});
        if (HasFailure()) return;
      }
    }
  }
}

TEST(HostAttention, ThreadsAndBatchesChangeNoBit) {
  const Config configs[] = {{Shape(8, 2, 64), 32}, {Shape(6, 1, 48, true), 8}};
  for (const Config& config : configs) {
    for (const KvDtype dtype : kDtypes) {
      Layer whole(config, dtype, BestIsa(), 1);
      const auto wanted = whole.Run({{1, 0, config.capacity}});
      EXPECT_EQ(whole.Run({{1, 0, config.capacity}}), wanted) << "not even a second time";
      struct Case {
        int threads;
        int64_t part;
      };
      for (const Case& c :
           {Case{1, 1}, Case{2, 1}, Case{2, 5}, Case{3, 33}, Case{7, 33}, Case{1, 130},
            Case{2, 130}, Case{3, config.capacity}, Case{7, config.capacity}}) {
        Layer layer(config, dtype, BestIsa(), c.threads);
        std::vector<float> got;
        for (int64_t first = 0; first < config.capacity; first += c.part) {
          const int64_t n = std::min(c.part, config.capacity - first);
          // Others in the batch, some of the time: they change what is cut into runs.
          std::vector<Part> batch = {{1, first, n}};
          if (first % 2) batch.push_back({2, 0, first % 80 + 1});
          const auto rows = layer.Run(batch);
          got.insert(got.end(), rows.begin(), rows.begin() + n * config.shape.out_width());
        }
        ASSERT_EQ(got, wanted) << c.threads << " threads, parts of " << c.part << ", "
                               << NameOf(dtype);
      }
    }
  }
}

TEST(HostAttention, SinglePrecisionFollowsDouble) {
  for (const Config& config : kConfigs) {
    Layer single(config, KvDtype::kF32, BestIsa(), 2);
    Layer exact(config, KvDtype::kF32, BestIsa(), 2, true);
    for (const std::vector<Part>& batch :
         {std::vector<Part>{{0, 0, 150}, {1, 0, 1}}, std::vector<Part>{{1, 1, 9}, {0, 150, 1}}}) {
      const auto got = single.Run(batch), wanted = exact.Run(batch);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], wanted[i], 2e-5 * (1 + std::abs(wanted[i])));
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
