#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numbers>

namespace nibble::engine {
namespace {

constexpr double kLeastTemperature =
    0.01;  // what vLLM raises smaller ones to: below, exp() is 0 or 1

// A vocabulary is a quarter of a million numbers, and a token's draw should not be a step's time:
// what reads all of them is a loop over lanes that any compiler makes vectors of.
constexpr size_t kLanes = 16;

/// Calls lanes(p) for 16 numbers after 16, then one(v) for each that is left.
template <class Lanes, class One>
void ForEachLanes(std::span<const float> v, Lanes lanes, One one) {
  size_t i = 0;
  for (; i + kLanes <= v.size(); i += kLanes) lanes(v.data() + i);
  for (; i < v.size(); ++i) one(v[i]);
}

bool AllNumbers(std::span<const float> v) {
  const auto odd = [](float x) {
    return (std::bit_cast<uint32_t>(x) & 0x7F800000u) == 0x7F800000u ? 1u : 0u;
  };
  uint32_t found[kLanes] = {};
  ForEachLanes(
      v,
      [&](const float* p) {
        for (size_t i = 0; i < kLanes; ++i) found[i] |= odd(p[i]);
      },
      [&](float x) { found[0] |= odd(x); });
  return std::none_of(found, found + kLanes, [](uint32_t f) { return f != 0; });
}

/// Of numbers, at least one.
float Largest(std::span<const float> v) {
  float most[kLanes];
  std::fill_n(most, kLanes, v[0]);
  ForEachLanes(
      v,
      [&](const float* p) {
        for (size_t i = 0; i < kLanes; ++i) most[i] = p[i] > most[i] ? p[i] : most[i];
      },
      [&](float x) { most[0] = x > most[0] ? x : most[0]; });
  return *std::max_element(most, most + kLanes);
}

/// 2^x for x <= 0 to 2 ulp: the integer goes to the exponent's bits, the fraction in [-0.5, 0.5]
/// through Taylor's polynomial. Below -126 it is 0.
float Exp2(float x) {
  const uint32_t kept = 0u - static_cast<uint32_t>(x >= -126.0f);  // no branch: loops are vectors
  const float bounded = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & kept);
  const float whole = bounded + 12582912.0f;  // 1.5 * 2^23: adding it rounds
  const float f = bounded - (whole - 12582912.0f);
  float p = 1.52527338e-5f;
  p = p * f + 1.54035304e-4f;
  p = p * f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
  const uint32_t scaled = std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(whole) << 23);
  return std::bit_cast<float>(scaled & kept);
}

/// What a token weighs before the weights are divided by their sum: exp((logit - largest) / T).
struct Weigh {
  float largest, by;  // log2(e) / T
  float operator()(float logit) const { return Exp2((logit - largest) * by); }
};

/// Of all; the order of summation is fixed.
double TotalWeight(std::span<const float> logits, Weigh weigh) {
  constexpr size_t kBlock = 512;
  float w[kBlock];
  double total = 0;
  for (size_t first = 0; first < logits.size(); first += kBlock) {
    const size_t n = std::min(kBlock, logits.size() - first);
    const float* const from = logits.data() + first;
    for (size_t i = 0; i < n; ++i) w[i] = weigh(from[i]);
    double sums[4] = {};
    for (size_t i = 0; i + 4 <= n; i += 4) {
      for (size_t j = 0; j < 4; ++j) sums[j] += w[i + j];
    }
    for (size_t i = n / 4 * 4; i < n; ++i) sums[0] += w[i];
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  return total;
}

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
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), Largest(logits)) -
                              logits.begin());
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

/// Makes the candidates those of at least `least`, the heaviest first and equal ones by id.
void Sampler::Collect(std::span<const float> logits, float least) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= least) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  });
}

/// The k-th largest logit, 0 < k <= their number.
float Sampler::LeastOfTop(std::span<const float> logits, size_t k) {
  top_.clear();
  float least = -HUGE_VALF;  // of the k largest so far
  for (const float v : logits) {
    if (v <= least) continue;
    top_.push_back(v);
    if (top_.size() < 2 * k + 64) continue;
    std::nth_element(top_.begin(), top_.begin() + static_cast<ptrdiff_t>(k - 1), top_.end(),
                     std::greater<>());
    top_.resize(k);
    least = top_.back();
  }
  std::nth_element(top_.begin(), top_.begin() + static_cast<ptrdiff_t>(k - 1), top_.end(),
                   std::greater<>());
  return top_[k - 1];
}

int32_t Sampler::Draw(std::span<const float> logits) {
  const double temperature = std::max(parameters_.temperature, kLeastTemperature);
  const float largest = Largest(logits);
  const Weigh weigh{largest, static_cast<float>(std::numbers::log2e / temperature)};
  const double uniform = UniformAt(parameters_.seed, position_);

  // What min_p and top_k leave. min_p in logits: p >= min_p * p_max <=> (l - l_max) / T >= ln(min_p).
  float least = -HUGE_VALF;
  if (parameters_.min_p > 0) {
    least = static_cast<float>(largest + std::log(parameters_.min_p) * temperature);
  }
  const auto k = static_cast<size_t>(parameters_.top_k);
  if (k > 0 && k < logits.size()) least = std::max(least, LeastOfTop(logits, k));  // ties stay
  double total = 0;
  if (least > -HUGE_VALF) {
    Collect(logits, least);
    for (const Candidate& c : candidates_) total += weigh(c.logit);
  } else {
    total = TotalWeight(logits, weigh);
  }

  // Where all are left, the draw is mostly among the nearest to the largest: those are sorted first.
  for (double near = 8;; near *= 2) {
    const bool complete = least > -HUGE_VALF || near >= 128;
    if (least == -HUGE_VALF) {
      Collect(logits, complete ? least : static_cast<float>(largest - near * temperature));
    }
    // The heaviest that have top_p of the weight, at least one.
    size_t n = candidates_.size();
    double among = total;
    if (parameters_.top_p < 1) {
      for (n = 0, among = 0; n < candidates_.size() && among < parameters_.top_p * total; ++n) {
        among += weigh(candidates_[n].logit);
      }
      if (!complete && among < parameters_.top_p * total) continue;
    }
    double left = uniform * among;
    for (size_t i = 0; i < n; ++i) {
      left -= weigh(candidates_[i].logit);
      if (left < 0) return candidates_[i].id;
    }
    if (complete || parameters_.top_p < 1) return candidates_[n - 1].id;
  }
}

Result<int32_t> Sampler::Next(std::span<float> all) {
  std::span<float> logits = all.first(static_cast<size_t>(drawable_));
  if (!AllNumbers(logits)) {
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
