#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "layout/canonical.h"
#include "scheme/canonical.h"
#include "scheme/quant_config.h"
#include "scheme/tensor_checks.h"
#include "scheme/weight_stack.h"

namespace nibble::scheme {

/// Reads the tensors of one module as its label declares them: canonical.cc finds them, this checks
/// them to the last scale and views them.
class WeightReader {
 public:
  /// All three must outlive the reader.
  WeightReader(const checkpoint::Checkpoint& checkpoint, const ModuleScheme& scheme,
               CanonicalReport* report)
      : checkpoint_(checkpoint), checks_(checkpoint), scheme_(scheme), report_(report) {}

  /// The weights of a stack, expert after expert, half after half.
  /// errors as ReadLinear's (scheme/canonical.h)
  Result<std::vector<CanonicalWeight>> Read(const WeightStack& stack);

 private:
  using TensorInfo = checkpoint::TensorInfo;
  using DType = checkpoint::DType;

  Result<std::vector<CanonicalWeight>> ReadBf16(const WeightStack& stack);
  Result<std::vector<CanonicalWeight>> ReadNvfp4(const WeightStack& stack);
  Result<std::vector<CanonicalWeight>> ReadFp8(const WeightStack& stack);

  using ScanCheck = Result<void> (*)(const TensorChecks& checks, const TensorInfo& tensor,
                                     const WeightStack& stack);
  /// Now, or when the report's scans are run.
  Result<void> Scan(ScanCheck check, const TensorInfo& tensor, const WeightStack& stack);
  static Result<void> CheckBlockScales(const TensorChecks& checks, const TensorInfo& scales,
                                       const WeightStack& stack);

  // FP8, in fp8_weights.cc.
  static Result<void> CheckFp8Codes(const TensorChecks& checks, const TensorInfo& codes,
                                    const WeightStack& stack);
  Result<std::vector<std::vector<float>>> Fp8Scales(const WeightStack& stack);
  Result<std::vector<std::vector<float>>> Fp8ScaleGrid(const WeightStack& stack);
  Result<std::string> Fp8ScaleName(const WeightStack& stack) const;
  Result<void> CheckScaleGrid(const TensorInfo& scales, const WeightStack& stack,
                              std::span<const float> values, int64_t columns) const;

  /// The tensor of that name, marked as used.
  Result<const TensorInfo*> Take(const std::string& name, DType dtype,
                                 const std::vector<uint64_t>& shape, const Place& place);
  /// Numbers in one of these types and shapes, marked as used.
  Result<std::vector<float>> TakeFloats(const std::string& name, std::span<const DType> types,
                                        std::span<const std::vector<uint64_t>> shapes,
                                        const Place& place);
  /// Scales of which a projection has one, as multipliers: finite and above 0. `format` says
  /// whether the file has their reciprocals.
  Result<std::vector<float>> ScalarScales(const std::string& name, std::span<const DType> types,
                                          const WeightStack& stack, SourceFormat format);
  /// Reports an activation scale that the label has no use for, whatever it holds.
  void Ignore(const std::string& name);

  /// A label of quantization over 16-bit weights.
  Result<void> RefuseUnquantized(const WeightStack& stack) const;
  Error Contradiction(const TensorInfo& tensor, const Place& place) const;
  /// With the label that asked for the tensor: a wrong label is as likely as a wrong file.
  Error Explained(Error e) const;
  std::string LabelText() const;

  const checkpoint::Checkpoint& checkpoint_;
  const TensorChecks checks_;
  const ModuleScheme& scheme_;
  CanonicalReport* report_;
};

}  // namespace nibble::scheme
