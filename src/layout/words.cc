#include "layout/words.h"

namespace nibble {

std::string_view NameOf(SourceFormat format) {
  switch (format) {
    case SourceFormat::kNone:
      return "none";
    case SourceFormat::kModelopt:
      return "modelopt";
    case SourceFormat::kCompressedTensors:
      return "compressed_tensors";
    case SourceFormat::kFp8:
      return "fp8";
  }
  return "?";
}

std::string_view NameOf(ActivationPrecision precision) {
  switch (precision) {
    case ActivationPrecision::kBf16:
      return "bf16";
    case ActivationPrecision::kFp8:
      return "fp8";
    case ActivationPrecision::kFp4:
      return "fp4";
  }
  return "?";
}

std::string_view NameOf(Backend backend) {
  switch (backend) {
    case Backend::kReference:
      return "REFERENCE";
    case Backend::kCpu:
      return "CPU";
    case Backend::kMarlin:
      return "MARLIN";
    case Backend::kHopper:
      return "HOPPER";
    case Backend::kB12x:
      return "B12X";
    case Backend::kCutlass:
      return "CUTLASS";
  }
  return "?";
}

std::string_view NameOf(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kSwigluOai:
      return "swigluoai";
    case Activation::kSwigluOaiUninterleave:
      return "swigluoai_uninterleave";
    case Activation::kRelu2NoMul:
      return "relu2_no_mul";
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_tanh";
    case Activation::kSwigluStep:
      return "swiglustep";
    case Activation::kSitu:
      return "situ";
  }
  return "?";
}

std::string_view NameOf(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kF32:
      return "f32";
    case KvDtype::kF32Bf16:
      return "f32+bf16";
    case KvDtype::kBf16:
      return "bf16";
    case KvDtype::kFp8:
      return "fp8";
  }
  return "?";
}

std::string_view NameOf(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return "scalar";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512bf16";
  }
  return "?";
}

}  // namespace nibble
