#include "scheme/canonical.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>

#include "base/quoted.h"
#include "scheme/tensor_checks.h"

namespace nibble::scheme {
namespace {

using checkpoint::Checkpoint;
using checkpoint::DType;
using checkpoint::TensorInfo;

constexpr int64_t kGroup = 16;

/// What the dialects call the four tensors of an NVFP4 linear, behind its name.
struct TensorNames {
  std::string_view codes, scales, global, input;
};
constexpr TensorNames kModeloptNames = {".weight", ".weight_scale", ".weight_scale_2",
                                        ".input_scale"};
constexpr TensorNames kCompressedTensorsNames = {".weight_packed", ".weight_scale",
                                                 ".weight_global_scale", ".input_global_scale"};
constexpr TensorNames kStackedNames = {"", "_weight_scale", "_weight_scale_2", "_input_scale"};

bool IsQuantizedType(DType dtype) { return checkpoint::BitsOf(dtype) <= 8; }
bool IsFloatType(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

const uint8_t* BytesOf(const TensorInfo& tensor) {
  return reinterpret_cast<const uint8_t*>(tensor.data.data());
}

uint64_t Dim(int64_t value) { return static_cast<uint64_t>(value); }

/// One tensor's worth of experts' weights: `count` experts of `halves` projections of [n,k] each,
/// one behind the other. A linear is one expert of one half.
struct Stack {
  std::string name;   // the tensors' common beginning
  TensorNames names;  // and their ends
  Place place;
  bool stacked = false;  // three dimensions
  int64_t count = 1, halves = 1, n = 0, k = 0;

  std::vector<uint64_t> Shape(int64_t columns) const {
    std::vector<uint64_t> shape{Dim(halves * n), Dim(columns)};
    if (stacked) shape.insert(shape.begin(), Dim(count));
    return shape;
  }
  /// Shapes that a global scale may have.
  std::vector<std::vector<uint64_t>> ScaleShapes() const {
    std::vector<std::vector<uint64_t>> shapes{{}, {1}};
    if (stacked) shapes.push_back({Dim(count)});
    if (stacked && halves > 1) shapes.push_back({Dim(count), Dim(halves)});
    return shapes;
  }
  /// Of `count_of_values` values in one of those shapes: the one of an expert's half.
  size_t ScaleIndex(size_t count_of_values, int64_t expert, int64_t half) const {
    if (count_of_values == 1) return 0;
    const bool each_half = count_of_values == static_cast<size_t>(count * halves) && halves > 1;
    return static_cast<size_t>(each_half ? expert * halves + half : expert);
  }
  Place PlaceOf(int64_t expert, int64_t half) const {
    Place at = place;
    if (stacked) at.expert = static_cast<int>(expert);
    if (halves > 1) at.projection = half == 0 ? "gate_proj" : "up_proj";
    return at;
  }
};

class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const ModuleScheme& scheme, CanonicalReport* report)
      : checkpoint_(checkpoint), checks_(checkpoint), scheme_(scheme), report_(report) {}

  /// The weights of a stack, expert after expert, half after half.
  Result<std::vector<CanonicalWeight>> Read(const Stack& stack) {
    if (!scheme_.scheme.weight) return ReadBf16(stack);
    if (scheme_.scheme == kW4A16 || scheme_.scheme == kW4A4) return ReadNvfp4(stack);
    return Error{ErrorCode::kUnsupported,
                 fmt::format("no weights of {} can be read yet", PairName(scheme_.scheme)),
                 stack.place.Text(), scheme_.evidence + " says so"};
  }

 private:
  Result<std::vector<CanonicalWeight>> ReadBf16(const Stack& stack) {
    const std::string name = stack.name + std::string(stack.stacked ? "" : ".weight");
    for (const char* end : {"weight_packed", "weight_scale", "weight_scale_2"}) {
      const TensorInfo* scale =
          checkpoint_.Find(fmt::format("{}{}{}", stack.name, stack.stacked ? '_' : '.', end));
      if (scale) return Contradiction(*scale, stack.place);
    }
    const TensorInfo* tensor = checkpoint_.Find(name);
    if (tensor && IsQuantizedType(tensor->dtype)) return Contradiction(*tensor, stack.place);
    if (tensor && tensor->dtype != DType::kBf16 && IsFloatType(tensor->dtype)) {
      Error e = checks_.Wrong(*tensor, stack.place,
                              fmt::format("type {} is not supported, expected BF16",
                                          checkpoint::NameOf(tensor->dtype)));
      e.code = ErrorCode::kUnsupported;
      return e;
    }
    NIBBLE_TRY(tensor, Take(name, DType::kBf16, stack.Shape(stack.k), stack.place));
    std::vector<CanonicalWeight> weights;
    for (int64_t i = 0; i < stack.count * stack.halves; ++i) {
      weights.push_back(
          CanonicalBf16{stack.n, stack.k, BytesOf(*tensor) + i * stack.n * stack.k * 2});
    }
    return weights;
  }

  Result<std::vector<CanonicalWeight>> ReadNvfp4(const Stack& stack) {
    if (stack.k % kGroup != 0) {
      return Err(ErrorCode::kUnsupported, "NVFP4 needs K to be a multiple of 16, found K={}",
                 stack.k)
          .At(stack.place.Text());
    }
    NIBBLE_CHECK_OK(RefuseUnquantized(stack));
    const std::string codes_name = stack.name + std::string(stack.names.codes);
    const std::string scales_name = stack.name + std::string(stack.names.scales);
    NIBBLE_TRY(const TensorInfo* codes,
               Take(codes_name, DType::kU8, stack.Shape(stack.k / 2), stack.place));
    NIBBLE_TRY(const TensorInfo* scales,
               Take(scales_name, DType::kF8E4m3, stack.Shape(stack.k / kGroup), stack.place));
    NIBBLE_CHECK_OK(CheckBlockScales(*scales, stack));
    NIBBLE_TRY(const std::vector<float> globals, GlobalScales(stack.names.global, stack));
    const std::string input_name = stack.name + std::string(stack.names.input);
    std::vector<float> inputs;
    if (scheme_.scheme.activation) {
      NIBBLE_TRY(inputs, GlobalScales(stack.names.input, stack));
    } else if (const TensorInfo* ignored = checkpoint_.Find(input_name)) {
      report_->ignored_tensors.push_back(ignored->name);
      report_->used.insert(ignored->name);
    }
    std::vector<CanonicalWeight> weights;
    for (int64_t i = 0; i < stack.count * stack.halves; ++i) {
      const int64_t expert = i / stack.halves, half = i % stack.halves, blocks = stack.n * stack.k;
      CanonicalNvfp4 w{stack.n,
                       stack.k,
                       BytesOf(*codes) + i * blocks / 2,
                       BytesOf(*scales) + i * blocks / kGroup,
                       globals[stack.ScaleIndex(globals.size(), expert, half)],
                       std::nullopt};
      if (!inputs.empty()) w.input_scale = inputs[stack.ScaleIndex(inputs.size(), expert, half)];
      weights.push_back(w);
    }
    return weights;
  }

  Result<const TensorInfo*> Take(const std::string& name, DType dtype,
                                 const std::vector<uint64_t>& shape, const Place& place) {
    auto tensor = checks_.Need(name, dtype, shape, place);
    if (tensor) {
      report_->used.insert((*tensor)->name);
      return tensor;
    }
    return Explained(std::move(tensor).error());
  }

  /// With the label that asked for the tensor: a wrong label is as likely as a wrong file.
  Error Explained(Error e) const {
    if (e.hint.empty()) e.hint = LabelText();
    if (e.code == ErrorCode::kNotFound) {
      e.hint = LabelText() + "; the checkpoint is incomplete, or its label wrong";
    }
    return e;
  }

  /// A stack's global or activation scales as multipliers.
  Result<std::vector<float>> GlobalScales(std::string_view end, const Stack& stack) {
    const std::string name = stack.name + std::string(end);
    auto read = checks_.NeedFloats(name, stack.ScaleShapes(), stack.place);
    if (!read) return Explained(std::move(read).error());
    std::vector<float> values = *std::move(read);
    const TensorInfo& tensor = *checkpoint_.Find(name);
    report_->used.insert(tensor.name);
    for (float& value : values) {
      const auto multiplier = GlobalScale(value, scheme_.source_format);
      if (!multiplier) {
        const bool divides = scheme_.source_format == SourceFormat::kCompressedTensors;
        return checks_.Wrong(
            tensor, stack.place,
            fmt::format("value {}, expected a finite number above 0{}", value,
                        divides ? " whose reciprocal is a normal 32-bit float" : ""));
      }
      value = *multiplier;
    }
    return values;
  }

  Result<void> CheckBlockScales(const TensorInfo& scales, const Stack& stack) const {
    const auto bad = FindBadBlockScale(scales.data);
    if (!bad) return {};
    const auto byte = std::to_integer<unsigned>(scales.data[*bad]);
    const auto columns = static_cast<size_t>(stack.k / kGroup);
    const size_t row = *bad / columns, rows = static_cast<size_t>(stack.n);
    const auto part = static_cast<int64_t>(row / rows);
    return checks_.Wrong(
        scales, stack.PlaceOf(part / stack.halves, part % stack.halves),
        fmt::format("block scale at row {}, column {} is 0x{:02X}, {}; expected 0x00 to 0x7E",
                    row % rows, *bad % columns, byte,
                    (byte & 0x7F) == 0x7F ? "a NaN" : "negative"));
  }

  /// An NVFP4 label over 16-bit weights.
  Result<void> RefuseUnquantized(const Stack& stack) const {
    for (const std::string_view end : {stack.names.codes, std::string_view(".weight")}) {
      const TensorInfo* tensor = checkpoint_.Find(stack.name + std::string(end));
      if (tensor && IsFloatType(tensor->dtype)) return Contradiction(*tensor, stack.place);
    }
    return {};
  }

  std::string LabelText() const {
    return fmt::format("the label says {} ({})", ShortName(scheme_.scheme), scheme_.evidence);
  }

  Error Contradiction(const TensorInfo& tensor, const Place& place) const {
    Error e = checks_.Wrong(
        tensor, place,
        fmt::format("type {} contradicts the label, which says {} ({})",
                    checkpoint::NameOf(tensor.dtype), ShortName(scheme_.scheme), scheme_.evidence));
    e.hint = "the configuration does not belong to these weights, or its exporter left this out";
    return e;
  }

  const Checkpoint& checkpoint_;
  const TensorChecks checks_;
  const ModuleScheme& scheme_;
  CanonicalReport* report_;
};

TensorNames NamesOf(SourceFormat format) {
  return format == SourceFormat::kCompressedTensors ? kCompressedTensorsNames : kModeloptNames;
}

/// The tensors below `module.` by name: they lie together, for tensors() is sorted.
std::span<const TensorInfo> TensorsBelow(const Checkpoint& checkpoint, const std::string& module) {
  const std::string prefix = module + ".";
  const auto all = checkpoint.tensors();
  const auto begin = std::ranges::lower_bound(all, prefix, {}, &TensorInfo::name);
  auto end = begin;
  while (end != all.end() && end->name.starts_with(prefix)) ++end;
  return {begin, end};
}

/// An expert that the config does not count would be left out of the model in silence.
Result<void> RefuseExtraExperts(const Checkpoint& checkpoint, const std::string& module,
                                int experts) {
  for (const TensorInfo& tensor : TensorsBelow(checkpoint, module)) {
    const std::string_view rest = std::string_view(tensor.name).substr(module.size() + 1);
    const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
    if (digits == 0) continue;
    uint64_t index = 0;
    for (const char c : rest.substr(0, std::min<size_t>(digits, 10))) {
      index = index * 10 + static_cast<uint64_t>(c - '0');
    }
    if (index < static_cast<uint64_t>(experts)) continue;
    const Place place{module, static_cast<int>(std::min<uint64_t>(index, INT32_MAX)), ""};
    return TensorChecks(checkpoint)
        .Wrong(tensor, place,
               fmt::format("the config counts {} experts, 0 to {}", experts, experts - 1));
  }
  return {};
}

/// What ReadExperts was asked for.
struct ExpertsRequest {
  const Checkpoint& checkpoint;
  const std::string& module;
  SourceFormat format;
  int64_t experts;
};

Result<std::vector<CanonicalWeight>> ReadPerExpert(const ExpertsRequest& request,
                                                   const std::string& projection, int64_t n,
                                                   int64_t k, Reader* reader) {
  std::vector<CanonicalWeight> all;
  for (int e = 0; e < request.experts; ++e) {
    Stack stack;
    stack.name = fmt::format("{}.{}.{}", request.module, e, projection);
    stack.names = NamesOf(request.format);
    stack.place = {request.module, e, projection};
    stack.n = n;
    stack.k = k;
    NIBBLE_TRY(auto one, reader->Read(stack));
    all.push_back(one.front());
  }
  return all;
}

/// A stacked tensor's weights, or nothing when there is no such tensor.
Result<std::optional<std::vector<CanonicalWeight>>> ReadStacked(const ExpertsRequest& request,
                                                                const std::string& projection,
                                                                int64_t halves, int64_t n,
                                                                int64_t k, Reader* reader) {
  using Weights = std::optional<std::vector<CanonicalWeight>>;
  Stack stack;
  stack.name = fmt::format("{}.{}", request.module, projection);
  if (!request.checkpoint.Find(stack.name)) return Weights();
  if (request.format == SourceFormat::kCompressedTensors) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("tensor {}: stacked experts are not supported in compressed-tensors",
                             Quoted(stack.name)),
                 Place{request.module, -1, projection}.Text(),
                 "expected one weight_packed an expert and projection"};
  }
  stack.names = kStackedNames;
  stack.place = {request.module, -1, projection};
  stack.stacked = true;
  stack.count = request.experts;
  stack.halves = halves;
  stack.n = n;
  stack.k = k;
  NIBBLE_TRY(auto weights, reader->Read(stack));
  return Weights(std::move(weights));
}

}  // namespace

Result<CanonicalWeight> ReadLinear(const Checkpoint& checkpoint, const std::string& module,
                                   const ModuleScheme& scheme, int64_t n, int64_t k,
                                   CanonicalReport* report) {
  NIBBLE_CHECK(n > 0 && k > 0, "a linear without rows or columns");
  Stack stack;
  stack.name = module;
  stack.names = NamesOf(scheme.source_format);
  stack.place = {module, -1, module.substr(module.rfind('.') + 1)};
  stack.n = n;
  stack.k = k;
  NIBBLE_TRY(auto weights, Reader(checkpoint, scheme, report).Read(stack));
  return weights.front();
}

Result<CanonicalExperts> ReadExperts(const Checkpoint& checkpoint, const std::string& module,
                                     const ModuleScheme& scheme, int experts, int64_t hidden,
                                     int64_t intermediate, bool gated, CanonicalReport* report) {
  NIBBLE_CHECK(experts > 0 && hidden > 0 && intermediate > 0, "experts without weights");
  NIBBLE_CHECK_OK(RefuseExtraExperts(checkpoint, module, experts));
  const ExpertsRequest request{checkpoint, module, scheme.source_format, experts};
  Reader reader(checkpoint, scheme, report);
  CanonicalExperts result;
  const int64_t halves = gated ? 2 : 1;
  NIBBLE_TRY(auto first, ReadStacked(request, gated ? "gate_up_proj" : "up_proj", halves,
                                     intermediate, hidden, &reader));
  if (first) {
    for (size_t i = 0; i < first->size(); ++i) {
      const bool is_gate = gated && i % 2 == 0;
      (is_gate ? result.gate : result.up).push_back((*first)[i]);
    }
  } else {
    if (gated) {
      NIBBLE_TRY(result.gate, ReadPerExpert(request, "gate_proj", intermediate, hidden, &reader));
    }
    NIBBLE_TRY(result.up, ReadPerExpert(request, "up_proj", intermediate, hidden, &reader));
  }
  NIBBLE_TRY(auto down, ReadStacked(request, "down_proj", 1, hidden, intermediate, &reader));
  if (down) {
    result.down = *std::move(down);
  } else {
    NIBBLE_TRY(result.down, ReadPerExpert(request, "down_proj", hidden, intermediate, &reader));
  }
  return result;
}

Result<std::vector<std::string>> CheckAllTensorsUsed(const Checkpoint& checkpoint,
                                                     const CanonicalReport& report) {
  std::vector<std::string> unread;
  const TensorInfo* stray = nullptr;
  size_t strays = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const std::string_view name = tensor.name;
    if (report.used.contains(name)) continue;
    const bool known = name.starts_with("model.visual.") || name.starts_with("visual.") ||
                       name.starts_with("mtp.") || name.ends_with(".k_scale") ||
                       name.ends_with(".v_scale");
    if (known) {
      unread.push_back(tensor.name);
    } else if (strays++ == 0) {
      stray = &tensor;
    }
  }
  if (!stray) return unread;
  return Error{
      ErrorCode::kCorruptFile,
      fmt::format("tensor {} ({} {}) belongs to no module of this model{}", Quoted(stray->name),
                  checkpoint::NameOf(stray->dtype), checkpoint::ShapeText(stray->shape),
                  strays == 1 ? std::string() : fmt::format(", nor do {} others", strays - 1)),
      checkpoint.FileOf(*stray), "config.json describes another model than these files hold"};
}

}  // namespace nibble::scheme
