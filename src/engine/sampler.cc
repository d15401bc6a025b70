#include "engine/sampler.h"

#include <algorithm>
#include <cmath>

namespace nibble::engine {
namespace {

constexpr double kLeastTemperature =
    0.01;  // what vLLM raises smaller ones to: below, exp() is 0 or 1

uint64_t Mix(uint64_t x) {  // splitmix64's finalizer (Steele, Lea, Flood 2014)
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

Result<void> InRange(std::string_view name, double value, double low, double high,
                     bool low_open = false) {
  const bool above = low_open ? value > low : value >= low;
  if (above && value <= high) return {};
  return Err(ErrorCode::kInvalidArgument, "\"{}\" must be in {}{}, {}], got {}", name,
             low_open ? "(" : "[", low, high, value);
}

}  // namespace

Result<void> SamplingParameters::Check() const {
  NIBBLE_CHECK_OK(InRange("temperature", temperature, 0, 2));
  NIBBLE_CHECK_OK(InRange("top_k", static_cast<double>(top_k), 0, 1 << 24));
  NIBBLE_CHECK_OK(InRange("top_p", top_p, 0, 1, true));
  NIBBLE_CHECK_OK(InRange("min_p", min_p, 0, 1));
  NIBBLE_CHECK_OK(InRange("repetition_penalty", repetition_penalty, 0, 100, true));
  NIBBLE_CHECK_OK(InRange("presence_penalty", presence_penalty, -2, 2));
  NIBBLE_CHECK_OK(InRange("frequency_penalty", frequency_penalty, -2, 2));
  return {};
}

double UniformAt(uint64_t seed, uint64_t position) {
  return static_cast<double>(Mix(Mix(seed) ^ position) >> 11) * 0x1p-53;
}

int32_t ArgMax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

Sampler::Sampler(const SamplingParameters& parameters, int64_t vocab, int64_t drawable,
                 std::span<const int32_t> prompt)
    : parameters_(parameters), drawable_(drawable), in_prompt_(vocab, 0), output_count_(vocab, 0) {
  penalized_ = parameters.repetition_penalty != 1 || parameters.presence_penalty != 0 ||
               parameters.frequency_penalty != 0;
  for (int32_t id : prompt) in_prompt_[id] = 1;
}

void Sampler::Penalize(std::span<float> logits) const {
  const float repetition = static_cast<float>(parameters_.repetition_penalty);
  for (size_t i = 0; i < logits.size(); ++i) {
    const uint32_t count = output_count_[i];
    if (count == 0 && !in_prompt_[i]) continue;
    logits[i] = logits[i] > 0 ? logits[i] / repetition : logits[i] * repetition;
    if (count > 0) {
      logits[i] -=
          static_cast<float>(parameters_.frequency_penalty * count + parameters_.presence_penalty);
    }
  }
}

int32_t Sampler::Draw(std::span<const float> logits) {
  const double temperature = std::max(parameters_.temperature, kLeastTemperature);
  const float largest = *std::max_element(logits.begin(), logits.end());
  // min_p in logits: p >= min_p * p_max  <=>  (l - l_max) / T >= ln(min_p).
  const double floor =
      parameters_.min_p > 0 ? std::log(parameters_.min_p) * temperature : -HUGE_VAL;
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (static_cast<double>(logits[i]) - largest >= floor)
      candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
  const auto heavier = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const size_t k = static_cast<size_t>(parameters_.top_k);
  if (k > 0 && k < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(),
                     heavier);
    const float least = candidates_[k - 1].logit;  // all ties of the k-th stay
    std::erase_if(candidates_, [&](const Candidate& c) { return c.logit < least; });
  }
  std::sort(candidates_.begin(), candidates_.end(), heavier);

  weights_.resize(candidates_.size());
  double total = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    total += weights_[i] =
        std::exp((static_cast<double>(candidates_[i].logit) - largest) / temperature);
  }
  size_t n = candidates_.size();
  if (parameters_.top_p < 1) {
    double reached = 0;
    n = 0;
    while (n < candidates_.size() && reached < parameters_.top_p * total) reached += weights_[n++];
    n = std::max<size_t>(n, 1);
    total = reached;
  }
  double left = UniformAt(parameters_.seed, position_) * total;
  for (size_t i = 0; i + 1 < n; ++i) {
    left -= weights_[i];
    if (left < 0) return candidates_[i].id;
  }
  return candidates_[n - 1].id;
}

Result<int32_t> Sampler::Next(std::span<float> all) {
  std::span<float> logits = all.first(static_cast<size_t>(drawable_));
  float sum = 0;
  for (float v : logits) sum += v * 0.0f;  // NaN or infinite anywhere: NaN here
  if (std::isnan(sum)) {
    return Err(ErrorCode::kInternal, "the model's logits at output position {} are not numbers",
               position_);
  }
  if (penalized_) Penalize(logits);
  const int32_t id = parameters_.greedy() ? ArgMax(logits) : Draw(logits);
  ++output_count_[id];
  ++position_;
  return id;
}

}  // namespace nibble::engine
