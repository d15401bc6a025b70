#include "scheme/kv_scales.h"

#include <fmt/core.h>

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/quoted.h"
#include "scheme/tensor_checks.h"

namespace nibble::scheme {
namespace {

using checkpoint::Checkpoint;
using checkpoint::DType;
using checkpoint::TensorInfo;

struct FoundScale {
  const TensorInfo* tensor;
  float value;
};

class KvScaleReader {
 public:
  KvScaleReader(const Checkpoint& checkpoint, const std::string& attention, CanonicalReport* report)
      : checkpoint_(checkpoint), checks_(checkpoint), place_{attention, -1, ""}, report_(report) {}

  /// The scale of `which`, 'k' or 'v', by either name.
  Result<std::optional<FoundScale>> Read(char which) {
    std::optional<FoundScale> first;
    for (const std::string& name : Names(which)) {
      const TensorInfo* tensor = checkpoint_.Find(name);
      if (!tensor) continue;
      NIBBLE_TRY(const float value, ReadValue(*tensor));
      report_->used.insert(tensor->name);
      if (first && first->value != value) {
        return checks_.Wrong(*tensor, place_,
                             fmt::format("value {}, but {} says {} of the same", value,
                                         Quoted(first->tensor->name), first->value));
      }
      if (!first) first = FoundScale{tensor, value};
    }
    return first;
  }

  /// `found` stands alone.
  Error NoOther(const FoundScale& found, char missing) const {
    const auto names = Names(missing);
    return checks_.Wrong(*found.tensor, place_,
                         fmt::format("there is no {}_scale beside it, expected {} or {}", missing,
                                     Quoted(names[0]), Quoted(names[1])));
  }

 private:
  std::array<std::string, 2> Names(char which) const {
    return {fmt::format("{}.{}_scale", place_.module, which),
            fmt::format("{0}.{1}_proj.{1}_scale", place_.module, which)};
  }

  Result<float> ReadValue(const TensorInfo& tensor) const {
    constexpr std::array kTypes = {DType::kF32, DType::kBf16};
    const std::array<std::vector<uint64_t>, 2> shapes = {std::vector<uint64_t>{}, {1}};
    NIBBLE_TRY(const auto values, checks_.NeedFloats(tensor.name, kTypes, shapes, place_));
    if (GlobalScale(values.front(), SourceFormat::kNone)) return values.front();
    return checks_.Wrong(tensor, place_,
                         fmt::format("value {}, expected a finite number above 0", values.front()));
  }

  const Checkpoint& checkpoint_;
  const TensorChecks checks_;
  const Place place_;
  CanonicalReport* report_;
};

}  // namespace

Result<std::optional<KvScales>> ReadKvScales(const Checkpoint& checkpoint,
                                             const std::string& attention,
                                             CanonicalReport* report) {
  KvScaleReader reader(checkpoint, attention, report);
  NIBBLE_TRY(const auto k, reader.Read('k'));
  NIBBLE_TRY(const auto v, reader.Read('v'));
  if (!k && !v) return std::optional<KvScales>();
  if (!v) return reader.NoOther(*k, 'v');
  if (!k) return reader.NoOther(*v, 'k');
  return std::optional(KvScales{k->value, v->value});
}

}  // namespace nibble::scheme
