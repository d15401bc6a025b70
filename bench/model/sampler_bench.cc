// sampler_bench [VOCAB] [ROUNDS]: what drawing a token from logits costs, one JSON object a line.
// "peaked" logits are like a language model's: a few tokens near the largest, the others far below
// it; "flat" ones, which no trained model gives, leave tens of thousands that matter.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>

#include "engine/sampler.h"
#include "on_threads.h"

namespace nibble {
namespace {

struct Case {
  const char* what;
  double temperature;
  int64_t top_k;
  double top_p, min_p, repetition_penalty;
};
constexpr Case kCases[] = {{"greedy", 0, 0, 1, 0, 1},
                           {"greedy, repetition penalty 1.1", 0, 0, 1, 0, 1.1},
                           {"temperature 1", 1, 0, 1, 0, 1},
                           {"temperature 0.7, top_p 0.95", 0.7, 0, 0.95, 0, 1},
                           {"temperature 0.7, top_k 20, top_p 0.95", 0.7, 20, 0.95, 0, 1},
                           {"temperature 0.7, min_p 0.05", 0.7, 0, 1, 0.05, 1}};

std::vector<float> Logits(int64_t vocab, bool peaked) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, peaked ? 2.0f : 2.5f);
  std::vector<float> out(static_cast<size_t>(vocab));
  for (float& v : out) v = normal(random);
  for (int i = 0; i < 40; ++i) {
    out[random() % out.size()] = (peaked ? 24.0f : 10.0f) - 0.3f * static_cast<float>(i);
  }
  return out;
}

double Microseconds(const Case& c, const std::vector<float>& logits, int rounds) {
  engine::SamplingParameters p;
  p.temperature = c.temperature;
  p.top_k = c.top_k;
  p.top_p = c.top_p;
  p.min_p = c.min_p;
  p.repetition_penalty = c.repetition_penalty;
  const auto vocab = static_cast<int64_t>(logits.size());
  const std::vector<int32_t> prompt(100, 1);
  engine::Sampler sampler(p, vocab, vocab, prompt);
  std::vector<double> times;
  std::vector<float> copy;
  for (int i = 0; i < rounds; ++i) {
    copy = logits;
    const auto begin = std::chrono::steady_clock::now();
    if (!sampler.Next(copy)) std::exit(1);
    const std::chrono::duration<double, std::micro> taken =
        std::chrono::steady_clock::now() - begin;
    times.push_back(taken.count());
  }
  return bench::Median(times);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const int64_t vocab = std::max(1, argc > 1 ? std::atoi(argv[1]) : 248320);
  const int rounds = std::max(1, argc > 2 ? std::atoi(argv[2]) : 51);
  for (const bool peaked : {true, false}) {
    const std::vector<float> logits = nibble::Logits(vocab, peaked);
    for (const nibble::Case& c : nibble::kCases) {
      fmt::print("{{\"what\":\"sampling, {}, {}\",\"vocab\":{},\"us\":{:.0f}}}\n",
                 peaked ? "peaked" : "flat", c.what, vocab,
                 nibble::Microseconds(c, logits, rounds));
    }
  }
}
