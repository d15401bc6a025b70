#pragma once

#include <vector>

namespace nibble::engine {

/// What speculation did in one completion. A round is one pass of the model over the last token and
/// the drafts after it; it commits the accepted drafts and one token more.
struct SpeculationStats {
  struct Round {
    int drafted = 0, accepted = 0;
  };

  int draft_tokens = 0;  // K; rounds near the end of the context or the answer draft fewer
  std::vector<Round> rounds;

  /// Tokens a round, 1 … K+1; 0 without rounds.
  double MeanLength() const;
  /// Share of drafts that were accepted.
  double AcceptanceRate() const;
  /// [K]: of the rounds that drafted an i-th token, how many accepted it.
  std::vector<double> PositionRates() const;
};

}  // namespace nibble::engine
