#include <gtest/gtest.h>

#include "engine/engine.h"
#include "synth/synthesize.h"

// A request behind a kept prefix is the request with the whole prompt, bit for bit.

namespace nibble {
namespace {

Result<std::unique_ptr<engine::Engine>> Open(const std::string& config,
                                             const engine::EngineOptions& options) {
  NIBBLE_TRY(checkpoint::CheckpointParts parts,
             synth::Synthesize(std::string(NIBBLE_SOURCE_DIR) + "/models/configs/" + config, {}));
  return engine::Engine::OpenCheckpoint(checkpoint::Checkpoint::FromParts(std::move(parts)),
                                        options);
}

std::vector<int32_t> Ids(int n, int seed) {
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back((i * 37 + seed * 101 + 5) % 400);
  return ids;
}

struct Case {
  const char* config;
  KvDtype kv;
  int drafts;
  Backend backend;
};

TEST(Prefix, IsThePromptsBeginningBitForBit) {
  const Case cases[] = {{"qwen3-mini", KvDtype::kF32, 0, Backend::kCpu},
                        {"qwen3.6-mini", KvDtype::kF32, 2, Backend::kCpu},
                        {"qwen3.6-mini", KvDtype::kBf16, 0, Backend::kCpu},
                        {"qwen3.6-mini", KvDtype::kFp8, 3, Backend::kCpu},
                        {"qwen3.6-mini", KvDtype::kFp8, 1, Backend::kReference}};
  for (const Case& c : cases) {
    engine::EngineOptions options;
    options.wishes.kv_dtype = c.kv;
    options.wishes.draft_tokens = c.drafts;
    options.wishes.any = c.backend;
    options.wishes.batch_invariant = c.backend == Backend::kCpu;
    options.wishes.context = 400;
    options.wishes.sequences = 2;
    options.threads = 2;
    auto engine = Open(c.config, options);
    ASSERT_TRUE(engine.ok()) << engine.error().Message();
    // Longer, shorter and one token alone: what the slot held before must not matter.
    for (const int length : {67, 1}) {
      const auto prefix = Ids(length, 1);
      ASSERT_TRUE((*engine)->KeepPrefix(prefix).ok());
      for (const int seed : {2, 3}) {
        engine::Request whole, behind;
        behind.prompt = Ids(20, seed);
        behind.after_prefix = true;
        whole.prompt = prefix;
        whole.prompt.insert(whole.prompt.end(), behind.prompt.begin(), behind.prompt.end());
        for (engine::Request* r : {&whole, &behind}) {
          r->max_tokens = 10;
          r->ignore_eos = true;
          r->sampling.temperature = 0;
          r->sampling.repetition_penalty = seed == 3 ? 1.3f : 1.0f;  // which sees the prefix too
        }
        const auto a = (*engine)->Generate(behind), b = (*engine)->Generate(whole);
        ASSERT_TRUE(a.ok() && b.ok());
        EXPECT_EQ(a->prompt_logits, b->prompt_logits) << c.config << " " << length;
        EXPECT_EQ(a->ids, b->ids) << c.config << " " << length;
        ASSERT_EQ(a->speculation.rounds.size(), b->speculation.rounds.size());
        for (size_t i = 0; i < a->speculation.rounds.size(); ++i)
          EXPECT_EQ(a->speculation.rounds[i].accepted, b->speculation.rounds[i].accepted);
      }
    }
  }
}

TEST(Prefix, RefusesWhatItCannotDo) {
  engine::EngineOptions options;
  options.wishes.context = 64;
  options.threads = 1;
  auto one = Open("qwen3-mini", options);
  options.wishes.sequences = 2;
  auto two = Open("qwen3-mini", options);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ((*two)->plan().memory.kv, 2 * (*one)->plan().memory.kv);
  EXPECT_EQ((*one)->KeepPrefix(Ids(8, 1)).error().code, ErrorCode::kInvalidArgument);
  engine::Request request;
  request.prompt = Ids(8, 2);
  request.after_prefix = true;
  EXPECT_EQ((*two)->Generate(request).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ((*two)->KeepPrefix(Ids(65, 1)).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ((*two)->KeepPrefix(std::vector<int32_t>{1, -1}).error().code,
            ErrorCode::kInvalidArgument);
  ASSERT_TRUE((*two)->KeepPrefix(Ids(60, 1)).ok());
  EXPECT_EQ((*two)->Generate(request).error().code, ErrorCode::kInvalidArgument);
  request.prompt.resize(4);
  ASSERT_TRUE((*two)->Generate(request).ok());
  request.synthetic_acceptance = 1.5;  // without drafts
  EXPECT_EQ((*two)->Generate(request).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
