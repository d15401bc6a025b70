#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::kernels {

/// Where a forward pass spends its time.
struct OperatorTime {
  std::string name;  // "experts", "linear q_proj"
  int64_t calls = 0;
  double seconds = 0;
};

/// Adds up what each operator's calls took, by the clock of the thread that makes them. Off until
/// Start(), and then two readings of a clock a call.
class OperatorTimes {
 public:
  /// One call, from here to the end of its scope.
  class Span {
   public:
    Span(OperatorTimes* to, std::string_view name, std::string_view detail)
        : to_(to), name_(name), detail_(detail) {
      if (to_) start_ = Clock::now();
    }
    ~Span() {
      if (to_) to_->Add(name_, detail_, std::chrono::duration<double>(Clock::now() - start_));
    }
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;

   private:
    using Clock = std::chrono::steady_clock;
    OperatorTimes* to_;
    std::string_view name_, detail_;
    Clock::time_point start_;
  };

  void Start() {
    on_ = true;
    times_.clear();
  }
  /// What was added since Start(), in the order of first calls; off again.
  std::vector<OperatorTime> Stop() {
    on_ = false;
    return std::move(times_);
  }
  /// `detail` tells calls of one operator apart: of a module's name the last part. Both must outlive
  /// the span.
  [[nodiscard]] Span Time(std::string_view name, std::string_view detail = {}) {
    return {on_ ? this : nullptr, name, detail};
  }
  bool on() const { return on_; }
  /// A call that was timed in another way.
  void Add(std::string_view name, std::string_view detail, std::chrono::duration<double> took) {
    std::string full(name);
    if (!detail.empty()) full.append(" ").append(detail.substr(detail.rfind('.') + 1));
    for (OperatorTime& t : times_) {
      if (t.name != full) continue;
      ++t.calls;
      t.seconds += took.count();
      return;
    }
    times_.push_back({std::move(full), 1, took.count()});
  }

 private:
  bool on_ = false;
  std::vector<OperatorTime> times_;
};

}  // namespace nibble::kernels
