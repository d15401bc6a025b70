#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/safetensors_writer.h"
#include "checkpoint/test_shard.h"
#include "scheme/canonical.h"

// The small checkpoints that the tests of this folder read: one linear, and one block of experts.

namespace nibble::scheme {

using checkpoint::Checkpoint;
using checkpoint::DType;
using checkpoint::TensorToWrite;
using Tensors = std::vector<TensorToWrite>;

inline constexpr int kE = 3, kH = 32, kI = 48;  // all different, as are their quotients
inline const char* const kLinear = "model.layers.5.self_attn.o_proj";
inline const char* const kBlock = "model.layers.5.mlp.experts";

inline const ModuleScheme kModeloptA16{kW4A16, SourceFormat::kModelopt, "LABEL"};
inline const ModuleScheme kModeloptA4{kW4A4, SourceFormat::kModelopt, "LABEL"};
inline const ModuleScheme kCtA16{kW4A16, SourceFormat::kCompressedTensors, "LABEL"};
inline const ModuleScheme kCtA4{kW4A4, SourceFormat::kCompressedTensors, "LABEL"};
inline const ModuleScheme kBf16{kBf16Scheme, SourceFormat::kNone, "LABEL"};

inline std::string F32(std::initializer_list<float> values) {
  std::string bytes;
  for (const float v : values) {
    bytes.append(reinterpret_cast<const char*>(&v), sizeof v);
  }
  return bytes;
}

/// Bytes that differ from name to name and from place to place; block scales stay below 0x7F.
inline std::string Fill(size_t count, unsigned seed, unsigned mask) {
  std::string bytes(count, 0);
  for (size_t i = 0; i < count; ++i) {
    bytes[i] = static_cast<char>((i * 37 + seed * 11 + (i >> 8)) & mask);
  }
  return bytes;
}

/// One NVFP4 linear's tensors in either dialect. `global` and `input` are the multipliers.
inline void AddNvfp4(Tensors* out, SourceFormat format, const std::string& module, size_t n,
                     size_t k, unsigned seed, float global, float input) {
  const bool ct = format == SourceFormat::kCompressedTensors;
  const std::vector<uint64_t> scalar = ct ? std::vector<uint64_t>{1} : std::vector<uint64_t>{};
  out->push_back({module + (ct ? ".weight_packed" : ".weight"),
                  DType::kU8,
                  {n, k / 2},
                  Fill(n * k / 2, seed, 0xFF)});
  out->push_back(
      {module + ".weight_scale", DType::kF8E4m3, {n, k / 16}, Fill(n * k / 16, seed + 1, 0x3F)});
  out->push_back({module + (ct ? ".weight_global_scale" : ".weight_scale_2"), DType::kF32, scalar,
                  F32({ct ? 1 / global : global})});
  out->push_back({module + (ct ? ".input_global_scale" : ".input_scale"), DType::kF32, scalar,
                  F32({ct ? 1 / input : input})});
}

inline float GlobalOf(int expert, int projection) {
  return 1e-4f * static_cast<float>(1 + 3 * expert + projection);
}
inline float InputOf(int expert, int projection) {
  return 3e-3f * static_cast<float>(1 + 3 * expert + projection);
}
inline constexpr const char* kProjections[] = {"gate_proj", "up_proj", "down_proj"};

inline Tensors LinearTensors(SourceFormat format) {
  Tensors tensors;
  AddNvfp4(&tensors, format, kLinear, kH, kI, 7, 1e-4f, 3e-3f);
  return tensors;
}
inline Tensors ExpertTensors(SourceFormat format) {
  Tensors tensors;
  for (int e = 0; e < kE; ++e) {
    for (int p = 0; p < 3; ++p) {
      AddNvfp4(&tensors, format,
               std::string(kBlock) + "." + std::to_string(e) + "." + kProjections[p],
               p == 2 ? kH : kI, p == 2 ? kI : kH, static_cast<unsigned>(10 * e + p),
               GlobalOf(e, p), InputOf(e, p));
    }
  }
  return tensors;
}

inline TensorToWrite* Find(Tensors* tensors, const std::string& end) {
  for (TensorToWrite& t : *tensors) {
    if (t.name.ends_with(end)) return &t;
  }
  ADD_FAILURE() << "the test names no tensor " << end;
  return &tensors->front();
}
inline void Remove(Tensors* tensors, const std::string& end) {
  std::erase_if(*tensors, [&](const TensorToWrite& t) { return t.name.ends_with(end); });
}

class CanonicalTest : public ::testing::Test {
 protected:
  /// A checkpoint of these tensors, in a directory of its own: earlier ones stay mapped.
  const Checkpoint& Open(const Tensors& tensors) {
    const std::string name = std::to_string(checkpoints_.size());
    const std::string dir = dir_.path() + "/" + name;
    std::filesystem::create_directory(dir);
    dir_.Write(name + "/config.json", "{}");
    EXPECT_TRUE(checkpoint::WriteSafetensors(dir + "/model.safetensors", tensors).ok());
    auto opened = Checkpoint::Open(dir);
    EXPECT_TRUE(opened.ok()) << opened.error().Message();
    checkpoints_.push_back(std::make_unique<Checkpoint>(*std::move(opened)));
    return *checkpoints_.back();
  }
  Result<CanonicalWeight> Linear(const Tensors& tensors, const ModuleScheme& scheme) {
    return ReadLinear(Open(tensors), kLinear, scheme, kH, kI, &report_);
  }
  Result<CanonicalExperts> Experts(const Tensors& tensors, const ModuleScheme& scheme) {
    return ReadExperts(Open(tensors), kBlock, scheme, kE, kH, kI, true, &report_);
  }

  /// What reading says and, if nothing, what the scans say that it left.
  template <class Read>
  Result<void> Deferred(Read read) {
    report_ = {};
    report_.defers_scans = true;
    auto done = read();
    Result<void> status;
    if (!done.ok()) status = std::move(done).error();
    for (const CanonicalReport::Scan& scan : report_.scans) {
      if (status.ok()) status = scan.check();
    }
    report_ = {};
    return status;
  }

  checkpoint::TestDir dir_;
  CanonicalReport report_;
  std::vector<std::unique_ptr<Checkpoint>> checkpoints_;
};

inline std::string CodesOf(const CanonicalWeight& w) {
  const auto& v = std::get<CanonicalNvfp4>(w);
  return {reinterpret_cast<const char*>(v.codes), static_cast<size_t>(v.n * v.k / 2)};
}
inline std::string ScalesOf(const CanonicalWeight& w) {
  const auto& v = std::get<CanonicalNvfp4>(w);
  return {reinterpret_cast<const char*>(v.scales), static_cast<size_t>(v.n * v.k / 16)};
}

}  // namespace nibble::scheme
