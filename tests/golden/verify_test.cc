// nibble verify must tell the truth: right kernels are confirmed with a wide margin, planted
// shortcuts are caught.
#include "engine/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iostream>

#include "numerics/e4m3.h"
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
    const int64_t block = how_ == Measured::kInt8 ? 32 : x.cols;
    for (int64_t at = 0; at < x.rows * x.cols; at += block) {
      float amax = 0;
      for (int64_t i = at; i < at + block; ++i) amax = std::max(amax, std::abs(values[i]));
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

TEST(Verify, PlantedInt8AndFp8ShortcutsAreCaught) {
  for (Measured how : {Measured::kInt8, Measured::kFp8}) {
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

}  // namespace
}  // namespace nibble::golden
