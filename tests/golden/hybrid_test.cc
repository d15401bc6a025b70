// The hybrid family (gated DeltaNet, gated attention, shared experts, MTP) against PyTorch's float32
// runs and against itself: every split of a prompt, with drafts and without.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <numeric>
#include <tuple>

#include "engine/engine.h"
#include "engine/sampler.h"
#include "rig.h"

namespace nibble::golden {
namespace {

#define SKIP_WITHOUT_DATA()        \
  if (HybridCheckpoints().empty()) \
  GTEST_SKIP() << "NIBBLE_TEST_DATA is not set: the hybrid family's checkpoints are skipped"

std::vector<Subject> Weight16() {
  auto subjects = HybridCheckpoints();
  std::erase_if(subjects, [](const Subject& s) { return s.w4a4; });
  return subjects;
}

TEST(Hybrid, ReferenceGivesTheLogitsAndEveryToken) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : Weight16()) {
    const Reference want(s.reference);
    ASSERT_EQ(want.prompts(), 8) << s.reference;
    auto rig = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar);
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    double worst = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      auto ids = want.Ints(fmt::format("p{}.ids", p));
      const auto greedy = want.Ints(fmt::format("p{}.greedy", p));
      const int64_t first = static_cast<int64_t>(ids.size()) - 1;
      ids.insert(ids.end(), greedy.begin(), greedy.end() - 1);
      const auto logits = (*rig)->Logits(ids, first);
      const double error = RelativeL2(logits[0], want.Floats(fmt::format("p{}.logits", p)));
      worst = std::max(worst, error);
      EXPECT_LE(error, 1e-5) << s.name << " prompt " << p;
      for (size_t i = 0; i < greedy.size(); ++i) {
        EXPECT_EQ(engine::ArgMax(logits[i]), greedy[i])
            << s.name << " prompt " << p << " token " << i;
      }
    }
    std::cout << s.name << ": 8 prompts, worst relative L2 " << worst << "\n";
  }
}

/// In double a row's numbers do not depend on the rows beside it: every split gives the same bits.
TEST(Hybrid, AnySplitOfAPromptGivesTheSameLogitsOnReference) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : Weight16()) {
    const Reference want(s.reference);
    auto rig = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar);
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    for (int p : {2, 5, 6}) {
      const auto ids = want.Ints(fmt::format("p{}.ids", p));
      const int64_t last = static_cast<int64_t>(ids.size()) - 1;
      const auto whole = (*rig)->Logits(ids, last);
      for (int64_t batch : {1, 2, 3, 7, 13}) {
        EXPECT_EQ((*rig)->Logits(ids, last, batch).back(), whole.back())
            << s.name << " prompt " << p << " in parts of " << batch;
      }
    }
  }
}

TEST(Hybrid, CpuIsWithinSixteenBitNoiseOfTheReference) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : Weight16()) ExpectCpuIsNear(s, 0.02, 2, {13});
}

TEST(Hybrid, CpuResultsDoNotDependOnTheNumberOfThreads) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : HybridCheckpoints()) ExpectSameOnAnyNumberOfThreads(s);
}

// ---- Multi-token prediction.

plan::Wishes WithDrafts(plan::Wishes wishes, int draft_tokens) {
  wishes.draft_tokens = draft_tokens;
  return wishes;
}

TEST(Mtp, FirstRoundsDraftsAreTheReferences) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : Weight16()) {
    const Reference want(s.reference);
    auto opened = Rig::Open(s.dir, WithDrafts(Reference64(), 3), CpuIsa::kScalar);
    ASSERT_TRUE(opened.ok()) << opened.error().Message();
    Rig& rig = **opened;
    const auto vocab = static_cast<size_t>(rig.plan.model.vocab);
    double worst = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      const auto ids = want.Ints(fmt::format("p{}.ids", p));
      const auto n = static_cast<int64_t>(ids.size());
      rig.Logits(ids, n - 1);
      std::vector<int32_t> next(ids.begin() + 1, ids.end());
      next.push_back(want.Ints(fmt::format("p{}.greedy", p))[0]);
      const auto wanted_ids = want.Ints(fmt::format("p{}.draft_ids", p));
      const auto wanted = want.Floats(fmt::format("p{}.draft_logits", p));
      kernels::SequenceRows rows{0, 0, n, 0};
      for (size_t i = 0; i < 3; ++i) {
        rig.model->Draft(next, {&rows, 1});
        const int64_t row = rows.n_rows - 1;
        std::vector<float> logits(vocab, NAN);
        ASSERT_TRUE(rig.model->Logits({&row, 1}, logits).ok());
        const double error = RelativeL2(logits, std::span(wanted).subspan(i * vocab, vocab));
        worst = std::max(worst, error);
        EXPECT_LE(error, 1e-5) << s.name << " prompt " << p << " draft " << i;
        EXPECT_EQ(engine::ArgMax(logits), wanted_ids[i])
            << s.name << " prompt " << p << " draft " << i;
        rig.model->GoOnFrom(row);
        next = {engine::ArgMax(logits)};
        rows = {0, 0, 1, n + static_cast<int64_t>(i)};
      }
    }
    std::cout << s.name << ": draft logits, worst relative L2 " << worst << "\n";
  }
}

engine::Completion Complete(engine::Engine& engine, std::vector<int32_t> prompt, int64_t n) {
  engine::Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = n;
  request.ignore_eos = true;
  request.sampling.temperature = 0;
  auto done = engine.Generate(request);
  EXPECT_TRUE(done.ok()) << done.error().Message();
  return *std::move(done);
}

Result<std::unique_ptr<engine::Engine>> OpenEngine(const Subject& s, const plan::Wishes& wishes) {
  engine::EngineOptions options;
  options.wishes = wishes;
  options.wishes.context = 1024;
  options.threads = 2;
  return engine::Engine::Open(s.dir, options);
}

std::vector<int> AcceptedOf(const engine::Completion& c) {
  std::vector<int> accepted;
  for (const auto& round : c.speculation.rounds) accepted.push_back(round.accepted);
  return accepted;
}

/// The reference stops after 64 tokens, so the answers here are a little longer.
constexpr int64_t kAnswer = 72;

TEST(Mtp, ReferenceAcceptsWhatTheReferenceAccepts) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : HybridCheckpoints()) {
    const Reference want(s.reference);
    auto engine = OpenEngine(s, WithDrafts(Reference64(), 3));
    ASSERT_TRUE(engine.ok()) << engine.error().Message();
    double mean = 0, wanted_mean = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      const auto c = Complete(**engine, want.Ints(fmt::format("p{}.ids", p)), kAnswer);
      const auto wanted = want.Ints(fmt::format("p{}.mtp_accepted", p));
      auto accepted = AcceptedOf(c);
      ASSERT_GE(accepted.size(), wanted.size());
      accepted.resize(wanted.size());
      const auto mean_of = [](const auto& v) {
        return std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
      };
      mean += mean_of(accepted) / want.prompts();
      wanted_mean += mean_of(wanted) / want.prompts();
      if (s.w4a4) continue;  // one FP4 or FP8 code that turns changes the text
      EXPECT_EQ(accepted, std::vector<int>(wanted.begin(), wanted.end()))
          << s.name << " prompt " << p;
    }
    EXPECT_NEAR(mean, wanted_mean, s.w4a4 ? 0.3 : 1e-9) << s.name;
    std::cout << s.name << ": accepted of 3 drafts " << mean << ", reference " << wanted_mean
              << "\n";
  }
}

/// Backends whose rows do not depend on how many are computed together.
TEST(Mtp, DraftsChangeNoToken) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : HybridCheckpoints()) {
    const Reference want(s.reference);
    for (const bool reference : {true, false}) {
      plan::Wishes wishes = reference ? Reference64() : plan::Wishes{};
      wishes.batch_invariant = true;
      auto plain = OpenEngine(s, wishes);
      ASSERT_TRUE(plain.ok()) << plain.error().Message();
      for (int p : {1, 4, 5}) {
        const auto prompt = want.Ints(fmt::format("p{}.ids", p));
        const auto expected = Complete(**plain, prompt, kAnswer).ids;
        for (int k : reference ? std::vector{3} : std::vector{1, 2, 3, 5, 8}) {
          auto drafting = OpenEngine(s, WithDrafts(wishes, k));
          ASSERT_TRUE(drafting.ok()) << drafting.error().Message();
          const auto c = Complete(**drafting, prompt, kAnswer);
          EXPECT_EQ(c.ids, expected)
              << s.name << " prompt " << p << " mtp:" << k << (reference ? " REFERENCE" : " CPU");
          EXPECT_GT(c.speculation.MeanLength(), 1) << s.name;
        }
      }
    }
  }
}

TEST(Mtp, BatchInvariantCpuGivesTheSameLogitsForAnySplit) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : HybridCheckpoints()) {
    const auto ids = Reference(s.reference).Ints("p6.ids");
    const int64_t last = static_cast<int64_t>(ids.size()) - 1;
    for (CpuIsa isa : IsasHere()) {
      plan::Wishes wishes;
      wishes.batch_invariant = true;
      auto rig = Rig::Open(s.dir, wishes, isa);
      ASSERT_TRUE(rig.ok()) << rig.error().Message();
      const auto whole = (*rig)->Logits(ids, last);
      for (int64_t batch : {1, 3, 7, 32}) {
        EXPECT_EQ((*rig)->Logits(ids, last, batch).back(), whole.back())
            << s.name << " " << NameOf(isa) << " in parts of " << batch;
      }
    }
  }
}

// ---- The mixed checkpoint: FP8 and NVFP4 experts, static FP8 attention and DeltaNet.

TEST(Hybrid, MixedLayer0ExpertsMatchTheReference) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : HybridCheckpoints()) {
    const Reference want(s.reference);
    const auto in = want.Floats("moe0_in"), out = want.Floats("moe0_out");
    std::vector<std::pair<std::string, Result<std::unique_ptr<Rig>>>> rigs;
    rigs.emplace_back("REFERENCE", Rig::Open(s.dir, Reference64(), CpuIsa::kScalar));
    for (CpuIsa isa : IsasHere()) rigs.emplace_back(NameOf(isa), Rig::Open(s.dir, {}, isa));
    for (auto& [name, rig] : rigs) {
      ASSERT_TRUE(rig.ok()) << rig.error().Message();
      const Layer0 got = RunLayer0(**rig, in);
      const double error = RelativeL2(got.out, out);
      // FP8 activations are the declared ones everywhere: the CPU adds no rounding of its own.
      const double limit = name == "REFERENCE" ? 1e-5 : s.w4a4 ? 1e-4 : 3e-3;
      EXPECT_LE(error, limit) << s.name << " " << name;
      EXPECT_EQ(got.experts, want.Ints("router0_experts")) << s.name << " " << name;
      std::cout << s.name << " " << name << ": layer 0 experts relative L2 " << error << "\n";
    }
  }
}

/// The two W4A16 checkpoints are nearly one model: where 16-bit noise turns a router's near-tie on a
/// CPU they cannot be told apart, so they are told apart in double.
TEST(Hybrid, LogitsAreNearerToTheirOwnReferenceThanToAnyOther) {
  SKIP_WITHOUT_DATA();
  const auto subjects = HybridCheckpoints();
  for (const Subject& s : subjects) {
    for (const bool reference : {true, false}) {
      if (!reference && !s.w4a4) continue;
      auto rig = Rig::Open(s.dir, reference ? Reference64() : plan::Wishes{}, IsasHere().back());
      ASSERT_TRUE(rig.ok()) << rig.error().Message();
      for (int p = 0; p < 7; ++p) {
        std::vector<double> distance;
        for (const Subject& other : subjects) {
          const Reference want(other.reference);
          const auto ids = want.Ints(fmt::format("p{}.ids", p));
          const auto logits = (*rig)->Logits(ids, static_cast<int64_t>(ids.size()) - 1);
          distance.push_back(RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p))));
        }
        const auto nearest = std::min_element(distance.begin(), distance.end()) - distance.begin();
        EXPECT_EQ(subjects[nearest].name, s.name) << "prompt " << p;
      }
    }
  }
}

// ---- KV caches of 16 and of 8 bits.

TEST(Hybrid, SmallerKvCachesStayNearTheReference) {
  SKIP_WITHOUT_DATA();
  for (const Subject& s : Weight16()) {
    const Reference want(s.reference);
    for (const bool reference : {true, false}) {
      for (const auto& [dtype, least, most] :
           {std::tuple{KvDtype::kBf16, 1e-6, 0.02}, std::tuple{KvDtype::kFp8, 1e-4, 0.2}}) {
        plan::Wishes wishes = reference ? Reference64() : plan::Wishes{};
        wishes.kv_dtype = dtype;
        auto rig = Rig::Open(s.dir, wishes, IsasHere().back());
        ASSERT_TRUE(rig.ok()) << rig.error().Message();
        EXPECT_EQ((*rig)->plan.kv_dtype, dtype);
        std::vector<double> errors;
        for (int p = 0; p < 7; ++p) {
          const auto ids = want.Ints(fmt::format("p{}.ids", p));
          const auto logits = (*rig)->Logits(ids, static_cast<int64_t>(ids.size()) - 1);
          errors.push_back(RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p))));
        }
        std::sort(errors.begin(), errors.end());
        const double median = errors[errors.size() / 2];
        EXPECT_GT(median, least) << s.name << " " << NameOf(dtype);  // it does round
        EXPECT_LT(median, most) << s.name << " " << NameOf(dtype);
        std::cout << s.name << (reference ? " REFERENCE" : " CPU") << " kv " << NameOf(dtype)
                  << ": median relative L2 " << median << "\n";
      }
    }
  }
}

}  // namespace
}  // namespace nibble::golden
