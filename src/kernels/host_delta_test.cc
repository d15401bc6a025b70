#include "kernels/host_delta.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/cpu/glue_test_support.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kTokens = 150, kSlots = 2;
constexpr DeltaShape kShape{2, 4, 16, 24, 4, 1e-6f};
// Large enough for parallel regions: by 1 and 2 threads heads are run by threes, by 4 one by one.
constexpr DeltaShape kForking{2, 6, 64, 48, 4, 1e-6f};

/// Forms in which a row's bits do not depend on its batch.
constexpr DeltaForm kExactForms[] = {DeltaForm::kDouble, DeltaForm::kInvariant};

struct Parameters {
  std::vector<float> conv, a_log, dt_bias, norm;
  DeltaParameters View() const {
    const auto vector = [](const std::vector<float>& v) {
      return Vector{v.data(), static_cast<int64_t>(v.size())};
    };
    return {vector(conv), vector(a_log), vector(dt_bias), vector(norm)};
  }
};

class Layer {
 public:
  explicit Layer(DeltaForm form, int threads = 2, const DeltaShape& shape = kShape)
      : shape_(shape),
        pool_(threads),
        delta_(form, cpu::GlueFor(CpuIsa::kScalar), pool_),
        input_(cpu::RandomNormal(kTokens * shape.in_width(), 5, 1)) {
    parameters_.conv = cpu::RandomNormal(shape.taps * shape.channels(), 1, 0.5f);
    parameters_.a_log = cpu::RandomNormal(shape.v_heads, 2, 0.5f);
    parameters_.dt_bias = cpu::RandomNormal(shape.v_heads, 3, 0.5f);
    parameters_.norm = cpu::RandomNormal(shape.v_dim, 4, 1);
    EXPECT_TRUE(delta_.Allocate({1, kSlots, 8, shape}).ok());
  }

  /// Rows [first, first + n) of the test's input; their outputs.
  std::vector<float> Run(int64_t first, int64_t n, bool tentative = false, int slot = 0) {
    const int64_t width = shape_.out_width();
    std::vector<float> out((n + 1) * width, NAN);
    delta_.Run(0, {slot, 1, n, first, tentative}, parameters_.View(),
               input_.data() + (first - 1) * shape_.in_width(), out.data());
    for (int64_t i = 0; i < width; ++i) EXPECT_TRUE(std::isnan(out[i]));
    out.erase(out.begin(), out.begin() + width);
    return out;
  }
  /// All rows, `part` at a time.
  std::vector<float> InParts(int64_t part) {
    std::vector<float> all;
    for (int64_t first = 0; first < kTokens; first += part) {
      const auto rows = Run(first, std::min(part, kTokens - first));
      all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
  }
  void Keep(int64_t rows) { delta_.Keep(0, rows); }

 private:
  DeltaShape shape_;
  ThreadPool pool_;
  HostDelta delta_;
  Parameters parameters_;
  std::vector<float> input_;
};

/// The whole input at once.
std::vector<float> Whole(DeltaForm form) { return Layer(form).Run(0, kTokens); }

std::vector<float> Rows(const std::vector<float>& all, int64_t first, int64_t n) {
  return {all.begin() + first * kShape.out_width(), all.begin() + (first + n) * kShape.out_width()};
}

/// Single precision, a few hundred roundings deep; the norm divides by what may be small.
void ExpectClose(const std::vector<float>& got, const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], wanted[i], 2e-5 * (1 + std::abs(wanted[i]))) << i;
    error += std::pow(double{got[i]} - wanted[i], 2);
    size += std::pow(double{wanted[i]}, 2);
  }
  EXPECT_LE(std::sqrt(error / size), 2e-6);
}

TEST(HostDelta, SinglePrecisionFollowsDouble) {
  ExpectClose(Whole(DeltaForm::kInvariant), Whole(DeltaForm::kDouble));
  ExpectClose(Whole(DeltaForm::kFastest), Whole(DeltaForm::kDouble));
}

TEST(HostDelta, PartsAndThreadsChangeNoBitOfTheInvariantForms) {
  for (const DeltaForm form : kExactForms) {
    for (const DeltaShape& shape : {kShape, kForking}) {
      const auto whole = Layer(form, 1, shape).InParts(kTokens);
      for (int64_t part : {1, 2, 3, 5, 22, 64, 65, 100}) {
        const int threads = static_cast<int>(part % 4) + 1;
        EXPECT_EQ(Layer(form, threads, shape).InParts(part), whole) << "parts of " << part;
      }
    }
  }
}

TEST(HostDelta, ThreadsChangeNoBitOfChunks) {
  for (int64_t part : {int64_t{40}, kTokens}) {
    const auto one = Layer(DeltaForm::kFastest, 1, kForking).InParts(part);
    for (int threads : {2, 3, 4, 7}) {
      EXPECT_EQ(Layer(DeltaForm::kFastest, threads, kForking).InParts(part), one) << threads;
    }
  }
}

TEST(HostDelta, PartsOfAPromptChangeChunksByRoundingOnly) {
  const auto exact = Layer(DeltaForm::kDouble, 1, kForking).InParts(kTokens);
  const auto whole = Layer(DeltaForm::kFastest, 1, kForking).InParts(kTokens);
  EXPECT_NE(whole, Layer(DeltaForm::kInvariant, 1, kForking).InParts(kTokens)) << "never chunks";
  for (int64_t part : {1, 7, 63, 64, 65, 100}) {
    SCOPED_TRACE(part);
    const auto parts = Layer(DeltaForm::kFastest, 2, kForking).InParts(part);
    ExpectClose(parts, exact);
    ExpectClose(parts, whole);
  }
}

TEST(HostDelta, FewRowsAreAlwaysTheRecurrence) {
  EXPECT_EQ(Layer(DeltaForm::kFastest).InParts(8), Layer(DeltaForm::kInvariant).InParts(8));
}

TEST(HostDelta, RowsTakenBackNeverWere) {
  for (const DeltaForm form : {DeltaForm::kDouble, DeltaForm::kInvariant, DeltaForm::kFastest}) {
    // Few rows are the recurrence in every form.
    const auto whole = Layer(form).InParts(1);
    for (int64_t kept = 0; kept <= 5; ++kept) {
      Layer layer(form);
      EXPECT_EQ(layer.Run(0, 7), Rows(whole, 0, 7));
      EXPECT_EQ(layer.Run(7, 5, true), Rows(whole, 7, 5));
      layer.Keep(kept);
      // What comes next may be tentative again, or not.
      EXPECT_EQ(layer.Run(7 + kept, 3, true), Rows(whole, 7 + kept, 3)) << kept << " kept";
      layer.Keep(1);
      EXPECT_EQ(layer.Run(8 + kept, 4), Rows(whole, 8 + kept, 4)) << kept << " kept";
    }
  }
}

TEST(HostDelta, KeptRowsBeforeAPromptAreTheRecurrence) {
  for (int64_t kept = 0; kept <= 5; ++kept) {
    Layer drafted(DeltaForm::kFastest), plain(DeltaForm::kFastest);
    drafted.Run(0, 7);
    drafted.Run(7, 5, true);
    drafted.Keep(kept);
    plain.Run(0, 7 + kept);
    EXPECT_EQ(drafted.Run(7 + kept, 130), plain.Run(7 + kept, 130)) << kept << " kept";
    EXPECT_EQ(drafted.Run(137 + kept, 2), plain.Run(137 + kept, 2)) << kept << " kept";
  }
}

TEST(HostDelta, ASlotThatBeginsAnewForgets) {
  const auto whole = Whole(DeltaForm::kInvariant);
  Layer layer(DeltaForm::kInvariant);
  layer.Run(4, 9);        // garbage: not from the beginning
  layer.Run(3, 5, true);  // and an undecided log
  EXPECT_EQ(layer.Run(0, 6), Rows(whole, 0, 6));
  layer.Run(11, 2, false, 1);  // another slot changes nothing
  EXPECT_EQ(layer.Run(6, 6), Rows(whole, 6, 6));
}

}  // namespace
}  // namespace nibble::kernels
