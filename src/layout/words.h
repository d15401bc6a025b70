#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// The words that scheme, plan, weights and kernels share.

/// Which quantizer's dialect a checkpoint speaks; kNone for 16-bit ones. kFp8 is that of DeepSeek's
/// and Qwen's own FP8 files.
enum class SourceFormat : uint8_t { kNone, kModelopt, kCompressedTensors, kFp8 };

/// What a kernel does to its activations before the multiplication.
enum class ActivationPrecision : uint8_t { kBf16, kFp8, kFp4 };

/// Who computes. Named for what they are; the roles upstream are in docs (REFERENCE = EMULATION,
/// HOPPER = HUMMING, …).
enum class Backend : uint8_t { kReference, kCpu, kMarlin, kHopper, kB12x, kCutlass };

/// What a gated (or not) MLP does between its two multiplications.
enum class Activation : uint8_t {
  kSilu,                   // silu(g) * u
  kSwigluOai,              // rows interleaved; clamp, alpha, +beta
  kSwigluOaiUninterleave,  // the same, halves one after the other
  kRelu2NoMul,             // relu(x)^2, no gate
  // Known by name, run by no kernel:
  kGelu,
  kGeluTanh,
  kSwigluStep,
  kSitu,
};

std::string_view NameOf(SourceFormat format);  // "none", "modelopt", "compressed_tensors", "fp8"
std::string_view NameOf(ActivationPrecision precision);  // "bf16", "fp8", "fp4"
std::string_view NameOf(Backend backend);                // "REFERENCE", "CPU", "MARLIN", …
std::string_view NameOf(Activation activation);          // "silu", "swigluoai", …

/// What a KV cache holds; kF32Bf16: keys in fp32, values in bf16.
enum class KvDtype : uint8_t { kF32, kF32Bf16, kBf16, kFp8 };
std::string_view NameOf(KvDtype dtype);  // "f32", "f32+bf16", "bf16", "fp8"
/// What it holds of keys, and of values: one of the other three.
constexpr KvDtype KeysOf(KvDtype dtype) {
  return dtype == KvDtype::kF32Bf16 ? KvDtype::kF32 : dtype;
}
constexpr KvDtype ValuesOf(KvDtype dtype) {
  return dtype == KvDtype::kF32Bf16 ? KvDtype::kBf16 : dtype;
}
/// Bytes of a number of one of those three.
constexpr int64_t BytesOf(KvDtype dtype) {
  return dtype == KvDtype::kF32 ? 4 : dtype == KvDtype::kBf16 ? 2 : 1;
}
/// Bytes of a number of a key and one of a value.
constexpr int64_t KvBytes(KvDtype dtype) {
  return BytesOf(KeysOf(dtype)) + BytesOf(ValuesOf(dtype));
}

enum class DeviceKind : uint8_t { kCpu, kCuda };

/// The instruction sets that CPU kernels are written for, weakest first: a machine that has one has
/// those before it.
enum class CpuIsa : uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16 };
std::string_view NameOf(
    CpuIsa isa);  // "scalar", "avx2", "avx512", "avx512bf16": also what NIBBLE_ISA takes

/// A device to plan for: this machine's, or one that is only described.
struct DeviceInfo {
  DeviceKind kind = DeviceKind::kCpu;
  std::string name = "cpu";    // "cpu", "sm_90", "sm_121"
  std::string model;           // "AMD EPYC …", "NVIDIA H200"; may be empty
  int compute_capability = 0;  // CUDA: 10 * major + minor, 121 for 12.1
  CpuIsa isa = CpuIsa::kScalar;
  int cores = 0;
  uint64_t memory_bytes = 0;
  bool present = false;  // in this machine
};

}  // namespace nibble
