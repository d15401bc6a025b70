#include "engine/speculation.h"

#include <algorithm>
#include <cmath>

namespace nibble::engine {

Result<int> DrawRound(std::span<const int32_t> drafts,
                      const std::function<Result<int32_t>(size_t row)>& next,
                      const std::function<bool(int32_t id)>& commit) {
  for (size_t row = 0;; ++row) {
    NIBBLE_TRY(const int32_t id, next(row));
    const bool right = row < drafts.size() && id == drafts[row];
    if (!commit(id) || !right) return static_cast<int>(row + right);
  }
}

Result<int> SyntheticAcceptance::DrawRound(std::span<const int32_t> drafts,
                                           const std::function<Result<int32_t>(size_t row)>& next,
                                           const std::function<bool(int32_t id)>& commit) {
  owed_ += mean_length_ - 1;
  const auto wanted = static_cast<size_t>(std::max(0.0, std::floor(owed_ + 1e-9)));
  const size_t accepted = std::min(wanted, drafts.size());
  owed_ -= static_cast<double>(accepted);
  for (size_t i = 0; i < accepted; ++i) {
    if (!commit(drafts[i])) return static_cast<int>(i + 1);
  }
  NIBBLE_TRY(const int32_t id, next(accepted));
  commit(id);
  return static_cast<int>(accepted);
}

double SpeculationStats::MeanLength() const {
  if (rounds.empty()) return 0;
  double tokens = 0;
  for (const Round& r : rounds) tokens += 1 + r.accepted;
  return tokens / static_cast<double>(rounds.size());
}

double SpeculationStats::AcceptanceRate() const {
  double drafted = 0, accepted = 0;
  for (const Round& r : rounds) {
    drafted += r.drafted;
    accepted += r.accepted;
  }
  return drafted > 0 ? accepted / drafted : 0;
}

std::vector<double> SpeculationStats::PositionRates() const {
  std::vector<double> rates;
  for (int i = 0; i < draft_tokens; ++i) {
    double drafted = 0, accepted = 0;
    for (const Round& r : rounds) {
      drafted += r.drafted > i;
      accepted += r.accepted > i;
    }
    rates.push_back(drafted > 0 ? accepted / drafted : 0);
  }
  return rates;
}

}  // namespace nibble::engine
