// nibble verify must tell the truth: right kernels are confirmed with a wide margin, planted
// shortcuts are caught.
#include "engine/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iostream>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/nvfp4.h"
#include "rig.h"

namespace nibble::golden {
namespace {

using engine::Measured;

std::vector<engine::LayerProof> Verify(Rig& rig) {
  auto proofs =
      engine::VerifyExperts(rig.checkpoint, rig.plan, rig.weights, *rig.operators, rig.pool);
  EXPECT_TRUE(proofs.ok());
  return proofs ? *proofs : std::vector<engine::LayerProof>{};
}

TEST(Verify, EveryCatalogueRowThatRunsHereIsConfirmed) {
  auto subjects = MiniCheckpoints();
  for (const Subject& s : TinyCheckpoints()) subjects.push_back(s);
  for (const Subject& s : subjects) {
    std::vector<std::unique_ptr<Rig>> rigs;
    for (CpuIsa isa : IsasHere()) {
      auto rig = Rig::Open(s.dir, {}, isa);
      ASSERT_TRUE(rig.ok());
      rigs.push_back(*std::move(rig));
    }
    auto reference = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar);
    ASSERT_TRUE(reference.ok());
    rigs.push_back(*std::move(reference));
    for (auto& rig : rigs) {
      const auto proofs = Verify(*rig);
      EXPECT_EQ(proofs.size(), static_cast<size_t>(rig->plan.model.n_layers));
      double least = HUGE_VAL;
      for (const engine::LayerProof& p : proofs) {
        EXPECT_TRUE(p.agrees()) << s.name << " layer " << p.layer << " " << p.kernel << " measured "
                                << NameOf(p.measured);
        EXPECT_EQ(NameOf(p.measured), s.w4a4 ? "fp4" : "bf16");
        least = std::min(least, p.margin);
      }
      EXPECT_GE(least, 10) << s.name << " " << proofs[0].kernel;
      std::cout << s.name << " " << proofs[0].kernel << ": least margin " << least << "\n";
    }
  }
}

/// The bug that Nibble exists for: a W4A16 checkpoint's experts run with the activation scales that
/// its W4A4 sibling was calibrated to.
TEST(Verify, StaleActivationScalesInAConfigAreCaughtAsFp4) {
  const auto tiny = TinyCheckpoints();
  auto rig = Rig::Open(tiny[0].dir, {}, IsasHere().back()),
       sibling = Rig::Open(tiny[2].dir, {}, IsasHere().back());
  ASSERT_TRUE(rig.ok() && sibling.ok());
  auto& quant = (*rig)->weights.layers[1].experts.quant;
  quant.a1_gscale = (*sibling)->weights.layers[1].experts.quant.a1_gscale;
  quant.a2_gscale = (*sibling)->weights.layers[1].experts.quant.a2_gscale;
  ASSERT_TRUE(quant.a1_gscale && quant.a2_gscale);
  for (const engine::LayerProof& p : Verify(**rig)) {
    EXPECT_EQ(p.agrees(), p.layer != 1) << p.layer;
    EXPECT_EQ(NameOf(p.measured), p.layer == 1 ? "fp4" : "bf16");
  }
}

/// Operators that round the experts' input to fewer bits before the true kernel sees it: what a
/// fast, dishonest engine would do.
class Shortcut : public kernels::HostOperators {
 public:
  Shortcut(Backend glue, CpuIsa isa, ThreadPool& pool, Measured how)
      : HostOperators(glue, isa, pool), how_(how) {}
  void Experts(const PreparedExperts& experts, kernels::Matrix x, const kernels::Routing& routing,
               kernels::Matrix y) override {
    auto* values = static_cast<float*>(x.data);
    const int64_t block = how_ == Measured::kFp8    ? x.cols
                          : how_ == Measured::kInt8 ? 32
                                                    : kNvfp4Group;
    for (int64_t at = 0; at < x.rows * x.cols; at += block) {
      float amax = 0;
      for (int64_t i = at; i < at + block; ++i) amax = std::max(amax, std::abs(values[i]));
      if (how_ == Measured::kFp4) {
        const float scale = RoundToBf16(amax / 6);  // of the block: finer than e4m3, still e2m1
        for (int64_t i = at; i < at + block; ++i)
          values[i] = scale * DecodeE2m1(EncodeE2m1(values[i] / scale));
        continue;
      }
      const float scale = amax / (how_ == Measured::kInt8 ? 127.0f : 448.0f);
      for (int64_t i = at; i < at + block; ++i) {
        values[i] = scale * (how_ == Measured::kInt8 ? std::nearbyint(values[i] / scale)
                                                     : DecodeE4m3(EncodeE4m3(values[i] / scale)));
      }
    }
    HostOperators::Experts(experts, x, routing, y);
  }

 private:
  Measured how_;
};

TEST(Verify, PlantedShortcutsAreCaught) {
  for (Measured how : {Measured::kInt8, Measured::kFp8, Measured::kFp4}) {
    auto rig = Rig::Open(MiniCheckpoints()[0].dir, {}, IsasHere().back(),
                         [&](Backend glue, CpuIsa isa, ThreadPool& pool) {
                           return std::make_unique<Shortcut>(glue, isa, pool, how);
                         });
    ASSERT_TRUE(rig.ok());
    for (const engine::LayerProof& p : Verify(**rig)) {
      EXPECT_FALSE(p.agrees()) << NameOf(how) << " layer " << p.layer << " margin " << p.margin;
      EXPECT_EQ(NameOf(p.measured), NameOf(how)) << "layer " << p.layer;
      EXPECT_EQ(p.first, how) << "the first multiplication was spoilt";
      EXPECT_EQ(p.second, Measured::kBf16) << "and it alone";
    }
  }
}

// ---- FP8: layer 0 of this checkpoint, beside W4A4 in layer 1.

const std::string kMixed = std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/tiny/modelopt-mixed";

TEST(Verify, Fp8LayersAreConfirmedBesideNvfp4Ones) {
  std::vector<std::unique_ptr<Rig>> rigs;
  for (CpuIsa isa : IsasHere()) {
    auto rig = Rig::Open(kMixed, {}, isa);
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    rigs.push_back(*std::move(rig));
  }
  auto reference = Rig::Open(kMixed, Reference64(), CpuIsa::kScalar);
  ASSERT_TRUE(reference.ok()) << reference.error().Message();
  rigs.push_back(*std::move(reference));
  for (auto& rig : rigs) {
    const auto proofs = Verify(*rig);
    ASSERT_EQ(proofs.size(), 2u);
    EXPECT_EQ(NameOf(proofs[0].declared), "fp8");
    EXPECT_EQ(NameOf(proofs[1].declared), "fp4");
    for (const engine::LayerProof& p : proofs) {
      EXPECT_TRUE(p.agrees()) << p.kernel << " measured " << NameOf(p.measured);
      EXPECT_GE(p.margin, 10) << p.kernel;
      std::cout << p.kernel << ": margin " << p.margin << "\n";
    }
  }
}

/// A kernel that leaves FP8's activations in 16 bits: more than the label, and not what it says.
TEST(Verify, Bf16InAnFp8LayerIsCaught) {
  for (const bool reference : {false, true}) {
    auto rig = Rig::Open(kMixed, reference ? Reference64() : plan::Wishes{}, IsasHere().back());
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    auto& quant = (*rig)->weights.layers[0].experts.quant;
    quant.scheme.activation.reset();
    quant.a1_scale.reset();
    quant.a2_scale.reset();
    const auto proofs = Verify(**rig);
    ASSERT_EQ(proofs.size(), 2u);
    EXPECT_FALSE(proofs[0].agrees());
    EXPECT_EQ(NameOf(proofs[0].measured), "bf16");
    EXPECT_TRUE(proofs[1].agrees());
  }
}

TEST(Verify, Fp4InAnFp8LayerIsCaught) {
  auto rig =
      Rig::Open(kMixed, {}, IsasHere().back(), [&](Backend glue, CpuIsa isa, ThreadPool& pool) {
        return std::make_unique<Shortcut>(glue, isa, pool, Measured::kFp4);
      });
  ASSERT_TRUE(rig.ok()) << rig.error().Message();
  const auto proofs = Verify(**rig);
  ASSERT_EQ(proofs.size(), 2u);
  EXPECT_FALSE(proofs[0].agrees()) << "margin " << proofs[0].margin;
  EXPECT_EQ(NameOf(proofs[0].first), "fp4");
  EXPECT_EQ(NameOf(proofs[0].second), "fp8");
}

}  // namespace
}  // namespace nibble::golden
