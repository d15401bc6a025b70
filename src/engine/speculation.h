#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/sampler.h"

namespace nibble::engine {

/// Draws the tokens of one round: next(i) draws what follows drafts 0 … i-1 as though it were the
/// only one. The round goes on while what was drawn is the draft that the next row was computed with,
/// and `commit`, which is told every token, says so.
/// The tokens are therefore those of a run without drafts, for greedy and for sampled runs alike,
/// and a draft of probability p is accepted with probability p: for a draft that is no random
/// choice, no rule accepts more often and keeps the distribution (Leviathan, Kalman, Matias 2023,
/// arXiv 2211.17192).
/// returns how many drafts were accepted
/// errors  those of `next`
Result<int> DrawRound(std::span<const int32_t> drafts,
                      const std::function<Result<int32_t>(size_t row)>& next,
                      const std::function<bool(int32_t id)>& commit);

/// Rounds whose verdict is made up, for measurements: drafts are accepted by count and not by what
/// they are, so that a round commits `mean_length` tokens on average, as evenly as whole numbers go.
/// Everything else costs what it does.
class SyntheticAcceptance {
 public:
  explicit SyntheticAcceptance(double mean_length) : mean_length_(mean_length) {}

  /// DrawRound, where the accepted drafts are themselves the tokens and `next` gives the one after
  /// them.
  Result<int> DrawRound(std::span<const int32_t> drafts,
                        const std::function<Result<int32_t>(size_t row)>& next,
                        const std::function<bool(int32_t id)>& commit);

 private:
  double mean_length_;
  double owed_ = 0;  // tokens that the rounds so far fell short of the mean
};

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
